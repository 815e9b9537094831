//! Boots a kernel in qemu and listens to its serial console. A boot always ends: the guest switches
//! itself off, or its time is over.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use super::said::Said;

/// MiB of the guest's memory. The initramfs takes a tenth of it.
const MEMORY: &str = "1536";
/// The lines of the console that are shown if the guest did not come to its end.
const LAST: usize = 12;

/// How a boot is done.
pub struct Machine<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    /// The file for all that the guest prints.
    pub console: &'a Path,
    pub limit: Duration,
    /// Uses the CPU instead of emulating one.
    pub kvm: bool,
}

/// Ends qemu when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // `timeout` passes it on. It has ended if the guest switched itself off.
        if let Ok(pid) = i32::try_from(self.0.id()) {
            _ = signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Boots, and passes on what the guest says. Returns what went wrong, if the guest did not come
    /// to its end.
    pub fn boot(&self, mut hear: impl FnMut(Said)) -> Result<Option<String>> {
        let mut qemu = Running(self.qemu()?);
        let output = qemu.0.stdout.take().context("no pipe from qemu")?;
        let mut console = File::create(self.console).with_context(|| self.console.display().to_string())?;
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if send.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    break;
                }
            }
        });
        let end = Instant::now() + self.limit;
        let mut last = Vec::new();
        loop {
            let why = match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    writeln!(console, "{line}")?;
                    match Said::hear(&line) {
                        Ok(Some(Said::Over)) => return Ok(None),
                        Ok(Some(said)) => hear(said),
                        Ok(None) if line.is_empty() => {}
                        Ok(None) => last.push(line),
                        // What it said is lost: perhaps that a check failed.
                        Err(error) => return Ok(Some(format!("a result cannot be read: {error}: {line}"))),
                    }
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => format!("not done after {} s", self.limit.as_secs()),
                Err(RecvTimeoutError::Disconnected) => "the guest ended early".to_owned(),
            };
            let last = &last[last.len().saturating_sub(LAST)..];
            return Ok(Some(format!("{why}; the console's last lines:\n{}", last.join("\n"))));
        }
    }

    /// With the lowest priority. It ends with this process, however that ends.
    fn qemu(&self) -> Result<Child> {
        let seconds = (self.limit + Duration::from_secs(10)).as_secs().to_string();
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig=TERM", "nice", "-n", "19"]);
        qemu.args(["timeout", "--foreground", "--kill-after=5", &seconds, "qemu-system-x86_64"]);
        if self.kvm {
            qemu.args(["-accel", "kvm", "-cpu", "host"]);
        } else {
            qemu.args(["-accel", "tcg,thread=single", "-cpu", "max"]);
        }
        qemu.args(["-smp", "1", "-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        qemu.args(["-serial", "stdio", "-kernel"]).arg(self.kernel).arg("-initrd").arg(self.initramfs);
        // A panic reboots at once, which ends qemu. What is behind `--` goes to process 1.
        let command_line =
            "console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off rdinit=/bin/evenkeel-lab -- kernels-guest";
        qemu.args(["-append", command_line]).stdin(Stdio::null()).stdout(Stdio::piped());
        qemu.spawn().context("cannot start qemu")
    }
}
