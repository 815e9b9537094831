//! The records in the BPF maps, byte for byte.
//!
//! No record contains padding, a bool, an enum or a usize. Addresses and ports of packets are bytes
//! in network order, all other numbers are the host's. IPv4 addresses are v4-mapped (see
//! [`address`]), so that IPv6 needs no other layout. A change of a record changes [`HASH`], and a
//! controller refuses tables of another layout.
//!
//! [`address`]: crate::address

use crate::{
    failures::Window,
    flow::{Attempt, Chosen, Key, SlotAt},
    slot::Ctl,
    syn::{SavedSyn, Scales},
    time::{Instant, Ticks},
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
    /// Zero.
    pub reserved: [u8; 6],
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
    /// The SNAT port of slot 0.
    pub first_port: u16,
    /// How many slots there are; `u16::MAX` at most.
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
    /// Zero.
    pub reserved: u32,
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

/// RINGS: the two ends of a pool's ring of free slots (the cells are in FREE), and the cursor of
/// the emergency search. Both the kernel program and the controller write it, as they open and
/// close flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Ring {
    /// Position of the next pop.
    pub head: u32,
    /// Position of the next push.
    pub tail: u32,
    /// Where the search for expired slots continues when the ring is empty.
    pub reclaim: u32,
    /// The ring has `1 << bits` cells.
    pub bits: u32,
    /// Zero.
    pub reserved: [u32; 12],
}

/// FREE[pool]: a line of the ring's cells. Position `p` is cell `p & 15` of line `p & mask >> 4`
/// (an ARRAY rounds every value up to 8 bytes, so single cells would take twice the memory).
pub type FreeLine = [u32; 16];
/// The smallest [`Ring::bits`]: one line.
pub const MIN_RING_BITS: u32 = 4;

/// MAGLEV[service]: four entries of the table of `balance = "hash"`: positions in
/// [`Service::backends`].
pub type MaglevLine = [u16; 4];
/// Lines of a Maglev table.
pub const MAGLEV_LINES: u32 = crate::schedule::MAGLEV_PLACES.div_ceil(4);

/// CONNECT_TIMES\[backend\]: a histogram of connect times; see [`connect_time_bucket`].
pub type ConnectTimes = [u32; CONNECT_TIME_BUCKETS];

/// Slots of one extent, as bits. The slots of a pool are in as many arrays of this size as are
/// needed: in an array of known size a look-up is a few instructions, in one of any size it is a
/// call.
pub const EXTENT_BITS: u32 = 13;
/// Most extents of a pool; its first one is in SLOTS and OPENINGS at this multiple of its number.
pub const POOL_EXTENTS: u32 = 1 << (16 - EXTENT_BITS);

/// SLOTS[at >> EXTENT_BITS], where `at` is a [`SlotAt`]: what the packets of one flow need of it,
/// in one cache line. The slot's number plus the pool's `first_port` is the SNAT port. Written by
/// the kernel program; the controller writes `ctl` only, by compare-and-swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Slot {
    /// State and generation.
    pub ctl: Ctl,
    /// Its key in the flow index: the client and the listener.
    pub key: Key,
    /// Highest sequence end from the client, wraps counted in the upper half.
    pub end_client: u64,
    /// Highest sequence end from the backend, in the same way.
    pub end_backend: u64,
    /// Last acknowledgement number from the client. While half-open, the lower half of
    /// [`Tried`](crate::flow::Tried).
    pub ack_client: u32,
    /// Last acknowledgement number from the backend. While half-open, the upper half of it.
    pub ack_backend: u32,
    /// Next hop towards the client: that of WAYS, or else the sender of its own frames.
    pub hop: Hop,
    /// When the last packet was seen, by CLOCK_MONOTONIC_COARSE.
    pub last_seen: Ticks,
    /// The backend, its number in BACKENDS.
    pub backend: u16,
    /// The attempt it is in, or was connected by.
    pub attempt: Attempt,
    /// The window scales of client and backend.
    pub scales: Scales,
    /// The first sequence number that the backend does not take from the client yet: its highest
    /// acknowledgement plus window.
    pub edge_client: u32,
    /// The first one that the client does not take from the backend yet.
    pub edge_backend: u32,
}

