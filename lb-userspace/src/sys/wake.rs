//! Waking a thread that waits on several descriptors at once.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, ppoll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
    },
};

/// A bell (eventfd): any thread rings it, the waiting thread hears it.
pub struct Bell(EventFd);

impl Bell {
    pub fn new() -> io::Result<Bell> {
        Ok(Bell(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Never blocks; a bell that is already ringing goes on ringing.
    pub fn ring(&self) {
        // It fails only when the counter is full, and then the bell is ringing.
        _ = self.0.write(1);
    }

    /// Silences the bell.
    pub fn hush(&self) {
        // An error means that it was silent.
        _ = self.0.read();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of several descriptors is readable, or until `time` is over; returns which ones
/// are. A signal ends the wait, too.
pub fn wait(descriptors: &[BorrowedFd], time: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = descriptors.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match ppoll(&mut polled, time.map(TimeSpec::from_duration), None) {
        // Nothing is known to be readable.
        Err(nix::Error::EINTR) => Ok(vec![false; polled.len()]),
        Err(error) => Err(error.into()),
        // Any event counts: an error behind it is found by reading.
        Ok(_) => Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
    }
}

/// Waits until a descriptor is writable, or until `time` is over; returns whether it is. An error
/// is found by writing.
pub fn wait_for_room(descriptor: BorrowedFd, time: Duration) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::POLLOUT)];
    loop {
        match ppoll(&mut polled, Some(TimeSpec::from_duration(time)), None) {
            Err(nix::Error::EINTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}
