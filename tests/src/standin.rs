//! A stand-in API server as a process on a host of the lab.

use std::{net::SocketAddrV4, time::Duration};

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::{Host, Process, binaries, topology::PORT, wait};

const START: Duration = Duration::from_secs(5);

pub struct StandIn {
    pub host: Host,
    /// What it answers when asked who it is: the host's name.
    pub name: String,
    process: Option<Process>,
}

impl StandIn {
    /// Starts it on the host's address and waits until it listens.
    pub fn start(host: &Host) -> Result<Self> {
        let mut standin = Self { host: host.clone(), name: host.name.to_string(), process: None };
        standin.revive()?;
        Ok(standin)
    }

    pub fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.host.address(), PORT)
    }

    /// Starts it again after a `kill`.
    pub fn revive(&mut self) -> Result<()> {
        self.kill();
        let mut command = self.host.command(binaries::lab()?);
        command.args(["apiserver", "--name", &self.name, "--listen", &self.address().to_string(), "--pki"]);
        let process = self.host.start("apiserver", command.arg(self.host.folder()))?;
        wait::until(&format!("{} listens", self.name), START, || process.log().contains("listening").then_some(()))?;
        self.process = Some(process);
        Ok(())
    }

    /// `kill -9`: its kernel closes its connections and refuses new ones.
    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// It hangs (SIGSTOP): its kernel still answers SYNs and acknowledges.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().map_or(Ok(()), |process| process.signal(signal))
    }
}
