//! Which slots are in circulation: each waits in a ring of free slots, or holds a flow that gives
//! it back to the ring. All others are out of circulation: retired, or left with a flow whose end
//! gives nothing back.

use std::{mem::offset_of, sync::atomic::Ordering, time::Duration};

use lb_common::{
    layout::{Ring, Slot, WIDE_BITS},
    ring,
    slot::{Ctl, IN_RING, State},
    time::Ticks,
};

use super::{Fifo, Slots, ring_bits};
use crate::sys::memory::Table;

/// How often slots that change hands at the moment are looked at again.
const TURNS: u32 = 100;

impl Slots {
    /// Takes a slot out of use, if it holds no flow: it looks claimed forever, so it is skipped
    /// when it is popped.
    pub fn retire(&self, slot: u16) -> bool {
        let ctl = self.ctl(slot);
        match ctl.state() {
            State::Claiming => ctl.is_retired(),
            State::Free | State::Closed => self.swap(slot, ctl, ctl.retired()),
            _ => false,
        }
    }

    /// Appends a free slot to the ring that slots are given back to.
    pub fn push(&self, rings: &Table<Ring>, slot: u16) {
        self.wide(rings).unwrap_or_else(|| self.first(rings)).push(slot);
    }

    /// Takes the slot that was released longest ago from the rings; `None` if they are empty or
    /// contended.
    pub(in crate::tables) fn pop(&self, rings: &Table<Ring>) -> Option<u16> {
        self.fifos(rings).find(|fifo| fifo.waiting() != 0)?.pop()
    }

    /// How many slots wait in the rings.
    pub fn waiting(&self, rings: &Table<Ring>) -> u32 {
        // Slots may be popped and pushed between two reads.
        self.fifos(rings).map(|fifo| fifo.waiting()).sum::<u32>().min(self.len)
    }

    fn first<'a>(&'a self, rings: &'a Table<Ring>) -> Fifo<'a> {
        Fifo::first(rings, self.pool, &self.free)
    }

    fn wide<'a>(&'a self, rings: &'a Table<Ring>) -> Option<Fifo<'a>> {
        self.wide.as_deref().map(|cells| Fifo::wide(rings, self.pool, cells))
    }

    /// Its rings, in the order in which they are used up.
    fn fifos<'a>(&'a self, rings: &'a Table<Ring>) -> impl Iterator<Item = Fifo<'a>> {
        [Some(self.first(rings)), self.wide(rings)].into_iter().flatten()
    }

    /// Whether the first ring has too few cells for this many slots, and there is no other.
    pub fn is_too_narrow_for(&self, rings: &Table<Ring>, slots: u32) -> bool {
        self.wide.is_none() && slots > 1 << self.first(rings).bits()
    }

    /// Begins the wide ring, from which slots are popped when the first one is used up, if there is
    /// one and it has not begun. The kernel program finds its cells already.
    pub fn begin_wide(&self, rings: &Table<Ring>) {
        if let Some(wide) = self.wide(rings).filter(|wide| wide.bits() == 0) {
            wide.begin(WIDE_BITS);
        }
    }

    /// Fills a new ring with all slots but those that `skip` names, beginning with `first`. Nothing
    /// else may use the pool yet.
    pub fn fill(&self, rings: &Table<Ring>, first: u16, skip: impl Fn(u16) -> bool) {
        rings.publish(self.pool.into(), &Ring::default(), 0);
        self.first(rings).begin(ring_bits(self.len));
        let all = (u32::from(first)..self.len).chain(0..u32::from(first).min(self.len));
        for slot in all.map(|slot| slot as u16).filter(|slot| !skip(*slot)) {
            self.push(rings, slot);
        }
    }

    /// Goes once round the rings and takes out the slots that are not `inside`, and those that
    /// carry a flow of the other host: they return when the flow ends. The others keep their order.
    /// Claims continue in the meantime. Returns how many were not inside; `None` if it did not get
    /// round, because a push is not finished or others pop all the time.
    pub(in crate::tables) fn weed(&self, rings: &Table<Ring>, inside: impl Fn(u16) -> bool) -> Option<u32> {
        let mut outside = 0;
        for _ in 0..self.waiting(rings) {
            match self.pop(rings) {
                Some(slot) if !inside(slot) => outside += 1,
                Some(slot) if self.is_free(slot) => self.push(rings, slot),
                Some(_) => {}
                None if self.waiting(rings) == 0 => break,
                None => return None,
            }
        }
        Some(outside)
    }

