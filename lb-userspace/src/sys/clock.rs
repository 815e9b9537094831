//! The clocks that the kernel program uses.

use std::time::Duration;

use lb_common::time::Instant;

/// CLOCK_MONOTONIC: `bpf_ktime_get_ns`.
pub fn monotonic() -> Instant {
    read(libc::CLOCK_MONOTONIC)
}

/// CLOCK_MONOTONIC_COARSE, in steps of 1 to 10 ms: `bpf_ktime_get_coarse_ns`, the clock of
/// `last_seen`.
pub fn coarse() -> Instant {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

/// How long the host has been suspended since it booted: what CLOCK_BOOTTIME counts and
/// CLOCK_MONOTONIC does not. Never more than that, and less only by the time between two readings.
pub fn suspended() -> Duration {
    let boottime = read(libc::CLOCK_BOOTTIME);
    monotonic().age(boottime)
}

fn read(clock: libc::clockid_t) -> Instant {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill. The call cannot fail for these three
    // clocks, which every kernel since 2.6.39 has; if it did, `time` would stay zero.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Instant(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_does_not_sleep_is_never_taken_for_one_that_did() {
        // Between the two readings of a pair the thread may have to wait; never in most of them.
        let first = suspended();
        let mut spreads: Vec<_> = (0..1000).map(|_| suspended().abs_diff(first)).collect();
        spreads.sort_unstable();
        let spread = spreads[spreads.len() / 2];
        assert!(spread < Duration::from_millis(50), "{spread:?}");
    }

    #[test]
    fn the_coarse_clock_is_the_exact_one_rounded_down() {
        let before = coarse();
        let exact = monotonic();
        assert!(before <= exact && before.age(exact) < Duration::from_secs(1), "{before:?} {exact:?}");
        assert!(coarse() >= before);
    }
}
