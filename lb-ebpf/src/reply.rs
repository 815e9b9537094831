//! Frames that are written from scratch in place of one that came: a RST to its sender, a RST to
//! the client, a challenge, the client's SYN to its backend, an ICMP error.

use lb_common::{
    address::V4,
    flow::SlotAt,
    hash,
    layout::{CLAMP_TO_WAYS, Hop, Interface, Slot},
    syn::{DEFAULT_MSS, SavedSyn},
    tcp::{ACK, RST, SYN, Side},
    verdict::Reason,
};
use network_types::{eth::EtherType, ip::IpProto};

use crate::{
    clock, cookie,
    cursor::{Bytes, Frame, Headers, QUOTED, field, icmp},
    klog,
    maps::{self, RstTokens},
    parse::{self, Segment},
    records::{self, Held},
    report::{count, dropped, impossible},
};

/// RSTs of one kind that one CPU sends in a burst.
const RST_BURST: u64 = 10_000;
/// RSTs of one kind that one CPU sends for each tick: some 9,500 per second.
const RST_PER_TICK: u64 = 10;

/// What limits the answers to strays, of which there may be a flood.
const STRAYS: u32 = 0;
/// To segments of connections that we have ended or given up.
const ENDED: u32 = 1;
/// To clients that are turned away.
const TURNED_AWAY: u32 = 2;
/// Challenges.
const CHALLENGES: u32 = 3;

/// Which limit answers for this reason have.
#[inline(always)]
const fn bucket_of(reason: u32) -> u32 {
    const AFTER_CLOSE: u32 = Reason::AfterClose as u32;
    const LATE: u32 = Reason::LateSynAck as u32;
    const JUNK: u32 = Reason::HalfOpenJunk as u32;
    const FIRST: u32 = Reason::NoBackend as u32;
    const LAST: u32 = Reason::ClientLimit as u32;
    match reason {
        AFTER_CLOSE | LATE | JUNK => ENDED,
        FIRST..=LAST => TURNED_AWAY,
        _ => STRAYS,
    }
}

/// Answers the sender of a segment with a RST that it accepts (RFC 9293 section 3.10.7.1). A RST is
/// never answered. The caller has counted why.
#[inline(never)]
pub fn reset<F: Frame>(frame: F, reason: u32) -> i32 {
    let Some(segment) = parse::segment(frame) else { return impossible::<F>() };
    if segment.flags & RST != 0 || !(segment.is_self_test() || allowed(bucket_of(reason))) {
        return F::DROP;
    }
    let (sequence, acknowledgement, flags) =
        if segment.flags & ACK != 0 { (segment.acknowledgement, 0, RST) } else { (0, segment.end(), RST | ACK) };
    turn_round(frame, segment, (sequence, acknowledgement), tcp_word(20, flags, [0; 2]))
}

/// Answers a SYN with a SYN cookie, to whoever sent it: nothing else is known of its client. The
/// window is the one that a firewall takes the number to lie in.
#[inline(never)]
pub fn cookie<F: Frame>(frame: F) -> i32 {
    let Some(segment) = parse::segment(frame) else { return impossible::<F>() };
    turn_round(frame, segment, (clock::random(), cookie::number(segment)), tcp_word(20, SYN | ACK, [0xff; 2]))
}

/// Turns the frame into a segment to its sender, with these sequence and acknowledgement numbers.
#[inline(always)]
fn turn_round<F: Frame>(frame: F, segment: Segment, (sequence, acknowledgement): (u32, u32), flags: u32) -> i32 {
    let bytes = frame.bytes();
    if !bytes.has(field::PAYLOAD) {
        return impossible::<F>();
    }
    let mut headers = turned_round(bytes, segment);
    headers.tcp[0] = segment.destination_port as u32 | (segment.source_port as u32) << 16;
    headers.tcp[1] = sequence.to_be();
    headers.tcp[2] = acknowledgement.to_be();
    headers.tcp[3] = flags;
    finish(frame, &mut headers, 20, 0, frame.ingress())
}

