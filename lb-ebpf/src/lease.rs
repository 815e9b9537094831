//! Which host may answer for a virtual address: only one whose VRRP lease holds.
//!
//! Without a lease, ARP requests and neighbour solicitations for the address are dropped, so that a
//! controller that was killed or stopped does not leave a second host that answers. What the host's
//! own kernel says in the name of the address is dropped on the way out, because a neighbour
//! believes questions as well as answers. TCP over IPv4 does not pass through here.

use lb_common::{
    hash::{LEASE_PROBES, lease_start, probe},
    layout::{ACTIVE, EMPTY, LEASE_BITS, Lease},
    time::Instant,
    verdict::Reason,
};

use network_types::{eth::EtherType, ip::IpProto};

use crate::{
    clock,
    cursor::{Bytes, Frame, LONGEST_HEADERS, TcFrame, arp, field, nd},
    outcome::{NONE, found},
    records::{self, Held},
    report::{dropped, passed},
};

const ARP: u16 = EtherType::Arp as u16;
const IPV6: u16 = EtherType::Ipv6 as u16;
/// IPv4 addresses, 6 and 4 bytes long (RFC 826).
const ARP_IPV4: u32 = u32::from_ne_bytes([0x08, 0x00, 6, 4]);
const REQUEST: u16 = 1_u16.to_be();
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// An address as its record holds it, in two words of memory.
type Address = (u64, u64);

/// The verdict on a frame that is no TCP segment over IPv4. Not inlined: LLVM would take over the
/// address of the frame from the caller in 32 bits.
#[inline(never)]
pub fn other<F: Frame>(frame: F) -> i32 {
    let reason = Reason::NotOurs;
    let bytes = frame.bytes();
    // The longest headers were made readable.
    if !bytes.has(arp::END) || frame.is_tagged() {
        return passed::<F>(reason);
    }
    match bytes.read::<u16>(field::ETHERTYPE) {
        ARP => of_arp(frame, bytes, reason),
        IPV6 => of_nd(frame, bytes, reason),
        _ => passed::<F>(reason),
    }
}

#[inline(always)]
fn of_arp<F: Frame>(frame: F, bytes: Bytes, reason: Reason) -> i32 {
    if bytes.read::<u32>(arp::KIND) != ARP_IPV4 {
        return passed::<F>(reason);
    }
    if bytes.read::<u16>(arp::OPERATION) == REQUEST
        && let Some(why) = is_not_ours(ipv4(bytes.read(arp::TARGET)))
    {
        return dropped::<F>(why);
    }
    let claimed = claims(frame, ipv4(bytes.read(arp::SENDER)), bytes.read(arp::SENDER_MAC));
    passed::<F>(if claimed { Reason::VipClaimed } else { reason })
}

#[inline(always)]
fn of_nd<F: Frame>(frame: F, bytes: Bytes, reason: Reason) -> i32 {
    if bytes.read::<u8>(nd::NEXT_HEADER) != IpProto::Ipv6Icmp as u8 {
        return passed::<F>(reason);
    }
    let mut bytes = bytes;
    if !bytes.has(nd::END) {
        frame.pull(LONGEST_HEADERS);
        bytes = frame.bytes();
        if !bytes.has(nd::END) {
            return passed::<F>(reason);
        }
    }
    let address: Address = (bytes.read(nd::TARGET), bytes.read(nd::TARGET + 8));
    match bytes.read::<u8>(nd::TYPE) {
        SOLICITATION => match is_not_ours(address) {
            Some(why) => dropped::<F>(why),
            None => passed::<F>(reason),
        },
        ADVERTISEMENT if claims(frame, address, bytes.read(field::ETHERNET_SOURCE)) => passed::<F>(Reason::VipClaimed),
        _ => passed::<F>(reason),
    }
}

