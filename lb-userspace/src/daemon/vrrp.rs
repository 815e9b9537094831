//! VRRP in the daemon: tells the instances how usable this host is, and passes on what they
//! report.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use lb_common::time;
use log::{Level, warn};

use super::Daemon;
use crate::{
    api::{
        Peer, Reply,
        types::{FailedOver, Refused},
    },
    config::model::Config,
    notice::{Kind, Notice, Subject},
    sys::clock,
    vrrp::{
        machine::State,
        messages::InstanceEvent,
        report::{InstanceReport, Remembered},
        setup::Setup,
        shell::{Fact, LastCalls, Reports, Router},
    },
    words::BackendState,
};

/// How often the datapath is tested.
pub const TEST: Duration = Duration::from_secs(1);
/// How long a new configuration waits for the VRRP thread.
const CONFIGURED_WITHIN: Duration = Duration::from_secs(1);
/// How long a failover may take before it is answered without its outcome.
const FAILOVER_WITHIN: Duration = Duration::from_secs(8);

/// What the instances depend on, apart from interfaces and scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dependencies {
    /// Why the datapath fails, if it does.
    datapath: Option<String>,
    /// Whether no backend of any service is up.
    no_backend: bool,
}

/// The instances, if the configuration has any.
#[derive(Default)]
pub struct Vrrp {
    router: Option<Router>,
    /// The virtual router's number by instance, for messages.
    numbers: BTreeMap<Arc<str>, u8>,
    /// What the instances know.
    known: Option<Dependencies>,
    /// What another daemon has left, until the instances begin.
    remembered: Vec<Remembered>,
}

impl Vrrp {
    /// Continues the instances of another daemon.
    pub fn after(remembered: Vec<Remembered>) -> Vrrp {
        Vrrp { remembered, ..Vrrp::default() }
    }

    /// The other daemon did not take over: what was left for it is ours again.
    pub fn remember(&mut self, remembered: Vec<Remembered>) {
        if self.router.is_none() {
            self.remembered = remembered;
        }
    }

    /// What the daemon that takes over needs to know.
    pub fn remembered(&self) -> Vec<Remembered> {
        self.reports().iter().map(InstanceReport::remembered).collect()
    }

    pub fn is_running(&self) -> bool {
        self.router.is_some()
    }

    /// Waits for events; forever if there are no instances.
    pub async fn events(&self) -> Result<Vec<InstanceEvent>> {
        match &self.router {
            Some(router) => router.events().await,
            None => std::future::pending().await,
        }
    }

    /// Passes on something about the host.
    pub fn fact(&self, fact: Fact) {
        if let Some(router) = &self.router {
            router.fact(fact);
        }
    }

    /// The state of the instances.
    pub fn reports(&self) -> Arc<Vec<InstanceReport>> {
        self.router.as_ref().map(|router| router.reports().now()).unwrap_or_default()
    }
}

/// The addresses of all instances, and the interface of each.
pub fn carried(config: &Config) -> BTreeMap<IpAddr, String> {
    let of = |instance: &crate::config::model::Vrrp| {
        let interface = instance.interface.clone();
        instance.addresses.iter().map(move |address| (address.addr(), interface.clone())).collect::<Vec<_>>()
    };
    config.vrrp.iter().flat_map(of).collect()
}

impl Daemon {
    /// Brings the instances in line with the configuration. They know the state of the host before
    /// the first one begins.
    pub(super) async fn configure_vrrp(&mut self) -> Result<()> {
        let setups: Vec<_> = self.config.vrrp.iter().map(Setup::of).collect();
        self.vrrp.numbers = setups.iter().map(|setup| (setup.name.clone(), setup.router())).collect();
        if setups.is_empty() {
            // The loop does not wait for an operator's program.
            if let Some(calls) = self.end_vrrp().await? {
                tokio::task::spawn_blocking(|| calls.finish());
            }
            return Ok(());
        }
        if self.vrrp.router.is_none() {
            let known = self.dependencies();
            let flows = Fact::LacksFlows(self.sync.lacks_flows());
            let facts = vec![Fact::Datapath(known.datapath.clone()), Fact::NoBackend(known.no_backend), flows];
            let remembered = std::mem::take(&mut self.vrrp.remembered);
            self.vrrp.router = Some(Router::start(self.dataplane.tables().clone(), facts, remembered)?);
            self.vrrp.known = Some(known);
        }
        if let Some(router) = &mut self.vrrp.router {
            let configured = router.configure(setups);
            // So that the next question is answered about these instances. If the thread has ended,
            // its events show it.
            _ = tokio::time::timeout(CONFIGURED_WITHIN, configured).await;
        }
        self.tell_vrrp_of_flows();
        Ok(())
    }

    /// Called before another daemon acts in our place. If no instance is MASTER, all of them stop:
    /// one that became MASTER now would not be taken over. If one is, both daemons advertise for a
    /// moment, as if each advertisement were sent twice, and the other one continues the mastership
    /// by its lease.
    pub(super) async fn pause_vrrp(&mut self) {
        if !self.vrrp.reports().iter().any(|report| report.state == State::Master) {
            // The other daemon does not wait for an operator's program.
            if let Some(calls) = self.hand_over_vrrp().await {
                tokio::task::spawn_blocking(|| calls.finish());
            }
        }
    }

    /// Ends the instances without resigning. Returns the calls of `notify` that are still to be made.
    pub(super) async fn hand_over_vrrp(&mut self) -> Option<LastCalls> {
        let router = self.vrrp.router.take()?;
        match tokio::task::spawn_blocking(move || router.hand_over()).await {
            Ok((events, calls)) => {
                self.vrrp_events(&events);
                Some(calls)
            }
            Err(error) => {
                log::error!("VRRP: {error}");
                None
            }
        }
    }

