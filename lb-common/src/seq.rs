//! TCP sequence numbers (RFC 9293 section 3.4): 32 bits that wrap, compared by the sign of their
//! distance.

/// The largest step a sequence number may take forward at once: the largest window TCP can offer
/// (RFC 7323 section 2.3).
pub const MAX_STEP: u32 = 1 << 30;

/// How far beside its window a number may lie and still be believed: for a keepalive (one below), a
/// zero window probe (one above), and segments that overtook each other. A segment may be up to 64
/// KiB long. Linux's connection tracking allows 66,000.
pub const SLACK: u32 = 1 << 16;

/// Whether a number is to be believed: a sequence number, or an acknowledgement of the other
/// direction's. The receiver of those sequence numbers has acknowledged all below `acknowledged`,
/// and takes none from `edge` on (RFC 9293 section 3.10.7.4, RFC 5961 section 5.2).
#[inline(always)]
pub const fn is_believable(number: u32, acknowledged: u32, edge: u32) -> bool {
    let room = edge.wrapping_sub(acknowledged);
    // Two CPUs that note two segments at once may leave an older edge: it counts as none.
    let room = if room > MAX_STEP { 0 } else { room };
    number.wrapping_sub(acknowledged).wrapping_add(SLACK) <= room + 2 * SLACK
}

/// Whether two numbers of one direction, seen in two segments, are no further apart than the largest
/// window with this scale.
#[inline(always)]
pub const fn agree(one: u32, other: u32, scale: u32) -> bool {
    let room = largest_window(scale);
    one.wrapping_sub(other).wrapping_add(room) <= 2 * room
}

/// The largest window with this scale (RFC 7323 section 2.3).
#[inline(always)]
pub const fn largest_window(scale: u32) -> u32 {
    0xffff << scale
}

/// The highest sequence end of a flow of which another host has seen more: at `end` now, which may
/// be any number of windows further, or [`SLACK`] behind.
#[inline(always)]
pub const fn resumed(highest: u64, end: u32) -> u64 {
    let step = end.wrapping_sub(highest as u32);
    if step >= SLACK.wrapping_neg() { highest } else { highest.wrapping_add(step as u64) }
}

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
    fn what_lies_in_the_window_is_believed_and_little_beside_it() {
        for acknowledged in [0, 1, 0x7fff_fff0, u32::MAX - 5, 12_345] {
            for room in [0, 1, 65_535, 1 << 20, MAX_STEP] {
                let edge = acknowledged.wrapping_add(room);
                let believed = |number: u32| is_believable(number, acknowledged, edge);
                for inside in [acknowledged.wrapping_sub(1), acknowledged, edge, edge.wrapping_add(1)] {
                    assert!(believed(inside), "{inside} of {acknowledged} to {edge}");
                }
                assert!(!believed(acknowledged.wrapping_sub(SLACK + 1)) && !believed(edge.wrapping_add(SLACK + 1)));
                assert!(!believed(acknowledged.wrapping_add(1 << 31)));
            }
        }
    }

    #[test]
    fn numbers_agree_within_the_largest_window_on_both_sides_of_the_wrap() {
        for number in [0, 5, u32::MAX - 5, 1 << 31] {
            let far = largest_window(7);
            for near in [0, 1, far] {
                assert!(agree(number, number.wrapping_add(near), 7) && agree(number, number.wrapping_sub(near), 7));
            }
            assert!(!agree(number, number.wrapping_add(far + 1), 7) && !agree(number, number.wrapping_sub(far + 1), 7));
            assert!(!agree(number, number.wrapping_add(1 << 31), 14));
        }
    }

    #[test]
    fn a_resumed_end_goes_on_as_far_as_it_must_and_not_back() {
        assert_eq!(resumed(1000, 1000_u32.wrapping_add(3 << 30)), 1000 + (3 << 30));
        assert_eq!(resumed(1000, 1000), 1000);
        assert_eq!(resumed(1 << 33, 0xffff_fff0), 1 << 33, "a segment that was overtaken");
    }

    #[test]
    fn an_edge_that_lies_behind_is_no_window() {
        assert!(is_believable(1000, 1000, 900) && !is_believable(1000 + SLACK + 1, 1000, 900));
        assert!(!is_believable(1 << 30, 1000, 900));
    }

    #[test]
    fn a_jump_beyond_any_window_changes_nothing() {
        assert_eq!(advance(1000, 1000_u32.wrapping_add(MAX_STEP + 1)), 1000);
        assert_eq!(advance(1000, 999), 1000);
        assert_eq!(advance(1000, 1000 + MAX_STEP), 1000 + MAX_STEP as u64);
    }
}
