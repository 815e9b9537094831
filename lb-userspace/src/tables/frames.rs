//! Frames that answer no packet, built from a slot: the client's SYN again, and resets for both
//! sides. The only place in user space that knows packet offsets.

use std::net::{SocketAddr, SocketAddrV4};

use lb_common::{
    address::{from_mapped, socket_address},
    checksum,
    layout::{Hop, Listener, Pool},
    seq,
    tcp::{ACK, RST, SYN},
};

use super::flow::Flow;

/// Ethernet header (IEEE 802.3), IPv4 header without options (RFC 791), TCP header without options
/// (RFC 9293).
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
/// The default of Linux; far more than the hops to any next host.
const TTL: u8 = 64;
const DONT_FRAGMENT: u8 = 0x40;
const PROTOCOL_TCP: u8 = 6;

/// A frame, and the interface (its row in INTERFACES) by which it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The interface.
    pub interface: u8,
    /// The frame, from its Ethernet header on.
    pub frame: Vec<u8>,
}

/// One TCP segment without payload.
struct Segment<'a> {
    source_mac: [u8; 6],
    target_mac: [u8; 6],
    source: SocketAddrV4,
    target: SocketAddrV4,
    seq: u32,
    ack: u32,
    flags: u8,
    window: [u8; 2],
    tos: u8,
    options: &'a [u8],
}

impl Segment<'_> {
    fn frame(&self) -> Vec<u8> {
        let header = TCP + self.options.len().next_multiple_of(4);
        let total = (IPV4 + header) as u16;
        let mut frame = vec![0; ETHERNET + IPV4 + header];
        frame[..6].copy_from_slice(&self.target_mac);
        frame[6..12].copy_from_slice(&self.source_mac);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);

        let ip = &mut frame[ETHERNET..];
        ip[0] = 0x45;
        ip[1] = self.tos;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[6] = DONT_FRAGMENT;
        ip[8] = TTL;
        ip[9] = PROTOCOL_TCP;
        ip[12..16].copy_from_slice(&self.source.ip().octets());
        ip[16..20].copy_from_slice(&self.target.ip().octets());
        let field = checksum::finish(sum(&ip[..IPV4]));
        ip[10..12].copy_from_slice(&field.to_ne_bytes());

        let tcp = &mut frame[ETHERNET + IPV4..];
        tcp[0..2].copy_from_slice(&self.source.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&self.target.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&self.seq.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.ack.to_be_bytes());
        tcp[12] = (header as u8 / 4) << 4;
        tcp[13] = self.flags;
        tcp[14..16].copy_from_slice(&self.window);
        tcp[TCP..TCP + self.options.len()].copy_from_slice(self.options);
        let field = checksum::finish(sum(tcp) + self.pseudo_header(header as u16));
        tcp[16..18].copy_from_slice(&field.to_ne_bytes());
        frame
    }

    /// RFC 9293 section 3.1: addresses, protocol and length are part of the checksum.
    fn pseudo_header(&self, length: u16) -> u64 {
        sum(&self.source.ip().octets())
            + sum(&self.target.ip().octets())
            + sum(&[0, PROTOCOL_TCP])
            + sum(&length.to_be_bytes())
    }
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

/// The client's first SYN, as far as its slot has kept it, from a flow that is half-open: the program
/// must see it again to move on to the next backend. `mac` is our interface's.
pub fn client_syn(flow: &Flow, listener: &Listener, mac: [u8; 6]) -> Option<Vec<u8>> {
    let syn = flow.opening.syn;
    let (words, count) = syn.options();
    let options: Vec<u8> = words.iter().take(count as usize).flat_map(|word| word.to_ne_bytes()).collect();
    let segment = Segment {
        source_mac: flow.record.hop.mac(),
        target_mac: mac,
        source: v4(flow.client())?,
        target: v4(socket_address(listener.address, listener.port))?,
        seq: (flow.record.end_client as u32).wrapping_sub(1),
        ack: 0,
        flags: SYN,
        window: syn.window,
        tos: syn.tos,
        options: &options,
    };
    Some(segment.frame())
}

