//! CLOCK_MONOTONIC, coarse where a few milliseconds do not matter: it costs 2 ns instead of 28.

use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};

/// Nanoseconds, in steps of a timer tick (1 to 10 ms).
#[inline(always)]
pub fn coarse() -> u64 {
    // SAFETY: plain helper (kernel 5.11).
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// Nanoseconds.
#[inline(always)]
pub fn exact() -> u64 {
    // SAFETY: plain helper.
    unsafe { bpf_ktime_get_ns() }
}

/// Microseconds that wrap after 71 minutes: for connect times.
#[inline(always)]
pub fn microseconds() -> u32 {
    (exact() / 1000) as u32
}
