//! Runs one of the operator's programs, and everything it starts, within a time limit.

use std::{
    io,
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::wake::{self, Bell};

/// How long a program may take to end after SIGTERM before it is killed.
const FAREWELL: Duration = Duration::from_secs(1);

/// How the run ended.
#[derive(Debug)]
pub enum Outcome {
    /// It exited with 0.
    Succeeded,
    /// It exited with another code, or by a signal.
    Failed,
    /// It did not end in time and was terminated.
    TimedOut,
    /// It could not be started.
    NotStarted(io::Error),
    /// `stop` was rung.
    Stopped,
}

/// Runs a program for at most `time`, in its own process group. Ringing `stop` ends it early.
pub fn run(command: &mut Command, time: Duration, stop: &Bell) -> Outcome {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let started = command.spawn().and_then(|child| Ok((end_of(&child)?, child)));
    let (end, mut child) = match started {
        Ok(started) => started,
        Err(error) => return Outcome::NotStarted(error),
    };
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let ready = wake::wait(&[end.as_fd(), stop.as_fd()], Some(left)).unwrap_or_default();
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Outcome::Succeeded,
            Ok(Some(_)) | Err(_) => return Outcome::Failed,
            Ok(None) => {}
        }
        let stopped = ready.get(1) == Some(&true);
        if stopped || Instant::now() >= until {
            end_group(&mut child, &end);
            return if stopped { Outcome::Stopped } else { Outcome::TimedOut };
        }
    }
}

/// Sends SIGTERM to the whole group, then SIGKILL.
fn end_group(child: &mut Child, end: &OwnedFd) {
    let group = Pid::from_raw(child.id() as i32);
    // An error means that the group is gone.
    _ = killpg(group, Signal::SIGTERM);
    _ = wake::wait(&[end.as_fd()], Some(FAREWELL));
    _ = killpg(group, Signal::SIGKILL);
    _ = child.wait();
}

/// A descriptor that becomes readable when the child ends.
fn end_of(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers (pidfd_open(2), Linux 5.3); the result is checked before
    // it is owned.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id() as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor just opened, owned by nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn run_for(script: &str, time: Duration) -> Outcome {
        run(&mut sh(script), time, &Bell::new().unwrap())
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn its_exit_code_is_what_counts() {
        assert!(matches!(run_for("exit 0", LONG), Outcome::Succeeded));
        assert!(matches!(run_for("exit 3", LONG), Outcome::Failed));
        assert!(matches!(run_for("kill -9 $$", LONG), Outcome::Failed));
        let missing = run(&mut Command::new("/no/such/program"), LONG, &Bell::new().unwrap());
        assert!(matches!(missing, Outcome::NotStarted(_)), "{missing:?}");
    }

    #[test]
    fn one_that_hangs_is_ended_with_everything_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pids");
        // It ignores SIGTERM, and so do its children.
        let script = format!("trap '' TERM; sleep 1000 & echo $$ $! > {}; wait", file.display());
        let began = Instant::now();
        assert!(matches!(run_for(&script, Duration::from_millis(300)), Outcome::TimedOut));
        assert!(began.elapsed() < Duration::from_secs(10));
        let pids = std::fs::read_to_string(file).unwrap();
        for pid in pids.split_whitespace() {
            let gone = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) => stat.contains(") Z "),
                Err(_) => true,
            };
            while !gone() {
                assert!(began.elapsed() < Duration::from_secs(10), "process {pid} lives on");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn it_is_ended_early_when_we_stop() {
        let stop = Bell::new().unwrap();
        stop.ring();
        let began = Instant::now();
        assert!(matches!(run(&mut sh("exec sleep 1000"), LONG, &stop), Outcome::Stopped));
        assert!(began.elapsed() < LONG);
    }
}