/// A SYN to a listener as a client's host would send it, to our interface's MAC address. `None` for
/// IPv6.
pub fn first_syn(client: SocketAddr, listener: &Listener, mac: [u8; 6], initial: u32) -> Option<Vec<u8>> {
    /// The address of no host: locally administered (IEEE 802).
    const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
    /// Maximum segment size 1460, as on Ethernet.
    const OPTIONS: [u8; 4] = [2, 4, 5, 180];
    let segment = Segment {
        source_mac: NOBODY,
        target_mac: mac,
        source: v4(client)?,
        target: v4(socket_address(listener.address, listener.port))?,
        seq: initial,
        ack: 0,
        flags: SYN,
        window: 64_240_u16.to_be_bytes(),
        tos: 0,
        options: &OPTIONS,
    };
    Some(segment.frame())
}

/// Resets for both sides of a flow that we have closed. `mac` gives the MAC address of one of our
/// interfaces.
///
/// A reset is accepted only at exactly the next sequence number that its receiver expects (RFC 5961
/// section 3.2): the last acknowledgement seen from it or, if data beyond that was forwarded to it,
/// the end of that data. A second reset covers the second case. Both acknowledge all that the
/// receiver has sent, so that they are accepted in SYN-SENT too. To a backend whose number is not
/// known they acknowledge nothing: in SYN-RECEIVED Linux looks at an acknowledgement first, and
/// ignores a reset with a wrong one.
pub fn resets(flow: &Flow, listener: &Listener, pool: &Pool, mac: impl Fn(u8) -> [u8; 6]) -> Vec<Outgoing> {
    let endpoints = || {
        let vip = v4(socket_address(listener.address, listener.port))?;
        let snat_port = pool.first_port.wrapping_add(flow.at.slot());
        let snat = v4(SocketAddr::new(from_mapped(pool.snat), snat_port))?;
        let backend = v4(socket_address(pool.backend, pool.port))?;
        Some((v4(flow.client())?, vip, snat, backend))
    };
    let Some((client, vip, snat, backend)) = endpoints() else { return Vec::new() };
    let record = &flow.record;
    let (end_client, end_backend) = (record.end_client as u32, record.end_backend as u32);
    let (to_client, to_backend) = if flow.is_answered() {
        (sequences(record.ack_client, end_backend), sequences(record.ack_backend, end_client))
    } else {
        // The client waits in SYN-SENT, where only the acknowledgement counts; the backend, if it
        // has answered at all, expects what follows the SYN.
        (vec![0], vec![end_client])
    };
    let ack_backend = flow.is_answered().then_some(end_backend);
    let reset = |hop: Hop, source, target, seq, ack| {
        let frame = reset([mac(hop.interface()), hop.mac()], [source, target], (seq, ack));
        Outgoing { interface: hop.interface(), frame }
    };
    let mut frames = Vec::new();
    if record.hop.is_known() {
        frames.extend(to_client.into_iter().map(|seq| reset(record.hop, vip, client, seq, Some(end_client))));
    }
    if pool.hop.is_known() {
        frames.extend(to_backend.into_iter().map(|seq| reset(pool.hop, snat, backend, seq, ack_backend)));
    }
    frames
}

/// A reset from one address to another, which acknowledges what its receiver has sent, if that is
/// known.
fn reset(macs: [[u8; 6]; 2], ends: [SocketAddrV4; 2], (seq, ack): (u32, Option<u32>)) -> Vec<u8> {
    let ([source_mac, target_mac], [source, target]) = (macs, ends);
    let flags = if ack.is_some() { RST | ACK } else { RST };
    let (ack, window) = (ack.unwrap_or(0), [0; 2]);
    Segment { source_mac, target_mac, source, target, seq, ack, flags, window, tos: 0, options: &[] }.frame()
}

