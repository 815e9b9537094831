//! The fields of a pool and of its rings of free slots.

use lb_common::{
    address::Family,
    flow::SlotAt,
    layout::{Ends, FreeLine, HEARD_STEP, Hop, Pool, Ring},
    time::Ticks,
};

use super::{Held, Word, address, masked, plain, shared};
use crate::atomic;

fields! { Pool:
    plain first_port: u16;
    plain ports: u16;
    plain family: u8;
    plain state: u8;
    shared hop: Hop;
    plain heard: Ticks, set set_heard;
    plain sent: Ticks, set set_sent;
    plain flags: u32;
}

impl Held<Pool> {
    /// Whether a number is one of its slots; an extent of them may be missing.
    #[inline(always)]
    pub fn has_slot(self, slot: u16) -> bool {
        slot < self.ports() || self.ports() == u16::MAX
    }

    /// The backend's address as it lies in a packet.
    #[inline(always)]
    pub fn backend<V: Family>(self) -> V::Address {
        // SAFETY: the record is held; sixteen bytes on a word boundary.
        unsafe { address::<V>(&raw const (*self.0).backend) }
    }

    /// The SNAT address as it lies in a packet.
    #[inline(always)]
    pub fn snat<V: Family>(self) -> V::Address {
        // SAFETY: the record is held; sixteen bytes on a word boundary.
        unsafe { address::<V>(&raw const (*self.0).snat) }
    }

    /// The backend's port as it lies in a packet.
    #[inline(always)]
    pub fn backend_port(self) -> u16 {
        // SAFETY: the record is held; the two bytes lie on an even offset.
        unsafe { *(&raw const (*self.0).port).cast() }
    }

    /// The SNAT port of a slot as it lies in a packet.
    #[inline(always)]
    pub fn snat_port(self, at: SlotAt) -> u16 {
        self.first_port().wrapping_add(at.slot()).to_be()
    }

    /// Notes that the backend was heard. Every CPU reads this line for every packet, so it is
    /// written once in [`HEARD_STEP`] only.
    #[inline(always)]
    pub fn note_heard(self, now: Ticks) {
        if now.0.wrapping_sub(self.heard().0) >= HEARD_STEP {
            self.set_heard(now);
        }
    }

    /// Notes that a client's segment was sent on to the backend, equally seldom.
    #[inline(always)]
    pub fn note_sent(self, now: Ticks) {
        if now.0.wrapping_sub(self.sent().0) >= HEARD_STEP {
            self.set_sent(now);
        }
    }
}

impl Held<Ring> {
    /// The first ring.
    #[inline(always)]
    pub fn first(self) -> Held<Ends> {
        // SAFETY: the record is held, and so is its part.
        Held(unsafe { &raw mut (*self.0).first })
    }

    /// The wide one, if there is one.
    #[inline(always)]
    pub fn wide(self) -> Option<Held<Ends>> {
        // SAFETY: the record is held, and so is its part.
        let wide = Held(unsafe { &raw mut (*self.0).wide });
        if wide.bits() == 0 { None } else { Some(wide) }
    }
}

fields! { Ends:
    shared head: u32;
    shared tail: u32;
    shared reclaim: u32;
    plain bits: u32;
}

impl Held<Ends> {
    /// Whether nothing waits in it.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.head() == self.tail()
    }

    /// Moves the head by one, if it still is at `head`.
    #[inline(always)]
    pub fn pop(self, head: u32) -> bool {
        // SAFETY: the record is held: whole and aligned, and so is its field.
        unsafe { atomic::compare_swap(&raw mut (*self.0).head, head, head.wrapping_add(1)) == head }
    }

    /// The position of the next push.
    #[inline(always)]
    pub fn next_tail(self) -> u32 {
        // SAFETY: the record is held: whole and aligned, and so is its field.
        unsafe { atomic::fetch_add(&raw mut (*self.0).tail, 1) }
    }

    /// The next slot of the emergency search, counted without end.
    #[inline(always)]
    pub fn next_reclaim(self) -> u32 {
        // SAFETY: the record is held: whole and aligned, and so is its field.
        unsafe { atomic::fetch_add(&raw mut (*self.0).reclaim, 1) }
    }

    /// The cells as bits; below 32, which a shift may rely on.
    #[inline(always)]
    pub fn bits_31(self) -> u32 {
        self.bits() & 31
    }
}

impl Held<FreeLine> {
    /// The cell at a position, which is cut to the length of the line.
    #[inline(always)]
    pub fn cell(self, position: u32) -> Word<u32> {
        // SAFETY: the line is held; 0 to 15 lies in its sixteen.
        Word(unsafe { self.0.cast::<u32>().add(masked::<15>(position) as usize) })
    }
}
