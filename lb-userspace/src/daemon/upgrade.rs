//! An upgrade as the old daemon sees it: another daemon gets ready while it runs, then takes over.
//! See [`handover`].
//!
//! [`handover`]: crate::handover

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use log::{Level, warn};
use nix::{sys::signal::kill, unistd::Pid};
use sd_notify::NotifyState;
use tokio::task::JoinHandle;

use super::{Daemon, End, Ends, Inputs, flow_sync, interfaces, several, start::begin_inputs, tell_systemd};
use crate::{
    api::{Reply, types::Refused},
    handover::{Memory, Successor, Upgraded},
    notice::{Kind, Notice},
    vrrp::report::Remembered,
};

/// How long a signal that was sent may take to be noticed.
const SIGNALS: Duration = Duration::from_millis(50);

/// The requester, which waits for the outcome.
pub type Asked = Reply<Result<Upgraded, Refused>>;
/// The process that is to take over, and its version, or why it is not ready.
pub type Readiness = (Successor, Result<String>);

/// A daemon that is getting ready while this one runs.
pub struct Upgrading {
    task: JoinHandle<Readiness>,
    asked: Option<Asked>,
}

impl Upgrading {
    /// Waits until it is ready or has failed; without an upgrade, forever.
    pub async fn outcome(upgrading: &mut Option<Upgrading>) -> Readiness {
        if let Some(upgrading) = upgrading
            && let Ok(readiness) = (&mut upgrading.task).await
        {
            return readiness;
        }
        std::future::pending().await
    }

    /// Gives the upgrade up and ends the process.
    pub async fn give_up(self) {
        self.task.abort();
        _ = self.task.await;
    }
}

impl Daemon {
    /// Starts the program that is on disk now.
    pub(super) fn upgrade(&mut self, asked: Option<Asked>) {
        let started = match &self.upgrading {
            Some(_) => Err(anyhow::anyhow!("an upgrade is under way already")),
            None => self.start_successor(),
        };
        match started {
            Ok((binary, mut successor)) => {
                let text = format!("{} is started to take over", binary.display());
                self.tell(Notice::daemon(Level::Info, Kind::Lifecycle, text));
                let task = tokio::spawn(async move {
                    let ready = successor.ready().await;
                    (successor, ready)
                });
                self.upgrading = Some(Upgrading { task, asked });
            }
            Err(error) => self.not_upgraded(asked, &error),
        }
    }

    fn start_successor(&self) -> Result<(PathBuf, Successor)> {
        let mut descriptors = self.doors.server.inheritance()?;
        descriptors.push((super::BPFFS, self.dataplane.lock()?));
        let binary = self.process.binary.clone();
        let successor = Successor::start(&binary, descriptors)?;
        Ok((binary, successor))
    }

    /// Hands over to a daemon that is ready; if that fails, everything is as before.
    pub(super) async fn hand_over(&mut self, inputs: &mut Inputs, readiness: Readiness) -> Option<End> {
        let asked = self.upgrading.take().and_then(|upgrading| upgrading.asked);
        let (mut successor, ready) = readiness;
        let taken = match ready {
            Ok(version) => {
                let instances = self.vrrp.remembered();
                self.pause(inputs).await;
                let taken = successor.hand_over(self.memory(instances.clone())).await;
                if taken.is_err() {
                    // It must be gone before we act again.
                    drop(successor);
                    self.vrrp.remember(instances);
                    self.resume(inputs).await;
                }
                taken.map(|pid| Upgraded { version, pid })
            }
            Err(error) => Err(error),
        };
        match taken {
            Ok(upgraded) => {
                let pid = upgraded.pid;
                tell_systemd(&[NotifyState::MainPid(pid)]);
                let text = format!("evenkeel {} (process {}) has taken over", upgraded.version, upgraded.pid);
                self.tell(Notice::daemon(Level::Info, Kind::Lifecycle, text));
                // The requester may have hung up.
                _ = asked.map(|asked| asked.send(Ok(upgraded)));
                Some(End::HandedOver(pid))
            }
            Err(error) => {
                self.not_upgraded(asked, &error);
                None
            }
        }
    }

