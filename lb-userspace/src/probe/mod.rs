//! Active probes (`[service.health]`): every backend is probed at its own pace, over a connection
//! from the host's own address that bypasses the datapath.
//!
//! Probes run on a separate thread, so that nothing else in the daemon delays them: an answer left
//! unread would look like a missing one. The controller receives what they find and decides.

mod check;
mod pace;
mod source;
mod tls;

use std::{collections::HashMap, net::SocketAddr, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result};
use log::warn;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    config::model::{self, PortRange},
    controller::probe_count::Outcome,
    sys::clock,
};
use pace::Pace;
use source::Source;

pub use check::Check;

/// Findings that may wait for the controller. When the queue is full, probes wait.
const QUEUE: usize = 256;

/// A backend to probe.
#[derive(Clone, Debug)]
pub struct Target {
    /// The backend's number in BACKENDS.
    pub backend: u16,
    /// Where it listens.
    pub address: SocketAddr,
    /// How to probe it.
    pub probe: Arc<Probe>,
}

/// How the backends of a service are probed.
#[derive(Debug)]
pub struct Probe {
    /// What one probe does.
    pub check: Check,
    /// The settings as in the file.
    pub settings: model::Health,
    source: Source,
}

impl Probe {
    /// Reads the CA file, if one is configured. Probes are sent from none of the ports `avoided`,
    /// nor from `older` ones if enough others are left.
    pub fn new(settings: &model::Health, avoided: &[PortRange], older: &[PortRange]) -> Result<Probe> {
        let source = Source::beside(avoided, older);
        Ok(Probe { check: Check::new(settings)?, settings: settings.clone(), source })
    }
}

/// The result of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The backend's number in BACKENDS.
    pub backend: u16,
    /// The address that was probed; by now the number may belong to another backend.
    pub address: SocketAddr,
    /// The outcome, for the controller.
    pub outcome: Outcome,
    /// The outcome in words, for the log.
    pub detail: String,
    /// When it ended.
    pub at: lb_common::time::Instant,
}

enum Order {
    Watch(Vec<Target>),
    Hurry(u16),
}

/// The thread that probes. Dropping this ends it.
pub struct Prober {
    orders: mpsc::UnboundedSender<Order>,
}

impl Prober {
    /// Starts the thread, which probes nothing yet.
    pub fn start() -> Result<(Prober, mpsc::Receiver<Finding>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, ordered) = mpsc::unbounded_channel();
        let (findings, found) = mpsc::channel(QUEUE);
        let probing = move || runtime.block_on(obey(ordered, findings));
        thread::Builder::new().name("probes".into()).spawn(probing).context("cannot start the thread of the probes")?;
        Ok((Prober { orders }, found))
    }

    /// Probes exactly these backends from now on. A backend that was probed with the same settings
    /// before keeps its pace and uses the CA file as it is now.
    pub fn watch(&self, targets: Vec<Target>) {
        self.order(Order::Watch(targets));
    }

    /// A backend is in doubt: it is probed sooner, and quickly until the doubt is settled.
    pub fn hurry(&self, backend: u16) {
        self.order(Order::Hurry(backend));
    }

    fn order(&self, order: Order) {
        // The thread ends only with this value, or by a panic, which was reported.
        _ = self.orders.send(order);
    }
}

/// A backend that is being probed.
struct Watched {
    target: Target,
    probe: watch::Sender<Arc<Probe>>,
    hurry: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn obey(mut orders: mpsc::UnboundedReceiver<Order>, findings: mpsc::Sender<Finding>) {
    let mut watched: HashMap<u16, Watched> = HashMap::new();
    while let Some(order) = orders.recv().await {
        match order {
            Order::Hurry(backend) => {
                if let Some(watched) = watched.get(&backend) {
                    watched.hurry.notify_one();
                }
            }
            Order::Watch(targets) => watch_others(&mut watched, targets, &findings),
        }
    }
}

fn watch_others(watched: &mut HashMap<u16, Watched>, targets: Vec<Target>, findings: &mpsc::Sender<Finding>) {
    let same = |old: &Target, new: &Target| old.address == new.address && old.probe.settings == new.probe.settings;
    watched.retain(|backend, old| {
        let new = targets.iter().find(|new| new.backend == *backend && same(&old.target, new));
        new.inspect(|new| _ = old.probe.send_replace(new.probe.clone())).is_some()
    });
    let new: Vec<_> = targets.into_iter().filter(|new| !watched.contains_key(&new.backend)).collect();
    let count = new.len() as u32;
    for (position, target) in new.into_iter().enumerate() {
        // Spread over the interval, so that probes do not all run at once.
        let wait = target.probe.settings.interval * position as u32 / count;
        watched.insert(target.backend, begin(target, wait, findings.clone()));
    }
}

fn begin(target: Target, wait: Duration, findings: mpsc::Sender<Finding>) -> Watched {
    let hurry = Arc::new(Notify::new());
    let (probe, probes) = watch::channel(target.probe.clone());
    let task = tokio::spawn(watch_one(target.clone(), probes, Instant::now() + wait, hurry.clone(), findings));
    Watched { target, probe, hurry, task: task.abort_handle() }
}

/// Probes one backend until the task is aborted.
async fn watch_one(
    target: Target,
    probes: watch::Receiver<Arc<Probe>>,
    first: Instant,
    hurry: Arc<Notify>,
    findings: mpsc::Sender<Finding>,
) {
    let settings = &target.probe.settings;
    let mut pace = Pace::new(settings.interval, settings.rise.get(), settings.fall.get());
    let (mut began, mut next) = (first, first);
    let mut hindered = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = hurry.notified() => {
                next = next.min(began + pace.hurry());
                continue;
            }
        }
        began = Instant::now();
        let probe = probes.borrow().clone();
        let found = probe.check.run(target.address, settings.timeout, &probe.source).await;
        // A check may take as long as the interval, but two never run at once.
        match found {
            Ok((outcome, detail)) => {
                hindered = false;
                let gap = pace.after(outcome == Outcome::Passed);
                next = if gap < settings.interval { began + gap } else { in_turn(first, settings.interval, began) };
                let (backend, address, at) = (target.backend, target.address, clock::monotonic());
                let finding = Finding { backend, address, outcome, detail, at };
                if findings.send(finding).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // The probe failed on this host and says nothing about the backend.
                if !std::mem::replace(&mut hindered, true) {
                    warn!("backend {} cannot be probed: {error:#}", target.address);
                }
                next = began + settings.interval;
            }
        }
    }
}

/// The next time that is a whole number of intervals after the first, so that probes stay spread
/// even if some were hurried.
fn in_turn(first: Instant, interval: Duration, began: Instant) -> Instant {
    let since = began.saturating_duration_since(first).as_nanos();
    let whole = since / interval.as_nanos().max(1) + 1;
    first + interval * u32::try_from(whole).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
