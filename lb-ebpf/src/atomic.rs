//! Atomic operations on map values.
//!
//! `core::sync::atomic` on the BPF target has loads and stores only, so these are compiler
//! intrinsics. Every operation whose result is used asks for acquire-release order: with `Relaxed`,
//! LLVM 22 turns a fetch-and-add into an add that returns nothing, and the "old value" would be the
//! addend. BPF atomics with a result are full barriers anyway.
//!
//! Every function has the same contract: the pointer leads to a whole, aligned word of a map value
//! or of a static of this program. `records`, `maps` and `clock` are the only callers.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

/// Adds to a counter whose old value is not needed.
#[inline(always)]
pub unsafe fn add<T: Copy>(counter: *mut T, value: T) {
    // SAFETY: the contract above.
    unsafe { atomic_xadd::<T, T, { AtomicOrdering::Relaxed }>(counter, value) };
}

/// Adds, and returns the value before.
#[inline(always)]
pub unsafe fn fetch_add<T: Copy>(counter: *mut T, value: T) -> T {
    // SAFETY: the contract above.
    unsafe { atomic_xadd::<T, T, { AtomicOrdering::AcqRel }>(counter, value) }
}

/// Stores `new` if the word holds `old`; returns what it held.
#[inline(always)]
pub unsafe fn compare_swap<T: Copy>(word: *mut T, old: T, new: T) -> T {
    // SAFETY: the contract above.
    unsafe { atomic_cxchg::<T, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(word, old, new).0 }
}

/// Stores `new` and returns what the word held: a store that nothing before it can pass.
#[inline(always)]
pub unsafe fn swap<T: Copy>(word: *mut T, new: T) -> T {
    // SAFETY: the contract above.
    unsafe { atomic_xchg::<T, { AtomicOrdering::AcqRel }>(word, new) }
}

/// Reads a word that others change, exactly once.
#[inline(always)]
pub unsafe fn load<T: Copy>(word: *const T) -> T {
    // SAFETY: the contract above.
    unsafe { core::ptr::read_volatile(word) }
}

/// Writes a word that others read, exactly once.
#[inline(always)]
pub unsafe fn store<T: Copy>(word: *mut T, value: T) {
    // SAFETY: the contract above.
    unsafe { core::ptr::write_volatile(word, value) }
}
