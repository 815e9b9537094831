//! The heap's free memory.

/// Returns the heap's free memory to the system: after loading the programs, several megabytes of
/// it are unused.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointers and may be called at any time from any thread
    // (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
