//! VRRP on the real host. Three kinds of threads:
//!
//! ```text
//! daemon ──orders──▶ vrrp ──────────orders──▶ vrrp-net     addresses, links, sockets: whatever may wait for the kernel
//!        ◀─events───  real-time, memory   ◀──facts──
//!                     locked, never waits ◀──facts── scripts, one thread each
//! ```
//! The thread `vrrp` reads its sockets, runs the machines, sends, and renews leases by a store to mapped memory. It asks
//! for no lock that it would have to wait for, writes no log, starts no process and adds no address.

mod instance;
mod mailbox;
mod network;
mod scripts;
mod thread;

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use super::{
    report::{Remembered, Report},
    setup::Setup,
    tell::Event,
};
use crate::{
    sys::{netlink::Interface, raw_ip::RawIp, readiness::Readiness},
    tables::Tables,
};
use mailbox::Mailbox;
use scripts::{Notify, Scripts};
use thread::Thread;

/// What the thread is told to do.
enum Order {
    /// These instances and no others; whoever waits is told when the reports are about them.
    Configure(Vec<Setup>, oneshot::Sender<()>),
    /// Something is known of the host.
    Fact(Fact),
    /// An operator gives an instance's mastership away.
    GiveAway(Arc<str>),
    /// The end: in order, or with everything left as it is for the next process.
    End {
        /// Leave it.
        hand_over: bool,
    },
}

/// Something that is known of the host.
pub enum Fact {
    /// The interfaces that are wanted and exist; those that forward IPv6.
    Interfaces(Vec<(Interface, bool)>),
    /// A socket on an interface was opened, or why not.
    Socket {
        /// The interface.
        interface: String,
        /// For which family.
        ipv4: bool,
        /// The socket.
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
        /// Which of its scripts.
        number: usize,
        /// Whether it ended with 0 in time.
        passed: bool,
    },
    /// The addresses of an instance were put on the interface, or why not.
    Held {
        /// The instance.
        instance: Arc<str>,
        /// What came of it.
        result: Result<(), String>,
    },
    /// Addresses were taken from an interface, or why not.
    Released {
        /// Which.
        addresses: Vec<std::net::IpAddr>,
        /// What came of it.
        result: Result<(), String>,
    },
}

/// What the threads share.
struct Shared {
    orders: Mailbox<Order>,
    events: Mailbox<Event>,
    network: Mailbox<network::Order>,
    reports: Mutex<Arc<Vec<Report>>>,
}

/// Orders and facts that may wait.
const ORDERS: usize = 256;
/// Events that may wait for the daemon.
const EVENTS: usize = 256;
/// How long the end may take: addresses are removed in it.
const FAREWELL: Duration = Duration::from_secs(3);

/// The instances of this host, running.
pub struct Router {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    news: Readiness,
    scripts: Scripts,
    notify: Notify,
    /// What `notify` calls, by instance.
    programs: BTreeMap<Arc<str>, PathBuf>,
}

impl Router {
    /// Starts the threads, without an instance yet. `facts` is what is known of the host already, `remembered` what another
    /// process of this daemon has left. Inside a tokio runtime.
    pub fn start(tables: Arc<Tables>, facts: Vec<Fact>, remembered: Vec<Remembered>) -> Result<Router> {
        let shared = Arc::new(Shared {
            orders: Mailbox::new(ORDERS)?,
            events: Mailbox::new(EVENTS)?,
            network: Mailbox::new(ORDERS)?,
            reports: Mutex::default(),
        });
        for fact in facts {
            shared.orders.post(Order::Fact(fact));
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

    /// These instances and no others, from now on. What it gives is ready when [`reports`](Self::reports) are about them.
    pub fn configure(&mut self, setups: Vec<Setup>) -> oneshot::Receiver<()> {
        self.scripts.run(&setups, &self.shared);
        self.programs = setups.iter().filter_map(|setup| Some((setup.name.clone(), setup.notify.clone()?))).collect();
        let (done, configured) = oneshot::channel();
        self.shared.orders.post(Order::Configure(setups, done));
        configured
    }

    /// Something is known of the host.
    pub fn fact(&self, fact: Fact) {
        self.shared.orders.post(Order::Fact(fact));
    }

    /// Gives an instance's mastership away; [`reports`](Self::reports) say what comes of it.
    pub fn give_away(&self, instance: &Arc<str>) {
        self.shared.orders.post(Order::GiveAway(instance.clone()));
    }

    /// Where to look how the instances stand.
    pub fn reports(&self) -> Reports {
        Reports(self.shared.clone())
    }

    /// Waits for events. An error: the thread has ended by itself, which it never should. May be dropped while it waits.
    pub async fn events(&self) -> Result<Vec<Event>> {
        let mut ready = self.news.readable().await?;
        ready.clear_ready();
        let events = self.shared.events.take();
        self.notify.call(&self.programs, &events);
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            anyhow::bail!("the thread of VRRP has ended");
        }
        Ok(events)
    }

    /// Ends in order: the last word, the addresses removed, the leases too. Gives the last events.
    pub fn end(self) -> Vec<Event> {
        self.finish(false)
    }

    /// Ends without a word: another process goes on where this one was.
    pub fn hand_over(self) -> Vec<Event> {
        self.finish(true)
    }

    fn finish(mut self, hand_over: bool) -> Vec<Event> {
        self.shared.orders.post(Order::End { hand_over });
        self.scripts.stop();
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked has said so.
            _ = thread.join();
        }
        let events = self.shared.events.take();
        self.notify.call(&self.programs, &events);
        self.notify.finish(FAREWELL);
        events
    }
}

/// How the instances stand, for whoever asks now and then.
pub struct Reports(Arc<Shared>);

impl Reports {
    /// At this moment, or a thousandth of a second ago.
    pub fn now(&self) -> Arc<Vec<Report>> {
        self.0.reports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