/// OPENINGS, in extents as SLOTS: the rest of a flow, for its beginning and its end. It is kept in
/// separate arrays: if only every second line were in use, only half of a processor's caches would
/// be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Opening {
    /// The client's IPv6 address; all zero for IPv4.
    pub client6: [u8; 16],
    /// The client's initial sequence number.
    pub isn_client: u32,
    /// The backend's, once it has answered.
    pub isn_backend: u32,
    /// When the client's first SYN came.
    pub started: Instant,
    /// While half-open, when this try's SYN was sent; afterwards, how long the backend took to
    /// answer. Microseconds.
    pub connect_us: u32,
    /// What the client's SYN said.
    pub syn: SavedSyn,
    /// Backends tried for this connection so far.
    pub tries: u8,
    /// While the flow is `LOOSE`: which side's segment the two numbers below are of, `SEEN_*`.
    pub seen: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Where the client is by that segment: its sequence number, or what the backend acknowledged.
    pub seen_client: u32,
    /// Where the backend is by it.
    pub seen_backend: u32,
    /// Zero.
    pub reserved2: u32,
}

/// In [`Opening::seen`]: none.
pub const SEEN_NONE: u8 = 0;
/// A segment of the client.
pub const SEEN_CLIENT: u8 = 1;
/// A segment of the backend.
pub const SEEN_BACKEND: u8 = 2;

/// BACKENDS: one backend of one service. The first line is what the scheduler needs, the second
/// totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Backend {
    /// Flows open to it, half-open ones included. Changed once when one opens and once when it
    /// ends.
    pub active: u32,
    /// Smooth weighted round-robin's current weight (an i32).
    pub current: u32,
    /// Share of new connections; at least 1.
    pub weight: u32,
    /// Most active connections; 0: unlimited.
    pub max_conns: u32,
    /// `NONE`, `OUT` or `UP`: what it may be given. Written by the controller; the kernel program
    /// swaps `UP` for `OUT` at the failure that is one too many (see [`Failures`]), and `OUT` for
    /// `UP` when a trial connection succeeds.
    pub admission: u32,
    /// `BACKUP`.
    pub flags: u32,
    /// While `OUT`: from when on one connection may try it; [`Instant::NEVER`]: none may, only its
    /// probe brings it back. Moved forward by compare-and-swap.
    pub retry_at: Instant,
    /// fail_timeout in nanoseconds: within how long failures count together, and how long they, or a
    /// failed trial, keep it out.
    pub retry_after: u64,
    /// The service, its number in SERVICES.
    pub service: u16,
    /// How many of `pools` are used.
    pub pool_count: u16,
    /// Its pools, one for each SNAT address of the service.
    pub pools: [u16; MAX_SNAT as usize],
    /// For the controller: why it is out, the number of a [`Reason`](crate::verdict::Reason); 0: it
    /// is not out, or the reason is unknown. Written by the side that takes it out.
    pub out_reason: u32,

    /// Connections given to it.
    pub opened: u64,
    /// Connections that it answered.
    pub connected: u64,
    /// Tries that failed: refused or timed out.
    pub connect_failures: u64,
    /// Connections that ended by a RST, of either side or ours.
    pub resets: u64,
    /// Payload bytes from clients, of connections that have ended.
    pub bytes_in: u64,
    /// Payload bytes to clients, of connections that have ended.
    pub bytes_out: u64,
    /// For the controller: when its state last changed; [`Instant::ZERO`]: unknown. Written by the
    /// side that takes it out.
    pub changed_at: Instant,
    /// The sum of all connect times, for the histogram in CONNECT_TIMES. Microseconds.
    pub connect_us: u64,
}

