//! The slots and the ring of free slots of one pool, and what user space may change in them.
//!
//! Every change of a slot's state is one compare-and-swap of its word, against the kernel program
//! and against ourselves. The winner of the swap carries out the consequences, exactly once.

use std::{
    mem::offset_of,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering, fence},
    },
};

use lb_common::{
    flow::{Key, SlotAt},
    layout::{FreeLine, Opening, Ring, Slot},
    ring,
    slot::{Ctl, IN_RING, KILLED, State},
    time::Ticks,
    verdict::Reason,
};

use super::flow::{Flow, FlowAt, Head};
use crate::sys::memory::Table;

/// How often a copy is tried while the slot changes under it.
const COPY_TRIES: usize = 4;

/// The inner maps of one pool.
pub struct Slots {
    /// The pool's number.
    pub pool: u16,
    slots: Table<Slot>,
    openings: Table<Opening>,
    free: Table<FreeLine>,
}

impl Slots {
    pub fn new(pool: u16, slots: Table<Slot>, openings: Table<Opening>, free: Table<FreeLine>) -> Slots {
        Slots { pool, slots, openings, free }
    }

    /// The number of slots.
    pub fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// A slot's word. What was written before it is visible.
    pub fn ctl(&self, slot: u16) -> Ctl {
        Ctl(self.slots.word64(slot.into(), offset_of!(Slot, ctl)).load(Ordering::Acquire))
    }

    /// The key of the flow in a slot, or of the last one that was in it.
    pub fn key(&self, slot: u16) -> Key {
        Key(self.slots.word64(slot.into(), offset_of!(Slot, key)).load(Ordering::Relaxed))
    }

