//! The rings of free slots: claiming a port, giving it back.

use core::time::Duration;

use lb_common::{
    flow::SlotAt,
    layout::{Ends, Ring, Slot},
    ring::{cell, slot_at},
    slot::{Ctl, IN_RING, SEIZED, State},
    time::Ticks,
    verdict::Reason,
};

use crate::{
    clock, index,
    outcome::{NONE, found},
    records::{self, Held, Word},
};

/// How long an abandoned slot is held back, in ticks: as long as a backend keeps TIME_WAIT (Linux:
/// 60 s).
const HOLD: u32 = Ticks::of(Duration::from_secs(60));
/// How long a backend may wait for the client of a flow that gave way, in ticks: Linux repeats its
/// SYN-ACK after one second and after three, and the RST that it gets for it ends that.
const SETTLES: u32 = Ticks::of(Duration::from_secs(4));
/// Pops that may meet a slot which is no longer free, before the ring counts as empty.
const POPS: u32 = 8;
/// Slots that the emergency search looks at.
const RECLAIMS: u32 = 64;

/// Takes a free slot of the pool. Its word is then `Claiming` in a new generation, which is ours
/// alone.
#[inline(always)]
pub fn claim(pool: u32) -> Option<u32> {
    found(claim_global(pool))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn claim_global(pool: u32) -> i64 {
    for _ in 0..POPS {
        let slot = pop_global(pool);
        if slot < 0 {
            break;
        }
        let at = SlotAt(pool << 16 | slot as u32);
        fetch_opening(at);
        if take(at) {
            return slot;
        }
    }
    reclaim_global(pool)
}

/// Reads from the rest of the flow, which is written next: its line comes from memory while that of
/// the slot does, and not after it, because the swap of the slot's word lets nothing pass.
#[inline(always)]
fn fetch_opening(at: SlotAt) {
    if let Some(opening) = records::opening(at) {
        opening.fetch();
    }
}

/// Whether a port waits in the pool's ring.
#[inline(always)]
pub fn has_free(pool: u16) -> bool {
    records::ring(pool as u32).is_some_and(|ring| !front(ring).ends.is_empty())
}

/// One of a pool's rings.
#[derive(Clone, Copy)]
struct Fifo {
    ends: Held<Ends>,
    is_wide: bool,
}

impl Fifo {
    /// The cell of a position.
    #[inline(always)]
    fn cell(self, pool: u32, position: u32) -> Option<Word<u32>> {
        let cell = position & ((1 << self.ends.bits_31()) - 1);
        let line = if self.is_wide { records::wide_line(pool, cell >> 4) } else { records::free_line(pool, cell >> 4) };
        Some(line?.cell(cell))
    }
}

/// The ring that holds the slots that were released longest ago: the first one, until it is used
/// up.
#[inline(always)]
fn front(ring: Held<Ring>) -> Fifo {
    match ring.wide() {
        Some(ends) if ring.first().is_empty() => Fifo { ends, is_wide: true },
        _ => Fifo { ends: ring.first(), is_wide: false },
    }
}

/// The slot that was released longest ago.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pop_global(pool: u32) -> i64 {
    let Some(ring) = records::ring(pool) else { return NONE };
    for _ in 0..8 {
        let fifo = front(ring);
        let head = fifo.ends.head();
        if head == fifo.ends.tail() {
            return NONE;
        }
        let Some(word) = fifo.cell(pool, head) else { return NONE };
        let Some(slot) = slot_at(head, word.load(), fifo.ends.bits_31()) else {
            // A push that is not finished, or a pop that was faster: look again.
            continue;
        };
        if fifo.ends.pop(head) {
            return slot as i64;
        }
    }
    NONE
}

/// The slot that [`claim`] would take.
#[inline(always)]
pub fn peek(pool: u32) -> Option<u32> {
    found(peek_global(pool))
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn peek_global(pool: u32) -> i64 {
    for turn in 0..POPS {
        let slot = peek_ring_global(pool, turn);
        if slot < 0 {
            break;
        }
        if may_be_taken_global(pool, slot as u32, 0) != 0 {
            return slot;
        }
    }
    peek_reclaim_global(pool)
}

/// The slot that the pop after `turn` others would give.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn peek_ring_global(pool: u32, turn: u32) -> i64 {
    let Some(ring) = records::ring(pool) else { return NONE };
    let first = Fifo { ends: ring.first(), is_wide: false };
    let (mut fifo, mut turn) = (first, turn);
    let waiting = first.ends.tail().wrapping_sub(first.ends.head());
    if turn >= waiting
        && let Some(ends) = ring.wide()
    {
        (fifo, turn) = (Fifo { ends, is_wide: true }, turn - waiting);
    }
    let head = fifo.ends.head();
    if turn >= fifo.ends.tail().wrapping_sub(head) {
        return NONE;
    }
    let position = head.wrapping_add(turn);
    let Some(word) = fifo.cell(pool, position) else { return NONE };
    match slot_at(position, word.load(), fifo.ends.bits_31()) {
        Some(slot) => slot as i64,
        None => NONE,
    }
}