/// A reset from a port of ours to the backend of its pool, whatever connection it is. `None` if the
/// way to the backend is not known.
pub fn port_reset(pool: &Pool, slot: u16, numbers: (u32, Option<u32>), mac: [u8; 6]) -> Option<Vec<u8>> {
    let source = v4(SocketAddr::new(from_mapped(pool.snat), pool.first_port.wrapping_add(slot)))?;
    let target = v4(socket_address(pool.backend, pool.port))?;
    pool.hop.is_known().then(|| reset([mac, pool.hop.mac()], [source, target], numbers))
}

/// A keepalive as the client would send it (RFC 1122 section 4.2.3.6): the sequence number before
/// the one that the backend expects, and no data. The backend must acknowledge it, and it changes
/// nothing. `None` if the way to the backend is not known.
pub fn keepalive(flow: &Flow, pool: &Pool, mac: [u8; 6]) -> Option<Vec<u8>> {
    let segment = Segment {
        source_mac: mac,
        target_mac: pool.hop.mac(),
        source: v4(SocketAddr::new(from_mapped(pool.snat), pool.first_port.wrapping_add(flow.at.slot())))?,
        target: v4(socket_address(pool.backend, pool.port))?,
        seq: flow.record.ack_backend.wrapping_sub(1),
        ack: flow.record.ack_client,
        flags: ACK,
        // Not acceptable, so nothing looks at it.
        window: [0xff, 0xff],
        tos: 0,
        options: &[],
    };
    (flow.is_connected() && pool.hop.is_known()).then(|| segment.frame())
}

/// The controller's own test packet to a listener: a segment of no connection, from no address,
/// with the number by which the program knows it.
pub fn self_test(listener: &Listener, mac: [u8; 6], number: u32) -> Option<Vec<u8>> {
    let segment = Segment {
        source_mac: [2, 0, 0, 0, 0, 0],
        target_mac: mac,
        source: SELF_TEST,
        target: v4(socket_address(listener.address, listener.port))?,
        seq: number,
        ack: SELF_TEST_ACK,
        flags: ACK,
        window: [0; 2],
        tos: 0,
        options: &[],
    };
    Some(segment.frame())
}

const SELF_TEST: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 1);
const SELF_TEST_ACK: u32 = 0x4556_4b4c;

/// Whether a frame is the right answer to [`self_test`]: the listener's RST.
pub fn answers_self_test(frame: &[u8], listener: &Listener) -> bool {
    let tcp = frame.get(ETHERNET + IPV4..);
    let sequence = tcp.and_then(|tcp| tcp.get(4..8)).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
    let flags = tcp.and_then(|tcp| tcp.get(13));
    let vip = socket_address(listener.address, listener.port);
    let ends = endpoints(frame).map(|(source, target)| (SocketAddr::V4(source), target));
    (ends, sequence, flags) == (Some((vip, SELF_TEST)), Some(SELF_TEST_ACK), Some(&RST))
}

/// The sequence numbers that the receiver of a reset may expect: the one that it acknowledged last,
/// or the end of what was sent to it.
fn sequences(acknowledged: u32, sent: u32) -> Vec<u32> {
    if seq::before(acknowledged, sent) { vec![acknowledged, sent] } else { vec![acknowledged] }
}

fn v4(address: SocketAddr) -> Option<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(_) => None,
    }
}

/// Source and target of an IPv4 TCP frame of ours.
pub fn endpoints(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4)> {
    let is_plain = frame.get(12..15)? == [0x08, 0x00, 0x45] && *frame.get(ETHERNET + 9)? == PROTOCOL_TCP;
    let address = |at: usize| frame.get(at..at + 4)?.try_into().ok().map(|octets: [u8; 4]| octets.into());
    let port = |at: usize| Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?));
    let source = SocketAddrV4::new(address(ETHERNET + 12)?, port(ETHERNET + IPV4)?);
    let target = SocketAddrV4::new(address(ETHERNET + 16)?, port(ETHERNET + IPV4 + 2)?);
    is_plain.then_some((source, target))
}

#[cfg(test)]
mod tests;
