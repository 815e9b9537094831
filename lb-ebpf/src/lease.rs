//! Who may answer for a virtual address: only a host whose VRRP lease holds. ARP requests and neighbour solicitations for
//! one that does not are dropped, so that a controller that was killed or stopped leaves no second host that answers. What
//! the host's own kernel says in its name is dropped on the way out: a neighbour believes questions as well as answers.
//! Nothing here is on the way of TCP over IPv4.

use lb_common::{
    hash::{LEASE_PROBES, lease_start, probe},
    layout::{ACTIVE, EMPTY, LEASE_BITS, Lease},
    time::Instant,
    verdict::Reason,
};

use crate::{
    atomic, clock,
    cursor::{Bytes, Frame, LONGEST_HEADERS, TcFrame, arp, field, nd},
    maps, walk,
};

const ARP: u16 = 0x0806_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
/// IPv4 addresses, 6 and 4 bytes long (RFC 826).
const ARP_IPV4: u32 = u32::from_ne_bytes([0x08, 0x00, 6, 4]);
const REQUEST: u16 = 1_u16.to_be();
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// An address as its record has it, in two words of memory.
type Address = (u64, u64);

/// The verdict on a frame that is no TCP segment over IPv4; `reason` says what it is instead. Not inlined: LLVM would
/// carry the frame's beginning over from the caller in 32 bits.
#[inline(never)]
pub fn other<F: Frame>(frame: F, reason: Reason) -> i32 {
    let bytes = frame.bytes();
    // Frames shorter than TCP's headers were made readable as far as they go.
    if !bytes.has(arp::END) || frame.is_tagged() {
        return walk::passed::<F>(reason);
    }
    match bytes.read::<u16>(field::ETHERTYPE) {
        ARP => of_arp(frame, bytes, reason),
        IPV6 => of_nd(frame, bytes, reason),
        _ => walk::passed::<F>(reason),
    }
}

#[inline(always)]
fn of_arp<F: Frame>(frame: F, bytes: Bytes, reason: Reason) -> i32 {
    if bytes.read::<u32>(arp::KIND) != ARP_IPV4 {
        return walk::passed::<F>(reason);
    }
    if bytes.read::<u16>(arp::OPERATION) == REQUEST
        && let Some(why) = is_not_ours(ipv4(bytes.read(arp::TARGET)))
    {
        return walk::dropped::<F>(why);
    }
    let claimed = claims(frame, ipv4(bytes.read(arp::SENDER)), bytes.read(arp::SENDER_MAC));
    walk::passed::<F>(if claimed { Reason::VipClaimed } else { reason })
}

#[inline(always)]
fn of_nd<F: Frame>(frame: F, bytes: Bytes, reason: Reason) -> i32 {
    if bytes.read::<u8>(nd::NEXT_HEADER) != ICMPV6 {
        return walk::passed::<F>(reason);
    }
    let mut bytes = bytes;
    if !bytes.has(nd::END) {
        frame.pull(LONGEST_HEADERS);
        bytes = frame.bytes();
        if !bytes.has(nd::END) {
            return walk::passed::<F>(reason);
        }
    }
    let address: Address = (bytes.read(nd::TARGET), bytes.read(nd::TARGET + 8));
    match bytes.read::<u8>(nd::TYPE) {
        SOLICITATION => match is_not_ours(address) {
            Some(why) => walk::dropped::<F>(why),
            None => walk::passed::<F>(reason),
        },
        ADVERTISEMENT if claims(frame, address, bytes.read(field::ETHERNET_SOURCE)) => {
            walk::passed::<F>(Reason::VipClaimed)
        }
        _ => walk::passed::<F>(reason),
    }
}

