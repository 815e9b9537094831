//! The records of flows: free ports, slots, and what is asked about one.

use super::Hop;
use crate::{
    flow::{Attempt, Chosen, Key, SlotAt},
    slot::Ctl,
    syn::{SavedSyn, Scales},
    time::{Instant, Ticks},
};

/// RINGS: a pool's rings of free slots. Both the kernel program and the controller write them, as
/// they open and close flows.
///
/// The first one has a cell for every slot that the pool was made with, in FREE. A pool that has
/// got more slots than that has a wide one too, with a cell for every slot there can be, in WIDE:
/// from then on slots are given back to it, and the first one is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Ring {
    /// The first one.
    pub first: Ends,
    /// The wide one; `bits` is 0 if there is none.
    pub wide: Ends,
    /// Zero.
    pub reserved: [u32; 8],
}

/// The two ends of a ring of free slots, and the cursor of the emergency search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ends {
    /// Position of the next pop.
    pub head: u32,
    /// Position of the next push.
    pub tail: u32,
    /// Where the search for expired slots continues when both rings are empty; zero in the wide
    /// one.
    pub reclaim: u32,
    /// The ring has `1 << bits` cells.
    pub bits: u32,
}

/// [`Ends::bits`] of a ring that has room for every slot of a pool.
pub const WIDE_BITS: u32 = 16;
/// Lines of a wide ring.
pub const WIDE_LINES: u32 = 1 << WIDE_BITS >> 4;

/// FREE[pool], WIDE[pool]: a line of a ring's cells. Position `p` is cell `p & 15` of line
/// `p & mask >> 4` (an ARRAY rounds every value up to 8 bytes, so single cells would take twice the
/// memory).
pub type FreeLine = [u32; 16];
/// The smallest [`Ends::bits`]: one line.
pub const MIN_RING_BITS: u32 = 4;

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

const _: () = {
    assert!(size_of::<Ring>() == 64);
    assert!(size_of::<Slot>() == 64);
    assert!(size_of::<Opening>() == 64);
    assert!(size_of::<Trace>() == 40);
};