/// SLOW_STARTS\[backend\]: a backend that has come back gets less than its share for a while,
/// growing from nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SlowStart {
    /// When it gets its whole share again. Written by the side that lets it take part again: the
    /// controller, or the kernel program after a trial.
    pub until: Instant,
    /// slow_start in milliseconds; 0: none. Written by the controller.
    pub ms: u32,
    /// What it has saved up of its share, in 2^-32 connections. Written by the kernel program under
    /// the service's lock.
    pub credit: u32,
}

/// FAILURES\[backend\]: the tries to connect that have failed lately. The kernel program counts
/// them and takes the backend out at the one that is one too many, so that it meets no more whether
/// a controller runs or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Failures {
    /// Those that count together. Written by the kernel program, by compare-and-swap; cleared by
    /// the side that takes the backend out or lets it take part again.
    pub window: Window,
    /// max_fails: as many take it out; 0: no number does. Written by the controller.
    pub max_fails: u32,
    /// Zero.
    pub reserved: u32,
}

/// In [`Backend::out_reason`], above every reason: it is alive and not ready.
pub const NOT_READY: u32 = 1 << 8;
/// In [`Backend::out_reason`]: it is alive, and its TLS certificate or protocol is not accepted.
pub const UNTRUSTED: u32 = 1 << 9;
/// Gets no connections: `down`, `maint`, draining, or a tombstone.
pub const NONE: u32 = 0;
/// Out by health: it gets a trial connection at `retry_at`, or connections when nothing else is
/// left.
pub const OUT: u32 = 1;
/// Gets its share.
pub const UP: u32 = 2;
/// In [`Backend::flags`]: used only when no other backend is up.
pub const BACKUP: u32 = 1;

/// SERVICES: first line written by the controller, second by the kernel program, then the list of
/// backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Service {
    /// How long a backend has for its SYN-ACK, in nanoseconds.
    pub connect_timeout: u64,
    /// One of `schedule::{LEAST_CONN, ROUND_ROBIN, RANDOM_TWO, HASH}`.
    pub balance: u32,
    /// How many of `backends` are used.
    pub backend_count: u32,
    /// Most backends one connection tries; at least 1.
    pub tries: u32,
    /// Cells of its ring of half-open flows; 0: the service accepts no connections.
    pub half_open_cells: u32,
    /// A set of `LOG`, `EXEMPTS`.
    pub flags: u32,
    /// Most connections of one client, at most `clients::MOST`; 0: unlimited.
    pub client_limit: u32,
    /// The latest [`SlowStart::until`] of its backends: after that, none of them is starting
    /// slowly. Written together with them.
    pub slow_until: Instant,
    /// How often `backends` has changed, modulo 2^32: positions in it are compared only if this has
    /// not moved. Written by the controller, after the list.
    pub list: u32,
    /// `COOKIES_OFF`, `COOKIES_READY` or `COOKIES_ON`. Written by the controller; the kernel program
    /// swaps `COOKIES_READY` for `COOKIES_ON` when its ring of half-open flows has no room left.
    pub cookies: u32,
    /// No segment that a backend sends a client, or a client a backend, is to have more payload; 0:
    /// as they agree. Written by the controller.
    pub mss_clamp: u32,
    /// Zero.
    pub reserved: [u32; 3],

    /// Taken while a backend is chosen, so that two CPUs do not give the same share twice.
    pub lock: u32,
    /// Next cell of the ring of half-open flows.
    pub half_open: u32,
    /// The stretch of time that `turned_away` is about, see [`turned_away_stretch`].
    pub turned_away_in: u32,
    /// Clients that were turned away in it and that events reported.
    pub turned_away: u32,
    /// Where the search for the oldest unconfirmed flow goes on in the ring of half-open flows, when
    /// no slot is free.
    pub oldest: u32,
    /// Unconfirmed flows that gave way in that stretch and that events reported.
    pub gave_way: u32,
    /// Zero.
    pub reserved2: [u32; 10],

    /// Its backends, numbers in BACKENDS.
    pub backends: [u16; MAX_SERVICE_BACKENDS as usize],
}

