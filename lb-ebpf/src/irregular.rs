//! Frames that are not an untagged, whole IPv4 packet without options with a TCP header.
//!
//! The host must never answer in the name of a service: its own kernel has no socket there, so it
//! would reset the connection. A packet that concerns a service is made plain here, to be served
//! like any other: the tag of VLAN 0, which 802.1Q defines as no VLAN, and the options of IPv4 are
//! removed. What cannot be made plain, such as a fragment, is dropped and counted.

use lb_common::{
    address::V4,
    layout::{IS_BACKEND, IS_LISTENER, IS_SNAT},
    verdict::Reason,
};
use network_types::{eth::EtherType, ip::IpProto};

use crate::{
    cursor::{Bytes, Frame, LONGEST_HEADERS, field},
    icmp,
    maps::forgotten,
    records,
    report::{dropped, passed},
};

/// In place of a verdict: the frame is plain now.
pub const PLAIN: i32 = i32::MIN;
/// In place of a verdict: it is no TCP packet over IPv4.
pub const OTHER: i32 = i32::MIN + 1;

/// In place of a verdict: it is an ICMP error for an address of ours, whole and without options.
pub const ICMP: i32 = i32::MIN + 2;

/// A fragment's offset.
const OFFSET: u16 = 0x1fff_u16.to_be();
/// More fragments follow.
const MORE: u16 = 0x2000_u16.to_be();

/// What becomes of a frame that is not plain.
#[inline(never)]
pub fn irregular<F: Frame>(frame: F) -> i32 {
    frame.pull(LONGEST_HEADERS);
    let bytes = frame.bytes();
    if !bytes.has(field::IP) {
        return OTHER;
    }
    let kind: u16 = bytes.read(field::ETHERTYPE);
    let in_bytes = kind == EtherType::Ieee8021q as u16 || kind == EtherType::Ieee8021ad as u16;
    let ip = if in_bytes { field::IP + 4 } else { field::IP };
    if !bytes.has(ip + 20) {
        return OTHER;
    }
    let vlan = if in_bytes { bytes.read::<u16>(field::IP) & NUMBER != 0 } else { false };
    // A tag behind a tag is of a network of its own.
    if vlan || frame.is_tagged() || in_bytes && frame.has_tag() {
        return passed::<F>(Reason::Vlan);
    }
    let version: u8 = bytes.read(ip);
    let protocol: u8 = bytes.read(ip + 9);
    let is_icmp = protocol == IpProto::Icmp as u8;
    if bytes.read::<u16>(ip - 2) != EtherType::Ipv4 as u16
        || version >> 4 != 4
        || protocol != IpProto::Tcp as u8 && !is_icmp
    {
        return OTHER;
    }
    let fragment: u16 = bytes.read(ip + 6);
    let (source, destination): (u32, u32) = (bytes.read(ip + 12), bytes.read(ip + 16));
    let header = (version & 15) as usize * 4;
    // The ports, as they lie in the packet. A fragment that is not the first one has none, and one
    // that is cut off before its ports is left to the host, which drops it without a word.
    let first = if fragment & OFFSET != 0 { None } else { bytes.at::<u32>(ip + header) };
    if is_icmp {
        // Errors only, and whole ones: what else there is goes to the host as it is.
        let is_error = first.is_some_and(|first| fragment & MORE == 0 && icmp::is_error(first as u8));
        if !is_error || is_own_global(destination) == 0 {
            return OTHER;
        }
    }
    let ours = match first {
        _ if is_icmp => true,
        Some(ports) => is_ours_global(source, destination, ports) != 0,
        None => fragment & OFFSET != 0 && is_address_of_ours_global(source, destination) != 0,
    };
    if !ours {
        return passed::<F>(Reason::NotOurs);
    }
    match records::link_of(frame.ingress()).and_then(records::interface) {
        Some(interface) if !frame.is_flooded(|| Some(interface)) => {}
        _ => return passed::<F>(Reason::OtherHost),
    }
    if fragment & (OFFSET | MORE) != 0 {
        return dropped::<F>(Reason::Fragment);
    }
    if header < 20 {
        return dropped::<F>(Reason::Malformed);
    }
    if header > 20 && is_source_routed(bytes, ip + 20, header - 20) {
        return dropped::<F>(Reason::IpOptions);
    }
    if (in_bytes || frame.has_tag()) && !frame.untag() || header > 20 && !frame.strip(header as u32 - 20) {
        return dropped::<F>(Reason::RewriteFailed);
    }
    if is_icmp { ICMP } else { PLAIN }
}