    /// Ends the instances in order: they resign and remove their addresses. Waits for that, but not
    /// forever. Returns the calls of `notify` that are still to be made.
    pub(super) async fn end_vrrp(&mut self) -> Result<Option<LastCalls>> {
        let Some(router) = self.vrrp.router.take() else { return Ok(None) };
        let (events, calls) = tokio::task::spawn_blocking(move || router.end()).await?;
        self.vrrp_events(&events);
        Ok(Some(calls))
    }

    pub(super) fn vrrp_events(&self, events: &[InstanceEvent]) {
        for event in events {
            let number = self.vrrp.numbers.get(&event.instance).copied().unwrap_or_default();
            self.tell(event.notice(number));
        }
    }

    /// Notes what was given away, for a restart. Before the instances have begun, nothing is known.
    pub(super) fn keep_given_away(&mut self) {
        let reports = self.vrrp.reports();
        if reports.len() != self.vrrp.numbers.len() {
            return;
        }
        if let Err(error) = self.given_away.keep(&reports) {
            warn!("{error:#}");
        }
    }

    /// Tests the datapath and counts backends; tells the instances what has changed.
    pub(super) fn check_dependencies(&mut self) {
        if !self.vrrp.is_running() {
            return;
        }
        let now = self.dependencies();
        let Some(router) = self.vrrp.router.as_ref().filter(|_| self.vrrp.known.as_ref() != Some(&now)) else { return };
        router.fact(Fact::Datapath(now.datapath.clone()));
        router.fact(Fact::NoBackend(now.no_backend));
        let datapath = now.datapath.clone();
        let Some(before) = self.vrrp.known.replace(now) else { return };
        let (level, text) = match (before.datapath, datapath) {
            (before, Some(why)) if before.as_ref() != Some(&why) => {
                (Level::Error, format!("the datapath fails: {why}"))
            }
            (Some(_), None) => (Level::Info, "the datapath works again".into()),
            _ => return,
        };
        self.tell(Notice::daemon(level, Kind::Datapath, text));
    }

    fn dependencies(&self) -> Dependencies {
        let datapath = self.hooks.fault().map_or_else(|| self.dataplane.self_test(), Err);
        let now = clock::monotonic();
        let is_up = |number: &u16| {
            let state = self.controller.standing(*number, time::Instant::ZERO, now).state;
            matches!(state, BackendState::Up | BackendState::SlowStart)
        };
        let mut backends = self.controller.backends().keys();
        // Without a service no backend is missing.
        let no_backend = !self.config.services.is_empty() && !backends.any(is_up);
        Dependencies { datapath: datapath.err(), no_backend }
    }

    /// Gives an instance's mastership away, and answers when a host has taken it: another one, or
    /// this one again. The requester may have hung up by then.
    pub(super) fn failover(&self, name: &Arc<str>, reply: Reply<Result<FailedOver, Refused>>, peer: &Peer) {
        match self.give_away(name, peer) {
            Ok((reports, transitions)) => {
                let name = name.clone();
                tokio::spawn(async move { _ = reply.send(outcome(&reports, &name, transitions).await) });
            }
            Err(text) => _ = reply.send(Err(Refused { errors: vec![text] })),
        }
    }

    /// Returns where the outcome will show, and the number of transitions before it.
    fn give_away(&self, name: &Arc<str>, peer: &Peer) -> Result<(Reports, u64), String> {
        let known = self.vrrp.reports();
        let report = known.iter().find(|report| report.name == *name);
        let (Some(router), Some(report)) = (&self.vrrp.router, report) else {
            let names: Vec<_> = known.iter().map(|report| &*report.name).collect();
            let known = match &names[..] {
                [] => "the configuration has no [[vrrp]]".into(),
                names => format!("there is {}", names.join(", ")),
            };
            return Err(format!("there is no VRRP instance {name}: {known}"));
        };
        if report.state != State::Master {
            let master = report.master.map_or("no master is heard".into(), |master| format!("{master} is MASTER"));
            return Err(format!("{name} is {} here and has nothing to give away: {master}", report.state));
        }
        router.give_away(name);
        let subject = Subject::Instance(name.clone());
        let text = format!("is given away by {peer}: this host does not take it back while another one has it");
        self.tell(Notice { level: Level::Info, kind: Kind::Admin, subject, text });
        Ok((router.reports(), report.transitions))
    }
}

/// Waits for the host that takes over, or for the end of the wait.
async fn outcome(reports: &Reports, name: &Arc<str>, before: u64) -> Result<FailedOver, Refused> {
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = reports.now();
        let report = now.iter().find(|report| report.name == *name);
        let after_ms = began.elapsed().as_millis() as u64;
        let done = |master| Ok(FailedOver { instance: name.clone(), master, after_ms });
        match report {
            Some(report) if report.transitions > before && report.state == State::Master => {
                let text = format!(
                    "nobody has taken {name} over within {after_ms} ms: this host is MASTER again. Does another host \
                     hear it (evenkeel vrrp there)?"
                );
                return Err(Refused { errors: vec![text] });
            }
            Some(report) if report.transitions > before && report.master.is_some() => return done(report.master),
            Some(_) if began.elapsed() < FAILOVER_WITHIN => {}
            // It was given away; with long intervals the other host is heard only later.
            _ => return done(None),
        }
    }
}