/// Events for clients that were turned away, in one stretch of time and for one service. The rest
/// is only counted: SYNs that are denied must not fill the ring buffer, nor wake the controller for
/// each of them.
pub const TURNED_AWAY_EVENTS: u32 = 100;

/// Events for unconfirmed flows that gave way, likewise: the controller ends as many of those attempts
/// at their backends. They take 160 KiB of the ring buffer before they are read.
pub const GAVE_WAY_EVENTS: u32 = 2048;

/// The stretch of time, about 1.07 s long, that a moment lies in.
#[inline(always)]
pub const fn turned_away_stretch(now: Ticks) -> u32 {
    now.0 >> 10
}

/// In [`Service::flags`]: every connection that ends makes an event, not only those that fail.
pub const LOG: u32 = 1;

/// In [`Service::flags`]: some of its clients are in EXEMPT.
pub const EXEMPTS: u32 = 2;

/// In [`Service::cookies`]: no SYN is ever answered with a cookie.
pub const COOKIES_OFF: u32 = 0;
/// None is for now.
pub const COOKIES_READY: u32 = 1;
/// Each is, of a client that has not answered one lately and is not exempt.
pub const COOKIES_ON: u32 = 2;

/// COOKIES: one record, what SYN cookies are made of; see [`cookie`](crate::cookie). Written by the
/// controller. Both hosts of a pair have the same key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CookieKey {
    /// The key, secret.
    pub key: [u64; 2],
    /// The time of day less CLOCK_MONOTONIC, modulo 2^64 nanoseconds: both hosts of a pair number
    /// the same epochs. Where their clocks differ, a client of one that moves to the other sends
    /// its SYN again.
    pub offset: u64,
    /// Zero.
    pub reserved: u64,
}

/// VERIFIED: a word for each of this many hashes, see [`cookie::Mark`]: the clients that have answered
/// a cookie lately, in any of [`cookie::ROWS`] rows. Written by the kernel program. A client sends its
/// SYN again within a second; so long even 8,000 new ones a second are known.
///
/// [`cookie::Mark`]: crate::cookie::Mark
/// [`cookie::ROWS`]: crate::cookie::ROWS
pub const MARKS: u32 = 8192;
/// CHALLENGED: the same of the clients that were sent one. It only has to catch some of those that do
/// not answer.
pub const CHALLENGES: u32 = 2048;

/// EXEMPT: the clients that get no cookie, by service and prefix: the service's number as four bytes
/// of the host, then the address, v4-mapped. Written by the controller.
pub const MAX_EXEMPT: u32 = 4096;
/// Bytes of a key in EXEMPT without its length.
pub type ExemptKey = [u8; 20];

/// CLIENTS[service]: a bucket of words, see `clients::ClientCount`. A service has a table if it
/// has, or has had, a limit. When both buckets of a client are full, it is let in and not counted.
pub type ClientLine = [u64; crate::hash::BUCKET as usize];

/// RULES[service]: eight of its rules in a line, in their order; the list ends with the map or at
/// the first rule without a verdict. A list is written before it is installed and never changed:
/// another one replaces it whole.
pub type RuleLine = [Rule; 8];

/// One of a service's `rules`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// The network's address, v4-mapped; zero behind its prefix.
    pub network: [u8; 16],
    /// How many bits must be equal: at most 32, or 128 for IPv6.
    pub prefix: u8,
    /// 4 or 6; `rules::EVERY_FAMILY`: every client.
    pub family: u8,
    /// `rules::{ALLOW, DENY}`; 0: the list ends here.
    pub verdict: u8,
    /// Zero.
    pub reserved: [u8; 5],
}

