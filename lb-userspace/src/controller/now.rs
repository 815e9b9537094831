//! One moment on the two clocks of a host.

use jiff::{SignedDuration, Timestamp};
use lb_common::time::Instant;

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// On CLOCK_MONOTONIC.
    pub monotonic: Instant,
    /// On the wall clock.
    pub wall: Timestamp,
}

impl Now {
    /// The wall-clock time of a moment on CLOCK_MONOTONIC.
    pub fn wall_at(self, at: Instant) -> Timestamp {
        let ahead = i64::try_from(i128::from(at.0) - i128::from(self.monotonic.0)).unwrap_or(i64::MAX);
        self.wall.saturating_add(SignedDuration::from_nanos(ahead)).unwrap_or(self.wall)
    }

    /// The moment on CLOCK_MONOTONIC of a wall-clock time. Times before the host's boot become its
    /// boot.
    pub fn monotonic_at(self, at: Timestamp) -> Instant {
        let at = i128::from(self.monotonic.0) + at.duration_since(self.wall).as_nanos();
        Instant(at.clamp(0, i128::from(u64::MAX)) as u64)
    }
}