    pub(super) fn swap(&self, slot: u16, from: Ctl, to: Ctl) -> bool {
        let word = self.slots.word64(slot.into(), offset_of!(Slot, ctl));
        word.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The records, for changes that are written word by word.
    pub(super) fn table(&self) -> &Table<Slot> {
        &self.slots
    }

    /// Fills a slot that we have claimed; its word is written last.
    pub(super) fn publish(&self, slot: u16, record: &Slot, opening: &Opening) {
        self.openings.publish(slot.into(), opening, 0);
        self.slots.publish(slot.into(), record, offset_of!(Slot, ctl));
    }

    /// The slots of `range` that hold a connection or are held back. Each costs one cache line.
    pub fn heads(self: Arc<Slots>, range: Range<u32>) -> impl Iterator<Item = Head> {
        (range.start..range.end.min(self.len())).filter_map(move |slot| self.head(slot as u16))
    }

    fn head(&self, slot: u16) -> Option<Head> {
        let ctl = self.ctl(slot);
        if !ctl.state().is_active() && ctl.state() != State::Abandoned {
            return None;
        }
        let last_seen = Ticks(self.slots.word32(slot.into(), offset_of!(Slot, last_seen)).load(Ordering::Relaxed));
        let backend = self.slots.word32(slot.into(), BACKEND_WORD).load(Ordering::Relaxed).to_ne_bytes();
        let key = self.key(slot);
        let flow = FlowAt { at: SlotAt::new(self.pool, slot), ctl };
        Some(Head { flow, key, last_seen, backend: u16::from_ne_bytes([backend[0], backend[1]]) })
    }

    /// A copy of a slot, all of one generation and state; `None` if it holds no connection or is
    /// changing hands.
    pub fn flow(&self, slot: u16) -> Option<Flow> {
        if usize::from(slot) >= self.slots.len() {
            return None;
        }
        for _ in 0..COPY_TRIES {
            let ctl = self.ctl(slot);
            if matches!(ctl.state(), State::Free | State::Claiming) {
                return None;
            }
            let (record, opening) = (self.slots.read(slot.into()), self.openings.read(slot.into()));
            // The reads of the record come before the second look at its word.
            fence(Ordering::Acquire);
            if self.ctl(slot) == ctl {
                return Some(Flow { at: SlotAt::new(self.pool, slot), ctl, record, opening });
            }
        }
        None
    }

    /// Puts an idle flow under suspicion; any packet clears it.
    pub fn suspect(&self, slot: u16, ctl: Ctl) -> bool {
        matches!(ctl.state(), State::Established | State::ClosingClient | State::ClosingBackend)
            && self.swap(slot, ctl, ctl.suspected())
    }

    /// Sets a flag of an open flow whose word is still `ctl`.
    pub fn flag(&self, slot: u16, ctl: Ctl, flag: u8) -> bool {
        ctl.state().is_active() && self.swap(slot, ctl, ctl.with_flags(flag))
    }

    /// Ends a flow whose word is still `ctl`. The winner gets the flow as it was and owes the
    /// consequences: counters, [`push`](Self::push), RSTs.
    pub fn close(&self, slot: u16, ctl: Ctl, reason: Reason) -> Option<Flow> {
        if !ctl.state().is_active() {
            return None;
        }
        let before = self.flow(slot).filter(|flow| flow.ctl == ctl)?;
        let closed = ctl.with_flags(KILLED).closed(reason as u8);
        if !self.swap(slot, ctl, closed) {
            return None;
        }
        // From here on no packet is forwarded, so these are the last sequence numbers. The slot is
        // not in the ring yet: only an emergency search (empty ring) could have claimed it since.
        let after = self.flow(slot).filter(|flow| flow.ctl == closed);
        Some(Flow { ctl, ..after.unwrap_or(before) })
    }

    /// Ends the time for which a slot is held back. The winner owes the [`push`](Self::push).
    pub fn release(&self, slot: u16, ctl: Ctl) -> bool {
        ctl.state() == State::Abandoned && self.swap(slot, ctl, ctl.with_state(State::Closed))
    }

    /// Takes a slot out of use for good, if it holds no flow: it looks claimed forever, so it is
    /// skipped when it is popped. The flag distinguishes it from a claim of the kernel program.
    pub fn retire(&self, slot: u16) -> bool {
        let ctl = self.ctl(slot);
        match ctl.state() {
            State::Claiming => ctl.flags() & KILLED != 0,
            State::Free | State::Closed => self.swap(slot, ctl, ctl.claimed().with_flags(KILLED)),
            _ => false,
        }
    }

    /// Appends a free slot to the ring whose ends are record `index` of `rings` (see [`ring`]).
    pub fn push(&self, rings: &Table<Ring>, slot: u16) {
        let index = usize::from(self.pool);
        let bits = rings.word32(index, offset_of!(Ring, bits)).load(Ordering::Relaxed);
        let position = rings.word32(index, offset_of!(Ring, tail)).fetch_add(1, Ordering::AcqRel);
        self.store_cell(position, bits, ring::cell(position, slot.into(), bits));
    }

    /// Takes the port that was released longest ago from the ring; `None` if the ring is empty or
    /// contended.
    pub(super) fn pop(&self, rings: &Table<Ring>) -> Option<u16> {
        let index = usize::from(self.pool);
        let ring = |offset: usize| rings.word32(index, offset);
        let bits = ring(offset_of!(Ring, bits)).load(Ordering::Relaxed);
        for _ in 0..COPY_TRIES {
            let head = ring(offset_of!(Ring, head)).load(Ordering::Acquire);
            if head == ring(offset_of!(Ring, tail)).load(Ordering::Acquire) {
                return None;
            }
            let cell = self.cell(head, bits).load(Ordering::Acquire);
            let Some(slot) = ring::slot_at(head, cell, bits) else { continue };
            let next = head.wrapping_add(1);
            let word = ring(offset_of!(Ring, head));
            if word.compare_exchange(head, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Some(slot as u16);
            }
        }
        None
    }

    /// Goes once round the ring and takes out the ports that carry a flow of the other host: they
    /// return when the flow ends. The others keep their order. Claims continue in the meantime.
    pub(super) fn weed(&self, rings: &Table<Ring>) {
        let index = usize::from(self.pool);
        let end = |offset: usize| rings.word32(index, offset).load(Ordering::Acquire);
        let count = end(offset_of!(Ring, tail)).wrapping_sub(end(offset_of!(Ring, head)));
        for _ in 0..count.min(self.len()) {
            match self.pop(rings) {
                Some(slot) if self.is_free(slot) => self.push(rings, slot),
                Some(_) => {}
                None => return,
            }
        }
    }

    /// What a process that was killed between two steps may have left behind. The kernel program goes
    /// on meanwhile and may be between two steps itself: what is lost looks the same a moment later.
    pub(super) fn lost(&self, rings: &Table<Ring>) -> Lost {
        // Slots before the ring: one that is given back in between is found in it.
        let all = (0..self.len()).map(|slot| (slot as u16, self.ctl(slot as u16)));
        let idle: Vec<_> = all.filter(|(_, ctl)| is_idle(*ctl)).collect();
        let index = usize::from(self.pool);
        let end = |offset: usize| rings.word32(index, offset).load(Ordering::Acquire);
        let (bits, head, tail) =
            (end(offset_of!(Ring, bits)), end(offset_of!(Ring, head)), end(offset_of!(Ring, tail)));
        let (mut in_ring, mut cells) = (vec![false; self.slots.len()], Vec::new());
        for position in (0..tail.wrapping_sub(head).min(1 << bits)).map(|n| head.wrapping_add(n)) {
            let cell = self.cell(position, bits).load(Ordering::Acquire);
            match ring::slot_at(position, cell, bits) {
                Some(slot) => in_ring.iter_mut().skip(slot as usize).take(1).for_each(|found| *found = true),
                None => cells.push((position, cell)),
            }
        }
        // What was popped meanwhile may have been pushed for the next lap.
        let popped = end(offset_of!(Ring, head)).wrapping_sub(head);
        cells.retain(|(position, _)| position.wrapping_sub(head) >= popped);
        Lost { slots: idle.into_iter().filter(|(slot, _)| !in_ring[usize::from(*slot)]).collect(), cells }
    }

    /// Gives back what is lost: every idle slot to the ring, and something to every cell that was
    /// never filled, without which no pop gets past it. Returns how many slots are back.
    pub(super) fn heal(&self, rings: &Table<Ring>, lost: &Lost) -> u32 {
        let bits = rings.word32(usize::from(self.pool), offset_of!(Ring, bits)).load(Ordering::Relaxed);
        let mut back = 0;
        let mut slots = lost.slots.iter().filter(|(slot, ctl)| {
            // One that is half claimed has nobody any more who finishes that.
            ctl.state() != State::Claiming || self.swap(*slot, *ctl, ctl.with_state(State::Closed))
        });
        for (position, seen) in &lost.cells {
            let next = slots.next().map(|(slot, _)| *slot);
            // Without one, a slot in use: a pop passes over it.
            let filler = || (0..self.len()).map(|slot| slot as u16).find(|slot| self.ctl(*slot).state().is_active());
            let Some(slot) = next.or_else(filler) else { continue };
            let cell = ring::cell(*position, slot.into(), bits);
            let filled = self.cell(*position, bits).compare_exchange(*seen, cell, Ordering::AcqRel, Ordering::Acquire);
            match next {
                Some(_) if filled.is_ok() => back += 1,
                Some(slot) => {
                    self.push(rings, slot);
                    back += 1;
                }
                None => {}
            }
        }
        for (slot, _) in slots {
            self.push(rings, *slot);
            back += 1;
        }
        back
    }

    /// Whether a port that was taken from the ring belongs in it. If a flow has it, its word now
    /// says that the port is not in the ring.
    fn is_free(&self, slot: u16) -> bool {
        loop {
            let ctl = self.ctl(slot);
            match ctl.state() {
                State::Free | State::Closed => return true,
                _ if ctl.flags() & IN_RING == 0 => return false,
                _ if self.swap(slot, ctl, ctl.without_flags(IN_RING)) => return false,
                _ => {}
            }
        }
    }

    fn store_cell(&self, position: u32, bits: u32, cell: u32) {
        self.cell(position, bits).store(cell, Ordering::Release);
    }

    fn cell(&self, position: u32, bits: u32) -> &AtomicU32 {
        let place = position as usize & ((1 << bits) - 1);
        self.free.word32(place >> 4, (place & 15) * 4)
    }

    /// Fills a new ring with all slots but those that `skip` names, beginning with `first`. Nothing
    /// else may use the pool yet.
    pub fn fill(&self, rings: &Table<Ring>, first: u16, skip: impl Fn(u16) -> bool) {
        let bits = ring_bits(self.len());
        // A cell that was not pushed yet must look like one of an earlier lap: zero would read as
        // "slot 0" of the first lap.
        for position in 0..1_u32 << bits {
            self.store_cell(position, bits, ring::cell(position.wrapping_sub(1 << bits), 0, bits));
        }
        let index = usize::from(self.pool);
        let ring = Ring { head: 0, tail: 0, reclaim: 0, bits, reserved: [0; 12] };
        rings.publish(index, &ring, offset_of!(Ring, bits));
        let all = (u32::from(first)..self.len()).chain(0..u32::from(first).min(self.len()));
        for slot in all.map(|slot| slot as u16).filter(|slot| !skip(*slot)) {
            self.push(rings, slot);
        }
    }
}

/// Slots that hold no flow and wait in no ring, each with its word; and positions of a ring that are
/// counted and were never filled, each with what their cell holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    pub slots: Vec<(u16, Ctl)>,
    pub cells: Vec<(u32, u32)>,
}

impl Lost {
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.cells.is_empty()
    }

    /// What was lost before and still is.
    pub fn still(mut self, now: &Lost) -> Lost {
        self.slots.retain(|slot| now.slots.contains(slot));
        self.cells.retain(|cell| now.cells.contains(cell));
        self
    }
}

/// Whether a slot holds no flow. A claim lasts microseconds; one that is [retired](Slots::retire)
/// looks claimed for ever.
fn is_idle(ctl: Ctl) -> bool {
    match ctl.state() {
        State::Free | State::Closed => true,
        State::Claiming => ctl.flags() & KILLED == 0,
        _ => false,
    }
}

/// Two bytes `backend`, one `tries`, one `attempt`: the word that holds the backend.
const BACKEND_WORD: usize = offset_of!(Slot, backend);
const _: () = assert!(BACKEND_WORD.is_multiple_of(4));

/// The size of the ring for a pool of `slots`, in bits.
pub fn ring_bits(slots: u32) -> u32 {
    ring::bits(slots).max(lb_common::layout::MIN_RING_BITS)
}

/// Lines of the ring for a pool of `slots`.
pub fn free_lines(slots: u32) -> u32 {
    (1 << ring_bits(slots)) / 16
}

#[cfg(test)]
mod tests;