/// TRACE: one record. The controller asks what would happen to a SYN, and the kernel program
/// answers when the SYN comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Trace {
    /// The SYN's key in the flow index.
    pub key: Key,
    /// [`TRACE_ASKED`] and the SYN's initial sequence number; 0: there is no question.
    pub question: u64,
    /// `TRACE_KNOWN`, `TRACE_OPENS` or `TRACE_TURNED_AWAY`; 0: the program did not get that far.
    pub answer: u32,
    /// Why it would be turned away, the number of a `verdict::Reason`.
    pub reason: u32,
    /// The slot that it belongs to, or would get.
    pub at: SlotAt,
    /// That slot's generation, if it belongs to it.
    pub generation: u32,
    /// The rule that decides: its number << 8 | its verdict; 0: no rule matches this client.
    pub rule: u32,
    /// The backend that it would go to.
    pub chosen: Chosen,
    /// Zero.
    pub reserved: [u8; 3],
}

/// In [`Trace::question`].
pub const TRACE_ASKED: u64 = 1 << 32;
/// It belongs to an open flow.
pub const TRACE_KNOWN: u32 = 1;
/// It would open a flow.
pub const TRACE_OPENS: u32 = 2;
/// It would be answered with a RST.
pub const TRACE_TURNED_AWAY: u32 = 3;

/// The bucket for a connect time: four per octave, from 64 µs (all below) to 4 s and more.
#[inline(always)]
pub const fn connect_time_bucket(microseconds: u32) -> u32 {
    if microseconds < 64 {
        return 0;
    }
    let octave = 31 - microseconds.leading_zeros();
    let quarter = microseconds >> (octave - 2) & 3;
    let bucket = (octave - 6) * 4 + quarter + 1;
    if bucket < CONNECT_TIME_BUCKETS as u32 { bucket } else { CONNECT_TIME_BUCKETS as u32 - 1 }
}

/// The upper bound of a bucket, in microseconds; the last one has none.
pub const fn connect_time_bound(bucket: u32) -> Option<u32> {
    if bucket + 1 >= CONNECT_TIME_BUCKETS as u32 {
        return None;
    }
    let octave = bucket / 4 + 6;
    Some((4 + bucket % 4) << (octave - 2))
}

const _: () = {
    assert!(size_of::<Meta>() == 24);
    assert!(size_of::<Lease>() == 40);
    assert!(core::mem::offset_of!(Lease, until) == 16);
    assert!(size_of::<Listener>() == 32);
    assert!(size_of::<Interface>() == 16);
    assert!(size_of::<Pool>() == 64);
    assert!(size_of::<Ring>() == 64);
    assert!(size_of::<Slot>() == 64);
    assert!(size_of::<Opening>() == 64);
    assert!(size_of::<Backend>() == 128);
    assert!(size_of::<SlowStart>() == 16);
    assert!(size_of::<Failures>() == 16);
    assert!(core::mem::offset_of!(Backend, opened) == 64);
    assert!(size_of::<Rule>() == 24);
    assert!(size_of::<Trace>() == 40);
    assert!(size_of::<Service>() == 256);
    assert!(size_of::<CookieKey>() == 32);
    assert!(core::mem::offset_of!(Service, lock) == 64);
    assert!(core::mem::offset_of!(Service, backends) == 128);
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

    #[test]
    fn every_connect_time_lies_below_the_bound_of_its_bucket_and_above_the_one_before() {
        for exponent in 0..32 {
            for step in 0..64_u64 {
                let time = ((1_u64 << exponent) + (step << exponent) / 64).min(u64::from(u32::MAX)) as u32;
                let bucket = connect_time_bucket(time);
                assert!(connect_time_bound(bucket).is_none_or(|bound| time < bound), "{time} in {bucket}");
                let above = bucket.checked_sub(1).and_then(connect_time_bound);
                assert!(above.is_none_or(|bound| time >= bound), "{time} in {bucket}");
            }
        }
    }
}
