//! The clocks that the kernel program uses.

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

fn read(clock: libc::clockid_t) -> Instant {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill. The call cannot fail for these two
    // clocks, which every kernel since 2.6.32 has; if it did, `time` would stay zero.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Instant(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    #[test]
    fn the_coarse_clock_is_the_exact_one_rounded_down() {
        let before = super::coarse();
        let exact = super::monotonic();
        assert!(before <= exact && before.age(exact) < Duration::from_secs(1), "{before:?} {exact:?}");
        assert!(super::coarse() >= before);
    }
}
