//! A child process that its guard ends.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        signal::{self, Signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::wait;

/// A running program. Its errors go to a file. Dropping it kills it by its process id.
pub struct Process {
    name: String,
    handle: Handle,
    log: PathBuf,
}

enum Handle {
    Child(Child),
    /// A child of one of our children that became ours when its parent ended, and how it ended.
    Left(Pid, Option<ExitStatus>),
}

impl Process {
    /// Starts `command` in its own process group, so that Ctrl-C reaches only us. What it prints
    /// goes to `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), handle: Handle::Child(child), log: log.to_owned() })
    }

    /// Starts `command` with pipes to its input and output. Only its errors go to `log`.
    pub fn start_talking(name: &str, command: &mut Command, log: &Path) -> Result<(Self, Talk)> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file).process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
        let to = child.stdin.take().context("no pipe to the child")?;
        let from = BufReader::new(child.stdout.take().context("no pipe from the child")?);
        Ok((Self { name: name.to_owned(), handle: Handle::Child(child), log: log.to_owned() }, Talk { to, from }))
    }

    /// Makes us, not process 1, the parent of what our children leave behind.
    pub fn inherit_orphans() -> Result<()> {
        nix::sys::prctl::set_child_subreaper(true).context("cannot become a subreaper")
    }

    /// Follows the program to the process that it started in its place, which writes to the same
    /// log. The old process must have ended; see [`inherit_orphans`](Self::inherit_orphans).
    pub fn continue_as(&mut self, id: u32) -> Result<()> {
        self.handle = Handle::Left(Pid::from_raw(i32::try_from(id)?), None);
        Ok(())
    }

    pub fn id(&self) -> u32 {
        match &self.handle {
            Handle::Child(child) => child.id(),
            Handle::Left(pid, _) => pid.as_raw().cast_unsigned(),
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.id())?);
        signal::kill(pid, signal).with_context(|| format!("{signal} to {}", self.name))
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.ended(), Ok(None))
    }

    /// How it ended; `None`: it still runs.
    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.handle {
            Handle::Child(child) => Ok(child.try_wait()?),
            Handle::Left(_, Some(status)) => Ok(Some(*status)),
            Handle::Left(pid, ended) => {
                *ended = match waitpid(*pid, Some(WaitPidFlag::WNOHANG))? {
                    // Rebuilds the kernel's wait status, see wait(2).
                    WaitStatus::Exited(_, code) => Some(ExitStatus::from_raw(code << 8)),
                    WaitStatus::Signaled(_, signal, _) => Some(ExitStatus::from_raw(signal as i32)),
                    _ => None,
                };
                Ok(*ended)
            }
        }
    }

    /// Kills it (`kill -9`) and waits for the end.
    pub fn kill(&mut self) {
        if self.is_running() {
            // It may have ended in the meantime.
            _ = self.signal(Signal::SIGKILL);
        }
        match &mut self.handle {
            Handle::Child(child) => _ = child.wait(),
            Handle::Left(pid, None) => _ = waitpid(*pid, None),
            Handle::Left(..) => {}
        }
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until(&what, limit, || self.ended().transpose())?
    }

    /// Waits until it ends with success.
    pub fn succeed(&mut self, limit: Duration) -> Result<()> {
        let status = self.wait(limit)?;
        if !status.success() {
            bail!("{}: {status}\n{}", self.name, self.log());
        }
        Ok(())
    }

    /// The last `bytes` bytes of its log.
    pub fn log_end(&self, bytes: u64) -> String {
        let read = || {
            let mut file = File::open(&self.log)?;
            let length = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&text).into_owned())
        };
        read().unwrap_or_default()
    }

    /// All that it has printed so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The standard input and output of a child, line by line.
pub struct Talk {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Talk {
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.to, "{line}")
    }

    /// For a program that does not write lines.
    pub fn into_pipes(self) -> (ChildStdin, BufReader<ChildStdout>) {
        (self.to, self.from)
    }

    /// The next line; an error if the child has ended.
    pub fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            bail!("the program ended before it answered");
        }
        Ok(line)
    }
}

/// Runs a command to the end. The error contains what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let out = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{command:?}: {}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(out.into_owned())
}
