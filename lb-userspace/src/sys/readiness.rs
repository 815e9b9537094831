//! Waiting for a descriptor inside tokio.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdReadyGuard},
};

/// Reports when a descriptor becomes readable. Holds a duplicate of the descriptor.
pub struct Readiness(AsyncFd<OwnedFd>);

impl Readiness {
    /// Watches a duplicate of `fd`. Call it inside a tokio runtime.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Readiness> {
        let fd = fd.try_clone_to_owned()?;
        // SAFETY: an OwnedFd stays open and the same until it is dropped, and it is moved into the
        // AsyncFd.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Readiness(fd))
    }

    /// Waits until the descriptor is readable; the guard's `clear_ready` arms it again.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }
}
