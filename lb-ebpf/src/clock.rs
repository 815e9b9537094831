//! What the kernel knows and no table holds: the time, and random numbers.
//!
//! The time is CLOCK_MONOTONIC, coarse where a few milliseconds do not matter: that costs 2 ns
//! instead of 28.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use lb_common::time::{Instant, Ticks};

use crate::atomic;

/// The last time that was read: jiffies in the upper half, [`Ticks`] in the lower. Read and written
/// whole: two CPUs that write at once both write a time that is right.
#[unsafe(no_mangle)]
static mut CLOCK: u64 = 0;

/// The coarse time in [`Ticks`], at most a timer tick behind. The kernel makes one load of
/// `bpf_jiffies64`; the clock itself, whose return costs as much as a mispredicted branch, is asked
/// once per timer tick.
#[inline(always)]
pub fn ticks() -> Ticks {
    // SAFETY: the helper has no preconditions; CLOCK is an aligned word of this program's own.
    let (jiffies, known) = unsafe { (bpf_jiffies64() as u32, atomic::load(&raw const CLOCK)) };
    if (known >> 32) as u32 == jiffies {
        return Ticks(known as u32);
    }
    let ticks = coarse().ticks();
    // SAFETY: CLOCK is an aligned word of this program's own.
    unsafe { atomic::store(&raw mut CLOCK, (jiffies as u64) << 32 | ticks.0 as u64) };
    ticks
}

/// The coarse time, in steps of a timer tick (1 to 10 ms).
#[inline(always)]
pub fn coarse() -> Instant {
    // SAFETY: the helper (kernel 5.11) has no preconditions.
    Instant(unsafe { bpf_ktime_get_coarse_ns() })
}

/// The exact time.
#[inline(always)]
pub fn exact() -> Instant {
    // SAFETY: the helper has no preconditions.
    Instant(unsafe { bpf_ktime_get_ns() })
}

/// Microseconds that wrap after 71 minutes: for connect times.
#[inline(always)]
pub fn microseconds() -> u32 {
    (exact().0 / 1000) as u32
}

/// A random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_prandom_u32() }
}
