//! CLOCK_MONOTONIC, coarse where a few milliseconds do not matter: it costs 2 ns instead of 28.

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};

use lb_common::time::{Instant, Ticks};

use crate::atomic;

/// The last time that was read: jiffies in the upper half, [`Ticks`] in the lower, read and written whole.
#[unsafe(no_mangle)]
static mut CLOCK: u64 = 0;

/// The coarse time in [`Ticks`], at most a timer tick behind. The kernel makes one load of `bpf_jiffies64`; the
/// clock itself, whose return costs as much as a mispredicted branch, is asked once a timer tick.
#[inline(always)]
pub fn ticks() -> Ticks {
    // SAFETY: plain helper; a word of this program's own.
    let (jiffies, known) = unsafe { (bpf_jiffies64() as u32, atomic::load(&raw const CLOCK)) };
    if (known >> 32) as u32 == jiffies {
        return Ticks(known as u32);
    }
    let ticks = coarse().ticks();
    // SAFETY: as above.
    unsafe { atomic::store(&raw mut CLOCK, (jiffies as u64) << 32 | ticks.0 as u64) };
    ticks
}

/// The coarse time, in steps of a timer tick (1 to 10 ms).
#[inline(always)]
pub fn coarse() -> Instant {
    // SAFETY: plain helper (kernel 5.11).
    Instant(unsafe { bpf_ktime_get_coarse_ns() })
}

/// The exact time.
#[inline(always)]
pub fn exact() -> Instant {
    // SAFETY: plain helper.
    Instant(unsafe { bpf_ktime_get_ns() })
}

/// Microseconds that wrap after 71 minutes: for connect times.
#[inline(always)]
pub fn microseconds() -> u32 {
    (exact().0 / 1000) as u32
}
