//! A stand-in API server as a process on a host of the lab.

use std::{collections::BTreeMap, net::SocketAddrV4};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::{Host, Process, binaries, process::Talk, topology::PORT};

pub struct StandIn {
    pub host: Host,
    /// The name by which it identifies itself: the host's.
    pub name: String,
    options: &'static [&'static str],
    process: Option<(Process, Talk)>,
}

impl StandIn {
    /// Starts it on the host's address and waits until it listens.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_with(host, &[])
    }

    /// The same with more options of `evenkeel-lab apiserver`.
    pub fn start_with(host: &Host, options: &'static [&'static str]) -> Result<Self> {
        let mut standin = Self { host: host.clone(), name: host.name.to_string(), options, process: None };
        standin.revive()?;
        Ok(standin)
    }

    pub fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.host.address(), PORT)
    }

    /// Starts it again after [`kill`](Self::kill).
    pub fn revive(&mut self) -> Result<()> {
        self.kill();
        let mut command = self.host.command(binaries::lab()?);
        command.args(["apiserver", "--name", &self.name, "--listen", &self.address().to_string(), "--pki"]);
        command.arg(self.host.folder()).args(self.options);
        let (name, log) = (format!("apiserver on {}", self.name), self.host.log("apiserver"));
        let (process, mut talk) = Process::start_talking(&name, &mut command, &log)?;
        talk.hear().with_context(|| process.log())?;
        self.process = Some((process, talk));
        Ok(())
    }

    /// Kills it (`kill -9`): its kernel closes its connections and refuses new ones.
    pub fn kill(&mut self) {
        self.process = None;
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Makes it hang (SIGSTOP): its kernel still answers SYNs and acknowledges data.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().map_or(Ok(()), |(process, _)| process.signal(signal))
    }

    /// Sets what `/readyz` answers until it is revived.
    pub fn readyz(&mut self, status: u16) -> Result<()> {
        self.command(&format!("readyz {status}"))
    }

    /// Continues it after [`pause`](Self::pause); `/readyz` then answers with `status`.
    pub fn resume_with(&mut self, status: u16) -> Result<()> {
        let (process, talk) = self.process.as_mut().context("the stand-in does not run")?;
        // It reads this from its standard input as soon as it continues.
        talk.say(&format!("readyz {status}"))?;
        process.signal(Signal::SIGCONT)?;
        let answer = talk.hear()?;
        ensure!(answer.trim_end() == "done", "readyz {status}: {answer}");
        Ok(())
    }

    /// Makes it accept new connections without ever answering them.
    pub fn hang(&mut self, hangs: bool) -> Result<()> {
        self.command(if hangs { "hang on" } else { "hang off" })
    }

    /// Closes its listener and nothing else, as a server does that shuts down gracefully.
    pub fn stop_listening(&mut self) -> Result<()> {
        self.command("listen off")
    }

    /// How its plain connections have ended: `fin`, `reset`, or another error.
    pub fn ended(&mut self) -> Result<BTreeMap<String, u64>> {
        let answer = self.say("ended")?;
        serde_json::from_str(&answer).with_context(|| answer)
    }

    fn command(&mut self, line: &str) -> Result<()> {
        let answer = self.say(line)?;
        ensure!(answer == "done", "{line}: {answer}");
        Ok(())
    }

    fn say(&mut self, line: &str) -> Result<String> {
        let (_, talk) = self.process.as_mut().context("the stand-in does not run")?;
        talk.say(line)?;
        Ok(talk.hear()?.trim_end().to_owned())
    }
}
