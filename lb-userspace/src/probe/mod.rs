//! Active probes (`[service.health]`): every backend is asked at its own pace whether it is there and ready, over a
//! connection of its own from the host's own address, past the datapath.
//!
//! They run on a thread of their own, so that nothing else the daemon does makes one late: an answer that waits to be read
//! would look like one that did not come. What they find goes to the controller, which decides.

mod check;
mod pace;
mod tls;

use std::{collections::HashMap, net::SocketAddr, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result};
use log::warn;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{config::model, controller::probe_count::Outcome, sys::clock};
use pace::Pace;

pub use check::Check;
pub use tls::authorities;

/// Findings that may wait for the controller; a probe waits for room.
const QUEUE: usize = 256;

/// Whom to probe.
#[derive(Clone, Debug)]
pub struct Target {
    /// The backend, its place in BACKENDS.
    pub backend: u16,
    /// Where it listens.
    pub address: SocketAddr,
    /// How.
    pub probe: Arc<Probe>,
}

/// How the backends of a service are probed.
#[derive(Debug)]
pub struct Probe {
    /// What is done.
    pub check: Check,
    /// As the file has it.
    pub settings: model::Health,
}

impl Probe {
    /// Reads the CA, if one is named.
    pub fn new(settings: &model::Health) -> Result<Probe> {
        Ok(Probe { check: Check::new(settings)?, settings: settings.clone() })
    }
}

/// What a probe came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The backend.
    pub backend: u16,
    /// Where it was probed: its number may be another one's by now.
    pub address: SocketAddr,
    /// For the machine.
    pub outcome: Outcome,
    /// For the log.
    pub detail: String,
    /// When it ended, CLOCK_MONOTONIC in nanoseconds.
    pub at: u64,
}

enum Order {
    Watch(Vec<Target>),
    Hurry(u16),
}

/// The thread with the probes. It ends with this.
pub struct Prober {
    orders: mpsc::UnboundedSender<Order>,
}

impl Prober {
    /// Starts it; nobody is probed yet.
    pub fn start() -> Result<(Prober, mpsc::Receiver<Finding>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, ordered) = mpsc::unbounded_channel();
        let (findings, found) = mpsc::channel(QUEUE);
        let probing = move || runtime.block_on(obey(ordered, findings));
        thread::Builder::new().name("probes".into()).spawn(probing).context("cannot start the thread of the probes")?;
        Ok((Prober { orders }, found))
    }

    /// Probes these from now on and no others. One that was probed the same way before goes on at its pace, with what the
    /// file of the authorities holds now.
    pub fn watch(&self, targets: Vec<Target>) {
        self.order(Order::Watch(targets));
    }

    /// There is doubt about a backend: it is probed sooner, and quickly until that is settled.
    pub fn hurry(&self, backend: u16) {
        self.order(Order::Hurry(backend));
    }

    fn order(&self, order: Order) {
        // The thread ends only with this, or by a panic, which has been reported.
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
    for (place, target) in new.into_iter().enumerate() {
        // Spread over the interval, so that they do not all come at once.
        let wait = target.probe.settings.interval * place as u32 / count;
        watched.insert(target.backend, begin(target, wait, findings.clone()));
    }
}

fn begin(target: Target, wait: Duration, findings: mpsc::Sender<Finding>) -> Watched {
    let hurry = Arc::new(Notify::new());
    let (probe, probes) = watch::channel(target.probe.clone());
    let task = tokio::spawn(watch_one(target.clone(), probes, Instant::now() + wait, hurry.clone(), findings));
    Watched { target, probe, hurry, task: task.abort_handle() }
}

/// Probes one backend for ever.
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
        let found = probe.check.run(target.address, settings.timeout).await;
        // A check may take as long as the interval; two never run at a time.
        match found {
            Ok((outcome, detail)) => {
                hindered = false;
                let gap = pace.after(outcome == Outcome::Passed);
                next = if gap < settings.interval { began + gap } else { in_turn(first, settings.interval, began) };
                let (backend, address, at) = (target.backend, target.address, clock::monotonic_ns());
                let finding = Finding { backend, address, outcome, detail, at };
                if findings.send(finding).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // Nothing was learnt about the backend.
                if !std::mem::replace(&mut hindered, true) {
                    warn!("backend {} cannot be probed: {error:#}", target.address);
                }
                next = began + settings.interval;
            }
        }
    }
}

/// The next time that is a whole number of intervals after the first: however probes were hurried, they stay spread.
fn in_turn(first: Instant, interval: Duration, began: Instant) -> Instant {
    let since = began.saturating_duration_since(first).as_nanos();
    let whole = since / interval.as_nanos().max(1) + 1;
    first + interval * u32::try_from(whole).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
