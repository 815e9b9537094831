//! TCP sequence numbers (RFC 9293 section 3.4): 32 bits that wrap, compared by the sign of their
//! distance.

/// The largest step a sequence number may take forward at once: the largest window TCP can offer
/// (RFC 7323 section 2.3).
pub const MAX_STEP: u32 = 1 << 30;

/// Whether `a` comes before `b`.
#[inline(always)]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Whether `first <= x <= last`, going round the wrap.
#[inline(always)]
pub const fn within(first: u32, x: u32, last: u32) -> bool {
    x.wrapping_sub(first) <= last.wrapping_sub(first)
}

/// Extends the highest sequence end seen so far by a segment that ends at `end`.
///
/// The low 32 bits are the sequence number, the high ones count how often it wrapped, so that a
/// connection of more than 4 GiB is still measured exactly. A segment that does not go forward, or
/// goes further than any window allows, changes nothing.
#[inline(always)]
pub const fn advance(highest: u64, end: u32) -> u64 {
    let step = end.wrapping_sub(highest as u32);
    if step == 0 || step > MAX_STEP { highest } else { highest.wrapping_add(step as u64) }
}

/// Payload bytes of one direction: from the initial sequence number to the highest end, without SYN
/// and FIN.
#[inline(always)]
pub const fn payload(initial: u32, highest: u64, fin_seen: bool) -> u64 {
    let start = initial.wrapping_add(1) as u64;
    let bytes = highest.wrapping_sub(start);
    if fin_seen && bytes > 0 { bytes - 1 } else { bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_goes_round_the_wrap() {
        assert!(before(1, 2) && !before(2, 1) && !before(7, 7));
        assert!(before(0xffff_fff0, 5) && !before(5, 0xffff_fff0));
        assert!(within(0xffff_fff0, 3, 5) && within(5, 5, 5) && !within(5, 6, 5) && !within(5, 4, 9));
    }

    #[test]
    fn bytes_beyond_four_gibibytes_are_counted_and_retransmissions_are_not() {
        let initial = 0xffff_ff00_u32;
        let mut highest = initial.wrapping_add(1) as u64;
        let mut sent = 0_u64;
        for _ in 0..10_000 {
            sent += 1_000_000;
            let end = (initial.wrapping_add(1) as u64).wrapping_add(sent) as u32;
            highest = advance(highest, end);
            highest = advance(highest, end.wrapping_sub(500_000));
        }
        assert_eq!(payload(initial, highest, false), 10_000_000_000);
        assert_eq!(payload(initial, highest + 1, true), 10_000_000_000);
    }

    #[test]
    fn a_start_that_wraps_to_zero_is_counted_right() {
        let initial = u32::MAX;
        let highest = advance(initial.wrapping_add(1) as u64, 100);
        assert_eq!(payload(initial, highest, false), 100);
    }

    #[test]
    fn a_jump_beyond_any_window_changes_nothing() {
        assert_eq!(advance(1000, 1000_u32.wrapping_add(MAX_STEP + 1)), 1000);
        assert_eq!(advance(1000, 999), 1000);
        assert_eq!(advance(1000, 1000 + MAX_STEP), 1000 + MAX_STEP as u64);
    }
}