    /// Takes every slot that is not `inside` out of circulation. Flows go on there, and do not give
    /// their ports back. `pause` is longer than any step of the kernel program. False: some slot
    /// changed hands all the time.
    pub(in crate::tables) fn close_off(
        &self,
        rings: &Table<Ring>,
        inside: impl Fn(u16) -> bool,
        pause: impl Fn(),
    ) -> bool {
        let mut unchanged = 0;
        for _ in 0..TURNS {
            let outside = self.all().filter(|slot| !inside(*slot));
            let left: Vec<_> = outside.map(|slot| (slot, self.leave(slot))).collect();
            let went_round = self.weed(rings, &inside) == Some(0);
            // One that waited at the first look and holds a flow at the second has another word by
            // now.
            let stay = left.iter().all(|(slot, word)| *word == Some(self.ctl(*slot)));
            unchanged = if went_round && stay { unchanged + 1 } else { 0 };
            // What was between a ring and a flow during the first turn has arrived by the second.
            if unchanged == 2 {
                return true;
            }
            pause();
        }
        false
    }

    /// A flow in this slot keeps its port to itself from now on. `Some`: the slot is out of
    /// circulation, as far as its word tells, which this is. `None`: its word was changed, or it
    /// changes hands.
    fn leave(&self, slot: u16) -> Option<Ctl> {
        let ctl = self.ctl(slot);
        match ctl.state() {
            State::Claiming if !ctl.is_retired() => None,
            state if state.is_active() && ctl.flags() & IN_RING == 0 => {
                self.swap(slot, ctl, ctl.with_flags(IN_RING));
                None
            }
            // When the rings are empty, the kernel program looks for those that are held back.
            State::Abandoned => {
                self.release(slot, ctl);
                None
            }
            _ => Some(ctl),
        }
    }

    /// Puts a slot that is out of circulation into it. False: it changes hands at the moment.
    fn enter(&self, rings: &Table<Ring>, slot: u16) -> bool {
        let ctl = self.ctl(slot);
        match ctl.state() {
            State::Claiming if !ctl.is_retired() => false,
            State::Claiming => {
                let entered = self.swap(slot, ctl, Ctl::new(ctl.generation(), State::Free));
                if entered {
                    self.push(rings, slot);
                }
                entered
            }
            State::Free | State::Closed => {
                self.push(rings, slot);
                true
            }
            // It is given back when its time is over.
            State::Abandoned => true,
            _ => ctl.flags() & IN_RING == 0 || self.swap(slot, ctl, ctl.without_flags(IN_RING)),
        }
    }

    /// Puts slots that are out of circulation into it, in this order. False: some of them changed
    /// hands all the time.
    pub(in crate::tables) fn open_up(
        &self,
        rings: &Table<Ring>,
        slots: impl Iterator<Item = u16>,
        pause: impl Fn(),
    ) -> bool {
        let mut left: Vec<_> = slots.filter(|slot| self.has(*slot)).collect();
        for _ in 0..TURNS {
            left.retain(|slot| !self.enter(rings, *slot));
            if left.is_empty() {
                return true;
            }
            pause();
        }
        false
    }

    /// Retires a slot that is out of circulation and was not used for `unused_for`; `Some`: its
    /// word before that. A flow that came to it meanwhile does not give its port back.
    pub(in crate::tables) fn retire_outside(&self, slot: u16, now: Ticks, unused_for: Duration) -> Option<Ctl> {
        let ctl = self.ctl(slot);
        match ctl.state() {
            State::Free => self.swap(slot, ctl, ctl.retired()).then_some(ctl),
            State::Closed | State::Abandoned if self.last_seen(slot).age(now) >= unused_for => {
                self.swap(slot, ctl, ctl.retired()).then_some(ctl)
            }
            _ => {
                self.leave(slot);
                None
            }
        }
    }

    /// Retires every slot of the pool from `from` on that was never in use. Nothing else uses them
    /// yet.
    pub(in crate::tables) fn retire_unused(&self, from: u32) {
        (from..self.len).map(|slot| slot as u16).filter(|slot| self.has(*slot)).for_each(|slot| _ = self.retire(slot));
    }

