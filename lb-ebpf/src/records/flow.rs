//! The fields of a flow: of its slot, and of the rest of it.

use lb_common::{
    flow::{Attempt, Key, Tried},
    layout::{Hop, Opening, Slot},
    slot::{Ctl, State},
    syn::{SavedSyn, Scales},
    tcp::Side,
    time::{Instant, Ticks},
};

use super::{Held, plain, shared, write};
use crate::atomic;

fields! { Slot:
    shared ctl: Ctl;
    shared key: Key;
    write key: Key, set set_key;
    plain end_client: u64, set set_end_client;
    plain end_backend: u64, set set_end_backend;
    plain ack_client: u32, set set_ack_client;
    plain ack_backend: u32, set set_ack_backend;
    shared hop: Hop, set set_hop;
    plain last_seen: Ticks, set set_last_seen;
    shared last_seen last_seen_once: Ticks;
    plain backend: u16, set set_backend;
    plain attempt: Attempt, set set_attempt;
    plain scales: Scales, set set_scales;
    plain edge_client: u32, set set_edge_client;
    plain edge_backend: u32, set set_edge_backend;
}

impl Held<Slot> {
    /// Changes the state: stores `new` if the word still is `old`. The winner carries out the
    /// consequences, once.
    #[inline(always)]
    pub fn swap(self, old: Ctl, new: Ctl) -> bool {
        // SAFETY: the record is held; the word is its first.
        unsafe { atomic::compare_swap(self.0.cast::<u64>(), old.0, new.0) == old.0 }
    }

    /// Makes a slot that its caller has claimed and filled a half-open flow: nothing that was
    /// written before this can be seen after it. It keeps the flags of the claim. Returns its word.
    #[inline(always)]
    pub fn publish(self, flags: u8) -> Ctl {
        let ctl = self.ctl().with_state(State::HalfOpen).with_flags(flags);
        // SAFETY: the record is held; the word is its first.
        unsafe { atomic::swap(self.0.cast::<u64>(), ctl.0) };
        ctl
    }

    /// The backends that a half-open flow has tried.
    #[inline(always)]
    pub fn tried(self) -> Tried {
        Tried::from_halves(self.ack_client(), self.ack_backend())
    }

    /// Writes which backends a half-open flow has tried.
    #[inline(always)]
    pub fn set_tried(self, tried: Tried) {
        let (lower, upper) = tried.halves();
        self.set_ack_client(lower);
        self.set_ack_backend(upper);
    }

    /// The highest sequence end from one side.
    #[inline(always)]
    pub fn end(self, side: Side) -> u64 {
        match side {
            Side::Client => self.end_client(),
            Side::Backend => self.end_backend(),
        }
    }

    /// Writes it.
    #[inline(always)]
    pub fn set_end(self, side: Side, end: u64) {
        match side {
            Side::Client => self.set_end_client(end),
            Side::Backend => self.set_end_backend(end),
        }
    }

    /// The last acknowledgement number from one side.
    #[inline(always)]
    pub fn ack(self, side: Side) -> u32 {
        match side {
            Side::Client => self.ack_client(),
            Side::Backend => self.ack_backend(),
        }
    }

    /// Writes it.
    #[inline(always)]
    pub fn set_ack(self, side: Side, ack: u32) {
        match side {
            Side::Client => self.set_ack_client(ack),
            Side::Backend => self.set_ack_backend(ack),
        }
    }

    /// The first sequence number of one side that the other one does not take yet.
    #[inline(always)]
    pub fn edge(self, side: Side) -> u32 {
        match side {
            Side::Client => self.edge_client(),
            Side::Backend => self.edge_backend(),
        }
    }

    /// Writes it.
    #[inline(always)]
    pub fn set_edge(self, side: Side, edge: u32) {
        match side {
            Side::Client => self.set_edge_client(edge),
            Side::Backend => self.set_edge_backend(edge),
        }
    }

    /// Notes the time of a packet. Most come within the tick of the one before.
    #[inline(always)]
    pub fn touch(self, now: Ticks) {
        if self.last_seen() != now {
            self.set_last_seen(now);
        }
    }
}

const _: () = assert!(core::mem::offset_of!(Slot, ctl) == 0);

fields! { Opening:
    write client6: [u8; 16], set set_client6;
    plain isn_client: u32, set set_isn_client;
    plain isn_backend: u32, set set_isn_backend;
    plain started: Instant, set set_started;
    plain connect_us: u32, set set_connect_us;
    plain syn: SavedSyn, set set_syn;
    plain tries: u8, set set_tries;
    plain seen: u8, set set_seen;
    plain seen_client: u32, set set_seen_client;
    plain seen_backend: u32, set set_seen_backend;
    shared connect_us fetch: u32;
}

impl Held<Opening> {
    /// Copies everything from another flow's.
    #[inline(always)]
    pub fn copy_from(self, other: Held<Opening>) {
        // Word by word: LLVM would copy a struct through the stack.
        for word in 0..size_of::<Opening>() / 8 {
            // SAFETY: both records are held, and eight words long.
            unsafe { *self.0.cast::<u64>().add(word) = *other.0.cast::<u64>().add(word) };
        }
    }
}