/// The addresses of a frame back to its sender.
#[inline(always)]
fn turned_round(bytes: Bytes, segment: Segment) -> Headers {
    let mut headers = empty();
    for (word, offset) in [6, 8, 10, 0, 2, 4].into_iter().enumerate() {
        headers.ethernet[word] = bytes.read(offset);
    }
    headers.ip[3] = segment.destination;
    headers.ip[4] = segment.source;
    headers
}

/// Refuses the client of the half-open flow in a slot: the RST that answers its SYN.
#[inline(never)]
pub fn refuse<F: Frame>(frame: F, at: SlotAt) -> i32 {
    let Some(slot) = records::slot(at) else { return dropped::<F>(Reason::LostRace) };
    tell_client(frame, slot, (0, slot.end_client() as u32), tcp_word(20, RST | ACK, [0; 2]))
}

/// Answers a SYN for an open flow with the acknowledgement that the flow is at (RFC 5961 section 4):
/// a client that has the connection ignores it, one that has forgotten it answers with an exact RST.
/// It goes to the flow's own next hop: whoever else has sent the SYN must not learn the numbers.
#[inline(never)]
pub fn challenge<F: Frame>(frame: F, at: SlotAt) -> i32 {
    let Some(slot) = records::slot(at) else { return dropped::<F>(Reason::LostRace) };
    if !allowed(CHALLENGES) {
        return F::DROP;
    }
    // The window as the backend has stated it last: a client that has the connection believes it.
    let left = slot.edge_client().wrapping_sub(slot.ack_backend()) >> slot.scales().of(Side::Backend);
    let window = if left > 0xffff { 0xffff } else { left as u16 };
    let numbers = (slot.end_backend() as u32, slot.ack_backend());
    tell_client(frame, slot, numbers, tcp_word(20, ACK, window.to_be_bytes()))
}

/// Turns the frame into a segment from the listener to the client of a flow, with these sequence and
/// acknowledgement numbers.
#[inline(always)]
fn tell_client<F: Frame>(frame: F, slot: Held<Slot>, (sequence, acknowledgement): (u32, u32), flags: u32) -> i32 {
    let key = slot.key();
    let Some(listener) = records::listener(key.listener() as u32) else { return dropped::<F>(Reason::Damaged) };
    let mut headers = empty();
    let Some(interface) = ethernet(&mut headers, slot.hop()) else { return dropped::<F>(Reason::NoNextHop) };
    headers.ip[3] = listener.address::<V4>();
    headers.ip[4] = key.address_word();
    headers.tcp[0] = listener.port() as u32 | (key.port() as u32) << 16;
    headers.tcp[1] = sequence.to_be();
    headers.tcp[2] = acknowledgement.to_be();
    headers.tcp[3] = flags;
    finish(frame, &mut headers, 20, 0, interface.ifindex())
}

/// Turns the frame into the SYN of the flow in a slot, written anew for its backend.
#[inline(never)]
pub fn saved_syn<F: Frame>(frame: F, at: SlotAt) -> i32 {
    let most = most_payload(at);
    let (Some(slot), Some(opening)) = (records::slot(at), records::opening(at)) else {
        return dropped::<F>(Reason::LostRace);
    };
    let Some(pool) = records::pool(at.pool() as u32) else { return impossible::<F>() };
    let mut headers = empty();
    let Some(interface) = ethernet(&mut headers, pool.hop()) else { return dropped::<F>(Reason::NoNextHop) };
    let syn = opening.syn();
    if syn.saved == 0 {
        // Another CPU is about to write down what the client's first SYN said.
        return dropped::<F>(Reason::LostRace);
    }
    let (options, count) = SavedSyn { mss: if syn.mss > most { most } else { syn.mss }, ..syn }.options();
    let length = 20 + count * 4;
    headers.ip[3] = pool.snat::<V4>();
    headers.ip[4] = pool.backend::<V4>();
    headers.tcp[0] = pool.snat_port(at) as u32 | (pool.backend_port() as u32) << 16;
    headers.tcp[1] = (slot.end_client() as u32).wrapping_sub(1).to_be();
    headers.tcp[3] = tcp_word(length, SYN, syn.window);
    headers.tcp[5..10].copy_from_slice(&options);
    // Whoever quotes this segment in an ICMP error has seen it, see `icmp`.
    let identification = hash::identification(maps::seed(), at, slot.ctl().generation());
    headers.ip[1] = identification as u32;
    finish(frame, &mut headers, length, syn.tos, interface.ifindex())
}