    /// What a process that was killed between two steps may have left behind. The kernel program
    /// goes on meanwhile and may be between two steps itself: what is lost looks the same a moment
    /// later.
    pub(in crate::tables) fn lost(&self, rings: &Table<Ring>, inside: impl Fn(u16) -> bool) -> Lost {
        // Slots before the ring: one that is given back in between is found in it.
        let all = self.all().filter(|slot| inside(*slot)).map(|slot| (slot, self.ctl(slot)));
        let idle: Vec<_> = all.filter(|(_, ctl)| is_idle(*ctl)).collect();
        let mut in_ring = vec![false; self.len as usize];
        let cells = self.fifos(rings).map(|fifo| unfilled(fifo, &mut in_ring)).collect();
        Lost { slots: idle.into_iter().filter(|(slot, _)| !in_ring[usize::from(*slot)]).collect(), cells }
    }

    /// Gives back what is lost: every idle slot to the ring, and something to every cell that was
    /// never filled, without which no pop gets past it. Returns how many slots are back.
    pub(in crate::tables) fn heal(&self, rings: &Table<Ring>, lost: &Lost) -> u32 {
        let mut back = 0;
        let mut slots = lost.slots.iter().filter(|(slot, ctl)| {
            // One that is half claimed has nobody any more who finishes that.
            ctl.state() != State::Claiming || self.swap(*slot, *ctl, Ctl::new(ctl.generation(), State::Closed))
        });
        for (fifo, cells) in self.fifos(rings).zip(&lost.cells) {
            for (position, seen) in cells {
                let next = slots.next().map(|(slot, _)| *slot);
                // Without one, a slot in use: a pop passes over it.
                let filler = || self.all().find(|slot| self.ctl(*slot).state().is_active());
                let Some(slot) = next.or_else(filler) else { continue };
                let cell = ring::cell(*position, slot.into(), fifo.bits());
                let word = fifo.cell(*position);
                let filled = word.compare_exchange(*seen, cell, Ordering::AcqRel, Ordering::Acquire);
                if let Some(slot) = next {
                    if filled.is_err() {
                        self.push(rings, slot);
                    }
                    back += 1;
                }
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
}

/// Retires every slot of an extent that nothing else can reach yet.
pub fn retire_all(slots: &Table<Slot>) {
    for at in 0..slots.len() {
        slots.word64(at, offset_of!(Slot, ctl)).store(Ctl::default().retired().0, Ordering::Relaxed);
    }
}

/// The positions of a ring that are counted and were never filled, each with what its cell holds.
/// Marks the slots that wait in it.
fn unfilled(fifo: Fifo<'_>, in_ring: &mut [bool]) -> Vec<(u32, u32)> {
    let bits = fifo.bits();
    let head = fifo.head().load(Ordering::Acquire);
    let waiting = fifo.tail().load(Ordering::Acquire).wrapping_sub(head);
    let mut cells = Vec::new();
    for position in (0..waiting.min(1 << bits)).map(|n| head.wrapping_add(n)) {
        let cell = fifo.cell(position).load(Ordering::Acquire);
        match ring::slot_at(position, cell, bits) {
            Some(slot) => in_ring.iter_mut().skip(slot as usize).take(1).for_each(|found| *found = true),
            None => cells.push((position, cell)),
        }
    }
    // What was popped meanwhile may have been pushed for the next lap.
    let popped = fifo.head().load(Ordering::Acquire).wrapping_sub(head);
    cells.retain(|(position, _)| position.wrapping_sub(head) >= popped);
    cells
}

/// Slots that hold no flow and wait in no ring, each with its word; and positions of each ring that
/// are counted and were never filled, each with what their cell holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::tables) struct Lost {
    pub slots: Vec<(u16, Ctl)>,
    pub cells: Vec<Vec<(u32, u32)>>,
}

impl Lost {
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.cells.iter().all(Vec::is_empty)
    }

    /// What was lost before and still is.
    pub fn still(mut self, now: &Lost) -> Lost {
        self.slots.retain(|slot| now.slots.contains(slot));
        for (cells, now) in self.cells.iter_mut().zip(&now.cells) {
            cells.retain(|cell| now.contains(cell));
        }
        self
    }
}

/// Whether a slot holds no flow. A claim lasts microseconds.
fn is_idle(ctl: Ctl) -> bool {
    matches!(ctl.state(), State::Free | State::Closed | State::Claiming)
}
