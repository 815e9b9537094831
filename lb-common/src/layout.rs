//! The records in the BPF maps, byte for byte.
//!
//! No record contains padding, a bool, an enum or a usize. Addresses and ports of packets are bytes
//! in network order, all other numbers are the host's. IPv4 addresses are v4-mapped (see
//! [`address`]), so that IPv6 needs no other layout. A change of a record changes [`HASH`], and a
//! controller refuses tables of another layout.
//!
//! [`address`]: crate::address

mod flow;
mod service;

use crate::time::{Instant, Ticks};

pub use flow::{
    EXTENT_BITS, Ends, FreeLine, MIN_RING_BITS, Opening, POOL_EXTENTS, Ring, SEEN_BACKEND, SEEN_CLIENT, SEEN_NONE,
    Slot, TRACE_ASKED, TRACE_KNOWN, TRACE_OPENS, TRACE_TURNED_AWAY, Trace, WIDE_BITS, WIDE_LINES,
};
pub use service::{
    BACKUP, Backend, CHALLENGES, CLAMP_TO_WAYS, COOKIES_OFF, COOKIES_ON, COOKIES_READY, ClientLine, ConnectTimes,
    CookieKey, EXEMPTS, ExemptKey, Failures, GAVE_WAY_EVENTS, LOG, MAGLEV_LINES, MARKS, MAX_EXEMPT, MaglevLine, NONE,
    NOT_READY, OUT, Rule, RuleLine, Service, SlowStart, TURNED_AWAY_EVENTS, UNTRUSTED, UP, connect_time_bound,
    connect_time_bucket, turned_away_stretch,
};

/// Most listeners (`VIP:port`), as bits: the table has `1 << LISTENER_BITS` rows and is kept at
/// most half full.
pub const LISTENER_BITS: u32 = 9;
/// Most pools (backend address, SNAT address), as bits: the table has `1 << POOL_BITS` rows, at
/// most half full.
pub const POOL_BITS: u32 = 10;
/// Most leases (virtual addresses), as bits: the table has `1 << LEASE_BITS` rows, at most half
/// full.
pub const LEASE_BITS: u32 = 8;
/// Most services.
pub const MAX_SERVICES: u32 = 256;
/// Most backends of one service.
pub const MAX_SERVICE_BACKENDS: u32 = 64;
/// Most backends of all services, tombstones included.
pub const MAX_BACKENDS: u32 = 1024;
/// Most SNAT addresses of one service.
pub const MAX_SNAT: u32 = 8;
/// Most rules of one service.
pub const MAX_RULES: u32 = 256;
/// Most interfaces the program is attached to or sends through.
pub const MAX_INTERFACES: u32 = 64;
/// Bytes of the ring buffer of events.
pub const EVENTS_BYTES: u32 = 512 * 1024;
/// Limits on generated segments, each for another kind of them: a flood that meets one must not
/// silence the others.
pub const RST_BUCKETS: u32 = 4;
/// Limits on ICMP errors of our own: time exceeded, and fragmentation needed.
pub const ERROR_BUCKETS: u32 = 2;
/// Buckets of the histogram of connect times; see [`connect_time_bucket`].
pub const CONNECT_TIME_BUCKETS: usize = 64;

/// A number for all layouts of this file, raised by hand with every change of a record or of its
/// meaning.
pub const HASH: u64 = 0x4556_4b4c_0000_000c;

/// The oldest layout whose tables may be taken over as they are: since then only words that were
/// zero have got a meaning, for which zero is right, and maps were added. Any other change raises
/// this to the new [`HASH`].
pub const OLDEST: u64 = 0x4556_4b4c_0000_000b;

/// META: one record, written once when the tables are made. Compared before a program is loaded
/// onto them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Meta {
    /// [`HASH`] of the program that made the tables.
    pub layout: u64,
    /// Seed of the flow index's hash, secret and random.
    pub seed: u64,
    /// Buckets of the flow index.
    pub buckets: u32,
    /// Zero.
    pub reserved: u32,
}

/// A row of an open-addressed table that was never used: a search ends here.
pub const EMPTY: u8 = 0;
/// A row in use.
pub const ACTIVE: u8 = 1;
/// A row whose record has gone: a search passes over it, and another record may take it.
pub const DELETED: u8 = 2;
/// A listener that takes no new connections but still translates those it has.
pub const CLOSING: u8 = 3;

/// LEASES: a virtual address that VRRP carries, and until when this host answers for it. An
/// open-addressed table, see [`lease_start`](crate::hash::lease_start). The controller writes it,
/// the kernel program its claims; it is read for ARP and neighbour discovery, never for a packet
/// that is forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lease {
    /// The address.
    pub address: [u8; 16],
    /// When the lease runs out. [`Instant::ZERO`]: this host does not hold the address.
    pub until: Instant,
    /// How often another host has claimed the address while this one held it.
    pub claims: u32,
    /// `EMPTY`, `ACTIVE` or `DELETED`.
    pub state: u8,
    /// The interface that the address is on, its number plus 1; 0: it is not known.
    pub link: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// The MAC address that claimed it most recently.
    pub claimed_by: [u8; 6],
    /// Zero.
    pub reserved2: [u8; 2],
}

/// LISTENERS: `VIP:port`. Its row is its number. Written by the controller, read for every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Listener {
    /// The address clients connect to.
    pub address: [u8; 16],
    /// The port clients connect to.
    pub port: [u8; 2],
    /// The service, its number in SERVICES.
    pub service: u16,
    /// 4 or 6.
    pub family: u8,
    /// `EMPTY`, `ACTIVE`, `CLOSING` or `DELETED`.
    pub state: u8,
    /// Zero.
    pub reserved: [u8; 10],
}

