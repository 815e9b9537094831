//! Descriptors that a program inherits from its parent, under the same numbers.

use std::{
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

/// Lets the program that `command` starts, and no other, inherit descriptors: they stay
/// close-on-exec until the new process has been forked.
pub fn pass_on(command: &mut Command, descriptors: Vec<OwnedFd>) {
    let keep_open = move || {
        descriptors.iter().try_for_each(|descriptor| {
            // SAFETY: no pointers; the descriptor is open because the closure owns it.
            let result = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) };
            if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        })
    };
    // SAFETY: between fork and exec only async-signal-safe calls are made (fcntl(2)), and nothing
    // is allocated.
    unsafe { command.pre_exec(keep_open) };
}

/// Takes ownership of an inherited descriptor. One that this process opened itself is refused:
/// those are close-on-exec, which tells the two apart.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    let refused = || io::Error::other(format!("descriptor {number} was not inherited"));
    if number <= libc::STDERR_FILENO {
        return Err(refused());
    }
    // SAFETY: no pointers; a number that is no open descriptor gives an error.
    match unsafe { libc::fcntl(number, libc::F_GETFD) } {
        flags if flags < 0 => return Err(io::Error::last_os_error()),
        flags if flags & libc::FD_CLOEXEC != 0 => return Err(refused()),
        _ => {}
    }
    // SAFETY: as above. From here on a second call for the same number is refused.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open (checked above) and inherited, so nothing in this process owns it but the value
    // made here.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use super::*;

    #[test]
    fn a_descriptor_is_inherited_by_the_one_program_it_is_meant_for() {
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let write = format!("echo told >/proc/self/fd/{}", theirs.as_raw_fd());
        let mut command = Command::new("sh");
        command.args(["-c", &write]);
        pass_on(&mut command, vec![theirs.into()]);
        assert!(command.status().unwrap().success());
        let other = Command::new("sh").args(["-c", &write]).output().unwrap();
        assert!(!other.status.success(), "another program has it too");
        drop(command);
        let mut told = String::new();
        ours.read_to_string(&mut told).unwrap();
        assert_eq!(told, "told\n");
    }

    #[test]
    fn what_was_not_inherited_is_not_taken() {
        let file = File::open("/dev/null").unwrap();
        assert!(take(file.as_raw_fd()).is_err(), "our own");
        assert!(take(1).is_err(), "standard output");
        assert!(take(1_000_000).is_err() && take(-1).is_err(), "not open");
    }
}
