//! VRRP on the real host. Three kinds of threads:
//!
//! ```text
//! daemon ──orders──▶ vrrp ──────────orders──▶ vrrp-net     addresses, links, sockets: all that may
//!        ◀─events───  real-time, memory   ◀──facts──       wait for the kernel
//!                     locked, never waits ◀──facts── scripts, one thread each
//! ```
//! The thread `vrrp` reads its sockets, runs the machines, sends, and renews leases by a store to
//! mapped memory. It never waits for a lock, writes no log, starts no process and adds no address.

mod instance;
mod mailbox;
mod network;
pub mod overhear;
mod scripts;
mod thread;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use super::{
    group::InstanceId,
    messages::InstanceEvent,
    report::{InstanceReport, Remembered},
    setup::Setup,
    wire::{Packet, ipv4},
};
use crate::{
    sys::{
        netlink::Found,
        raw_ip::{RawIp, Received},
        readiness::Readiness,
    },
    tables::Tables,
};
use mailbox::Mailbox;
use network::NetworkOrder;
use scripts::{Notify, Scripts};
use thread::Thread;

/// What a socket has received, as a packet; `None`: it is cut short.
fn packet_of(received: Received, buffer: &[u8]) -> Option<Packet<'_>> {
    match received {
        Received::V4(length) => buffer.get(..length).and_then(ipv4::parse),
        Received::V6 { length, source, destination, hop_limit } => buffer.get(..length).map(|payload| Packet {
            source: source.into(),
            destination: destination.into(),
            hop_limit,
            payload,
        }),
    }
}

/// What the thread has to do.
enum ThreadOrder {
    /// Run these instances and no others, and answer when the reports are about them.
    Configure(Vec<Setup>, oneshot::Sender<()>),
    /// Take note of something about the host.
    Fact(Fact),
    /// An operator gives an instance's mastership away.
    GiveAway(Arc<str>),
    /// End in order; or leave everything as it is for the next process.
    End {
        /// Whether another process takes over.
        hand_over: bool,
    },
}

/// Something about the host.
pub enum Fact {
    /// The interfaces that are wanted and exist, and the host's own addresses.
    Interfaces {
        /// What was found.
        found: Found,
        /// The interfaces that forward IPv6.
        routers: BTreeSet<String>,
    },
    /// A socket on an interface was opened, or could not be.
    Socket {
        /// The interface.
        interface: String,
        /// For IPv4, or else IPv6.
        ipv4: bool,
        /// The socket, or the error.
        socket: Result<RawIp, String>,
    },
    /// Why the datapath fails, if it does.
    Datapath(Option<String>),
    /// Whether no backend of any service is up.
    NoBackend(bool),
    /// Whether another host may have connections that are not known here.
    LacksFlows(bool),
    /// A script has run.
    Script {
        /// The instance.
        instance: Arc<str>,
        /// The script's position in its list.
        number: usize,
        /// Whether it ended in time with exit code 0.
        passed: bool,
    },
    /// The addresses of an instance were put on the interface, or could not be.
    Held {
        /// The instance.
        id: InstanceId,
        /// The error, if there was one.
        result: Result<(), String>,
    },
    /// The addresses of an instance will go from the interface soon.
    NotRenewed {
        /// The instance.
        id: InstanceId,
        /// Why they cannot be renewed.
        error: String,
    },
    /// Addresses were taken off an interface, or could not be.
    Released {
        /// The addresses.
        addresses: Vec<std::net::IpAddr>,
        /// The error, if there was one.
        result: Result<(), String>,
    },
}

/// What the threads share.
struct Shared {
    orders: Mailbox<ThreadOrder>,
    events: Mailbox<InstanceEvent>,
    network: Mailbox<NetworkOrder>,
    reports: Mutex<Arc<Vec<InstanceReport>>>,
}

/// The most orders that wait for a thread.
const ORDERS: usize = 256;
/// The most events that wait for the daemon.
const EVENTS: usize = 256;
/// How long the end may take, in which addresses are removed.
const FAREWELL: Duration = Duration::from_secs(3);

