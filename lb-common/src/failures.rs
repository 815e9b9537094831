//! The tries of one backend that have failed: as many as `max_fails` within `fail_timeout` take it
//! out.
//!
//! The first failure opens a window, which is as long as fail_timeout; those that come in it are
//! counted, and the first one after it opens another. So a word is enough, which any number of CPUs
//! move by compare-and-swap. The controller looks at every stretch of fail_timeout, wherever it
//! begins, and takes out what fails on both sides of a window's end.

use crate::time::Instant;

/// The word.
///
/// ```text
/// 63                      20 19    0
/// |  beginning, in 2^20 ns  | count |
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Window(pub u64);

const COUNT_BITS: u32 = 20;
const TICK_BITS: u32 = 20;
/// The highest count.
const MOST: u64 = (1 << COUNT_BITS) - 1;

impl Window {
    /// How many failures it holds.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        (self.0 & MOST) as u32
    }

    /// The window after one more failure at `now`; `length` is fail_timeout in nanoseconds.
    #[inline(always)]
    pub const fn counted(self, now: Instant, length: u64) -> Window {
        let (now, begun) = (now.0 >> TICK_BITS, self.0 >> COUNT_BITS);
        // Both ends are rounded down: one tick more lets a failure count that is as old as can be.
        // A clock that lies behind on this CPU is the beginning itself.
        let is_over = now > begun && now - begun > (length >> TICK_BITS) + 1;
        if self.count() == 0 || is_over {
            return Window(now << COUNT_BITS | 1);
        }
        Window(if self.0 & MOST == MOST { self.0 } else { self.0 + 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn failures_within_the_length_count_together_and_later_ones_begin_anew() {
        // For a beginning anywhere in a tick.
        for start in (0..1 << 21).step_by(4099).map(|start| 77 * SECOND + start) {
            let first = Window::default().counted(Instant(start), 10 * SECOND);
            assert_eq!(first.count(), 1);
            let second = first.counted(Instant(start + 10 * SECOND), 10 * SECOND);
            assert_eq!(second.count(), 2, "the whole length counts");
            let third = second.counted(Instant(start + 10 * SECOND + 4_000_000), 10 * SECOND);
            assert_eq!(third.count(), 1, "four milliseconds later another window has begun");
            assert_eq!(third.counted(Instant(start + 19 * SECOND), 10 * SECOND).count(), 2);
        }
    }

    #[test]
    fn a_clock_that_lies_behind_and_a_failure_long_ago_are_no_trouble() {
        let first = Window::default().counted(Instant(5 * SECOND), SECOND);
        assert_eq!(first.counted(Instant(4 * SECOND), SECOND).count(), 2);
        let years = 10 * 365 * 86_400 * SECOND;
        assert_eq!(first.counted(Instant(years), SECOND).count(), 1, "it does not wrap");
        assert_eq!(Window(MOST).counted(Instant(1), SECOND).count(), MOST as u32, "it does not overflow");
    }

    #[test]
    fn without_a_length_only_failures_of_the_same_moment_count_together() {
        let first = Window::default().counted(Instant(SECOND), 0);
        assert_eq!(first.counted(Instant(SECOND), 0).count(), 2);
        assert_eq!(first.counted(Instant(SECOND + 3_000_000), 0).count(), 1);
    }
}
