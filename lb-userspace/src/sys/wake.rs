//! Waking a thread that waits for several things at once.

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

/// A bell: rung by any thread, heard by the one that waits.
pub struct Bell(EventFd);

impl Bell {
    pub fn new() -> io::Result<Bell> {
        Ok(Bell(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Never waits; a bell that is rung already stays rung.
    pub fn ring(&self) {
        // It fails only where the count is at its end, and then the bell is rung.
        _ = self.0.write(1);
    }

    /// Lets it fall silent.
    pub fn hush(&self) {
        // Nothing to read: it was silent.
        _ = self.0.read();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of several descriptors can be read, or for a time; says which can. A signal ends the wait too.
pub fn wait(descriptors: &[BorrowedFd], time: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<_> = descriptors.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match ppoll(&mut polled, time.map(TimeSpec::from_duration), None) {
        // What the descriptors say then is what they said before.
        Err(nix::Error::EINTR) => Ok(vec![false; polled.len()]),
        Err(error) => Err(error.into()),
        // Any event: the error that stands behind some of them is found by reading.
        Ok(_) => Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
    }
}

/// Waits until a descriptor takes more, or for a time; whether it does. What else happened is found by writing.
pub fn wait_for_room(descriptor: BorrowedFd, time: Duration) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::POLLOUT)];
    loop {
        match ppoll(&mut polled, Some(TimeSpec::from_duration(time)), None) {
            Err(nix::Error::EINTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}
