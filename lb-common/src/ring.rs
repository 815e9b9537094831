//! The ring of free slots: a FIFO of as many cells as the pool has ports, rounded up to a power of
//! two.
//!
//! The port that was released longest ago is used first, and a claim costs the same however full
//! the table is. A cell carries the lap on which it was written, so a pop that comes before the
//! push has stored its cell sees an old lap and does not take the cell. Positions count without end
//! and wrap at 2^32, which the power of two divides.
//!
//! - push: `position = tail++`, then store `cell(position, slot, bits)` at `position & mask`
//! - pop: read `head`; if `slot_at(head, cell, bits)` names a slot, compare-and-swap `head` to
//!   `head + 1`
//!
//! A cell cannot be overwritten before it is popped: there are never more free slots than cells.

/// The smallest `bits` for which a ring of `1 << bits` cells holds `slots`.
pub const fn bits(slots: u32) -> u32 {
    if slots <= 1 { 0 } else { 32 - (slots - 1).leading_zeros() }
}

/// The cell to store for `slot` at `position`.
#[inline(always)]
pub const fn cell(position: u32, slot: u32, bits: u32) -> u32 {
    (position >> bits) << 16 | slot & 0xffff
}

/// The slot that `cell` holds for `position`, if it was written on this lap.
#[inline(always)]
pub const fn slot_at(position: u32, cell: u32, bits: u32) -> Option<u32> {
    if cell >> 16 == position >> bits & 0xffff { Some(cell & 0xffff) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_holds_its_slots() {
        for slots in 1..=65_536_u32 {
            assert!(1_u64 << bits(slots) >= u64::from(slots));
            assert!(slots == 1 || 1_u64 << (bits(slots) - 1) < u64::from(slots));
        }
    }

    #[test]
    fn slots_come_back_in_the_order_they_went_in_also_across_the_wrap_of_positions() {
        for (slots, start) in [(5_u32, 0_u32), (16, u32::MAX - 40), (22_528, 7), (65_536, u32::MAX - 100_000)] {
            let bits = bits(slots);
            let mask = (1_u32 << bits) - 1;
            let mut cells = vec![cell(start.wrapping_sub(1 << bits), 0, bits); 1 << bits];
            let (mut head, mut tail) = (start, start);
            let push = |slot: u32, tail: &mut u32, cells: &mut Vec<u32>| {
                cells[(*tail & mask) as usize] = cell(*tail, slot, bits);
                *tail = tail.wrapping_add(1);
            };
            for slot in 0..slots {
                push(slot, &mut tail, &mut cells);
            }
            for turn in 0..3 * u64::from(slots) {
                let slot = slot_at(head, cells[(head & mask) as usize], bits).expect("written on this lap");
                assert_eq!(u64::from(slot), turn % u64::from(slots));
                head = head.wrapping_add(1);
                push(slot, &mut tail, &mut cells);
            }
        }
    }

    #[test]
    fn a_cell_of_the_lap_before_is_not_taken() {
        let bits = 4;
        let old = cell(3, 9, bits);
        assert_eq!(slot_at(3, old, bits), Some(9));
        assert_eq!(slot_at(3 + 16, old, bits), None);
    }
}