/// The instances of this host, running.
pub struct Router {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    news: Readiness,
    scripts: Scripts,
    notify: Notify,
    /// The programs of `notify`, by instance.
    programs: BTreeMap<Arc<str>, PathBuf>,
}

impl Router {
    /// Starts the threads, without an instance yet. `facts` is what is already known of the host,
    /// `remembered` what another process of this daemon has left. Must be called inside a tokio
    /// runtime.
    pub fn start(tables: Arc<Tables>, facts: Vec<Fact>, remembered: Vec<Remembered>) -> Result<Router> {
        let shared = Arc::new(Shared {
            orders: Mailbox::new(ORDERS)?,
            events: Mailbox::new(EVENTS)?,
            network: Mailbox::new(ORDERS)?,
            reports: Mutex::default(),
        });
        for fact in facts {
            shared.orders.post(ThreadOrder::Fact(fact));
        }
        let network = network::start(shared.clone()).context("cannot start the thread vrrp-net")?;
        let thread = Thread::new(shared.clone(), tables, remembered, network)?;
        let thread = std::thread::Builder::new().name("vrrp".into()).spawn(move || thread.run());
        Ok(Router {
            news: Readiness::of(shared.events.as_fd())?,
            scripts: Scripts::default(),
            notify: Notify::start()?,
            programs: BTreeMap::new(),
            thread: Some(thread.context("cannot start the thread vrrp")?),
            shared,
        })
    }

    /// Runs these instances and no others. The receiver hears when [`reports`](Self::reports) are
    /// about them.
    pub fn configure(&mut self, setups: Vec<Setup>) -> oneshot::Receiver<()> {
        self.scripts.run(&setups, &self.shared);
        self.programs = setups.iter().filter_map(|setup| Some((setup.name.clone(), setup.notify.clone()?))).collect();
        let (done, configured) = oneshot::channel();
        self.shared.orders.post(ThreadOrder::Configure(setups, done));
        configured
    }

    /// Passes on something about the host.
    pub fn fact(&self, fact: Fact) {
        self.shared.orders.post(ThreadOrder::Fact(fact));
    }

    /// Gives an instance's mastership away; [`reports`](Self::reports) show the outcome.
    pub fn give_away(&self, instance: &Arc<str>) {
        self.shared.orders.post(ThreadOrder::GiveAway(instance.clone()));
    }

    /// Access to the state of the instances.
    pub fn reports(&self) -> Reports {
        Reports(self.shared.clone())
    }

    /// Waits for events. Fails if the thread has ended by itself, which it never should. Safe to
    /// cancel.
    pub async fn events(&self) -> Result<Vec<InstanceEvent>> {
        let mut ready = self.news.readable().await?;
        ready.clear_ready();
        let events = self.shared.events.take();
        self.notify.call(&self.programs, &events);
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            anyhow::bail!("the VRRP thread has ended");
        }
        Ok(events)
    }

    /// Ends in order: resigns, and removes addresses and leases. Returns the last events, and the
    /// calls of `notify` that are still to be made.
    pub fn end(self) -> (Vec<InstanceEvent>, LastCalls) {
        self.finish(false)
    }

    /// Ends without resigning: another process continues where this one was.
    pub fn hand_over(self) -> (Vec<InstanceEvent>, LastCalls) {
        self.finish(true)
    }

    fn finish(mut self, hand_over: bool) -> (Vec<InstanceEvent>, LastCalls) {
        self.shared.orders.post(ThreadOrder::End { hand_over });
        self.scripts.stop();
        if let Some(thread) = self.thread.take() {
            // If the thread panicked, it has said so.
            _ = thread.join();
        }
        let events = self.shared.events.take();
        self.notify.call(&self.programs, &events);
        (events, LastCalls(self.notify))
    }
}

/// Calls of `notify` that an operator's programs may take their time for.
pub struct LastCalls(Notify);

impl LastCalls {
    /// Waits for them, but not for ever.
    pub fn finish(self) {
        self.0.finish(FAREWELL);
    }
}

/// The state of the instances; may outlive the router.
pub struct Reports(Arc<Shared>);

impl Reports {
    /// The state now, or up to a millisecond ago.
    pub fn now(&self) -> Arc<Vec<InstanceReport>> {
        self.0.reports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