    fn not_upgraded(&self, asked: Option<Asked>, error: &anyhow::Error) {
        let text = format!("no upgrade, this daemon goes on: {}: {error:#}", self.process.binary.display());
        self.tell(Notice::daemon(Level::Error, Kind::Lifecycle, text.clone()));
        _ = asked.map(|asked| asked.send(Err(Refused { errors: vec![text] })));
    }

    /// Stops everything that acts, before another daemon acts: the control socket (new connections
    /// wait for the next daemon), the listener of `[api]`, whose address the other needs, and the
    /// events, of which those already read are still taken in.
    async fn pause(&mut self, inputs: &mut Inputs) {
        self.doors.serving.shutdown = None;
        self.doors.listener.set(None, &self.doors.api);
        self.pause_vrrp().await;
        self.take_in_the_rest(inputs).await;
        // The other daemon needs its address.
        self.sync.end();
        // Events from here on would get numbers that the next daemon assigns, too.
        self.history.close();
    }

    /// Takes in the events already read from the ring and leaves the rest to the next daemon.
    pub(super) async fn take_in_the_rest(&mut self, inputs: &mut Inputs) {
        inputs.events.stop();
        while let Some(batch) = inputs.events.next().await {
            self.events(&batch);
        }
    }

    /// Acts again: the new daemon does not, but may have begun to.
    async fn resume(&mut self, inputs: &mut Inputs) {
        self.history.reopen();
        let configured = flow_sync::key(&self.config).and_then(|key| self.configure_sync(key));
        if let Err(error) = configured.and(self.configure_vrrp().await) {
            warn!("{error:#}");
        }
        let resumed = self.reclaim().and_then(|()| begin_inputs(&self.doors.server, &self.dataplane, &self.doors.api));
        match resumed {
            Ok((events, serving)) => {
                inputs.events = events;
                self.doors.serving = serving;
                // If the address is not available yet, the listener tries again.
                _ = self.listen();
            }
            Err(error) => {
                let text = format!("after a failed upgrade: {error:#}; restart evenkeel, connections go on");
                self.tell(Notice::daemon(Level::Error, Kind::Lifecycle, text));
            }
        }
    }

    /// Brings tables and hooks back to our configuration.
    fn reclaim(&mut self) -> Result<()> {
        self.dataplane.reclaim()?;
        self.controller.reread(self.dataplane.tables().read());
        let desired = self.controller.desired().clone();
        let plan = self.controller.plan(&desired).map_err(several)?;
        self.write(&plan)?;
        self.commit(desired, plan);
        let attached =
            interfaces::attach(&mut self.dataplane, &self.wanted, self.process.options.clsact).map_err(several)?;
        attached.into_iter().for_each(|notice| self.tell(notice));
        self.detach_unused();
        self.write_hops();
        Ok(())
    }

    fn memory(&self, vrrp: Vec<Remembered>) -> Memory {
        Memory { events: self.history.after(0).iter().map(|event| (**event).clone()).collect(), vrrp }
    }

    /// After the handover: finishes answers under way and writes the remaining lines of the access
    /// log. The socket and the locks belong to the other daemon. Until systemd knows that it is the
    /// main process, whoever ends the daemon ends this one: the other hears of it.
    pub(super) async fn leave(mut self, successor: u32, mut ends: Ends) -> Result<()> {
        let calls = self.hand_over_vrrp().await;
        self.history.close();
        drop(self.doors.serving.shutdown);
        if let Err(error) =
            self.doors.serving.task.await.context("the control socket's task has died").and_then(|served| served)
        {
            warn!("{error:#}");
        }
        if let Some(calls) = calls {
            tokio::task::spawn_blocking(|| calls.finish()).await?;
        }
        super::until_systemd_has_heard().await;
        if tokio::time::timeout(SIGNALS, ends.recv()).await.is_ok() {
            let process = Pid::from_raw(successor.try_into().context("the number of the process")?);
            kill(process, nix::sys::signal::Signal::SIGTERM)
                .with_context(|| format!("cannot end process {successor}"))?;
        }
        Ok(())
    }
}
