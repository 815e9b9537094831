//! What the heap keeps.

/// Gives the free memory of the heap back to the system: after the loader's work it holds several megabytes for nothing.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointers and may be called at any time from any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
