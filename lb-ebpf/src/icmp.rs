//! ICMP errors about segments that we have sent (RFC 792, RFC 1191). The error quotes the segment's
//! headers, as we have written them: they name the flow, and their sequence number has to lie in
//! what is under way there, as for an endpoint (RFC 5927 section 4). The error is then translated,
//! outside and inside, for the side whose segment it is. One that answers our SYN is a failed try.
//!
//! Every other ICMP packet is the host's. One that quotes a service and fits no flow, or not its
//! window, is nobody's: the host's kernel has no socket for it.

use lb_common::{
    address::V4,
    checksum::{difference, update},
    flow::{Key, SlotAt},
    hash,
    seq::within,
    slot::State,
    tcp::Side,
    verdict::Reason,
};
use network_types::ip::IpProto;

use crate::{
    cursor::{Bytes, Frame, LONGEST_QUOTE, field, icmp, quote},
    flow,
    index::{self, Hashed},
    maps,
    outcome::Outcome,
    records, reply,
    report::{count, dropped},
};

const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
/// Of UNREACHABLE: the packet is too large for the next link, and must not be cut.
const FRAGMENTATION_NEEDED: u8 = 4;
/// A path to a backend that is said to take less is taken to take this much, as by Linux
/// (`min_pmtu`): with less, anybody who guesses a number could make a sender cut its data into
/// crumbs.
const LEAST_TO_BACKENDS: u16 = 552;
/// The same of a path to a client. A backend knows all clients by one address, so what one of them
/// is said to take holds for all: every path of IPv6, and any tunnel, takes this much.
const LEAST_TO_CLIENTS: u16 = 1280;

/// What an error says about one of our segments.
#[derive(Clone, Copy)]
struct Quote {
    source: u32,
    destination: u32,
    /// As they lie in the packet, the source's first.
    ports: u32,
    sequence: u32,
    identification: u16,
    /// Where its TCP header begins, in the frame.
    tcp: usize,
}

/// Whether a type of ICMP is an error that quotes a packet. A redirect is about the host's own
/// routes, and source quench is no more (RFC 6633).
#[inline(always)]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// Reads the headers that an error quotes. `None`: they are not of a TCP segment.
#[inline(always)]
fn quoted(bytes: Bytes) -> Option<Quote> {
    if !bytes.has(quote::END) {
        return None;
    }
    let version: u8 = bytes.read(quote::VERSION);
    let is_first = bytes.read::<u16>(quote::FRAGMENT) & OFFSET == 0;
    if version >> 4 != 4 || version & 15 < 5 || !is_first || bytes.read::<u8>(quote::PROTOCOL) != IpProto::Tcp as u8 {
        return None;
    }
    let tcp = quote::VERSION + (version & 15) as usize * 4;
    Some(Quote {
        source: bytes.read(quote::SOURCE),
        destination: bytes.read(quote::DESTINATION),
        ports: bytes.at(tcp)?,
        sequence: u32::from_be(bytes.at(tcp + 4)?),
        identification: bytes.read(quote::IDENTIFICATION),
        tcp,
    })
}

/// A fragment's offset.
const OFFSET: u16 = 0x1fff_u16.to_be();

/// What is to be done with an ICMP error for an address of ours, an [`Outcome`].
#[inline(never)]
pub fn read<F: Frame>(frame: F) -> u64 {
    // LLVM would take over the addresses of the frame's bytes from the caller, in 32 bits.
    let frame = frame.anew();
    frame.pull(LONGEST_QUOTE);
    let bytes = frame.bytes();
    let Some(quote) = quoted(bytes) else { return Outcome::not_ours().0 };
    // An error goes to whoever has sent what it is about.
    if quote.source != bytes.read::<u32>(field::DESTINATION) {
        return Outcome::not_ours().0;
    }
    let is_too_large =
        bytes.read::<u8>(icmp::TYPE) == UNREACHABLE && bytes.read::<u8>(icmp::CODE) == FRAGMENTATION_NEEDED;
    let what = quote.identification as u32 | (is_too_large as u32) << 16;
    about_global(quote.source, quote.destination, quote.ports, quote.sequence, what)
}

/// The flow that a quoted segment belongs to, and what an error about it does there.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn about_global(source: u32, destination: u32, ports: u32, sequence: u32, what: u32) -> u64 {
    let (source_port, destination_port) = (ports as u16, (ports >> 16) as u16);
    if let Some((row, pool)) = records::pool_of::<V4>(destination, destination_port, source) {
        let slot = u16::from_be(source_port).wrapping_sub(pool.first_port());
        if !pool.has_slot(slot) {
            return Outcome::not_ours().0;
        }
        return towards_backend_global(row << 16 | slot as u32, sequence, what);
    }
    match records::listener_at::<V4>(source, source_port) {
        Some((row, _)) => towards_client(Key::new(destination, destination_port, row as u16), sequence).0,
        None => Outcome::not_ours().0,
    }
}

