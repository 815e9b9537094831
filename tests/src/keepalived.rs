//! keepalived on a host of the lab, as people run it next to a balancer: evenkeel's VRRP has to
//! interoperate with it.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{Host, Process};

/// keepalived with its configuration.
pub struct Keepalived {
    host: Host,
    folder: PathBuf,
    process: Option<Process>,
}

impl Keepalived {
    /// Starts it with these `vrrp_instance`s.
    pub fn start(host: &Host, instances: &str) -> Result<Self> {
        let folder = host.folder().join(format!("keepalived-{}", host.name));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let config = format!("global_defs {{\n  router_id {}\n  script_user root\n}}\n{instances}", host.name);
        fs::write(folder.join("keepalived.conf"), config)?;
        let mut keepalived = Self { host: host.clone(), folder, process: None };
        keepalived.run()?;
        Ok(keepalived)
    }

    /// Starts it again.
    pub fn run(&mut self) -> Result<()> {
        let mut command = self.host.command("keepalived");
        command.args(["--dont-fork", "--log-console", "--log-detail", "--vrrp", "--dont-respawn", "--use-file"]);
        command.arg(self.folder.join("keepalived.conf"));
        command.arg("--pid").arg(self.folder.join("pid")).arg("--vrrp_pid").arg(self.folder.join("vrrp.pid"));
        self.process = Some(self.host.start("keepalived", &mut command)?);
        Ok(())
    }

    /// Stops it in order: with priority 0, and the VIP removed.
    pub fn terminate(&mut self) -> Result<()> {
        let mut process = self.process.take().context("keepalived does not run")?;
        process.signal(Signal::SIGTERM)?;
        process.succeed(std::time::Duration::from_secs(10))
    }

    /// Kills it and its child that speaks VRRP (`kill -9`); the VIP stays.
    pub fn kill(&mut self) -> Result<()> {
        let pid: i32 = fs::read_to_string(self.folder.join("vrrp.pid"))?.trim().parse()?;
        // The child first: it would stop in order once its parent is gone.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).context("keepalived's child")?;
        self.process = None;
        // Until somebody reaps the dead child, keepalived would think that it still runs.
        ["pid", "vrrp.pid"].iter().try_for_each(|name| fs::remove_file(self.folder.join(name)).context("a pid file"))
    }

    /// Its log.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }
}