/// Where a frame goes: the MAC address of the next hop, our interface, and whether both are known.
/// It is one 64-bit word, so that it is read and written whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Hop(pub u64);

impl Hop {
    /// A known next hop.
    #[inline(always)]
    pub const fn new(mac: [u8; 6], interface: u8) -> Hop {
        Hop(u64::from_le_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], interface, 1]))
    }

    /// The same next hop, known from the host's own routes and neighbours and not from the frames
    /// that came by it: those may have another sender.
    #[inline(always)]
    pub const fn of_neighbour(self) -> Hop {
        Hop(self.0 | Hop::OF_NEIGHBOUR)
    }

    /// Whether it is one of those.
    #[inline(always)]
    pub const fn is_of_neighbour(self) -> bool {
        self.0 & Hop::OF_NEIGHBOUR != 0
    }

    /// The same next hop, whoever knows it.
    #[inline(always)]
    pub const fn bare(self) -> Hop {
        Hop(self.0 & !Hop::OF_NEIGHBOUR)
    }

    const OF_NEIGHBOUR: u64 = 1 << 57;

    /// Whether the next hop is known.
    #[inline(always)]
    pub const fn is_known(self) -> bool {
        self.0 >> 56 != 0
    }

    /// Its MAC address.
    #[inline(always)]
    pub const fn mac(self) -> [u8; 6] {
        let bytes = self.0.to_le_bytes();
        [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5]]
    }

    /// The interface, its number in INTERFACES.
    #[inline(always)]
    pub const fn interface(self) -> u8 {
        (self.0 >> 48) as u8
    }
}

/// WAYS: the next hops by which this host itself reaches others, by prefix (v4-mapped): its
/// neighbours, and its routes; unknown for a route of which there is no such next hop. Written by
/// the controller, read when a flow opens and when its client's frames come from another sender.
/// What finds no room is reached as its frames come.
pub const MAX_WAYS: u32 = 16_384;

/// INTERFACES: what is needed to send through one of our interfaces. Written by the controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    /// The kernel's number for it; 0: not in use.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The longest packet that it sends; 0: not known.
    pub mtu: u16,
    /// Zero.
    pub reserved: [u8; 4],
}

/// POOLS: the slots of one (backend address:port, SNAT address), one for each SNAT port. Its row is
/// its number, in SLOTS, OPENINGS, FREE and RINGS too. Written by the controller, read for every
/// packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pool {
    /// The backend's address.
    pub backend: [u8; 16],
    /// The source address that the backend sees.
    pub snat: [u8; 16],
    /// The backend's port.
    pub port: [u8; 2],
    /// The SNAT port of slot 0. It stays when the ports are changed: those below it are the slots
    /// at the end, because a port is its slot plus this, modulo 2^16.
    pub first_port: u16,
    /// How many slots there are; `u16::MAX`: all 2^16. Extents of them may be missing.
    pub ports: u16,
    /// 4 or 6.
    pub family: u8,
    /// `EMPTY`, `ACTIVE` or `DELETED`.
    pub state: u8,
    /// Next hop towards the backend.
    pub hop: Hop,
    /// When anything last came from the backend, updated once per [`HEARD_STEP`]. Written by the
    /// kernel program.
    pub heard: Ticks,
    /// When a client's segment was last sent on to the backend, in the same way; SYNs and RSTs do
    /// not count.
    pub sent: Ticks,
    /// `LISTENED`.
    pub flags: u32,
    /// The SNAT ports that new connections get, if they were changed: the first one in the upper
    /// half, how many in the lower one. Zero: `ports` from `first_port` on. Not read by the kernel
    /// program.
    pub range: u32,
}

/// In [`Pool::flags`]: some listener has the SNAT address, which another host may hold at this
/// moment. Of several pools, one like this is only used for clients that came by that address.
pub const LISTENED: u32 = 1;

/// How old [`Pool::heard`] and [`Pool::sent`] get before the kernel program writes them again, in
/// ticks: every CPU reads their cache line for every packet, so it must not be written as often.
pub const HEARD_STEP: u32 = 32;

/// A key of ADDRESSES: an address, v4-mapped, as two words of memory.
pub type Address = [u64; 2];

/// ADDRESSES: what the addresses of listeners and pools are used for, a set of `IS_LISTENER`,
/// `IS_SNAT`, `IS_BACKEND`. Written by the controller, read for fragments, which have no ports by
/// which a listener or a pool could be found.
pub const MAX_ADDRESSES: u32 = (1 << LISTENER_BITS) + (2 << POOL_BITS);
/// Clients connect to it.
pub const IS_LISTENER: u32 = 1;
/// Backends see it.
pub const IS_SNAT: u32 = 2;
/// A backend has it.
pub const IS_BACKEND: u32 = 4;

const _: () = {
    assert!(size_of::<Meta>() == 24);
    assert!(size_of::<Lease>() == 40);
    assert!(core::mem::offset_of!(Lease, until) == 16);
    assert!(size_of::<Listener>() == 32);
    assert!(size_of::<Interface>() == 16);
    assert!(size_of::<Pool>() == 64);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_gives_back_what_was_put_in() {
        let hop = Hop::new([2, 3, 4, 5, 6, 0xff], 63);
        assert!(hop.is_known() && !Hop::default().is_known());
        assert_eq!((hop.mac(), hop.interface()), ([2, 3, 4, 5, 6, 0xff], 63));
        let neighbour = hop.of_neighbour();
        assert_eq!((neighbour.mac(), neighbour.interface()), (hop.mac(), hop.interface()));
        assert!(neighbour.is_known() && neighbour.is_of_neighbour() && !hop.is_of_neighbour());
        assert_eq!(neighbour.bare(), hop);
    }
}
