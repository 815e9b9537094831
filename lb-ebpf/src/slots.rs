//! Slots and the ring of free ones: claiming a port, giving it back.

use core::time::Duration;

use lb_common::{
    flow::{HalfOpenCell, SlotAt},
    hash::{Entry, mix, tag},
    layout::{EXTENT_BITS, Opening, Ring, Slot},
    ring::{cell, slot_at},
    slot::{Ctl, IN_RING, State},
    time::Ticks,
    verdict::Reason,
};

use crate::{atomic, clock, flow, index, maps};

/// How long an abandoned slot is held back: the time a backend keeps TIME_WAIT (Linux: 60 s), in ticks.
const HOLD: u32 = Ticks::of(Duration::from_secs(60));
/// Pops that may meet a slot which is not free any more, before the ring counts as empty.
const POPS: u32 = 8;
/// Slots that the emergency search looks at.
const RECLAIMS: u32 = 64;

/// The record of a slot; below 65,536, but nobody has looked whether the pool has it.
#[inline(always)]
pub fn get(pool: u32, slot: u32) -> Option<*mut Slot> {
    let place = pool << 16 | slot;
    maps::SLOTS.get_value_ptr_mut(place >> EXTENT_BITS, &(place & (1 << EXTENT_BITS) - 1))
}

/// The rest of a flow, at `pool << 16 | slot`.
#[inline(always)]
pub fn opening(place: u32) -> Option<*mut Opening> {
    maps::OPENINGS.get_value_ptr_mut(place >> EXTENT_BITS, &(place & (1 << EXTENT_BITS) - 1))
}

/// Takes a free slot of the pool; its word is then `Claiming` in a new generation, which is ours alone.
#[inline(always)]
pub fn claim(pool: u32) -> Option<u32> {
    let slot = claim_slot(pool);
    if slot < 0 { None } else { Some(slot as u32) }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn claim_slot(pool: u32) -> i64 {
    for _ in 0..POPS {
        let slot = pop(pool);
        if slot < 0 {
            break;
        }
        fetch_opening(pool, slot as u32);
        if take(pool, slot as u32) != 0 {
            return slot;
        }
    }
    reclaim(pool)
}

/// Reads from the rest of the flow, which is written next: its line comes from memory while that of the slot does, instead
/// of after it, for the swap of the slot's word lets nothing pass.
#[inline(always)]
fn fetch_opening(pool: u32, slot: u32) {
    if let Some(opening) = opening(pool << 16 | slot) {
        // SAFETY: from a map lookup.
        unsafe { atomic::load(&raw const (*opening).connect_us) };
    }
}

/// The slot released longest ago, or -1.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pop(pool: u32) -> i64 {
    let Some(ring) = maps::RINGS.get_ptr_mut(pool) else { return -1 };
    for _ in 0..8 {
        // SAFETY: the ring and the line are from map lookups; the place is masked.
        unsafe {
            let head = atomic::load(&raw const (*ring).head);
            if head == atomic::load(&raw const (*ring).tail) {
                return -1;
            }
            let Some(at) = ring_cell(pool, ring, head) else { return -1 };
            let Some(slot) = slot_at(head, atomic::load(at), (*ring).bits & 31) else {
                // A push that is not finished, or a pop that was faster: look again.
                continue;
            };
            if atomic::compare_swap(&raw mut (*ring).head, head, head.wrapping_add(1)) == head {
                return slot as i64;
            }
        }
    }
    -1
}

/// The slot that [`claim`] would take, or -1.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn peek(pool: u32) -> i64 {
    for turn in 0..POPS {
        let slot = peek_ring(pool, turn);
        if slot < 0 {
            break;
        }
        if may_be_taken(pool, slot as u32, 0) != 0 {
            return slot;
        }
    }
    peek_reclaim(pool)
}

/// The slot that the pop after `turn` others would give, or -1.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn peek_ring(pool: u32, turn: u32) -> i64 {
    let Some(ring) = maps::RINGS.get_ptr_mut(pool) else { return -1 };
    // SAFETY: the ring and the cell are from map lookups.
    unsafe {
        let head = atomic::load(&raw const (*ring).head);
        if turn >= atomic::load(&raw const (*ring).tail).wrapping_sub(head) {
            return -1;
        }
        let position = head.wrapping_add(turn);
        let Some(at) = ring_cell(pool, ring, position) else { return -1 };
        match slot_at(position, atomic::load(at), (*ring).bits & 31) {
            Some(slot) => slot as i64,
            None => -1,
        }
    }
}

/// What [`reclaim`] would find.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn peek_reclaim(pool: u32) -> i64 {
    let (Some(ring), Some(table)) = (maps::RINGS.get_ptr_mut(pool), maps::POOLS.get_ptr_mut(pool)) else { return -1 };
    // SAFETY: from map lookups.
    let (ports, cursor) = unsafe { ((*table).ports as u32, atomic::load(&raw const (*ring).reclaim)) };
    if ports == 0 {
        return -1;
    }
    let now = clock::ticks().0;
    for turn in 0..RECLAIMS {
        let slot = cursor.wrapping_add(turn) % ports;
        if may_be_taken(pool, slot, now) != 0 {
            return slot as i64;
        }
    }
    -1
}

/// Whether a slot may be taken from the ring; with the time now, whether it was held back for long enough.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn may_be_taken(pool: u32, slot: u32, now: u32) -> u32 {
    let Some(record) = get(pool, slot) else { return 0 };
    // SAFETY: from a map lookup.
    let (ctl, seen) = unsafe { (atomic::load(&raw const (*record).ctl), atomic::load(&raw const (*record).last_seen)) };
    (match ctl.state() {
        State::Free | State::Closed => now == 0,
        State::Abandoned => now != 0 && now.wrapping_sub(seen.0) >= HOLD,
        _ => false,
    }) as u32
}