/// An error about a segment that we have sent to a backend, which is a client's.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn towards_backend_global(at: u32, sequence: u32, what: u32) -> u64 {
    let at = SlotAt(at);
    let refused = Outcome::drop(Reason::IcmpRefused);
    let Some(slot) = records::slot(at) else { return Outcome::not_ours().0 };
    let (ctl, end) = (slot.ctl(), slot.end_client() as u32);
    match ctl.state() {
        _ if ctl.is_retired() => Outcome::not_ours().0,
        State::HalfOpen if sequence == end.wrapping_sub(1) && what >> 16 == 0 => {
            // Only who has seen our SYN knows its identification: a stranger could guess the port.
            let is_known = what as u16 == hash::identification(maps::seed(), at, ctl.generation());
            let reason = if is_known { Reason::Unreachable } else { Reason::MovedOn };
            flow::leave(at, slot, ctl, reason).0
        }
        State::Established | State::ClosingClient | State::ClosingBackend | State::Suspect
            if within(slot.ack_backend(), sequence, end) =>
        {
            Outcome::quoted(at, Side::Client).0
        }
        _ => refused.0,
    }
}

/// An error about a segment that we have sent to a client, which is a backend's.
#[inline(always)]
fn towards_client(key: Key, sequence: u32) -> Outcome {
    match index::find(Hashed::new(key)) {
        Some(found)
            if found.ctl.state().is_active()
                && !found.ctl.state().is_unconfirmed()
                && within(found.slot.ack_client(), sequence, found.slot.end_backend() as u32) =>
        {
            Outcome::quoted(found.at, Side::Backend)
        }
        _ => Outcome::drop(Reason::IcmpRefused),
    }
}

/// Sends an error on to the side whose segment it quotes, as if that side had sent the segment to
/// us and we to it.
#[inline(never)]
pub fn translate<F: Frame>(frame: F, at: SlotAt, side: Side) -> i32 {
    frame.pull(LONGEST_QUOTE);
    let (Some(slot), Some(pool)) = (records::slot(at), records::pool(at.pool() as u32)) else {
        return dropped::<F>(Reason::LostRace);
    };
    let key = slot.key();
    let Some(listener) = records::listener(key.listener() as u32) else { return dropped::<F>(Reason::Damaged) };
    let (source, destination, hop) = match side {
        Side::Client => ((key.address_word(), key.port()), (listener.address::<V4>(), listener.port()), slot.hop()),
        Side::Backend => {
            ((pool.backend::<V4>(), pool.backend_port()), (pool.snat::<V4>(), pool.snat_port(at)), pool.hop())
        }
    };
    let Some(interface) = records::interface(hop.interface() as u32) else { return dropped::<F>(Reason::NoNextHop) };
    if !hop.is_known() {
        return dropped::<F>(Reason::NoNextHop);
    }
    if !reply::may_send_error() {
        return F::DROP;
    }
    let bytes = frame.bytes();
    if !bytes.has(quote::END) {
        return dropped::<F>(Reason::Malformed);
    }
    if bytes.read::<u8>(field::TTL) <= 1 {
        return dropped::<F>(Reason::TtlExpired);
    }
    let least = if matches!(side, Side::Client) { LEAST_TO_BACKENDS } else { LEAST_TO_CLIENTS };
    requote(bytes, source, destination, least);
    bytes.route(hop, interface, destination.0, source.0);
    count(Reason::IcmpTranslated);
    frame.send(interface.ifindex())
}

/// Writes into an error that it is about a segment from `source` to `destination`, and what that
/// changes of the checksums, which are right afterwards if they were before.
#[inline(always)]
fn requote(bytes: Bytes, source: (u32, u16), destination: (u32, u16), least: u16) {
    let Some(old) = quoted(bytes) else { return };
    let ports = source.1 as u32 | (destination.1 as u32) << 16;
    let addresses = difference(old.source, source.0) + difference(old.destination, destination.0);
    let mut sum = addresses + difference(old.ports, ports);
    let check: u16 = bytes.read(quote::CHECKSUM);
    sum += difference(check as u32, update(check, addresses) as u32);
    bytes.write(quote::CHECKSUM, update(check, addresses));
    bytes.write(quote::SOURCE, source.0);
    bytes.write(quote::DESTINATION, destination.0);
    bytes.put_at(old.tcp, ports);
    // It is quoted only if the router quotes more than the eight bytes that it has to.
    if let Some(check) = bytes.at::<u16>(old.tcp + TCP_CHECKSUM) {
        let new = update(check, addresses + difference(old.ports, ports));
        sum += difference(check as u32, new as u32);
        bytes.put_at(old.tcp + TCP_CHECKSUM, new);
    }
    let mtu: u16 = bytes.read(icmp::MTU);
    if bytes.read::<u16>(icmp::TYPE) == TOO_LARGE && u16::from_be(mtu) < least {
        sum += difference(mtu as u32, least.to_be() as u32);
        bytes.write(icmp::MTU, least.to_be());
    }
    bytes.write(icmp::CHECKSUM, update(bytes.read(icmp::CHECKSUM), sum));
}

/// Type and code of an error about a packet that is too large.
const TOO_LARGE: u16 = u16::from_ne_bytes([UNREACHABLE, FRAGMENTATION_NEEDED]);
/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: usize = field::TCP_CHECKSUM - field::TCP;