/// The number of the VLAN in a tag.
const NUMBER: u16 = 0x0fff_u16.to_be();

/// A plain packet with a TCP header that is cut short or contradicts the packet's length. One that
/// was made plain concerns a service; of any other that is still to be found out.
#[inline(never)]
pub fn malformed<F: Frame>(frame: F) -> i32 {
    // LLVM would take over the addresses of the frame's bytes from the caller, in 32 bits.
    let bytes = frame.anew().bytes();
    let (source, destination, ports) = if bytes.has(field::TCP + 4) {
        (bytes.read(field::SOURCE), bytes.read(field::DESTINATION), bytes.read(field::SOURCE_PORT))
    } else {
        (0, 0, 0)
    };
    if is_ours_global(source, destination, ports) != 0 {
        dropped::<F>(Reason::Malformed)
    } else {
        passed::<F>(Reason::Malformed)
    }
}

/// Whether a TCP packet is a client's to a listener or a backend's to a port of its pool.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_ours_global(source: u32, destination: u32, ports: u32) -> u32 {
    // As they lie in the packet, the source's first.
    let (source_port, destination_port) = (ports as u16, (ports >> 16) as u16);
    if records::listener_at::<V4>(destination, destination_port).is_some() {
        return 1;
    }
    match records::pool_of::<V4>(source, source_port, destination) {
        Some((_, pool)) => pool.has_slot(u16::from_be(destination_port).wrapping_sub(pool.first_port())) as u32,
        None => 0,
    }
}

/// Whether a fragment without ports may be a part of a client's or a backend's segment.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_address_of_ours_global(source: u32, destination: u32) -> u32 {
    let to = records::uses_of::<V4>(destination);
    (to & IS_LISTENER != 0 || to & IS_SNAT != 0 && records::uses_of::<V4>(source) & IS_BACKEND != 0) as u32
}

/// Whether an address is a listener's or one that backends see.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_own_global(address: u32) -> u32 {
    (records::uses_of::<V4>(address) & (IS_LISTENER | IS_SNAT) != 0) as u32
}

/// Whether one of the IPv4 options at an offset says by which way the packet is to go, which Linux
/// drops by default (`accept_source_route`); or whether they cannot be read.
#[inline(always)]
fn is_source_routed(bytes: Bytes, start: usize, length: usize) -> bool {
    // A word that is cut off is none of theirs, if a TCP header follows. In the fifth one, none has
    // room to begin that names more than one address.
    let word = |from: usize| forgotten(bytes.at::<u64>(start + from).unwrap_or(0));
    is_source_routed_global(word(0), word(8), word(16), word(24), length as u64) != 0
}

/// Most options that are looked at; those that only fill up count too.
const MOST_OPTIONS: u32 = 10;

/// The options as they lie in the packet.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_source_routed_global(first: u64, second: u64, third: u64, fourth: u64, length: u64) -> u32 {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let words = [first, second, third, fourth];
    let byte = |at: u64| (words[(at >> 3 & 3) as usize] >> ((at & 7) * 8)) as u8;
    let mut at = 0;
    for _ in 0..MOST_OPTIONS {
        at = forgotten(at) & 63;
        if at >= length || at >= 32 {
            return 0;
        }
        let kind = byte(at);
        if kind == END {
            return 0;
        }
        if kind == LOOSE || kind == STRICT {
            return 1;
        }
        let bytes = if kind == NO_OPERATION { 1 } else { byte(at + 1) as u64 };
        at += forgotten(bytes);
    }
    1
}
