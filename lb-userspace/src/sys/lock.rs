//! One daemon per folder: a lock that ends with the process that holds it, even on SIGKILL.

use std::{
    fs::{File, TryLockError},
    io,
    time::{Duration, Instant},
};

/// Pause between two attempts to take a lock that is held.
const PAUSE: Duration = Duration::from_millis(20);

/// Locks a file or folder, and waits up to `patience` for a process that is ending. `false`:
/// another process still holds it. `is_hopeless` ends the wait early.
pub fn exclusive(file: &File, patience: Duration, is_hopeless: impl Fn() -> bool) -> io::Result<bool> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) => {}
        }
        if is_hopeless() || began.elapsed() > patience {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}
