//! One ring of free slots, as `lb_common::ring` describes it.

use std::{
    mem::offset_of,
    sync::atomic::{AtomicU32, Ordering},
};

use lb_common::{
    layout::{Ends, FreeLine, Ring},
    ring,
};

use super::COPY_TRIES;
use crate::sys::memory::Table;

/// The ends of a ring and its cells.
#[derive(Clone, Copy)]
pub(super) struct Fifo<'a> {
    rings: &'a Table<Ring>,
    pool: usize,
    /// Where its ends are in the record.
    ends: usize,
    cells: &'a Table<FreeLine>,
}

impl<'a> Fifo<'a> {
    /// The first ring of a pool.
    pub fn first(rings: &'a Table<Ring>, pool: u16, cells: &'a Table<FreeLine>) -> Fifo<'a> {
        Fifo { rings, pool: pool.into(), ends: offset_of!(Ring, first), cells }
    }

    /// The wide one.
    pub fn wide(rings: &'a Table<Ring>, pool: u16, cells: &'a Table<FreeLine>) -> Fifo<'a> {
        Fifo { rings, pool: pool.into(), ends: offset_of!(Ring, wide), cells }
    }

    pub fn head(&self) -> &'a AtomicU32 {
        self.rings.word32(self.pool, self.ends + offset_of!(Ends, head))
    }

    pub fn tail(&self) -> &'a AtomicU32 {
        self.rings.word32(self.pool, self.ends + offset_of!(Ends, tail))
    }

    fn bits_word(&self) -> &'a AtomicU32 {
        self.rings.word32(self.pool, self.ends + offset_of!(Ends, bits))
    }

    pub fn bits(&self) -> u32 {
        self.bits_word().load(Ordering::Acquire)
    }

    /// How many cells wait to be popped.
    pub fn waiting(&self) -> u32 {
        let head = self.head().load(Ordering::Acquire);
        self.tail().load(Ordering::Acquire).wrapping_sub(head)
    }

    /// The cell of a position.
    pub fn cell(&self, position: u32) -> &'a AtomicU32 {
        let place = position as usize & ((1 << self.bits()) - 1);
        self.cells.word32(place >> 4, (place & 15) * 4)
    }

    /// Appends a free slot.
    pub fn push(&self, slot: u16) {
        let position = self.tail().fetch_add(1, Ordering::AcqRel);
        self.cell(position).store(ring::cell(position, slot.into(), self.bits()), Ordering::Release);
    }

    /// Takes the slot that was released longest ago; `None` if the ring is empty or contended.
    pub fn pop(&self) -> Option<u16> {
        for _ in 0..COPY_TRIES {
            let head = self.head().load(Ordering::Acquire);
            if head == self.tail().load(Ordering::Acquire) {
                return None;
            }
            let cell = self.cell(head).load(Ordering::Acquire);
            let Some(slot) = ring::slot_at(head, cell, self.bits()) else { continue };
            let next = head.wrapping_add(1);
            if self.head().compare_exchange(head, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                return Some(slot as u16);
            }
        }
        None
    }

    /// Makes it an empty ring of `1 << bits` cells. Nothing else may use it yet.
    pub fn begin(&self, bits: u32) {
        self.head().store(0, Ordering::Relaxed);
        self.tail().store(0, Ordering::Relaxed);
        // A cell that was not pushed yet must look like one of an earlier lap: zero would read as
        // "slot 0" of the first lap.
        for place in 0..1_usize << bits {
            let cell = ring::cell((place as u32).wrapping_sub(1 << bits), 0, bits);
            self.cells.word32(place >> 4, (place & 15) * 4).store(cell, Ordering::Relaxed);
        }
        self.bits_word().store(bits, Ordering::Release);
    }
}