/// The cell of a position in the ring.
#[inline(always)]
unsafe fn ring_cell(pool: u32, ring: *const Ring, position: u32) -> Option<*mut u32> {
    // SAFETY: from a map lookup.
    let bits = unsafe { (*ring).bits } & 31;
    let place = position & ((1 << bits) - 1);
    let line = maps::FREE.get_value_ptr_mut(pool, &(place >> 4))?;
    let mut cell = place;
    // SAFETY: touches one register; LLVM would delete a mask that it thinks superfluous.
    unsafe { core::arch::asm!("{0} &= 15", inout(reg) cell) };
    // SAFETY: 0..=15 lies in the line.
    Some(unsafe { line.cast::<u32>().add(cell as usize) })
}

/// Gives a slot back to the ring. Only who closed the flow does this, once.
#[inline(always)]
pub fn release(pool: u32, slot: u32) {
    let Some(ring) = maps::RINGS.get_ptr_mut(pool) else { return };
    // SAFETY: the ring and the cell are from map lookups.
    unsafe {
        let tail = atomic::fetch_add(&raw mut (*ring).tail, 1);
        let Some(at) = ring_cell(pool, ring, tail) else { return };
        atomic::store(at, cell(tail, slot, (*ring).bits & 31));
    }
}

/// Makes a free or closed slot ours. A slot that changed since it was pushed is left alone; if it holds a flow of the
/// other host's, that flow is told that its port waits in the ring no longer.
#[inline(always)]
fn take(pool: u32, slot: u32) -> u32 {
    let Some(record) = get(pool, slot) else { return 0 };
    for _ in 0..4 {
        // SAFETY: from a map lookup.
        let ctl = unsafe { atomic::load(&raw const (*record).ctl) };
        match ctl.state() {
            State::Free | State::Closed => return own(pool, slot, ctl.0),
            _ if ctl.flags() & IN_RING == 0 => return 0,
            _ => {}
        }
        // SAFETY: as above. Who loses looks again: the flow may have ended in this moment.
        unsafe { atomic::compare_swap((&raw mut (*record).ctl).cast::<u64>(), ctl.0, ctl.without_flags(IN_RING).0) };
    }
    0
}

/// Swaps the slot's word for the next generation's, and removes the index entry of the flow that stood there.
#[inline(always)]
fn own(pool: u32, slot: u32, ctl: u64) -> u32 {
    let Some(record) = get(pool, slot) else { return 0 };
    let ctl = Ctl(ctl);
    // SAFETY: from a map lookup.
    unsafe {
        if atomic::compare_swap((&raw mut (*record).ctl).cast::<u64>(), ctl.0, ctl.claimed().0) != ctl.0 {
            return 0;
        }
        if ctl.state() != State::Free {
            let hash = mix(maps::seed(), (*record).key.0);
            index::replace(hash, Entry::new(tag(hash), SlotAt(pool << 16 | slot), ctl.generation()), Entry(0));
        }
    }
    1
}

/// The emergency search, when the ring is empty: abandoned slots whose time is over, a few at a time.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn reclaim(pool: u32) -> i64 {
    let (Some(ring), Some(table)) = (maps::RINGS.get_ptr_mut(pool), maps::POOLS.get_ptr_mut(pool)) else { return -1 };
    // SAFETY: from map lookups.
    let ports = unsafe { (*table).ports } as u32;
    if ports == 0 {
        return -1;
    }
    let now = clock::ticks().0;
    for _ in 0..RECLAIMS {
        // SAFETY: as above.
        let slot = unsafe { atomic::fetch_add(&raw mut (*ring).reclaim, 1) } % ports;
        if reclaim_one(pool, slot, now) != 0 {
            return slot as i64;
        }
    }
    -1
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn reclaim_one(pool: u32, slot: u32, now: u32) -> u32 {
    let Some(record) = get(pool, slot) else { return 0 };
    // SAFETY: from a map lookup.
    let (ctl, seen) = unsafe { (atomic::load(&raw const (*record).ctl), atomic::load(&raw const (*record).last_seen)) };
    if ctl.state() == State::Abandoned && now.wrapping_sub(seen.0) >= HOLD { own(pool, slot, ctl.0) } else { 0 }
}

/// Enters a half-open flow in its service's ring; what still stands half-open in that cell is the oldest and is closed.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn enter_half_open(service: u32, place: u32, generation: u32) -> u32 {
    let Some(record) = maps::SERVICES.get_ptr_mut(service) else { return 0 };
    // SAFETY: from a map lookup.
    let (cells, turn) = unsafe { ((*record).half_open_cells, atomic::fetch_add(&raw mut (*record).half_open, 1)) };
    if cells == 0 {
        return 0;
    }
    let Some(cell) = maps::HALF_OPEN.get_value_ptr_mut(service, &(turn % cells)) else { return 0 };
    // SAFETY: from a map lookup.
    let old = HalfOpenCell(unsafe { atomic::swap(cell, HalfOpenCell::new(SlotAt(place), generation).0) });
    if old.is_used() { evict(old) } else { 0 }
}

#[inline(always)]
fn evict(cell: HalfOpenCell) -> u32 {
    let Some(record) = get(cell.at().pool() as u32, cell.at().slot() as u32) else { return 0 };
    // SAFETY: from a map lookup.
    let ctl = unsafe { atomic::load(&raw const (*record).ctl) };
    if ctl.state() != State::HalfOpen || !ctl.is_of_low31(cell.generation()) {
        return 0;
    }
    flow::close(cell.at().0, ctl.0, Reason::HalfOpenEvicted as u32)
}
