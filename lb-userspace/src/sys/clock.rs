//! The clocks that the kernel program uses.

/// CLOCK_MONOTONIC in nanoseconds: `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// CLOCK_MONOTONIC_COARSE in nanoseconds, in steps of 1 to 10 ms: `bpf_ktime_get_coarse_ns`. `last_seen` is of this
/// clock.
pub fn coarse_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC_COARSE)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill. The call cannot fail for these two clocks, which every
    // kernel since 2.6.32 has; if it did, `time` would stay zero.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_coarse_clock_is_the_exact_one_rounded_down() {
        let before = super::coarse_ns();
        let exact = super::monotonic_ns();
        assert!(before <= exact && exact - before < 1_000_000_000, "{before} {exact}");
        assert!(super::coarse_ns() >= before);
    }
}
