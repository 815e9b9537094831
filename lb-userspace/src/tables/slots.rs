//! The slots and the rings of free slots of one pool, and what user space may change in them.
//!
//! Every change of a slot's state is one compare-and-swap of its word, against the kernel program
//! and against ourselves. The winner of the swap carries out the consequences, exactly once.

mod circulation;
mod fifo;

use std::{
    array,
    mem::offset_of,
    ops::Range,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use lb_common::{
    flow::{Key, SlotAt},
    layout::{EXTENT_BITS, FreeLine, MIN_RING_BITS, Opening, POOL_EXTENTS, Slot},
    ring,
    slot::{Ctl, KILLED, State},
    time::Ticks,
    verdict::Reason,
};

use super::flow::{Flow, FlowAt, Head};
use crate::sys::memory::Table;
use fifo::Fifo;

pub(super) use circulation::retire_all;

/// How often a copy is tried while the slot changes under it.
const COPY_TRIES: usize = 4;

/// Slots of one extent.
pub const EXTENT: u32 = 1 << EXTENT_BITS;

/// One extent of a pool's slots.
pub struct Extent {
    pub slots: Table<Slot>,
    pub openings: Table<Opening>,
}

/// The extents of a pool; one in which no port was ever used is missing.
pub type Extents = [Option<Arc<Extent>>; POOL_EXTENTS as usize];

/// The inner maps of one pool.
pub struct Slots {
    /// The pool's number.
    pub pool: u16,
    /// How many slots there are at most: those of missing extents count.
    len: u32,
    extents: Extents,
    free: Arc<Table<FreeLine>>,
    wide: Option<Arc<Table<FreeLine>>>,
}

impl Slots {
    pub fn new(pool: u16, len: u32, extents: Extents, free: Table<FreeLine>, wide: Option<Table<FreeLine>>) -> Slots {
        Slots { pool, len, extents, free: Arc::new(free), wide: wide.map(Arc::new) }
    }

    /// The same pool with more slots: extents and a wide ring that it had none of.
    pub fn with(&self, len: u32, more: Extents, wide: Option<Table<FreeLine>>) -> Slots {
        let extents = array::from_fn(|part| self.extents[part].clone().or_else(|| more[part].clone()));
        let wide = wide.map(Arc::new).or_else(|| self.wide.clone());
        Slots { pool: self.pool, len, extents, free: self.free.clone(), wide }
    }

    /// The number of slots, if no extent is missing.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Every slot.
    pub fn all(&self) -> impl Iterator<Item = u16> {
        (0..self.len).map(|slot| slot as u16).filter(|slot| self.has(*slot))
    }

    /// Whether there is a slot.
    pub fn has(&self, slot: u16) -> bool {
        self.extent(slot).is_some()
    }

    /// Whether there is an extent.
    pub fn has_extent(&self, part: usize) -> bool {
        self.extents[part].is_some()
    }

    /// The extent that a slot is in, and its place there.
    fn extent(&self, slot: u16) -> Option<(&Extent, usize)> {
        let slot = u32::from(slot);
        let extent = self.extents[(slot >> EXTENT_BITS) as usize].as_deref().filter(|_| slot < self.len)?;
        Some((extent, (slot & (EXTENT - 1)) as usize))
    }

    /// A slot's word. What was written before it is visible. A slot that is missing looks retired:
    /// nothing touches it.
    pub fn ctl(&self, slot: u16) -> Ctl {
        let Some((slots, at)) = self.table(slot) else { return Ctl::default().retired() };
        Ctl(slots.word64(at, offset_of!(Slot, ctl)).load(Ordering::Acquire))
    }

    /// The key of the flow in a slot, or of the last one that was in it.
    pub fn key(&self, slot: u16) -> Key {
        let Some((slots, at)) = self.table(slot) else { return Key::default() };
        Key(slots.word64(at, offset_of!(Slot, key)).load(Ordering::Relaxed))
    }

    pub(super) fn swap(&self, slot: u16, from: Ctl, to: Ctl) -> bool {
        let Some((slots, at)) = self.table(slot) else { return false };
        let word = slots.word64(at, offset_of!(Slot, ctl));
        word.compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The record of a slot, for changes that are written word by word: a table and its place
    /// there.
    pub(super) fn table(&self, slot: u16) -> Option<(&Table<Slot>, usize)> {
        self.extent(slot).map(|(extent, at)| (&extent.slots, at))
    }

    /// Fills a slot that we have claimed; its word is written last.
    pub(super) fn publish(&self, slot: u16, record: &Slot, opening: &Opening) {
        if let Some((extent, at)) = self.extent(slot) {
            extent.openings.publish(at, opening, 0);
            extent.slots.publish(at, record, offset_of!(Slot, ctl));
        }
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
        let (slots, at) = self.table(slot)?;
        let backend = slots.word32(at, BACKEND_WORD).load(Ordering::Relaxed).to_ne_bytes();
        let last_seen = self.last_seen(slot);
        let key = self.key(slot);
        let flow = FlowAt { at: SlotAt::new(self.pool, slot), ctl };
        Some(Head { flow, key, last_seen, backend: u16::from_ne_bytes([backend[0], backend[1]]) })
    }

    fn last_seen(&self, slot: u16) -> Ticks {
        let word = self.table(slot).map(|(slots, at)| slots.word32(at, offset_of!(Slot, last_seen)));
        Ticks(word.map_or(0, |word| word.load(Ordering::Relaxed)))
    }

    /// A copy of a slot, all of one generation and state; `None` if it holds no connection or is
    /// changing hands.
    pub fn flow(&self, slot: u16) -> Option<Flow> {
        let (extent, at) = self.extent(slot)?;
        for _ in 0..COPY_TRIES {
            let ctl = self.ctl(slot);
            if matches!(ctl.state(), State::Free | State::Claiming) {
                return None;
            }
            let (record, opening) = (extent.slots.read(at), extent.openings.read(at));
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
}

/// Two bytes `backend`, one `tries`, one `attempt`: the word that holds the backend.
const BACKEND_WORD: usize = offset_of!(Slot, backend);
const _: () = assert!(BACKEND_WORD.is_multiple_of(4));

/// The size of the ring for a pool of `slots`, in bits.
pub fn ring_bits(slots: u32) -> u32 {
    ring::bits(slots).max(MIN_RING_BITS)
}

/// Lines of the ring for a pool of `slots`.
pub fn free_lines(slots: u32) -> u32 {
    ring_lines(ring_bits(slots))
}

/// Lines of a ring of `1 << bits` cells.
pub fn ring_lines(bits: u32) -> u32 {
    (1 << bits) / 16
}

#[cfg(test)]
mod tests;