/// What [`reclaim_global`] would find.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn peek_reclaim_global(pool: u32) -> i64 {
    let (Some(ring), Some(record)) = (records::ring(pool), records::pool(pool)) else { return NONE };
    let (ports, cursor) = (record.ports() as u32, ring.first().reclaim());
    if ports == 0 {
        return NONE;
    }
    let now = clock::ticks().0;
    for turn in 0..RECLAIMS {
        let slot = cursor.wrapping_add(turn) % ports;
        if may_be_taken_global(pool, slot, now) != 0 {
            return slot as i64;
        }
    }
    NONE
}

/// Whether a slot may be taken from the ring (`now` is 0), or by the emergency search at `now`.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn may_be_taken_global(pool: u32, slot: u32, now: u32) -> u32 {
    let Some(record) = records::slot(SlotAt(pool << 16 | slot)) else { return 0 };
    (match record.ctl().state() {
        State::Free | State::Closed => now == 0,
        State::Abandoned => now != 0 && was_held_back(record, now),
        _ => false,
    }) as u32
}

/// Whether an abandoned slot was held back for long enough. The stamp is read once, after the word
/// that says so.
#[inline(always)]
fn was_held_back(slot: Held<Slot>, now: u32) -> bool {
    now.wrapping_sub(slot.last_seen_once().0) >= HOLD
}

/// Gives a slot back to the ring. Only the CPU that closed the flow does this, once.
#[inline(always)]
pub fn release(at: SlotAt) {
    let pool = at.pool() as u32;
    let Some(ring) = records::ring(pool) else { return };
    let fifo = match ring.wide() {
        Some(ends) => Fifo { ends, is_wide: true },
        None => Fifo { ends: ring.first(), is_wide: false },
    };
    let tail = fifo.ends.next_tail();
    let Some(word) = fifo.cell(pool, tail) else { return };
    word.store(cell(tail, at.slot() as u32, fifo.ends.bits_31()));
}

/// Makes a free or closed slot ours. A slot that has changed since it was pushed is left alone; if
/// it holds a flow of the other host, that flow's `IN_RING` is cleared, because its port no longer
/// waits in the ring.
#[inline(always)]
fn take(at: SlotAt) -> bool {
    let Some(slot) = records::slot(at) else { return false };
    for _ in 0..4 {
        let ctl = slot.ctl();
        match ctl.state() {
            State::Free | State::Closed => return own(at, slot, ctl),
            _ if ctl.flags() & IN_RING == 0 => return false,
            _ => {}
        }
        // The loser looks again: the flow may have ended at this moment.
        slot.swap(ctl, ctl.without_flags(IN_RING));
    }
    false
}

/// Swaps the slot's word for the next generation's, and removes the index entry of the flow before.
#[inline(always)]
fn own(at: SlotAt, slot: Held<Slot>, ctl: Ctl) -> bool {
    let flags = if gave_way_lately(slot, ctl) { SEIZED } else { 0 };
    if !slot.swap(ctl, ctl.claimed().with_flags(flags)) {
        return false;
    }
    if ctl.state() != State::Free {
        index::forget(slot.key(), at, ctl);
    }
    true
}

/// Whether the flow that a slot held, or one before it, gave way so lately that the backend may still
/// wait for its client.
#[inline(always)]
fn gave_way_lately(slot: Held<Slot>, ctl: Ctl) -> bool {
    ctl.state() == State::Closed
        && (ctl.reason() == Reason::HalfOpenEvicted as u8 || ctl.flags() & SEIZED != 0)
        && clock::ticks().0.wrapping_sub(slot.last_seen_once().0) < SETTLES
}

/// The emergency search, when the ring is empty: abandoned slots whose time is over, a few at a
/// time.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn reclaim_global(pool: u32) -> i64 {
    let (Some(ring), Some(record)) = (records::ring(pool), records::pool(pool)) else { return NONE };
    let ports = record.ports() as u32;
    if ports == 0 {
        return NONE;
    }
    let now = clock::ticks().0;
    for _ in 0..RECLAIMS {
        let slot = ring.first().next_reclaim() % ports;
        if reclaim_one_global(pool, slot, now) != 0 {
            return slot as i64;
        }
    }
    NONE
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn reclaim_one_global(pool: u32, slot: u32, now: u32) -> u32 {
    let at = SlotAt(pool << 16 | slot);
    let Some(slot) = records::slot(at) else { return 0 };
    let ctl = slot.ctl();
    (ctl.state() == State::Abandoned && was_held_back(slot, now) && own(at, slot, ctl)) as u32
}
