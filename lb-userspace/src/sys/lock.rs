//! One daemon to a folder: a lock that ends with the process that holds it, even by SIGKILL.

use std::{
    fs::{File, TryLockError},
    io,
    time::{Duration, Instant},
};

/// How often a lock that is taken is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Locks a file or folder, and waits so long for a process that is ending. `false`: it stays taken. `is_hopeless` ends
/// the wait before its time.
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
