//! CLOCK_MONOTONIC, coarse where a few milliseconds do not matter: it costs 2 ns instead of 28.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};

use crate::atomic;

/// The last time that was looked at: jiffies in the upper half, `layout::ticks` in the lower, read and written whole.
#[unsafe(no_mangle)]
static mut CLOCK: u64 = 0;

/// The coarse time in `layout::ticks`, at most a timer tick behind. The kernel makes one load of `bpf_jiffies64`; the
/// clock itself, whose return costs as much as a mispredicted branch, is asked once a timer tick.
#[inline(always)]
pub fn ticks() -> u32 {
    // SAFETY: plain helper; a word of this program's own.
    let (jiffies, known) = unsafe { (bpf_jiffies64() as u32, atomic::load(&raw const CLOCK)) };
    if (known >> 32) as u32 == jiffies {
        return known as u32;
    }
    let ticks = lb_common::layout::ticks(coarse());
    // SAFETY: as above.
    unsafe { atomic::store(&raw mut CLOCK, (jiffies as u64) << 32 | ticks as u64) };
    ticks
}

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