/// The most payload that the segments of a flow may have, from either side.
#[inline(always)]
pub fn most_payload(at: SlotAt) -> u16 {
    most_payload_global(at.0) as u16
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn most_payload_global(at: u32) -> u32 {
    const ANY: u32 = u16::MAX as u32;
    let at = SlotAt(at);
    let Some(slot) = records::slot(at) else { return ANY };
    let listener = records::listener(slot.key().listener() as u32);
    let Some(service) = listener.and_then(|listener| records::service(listener.service() as u32)) else { return ANY };
    match service.mss_clamp() {
        0 => ANY,
        CLAMP_TO_WAYS => {
            let Some(pool) = records::pool(at.pool() as u32) else { return ANY };
            let (inside, outside) = (mtu_of(pool.hop()), mtu_of(slot.hop()));
            payload_of(if inside < outside { inside } else { outside })
        }
        bytes => bytes,
    }
}

/// The longest packet that the way to a next hop takes.
#[inline(always)]
fn mtu_of(hop: Hop) -> u32 {
    let interface = if hop.is_known() { records::interface(hop.interface() as u32) } else { None };
    interface.map_or(u32::MAX, |interface| interface.mtu())
}

/// The payload of a packet of `mtu` bytes with headers without options (RFC 6691), and at least
/// what every host takes.
#[inline(always)]
const fn payload_of(mtu: u32) -> u32 {
    const HEADERS: u32 = (field::PAYLOAD - field::IP) as u32;
    const ANY: u32 = u16::MAX as u32 + HEADERS;
    const LEAST: u32 = DEFAULT_MSS as u32 + HEADERS;
    match mtu {
        0..LEAST => LEAST - HEADERS,
        LEAST..ANY => mtu - HEADERS,
        ANY.. => ANY - HEADERS,
    }
}

/// Answers the sender of a segment whose time to live has run out.
#[inline(always)]
pub fn time_exceeded<F: Frame>(frame: F) -> i32 {
    error(frame, TIME_EXCEEDED)
}

/// Answers the sender of a segment that is larger than `mtu`, which its way out takes.
#[inline(always)]
pub fn too_large<F: Frame>(frame: F, mtu: u32) -> i32 {
    error(frame, FRAGMENTATION_NEEDED | mtu << 16)
}

/// Answers the sender of a segment with an ICMP error about it: type and code, and the MTU, which
/// is zero in all errors but one. It goes back where the frame came from.
#[inline(never)]
fn error<F: Frame>(frame: F, what: u32) -> i32 {
    let Some(segment) = parse::segment(frame) else { return impossible::<F>() };
    // LLVM would take over the frame's end from above, in 32 bits.
    let bytes = frame.anew().bytes();
    if !bytes.has(field::PAYLOAD) {
        return impossible::<F>();
    }
    let mtu = what >> 16;
    let reason = match mtu {
        0 => Reason::TtlExpired,
        _ if bytes.read::<u16>(field::FRAGMENT) & DONT_FRAGMENT == 0 => Reason::TooLargeNoDf,
        _ => Reason::TooLarge,
    };
    klog::dropped(segment, reason as u32);
    count(reason);
    if matches!(reason, Reason::TooLargeNoDf) || !may_send(records::error_tokens((mtu != 0) as u32)) {
        return F::DROP;
    }
    let mut headers = turned_round(bytes, segment);
    headers.tcp[0] = what & 0xffff;
    headers.tcp[1] = ((mtu as u16).to_be() as u32) << 16;
    for i in 0..QUOTED / 4 {
        headers.tcp[2 + i] = bytes.read(field::IP + i * 4);
    }
    let total = (icmp::END - field::IP + QUOTED) as u16;
    begin(&mut headers, total, PRECEDENCE, IpProto::Icmp);
    if !frame.quote(&mut headers) {
        return dropped::<F>(Reason::RewriteFailed);
    }
    frame.send(frame.ingress())
}

/// Types and codes of ICMP, as they lie in a packet.
const TIME_EXCEEDED: u32 = u16::from_ne_bytes([11, 0]) as u32;
const FRAGMENTATION_NEEDED: u32 = u16::from_ne_bytes([3, 4]) as u32;
/// In an IPv4 header: it must not be fragmented (DF).
const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();
/// The precedence of ICMP errors: internetwork control (RFC 1812 section 4.3.2.5).
const PRECEDENCE: u8 = 0xc0;

#[inline(always)]
fn empty() -> Headers {
    Headers { align: [0; 2], ethernet: [0; 7], ip: [0; 5], tcp: [0; 15] }
}

/// Data offset, flags and window as they lie in memory.
#[inline(always)]
fn tcp_word(length: u32, flags: u8, window: [u8; 2]) -> u32 {
    u32::from_ne_bytes([(length << 2) as u8, flags, window[0], window[1]])
}

/// Writes the fixed fields, replaces the frame and sends it.
#[inline(always)]
fn finish<F: Frame>(frame: F, headers: &mut Headers, length: u32, tos: u8, ifindex: u32) -> i32 {
    begin(headers, (20 + length) as u16, tos, IpProto::Tcp);
    if !frame.replace(headers, length) {
        return dropped::<F>(Reason::RewriteFailed);
    }
    frame.send(ifindex)
}

/// Writes the fixed fields of a packet of `total` bytes.
#[inline(always)]
fn begin(headers: &mut Headers, total: u16, tos: u8, protocol: IpProto) {
    headers.ethernet[6] = EtherType::Ipv4 as u16;
    let total = total.to_be_bytes();
    headers.ip[0] = u32::from_ne_bytes([0x45, tos, total[0], total[1]]);
    headers.ip[1] |= u32::from_ne_bytes([0, 0, 0x40, 0]);
    headers.ip[2] = u32::from_ne_bytes([64, protocol as u8, 0, 0]);
}

/// Writes both MAC addresses; the interface to send through. `None`: the next hop is not known.
#[inline(always)]
fn ethernet(headers: &mut Headers, hop: Hop) -> Option<Held<Interface>> {
    if !hop.is_known() {
        return None;
    }
    let interface = records::interface(hop.interface() as u32)?;
    let (own, own_end) = interface.mac_words();
    headers.ethernet[0] = hop.0 as u16;
    headers.ethernet[1] = (hop.0 >> 16) as u16;
    headers.ethernet[2] = (hop.0 >> 32) as u16;
    headers.ethernet[3] = own as u16;
    headers.ethernet[4] = (own >> 16) as u16;
    headers.ethernet[5] = own_end;
    Some(interface)
}

/// Whether another answer of this kind may be sent on this CPU.
#[inline(always)]
fn allowed(bucket: u32) -> bool {
    may_send(records::rst_tokens(bucket))
}

/// Whether another ICMP error may be sent on on this CPU.
#[inline(always)]
pub fn may_send_error() -> bool {
    may_send(records::icmp_tokens())
}

#[inline(always)]
fn may_send(bucket: Option<Held<RstTokens>>) -> bool {
    let Some(bucket) = bucket else { return false };
    let now = clock::ticks().0 as u64;
    let refill = (now - bucket.refilled()) * RST_PER_TICK;
    let tokens = if refill > RST_BURST { RST_BURST } else { bucket.tokens() + refill };
    bucket.set_refilled(now);
    if tokens == 0 {
        bucket.set_tokens(0);
        count(Reason::RstRateLimited);
        return false;
    }
    bucket.set_tokens(if tokens > RST_BURST { RST_BURST } else { tokens } - 1);
    true
}
