//! Time: one type for each of its two units in the maps, and one rule for a stamp that lies ahead.
//!
//! Both count from the boot of the host (CLOCK_MONOTONIC). Nothing here reads a clock: the shells
//! do, once per turn.

use core::{
    ops::{Add, AddAssign, Sub},
    time::Duration,
};

/// A moment of CLOCK_MONOTONIC, in nanoseconds. [`Instant::NEVER`] is later than every other one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Instant(pub u64);

impl Instant {
    /// The boot of the host: earlier than every stamp.
    pub const ZERO: Instant = Instant(0);
    /// A deadline that never comes.
    pub const NEVER: Instant = Instant(u64::MAX);

    /// How long ago `self` was at `now`. A stamp that lies ahead has the age zero: the clocks of
    /// two CPUs, and the coarse and the exact clock, differ by a few milliseconds.
    #[inline(always)]
    pub const fn age(self, now: Instant) -> Duration {
        Duration::from_nanos(now.0.saturating_sub(self.0))
    }

    /// The time left at `now` until `self`; zero if it has passed.
    #[inline(always)]
    pub const fn left(self, now: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(now.0))
    }

    /// The same moment in the unit of the slots' stamps.
    #[inline(always)]
    pub const fn ticks(self) -> Ticks {
        Ticks((self.0 >> TICK_BITS) as u32)
    }
}

/// [`Instant::NEVER`] stays what it is.
impl Add<Duration> for Instant {
    type Output = Instant;

    #[inline(always)]
    fn add(self, time: Duration) -> Instant {
        Instant(self.0.saturating_add(nanoseconds(time)))
    }
}

impl AddAssign<Duration> for Instant {
    #[inline(always)]
    fn add_assign(&mut self, time: Duration) {
        *self = *self + time;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    #[inline(always)]
    fn sub(self, time: Duration) -> Instant {
        Instant(self.0.saturating_sub(nanoseconds(time)))
    }
}

/// The time since `earlier`, as [`Instant::age`] has it.
impl Sub for Instant {
    type Output = Duration;

    #[inline(always)]
    fn sub(self, earlier: Instant) -> Duration {
        earlier.age(self)
    }
}

/// A duration as the records hold it; `u64::MAX` (584 years) for every longer one.
#[inline(always)]
pub const fn nanoseconds(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1_000_000_000).saturating_add(time.subsec_nanos() as u64)
}

const TICK_BITS: u32 = 20;

/// The stamp of a slot or a pool: [`Instant`] in steps of 2^20 ns, about 1.05 ms. It wraps after 52
/// days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Ticks(pub u32);

impl Ticks {
    /// A duration in ticks, rounded down; below 52 days.
    pub const fn of(time: Duration) -> u32 {
        (nanoseconds(time) >> TICK_BITS) as u32
    }

    /// How long ago the stamp was at `now`, in ticks. A stamp that lies ahead, by up to half of the
    /// range (26 days), has the age zero.
    #[inline(always)]
    pub const fn age_in_ticks(self, now: Ticks) -> u32 {
        age_of(self.0, now.0)
    }

    /// [`age_in_ticks`](Self::age_in_ticks) as a duration.
    #[inline(always)]
    pub const fn age(self, now: Ticks) -> Duration {
        Duration::from_nanos((self.age_in_ticks(now) as u64) << TICK_BITS)
    }
}

/// The stamp of a try to connect: the low 32 bits of [`Instant`] in microseconds. It wraps after 71
/// minutes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Micros(pub u32);

impl Micros {
    /// How long ago the stamp was at `now`. A stamp that lies ahead, by up to half of the range,
    /// has the age zero.
    #[inline(always)]
    pub const fn age(self, now: Instant) -> Duration {
        Duration::from_micros(age_of(self.0, (now.0 / 1000) as u32) as u64)
    }
}

/// **The one rule for a stamp that lies ahead**: it has just been set, by a CPU whose clock is
/// ahead of ours or after `now` was read.
#[inline(always)]
const fn age_of(stamp: u32, now: u32) -> u32 {
    let age = now.wrapping_sub(stamp);
    if age > u32::MAX / 2 { 0 } else { age }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_stays_never_and_nothing_goes_below_zero() {
        assert_eq!(Instant::NEVER + Duration::from_secs(1), Instant::NEVER);
        assert_eq!(Instant(5) + Duration::MAX, Instant::NEVER);
        assert_eq!(Instant(5) - Duration::from_secs(1), Instant::ZERO);
    }

    #[test]
    fn a_stamp_that_lies_ahead_has_the_age_zero_on_both_clocks() {
        assert_eq!(Instant(7).age(Instant(5)), Duration::ZERO);
        assert_eq!(Instant(5).age(Instant(7)), Duration::from_nanos(2));
        assert_eq!(Instant(7) - Instant(5), Duration::from_nanos(2));
        assert_eq!(Instant(5) - Instant(7), Duration::ZERO);
        assert_eq!(Instant(7).left(Instant(5)), Duration::from_nanos(2));
        assert_eq!(Ticks(1001).age_in_ticks(Ticks(999)), 0);
        assert_eq!(Ticks(0).age_in_ticks(Ticks(u32::MAX / 2 + 1)), 0);
        assert_eq!(Ticks(0).age_in_ticks(Ticks(u32::MAX / 2)), u32::MAX / 2);
    }

    #[test]
    fn the_age_of_a_try_is_known_for_half_an_hour_and_is_zero_for_one_that_lies_ahead() {
        let now = Instant((1 << 32) * 1000 + 5_000);
        assert_eq!(Micros(2).age(now), Duration::from_micros(3));
        assert_eq!(Micros(u32::MAX).age(now), Duration::from_micros(6));
        assert_eq!(Micros(6).age(now), Duration::ZERO);
        assert_eq!(Micros(5_u32.wrapping_sub(1_800_000_000)).age(now), Duration::from_secs(1800));
    }

    #[test]
    fn the_age_of_a_stamp_goes_round_the_wrap() {
        let now = Instant((1 << 52) + (999 << 20)).ticks();
        assert_eq!(now, Ticks(999));
        assert_eq!(Ticks(u32::MAX).age_in_ticks(now), 1000);
        assert_eq!(Ticks(u32::MAX).age(now), Duration::from_nanos(1000 << 20));
        assert_eq!(Ticks::of(Duration::from_secs(60)), 57_220);
    }
}