/// The verdict on a frame that the host sends. The receiver of an ARP packet or a neighbour
/// solicitation learns from it where its sender is (RFC 826; RFC 4861 section 7.2.3), so none is
/// sent in the name of an address without a lease. Our own announcements do not pass through here:
/// they bypass the queueing discipline, and are sent only under a lease.
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
    if protocol == ARP {
        return outgoing_arp(frame.bytes());
    }
    match said_by_nd(frame.bytes()).and_then(is_not_ours) {
        Some(why) => dropped::<TcFrame>(why),
        None => TcFrame::PASS,
    }
}

/// An ARP packet announces the MAC address of its sender. Only the interface that an address is on may
/// announce itself: the kernel would answer and ask with the address on all of them. A question of
/// another one goes out without a sender, as for a probe (RFC 5227 section 1.1); it is answered all the
/// same.
#[inline(always)]
fn outgoing_arp(bytes: Bytes) -> i32 {
    if !bytes.has(arp::END) || bytes.read::<u32>(arp::KIND) != ARP_IPV4 {
        return TcFrame::PASS;
    }
    let address = ipv4(bytes.read(arp::SENDER));
    if let Some(why) = is_not_ours(address) {
        return dropped::<TcFrame>(why);
    }
    let Some(lease) = find(address) else { return TcFrame::PASS };
    let Some(interface) = (lease.link() as u32).checked_sub(1).and_then(records::interface) else {
        return TcFrame::PASS;
    };
    if interface.mac() == bytes.read::<[u8; 6]>(arp::SENDER_MAC) {
        return TcFrame::PASS;
    }
    if bytes.read::<u16>(arp::OPERATION) != REQUEST {
        return dropped::<TcFrame>(Reason::VipNotHeld);
    }
    bytes.forget_sender();
    TcFrame::PASS
}

/// The address whose MAC address a packet of neighbour discovery announces.
#[inline(always)]
fn said_by_nd(bytes: Bytes) -> Option<Address> {
    if !bytes.has(nd::END) || bytes.read::<u8>(nd::NEXT_HEADER) != IpProto::Ipv6Icmp as u8 {
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

/// Why the host must not speak for an address. `None`: it may, or VRRP does not carry the address.
#[inline(always)]
fn is_not_ours(address: Address) -> Option<Reason> {
    match find(address)?.until() {
        Instant::ZERO => Some(Reason::VipNotHeld),
        until if until <= clock::exact() => Some(Reason::LeaseLapsed),
        _ => None,
    }
}

/// Whether this host holds a virtual address of VRRP, as it lies in a packet.
#[inline(always)]
pub fn is_held(address: u32) -> bool {
    is_held_global(address) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_held_global(address: u32) -> u32 {
    find(ipv4(address.to_ne_bytes())).is_some_and(|lease| lease.until() > clock::exact()) as u32
}

/// Whether another host claims an address that we hold; noted for the controller. Two claims at
/// once on two CPUs may leave a MAC address of mixed bytes: it is only shown, and decides nothing.
#[inline(always)]
fn claims<F: Frame>(frame: F, address: Address, mac: [u8; 6]) -> bool {
    let Some(lease) = find(address) else { return false };
    let Some(interface) = records::link_of(frame.ingress()).and_then(records::interface) else { return false };
    if interface.mac() == mac || lease.until() <= clock::exact() {
        return false;
    }
    lease.set_claimed_by(mac);
    lease.add_claims(1);
    true
}

#[inline(always)]
fn find(address: Address) -> Option<Held<Lease>> {
    found(row_global(address.0, address.1)).and_then(records::lease)
}

/// The row of an address's lease.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn row_global(first: u64, second: u64) -> i64 {
    for row in probe(lease_start(first, second, LEASE_BITS), LEASE_BITS, LEASE_PROBES) {
        let Some(lease) = records::lease(row) else { return NONE };
        match lease.state() {
            EMPTY => return NONE,
            ACTIVE if lease.address() == (first, second) => return row as i64,
            _ => {}
        }
    }
    NONE
}