/// The verdict on a frame that the host sends. Whoever gets an ARP packet or a neighbour solicitation learns from it
/// where its sender is (RFC 826; RFC 4861 section 7.2.3), so in the name of an address without a lease there is none. Our
/// own announcements do not come by here: they pass the queueing discipline, and are sent only under a lease.
#[inline(always)]
pub fn outgoing(frame: TcFrame) -> i32 {
    let (protocol, end) = match frame.protocol() {
        ARP => (ARP, arp::END),
        IPV6 => (IPV6, nd::END),
        _ => return TcFrame::PASS,
    };
    if frame.is_tagged() {
        return TcFrame::PASS;
    }
    if !frame.bytes().has(end) {
        frame.pull(LONGEST_HEADERS);
    }
    let said = if protocol == ARP { said_by_arp(frame.bytes()) } else { said_by_nd(frame.bytes()) };
    match said.and_then(is_not_ours) {
        Some(why) => walk::dropped::<TcFrame>(why),
        None => TcFrame::PASS,
    }
}

/// The address that an ARP packet tells the place of.
#[inline(always)]
fn said_by_arp(bytes: Bytes) -> Option<Address> {
    if !bytes.has(arp::END) || bytes.read::<u32>(arp::KIND) != ARP_IPV4 {
        return None;
    }
    Some(ipv4(bytes.read(arp::SENDER)))
}

/// The same of neighbour discovery.
#[inline(always)]
fn said_by_nd(bytes: Bytes) -> Option<Address> {
    if !bytes.has(nd::END) || bytes.read::<u8>(nd::NEXT_HEADER) != ICMPV6 {
        return None;
    }
    match bytes.read::<u8>(nd::TYPE) {
        SOLICITATION => Some((bytes.read(nd::SOURCE), bytes.read(nd::SOURCE + 8))),
        ADVERTISEMENT => Some((bytes.read(nd::TARGET), bytes.read(nd::TARGET + 8))),
        _ => None,
    }
}

#[inline(always)]
fn ipv4(octets: [u8; 4]) -> Address {
    let [a, b, c, d] = octets;
    (0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d]))
}

/// Why the host must not speak for an address; nothing if it may, or if the address is none of VRRP's.
#[inline(always)]
fn is_not_ours(address: Address) -> Option<Reason> {
    let lease = find(address)?;
    // SAFETY: from a map lookup.
    match unsafe { atomic::load(&raw const (*lease).until) } {
        Instant::ZERO => Some(Reason::VipNotHeld),
        until if until <= clock::exact() => Some(Reason::LeaseLapsed),
        _ => None,
    }
}

/// Whether another host says that an address we hold is its own; noted for the controller.
#[inline(always)]
fn claims<F: Frame>(frame: F, address: Address, mac: [u8; 6]) -> bool {
    let Some(lease) = find(address) else { return false };
    let Some(interface) = walk::interface_of(frame.ingress()) else { return false };
    // SAFETY: both from map lookups.
    unsafe {
        if (*interface).mac == mac || atomic::load(&raw const (*lease).until) <= clock::exact() {
            return false;
        }
        (*lease).claimed_by = mac;
        atomic::add(&raw mut (*lease).claims, 1);
    }
    true
}

#[inline(always)]
fn find(address: Address) -> Option<*mut Lease> {
    let place = lease_of(address.0, address.1);
    if place == NONE { None } else { maps::LEASES.get_ptr_mut(place) }
}

const NONE: u32 = u32::MAX;

/// The place of an address's lease; [`NONE`] if it has none.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn lease_of(first: u64, second: u64) -> u32 {
    let start = lease_start(first, second, LEASE_BITS);
    for place in probe(start, LEASE_BITS, LEASE_PROBES) {
        let Some(lease) = maps::LEASES.get_ptr_mut(place) else { return NONE };
        // SAFETY: from a map lookup; the address is aligned to 8 bytes, for the record's size is a multiple of that.
        unsafe {
            if (*lease).state == EMPTY {
                return NONE;
            }
            let halves = (&raw const (*lease).address).cast::<u64>();
            if (*lease).state == ACTIVE && *halves == first && *halves.add(1) == second {
                return place;
            }
        }
    }
    NONE
}
