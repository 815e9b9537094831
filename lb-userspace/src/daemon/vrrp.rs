//! VRRP in the daemon: it is told how useful this host is, and what it says is passed on.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use log::Level;

use super::Daemon;
use crate::{
    api::{
        Peer, Reply,
        types::{FailedOver, Refused},
    },
    config::model::Config,
    notice::{Kind, Notice, Subject},
    sys::{clock, netlink},
    vrrp::{
        machine::State,
        report::{Remembered, Report},
        setup::Setup,
        shell::{Fact, Reports, Router},
        tell::{self, Event},
    },
    words::BackendState,
};

/// How often the datapath is tested.
pub const TEST: Duration = Duration::from_secs(1);
/// How long a new configuration may wait for the thread of VRRP.
const CONFIGURED: Duration = Duration::from_secs(1);
/// How long a failover may take before the answer goes without its outcome.
const PATIENCE: Duration = Duration::from_secs(8);

/// The instances, if the configuration has any, and what they were told.
#[derive(Default)]
pub struct Vrrp {
    router: Option<Router>,
    /// The virtual router's number by instance, for texts.
    numbers: BTreeMap<Arc<str>, u8>,
    told: Option<(Option<String>, bool)>,
    /// What another daemon has left, until the instances begin.
    remembered: Vec<Remembered>,
}

impl Vrrp {
    /// In place of another daemon.
    pub fn after(remembered: Vec<Remembered>) -> Vrrp {
        Vrrp { remembered, ..Vrrp::default() }
    }

    /// The one that was to take over has not: what was left for it is ours again.
    pub fn remember(&mut self, remembered: Vec<Remembered>) {
        if self.router.is_none() {
            self.remembered = remembered;
        }
    }

    /// For the daemon that takes over.
    pub fn remembered(&self) -> Vec<Remembered> {
        self.reports().iter().map(Report::remembered).collect()
    }

    pub fn is_running(&self) -> bool {
        self.router.is_some()
    }

    /// Waits for events; for ever where there are no instances.
    pub async fn events(&self) -> Result<Vec<Event>> {
        match &self.router {
            Some(router) => router.events().await,
            None => std::future::pending().await,
        }
    }

    /// Something is known of the host.
    pub fn fact(&self, fact: Fact) {
        if let Some(router) = &self.router {
            router.fact(fact);
        }
    }

    /// How the instances stand.
    pub fn reports(&self) -> Arc<Vec<Report>> {
        self.router.as_ref().map(|router| router.reports().now()).unwrap_or_default()
    }
}

/// The addresses that VRRP carries, and on which interface.
pub fn carried(config: &Config) -> BTreeMap<IpAddr, String> {
    let of = |instance: &crate::config::model::Vrrp| {
        let interface = instance.interface.clone();
        instance.addresses.iter().map(move |address| (address.addr(), interface.clone())).collect::<Vec<_>>()
    };
    config.vrrp.iter().flat_map(of).collect()
}

impl Daemon {
    /// Brings the instances in line with the configuration. They know how the host stands before the first one begins.
    pub(super) async fn configure_vrrp(&mut self) -> Result<()> {
        let setups: Vec<_> = self.config.vrrp.iter().map(Setup::of).collect();
        self.vrrp.numbers = setups.iter().map(|setup| (setup.name.clone(), setup.router())).collect();
        if setups.is_empty() {
            return self.end_vrrp().await;
        }
        if self.vrrp.router.is_none() {
            let (datapath, none) = self.usefulness().await;
            let flows = Fact::LacksFlows(self.sync.lacks_flows());
            let facts = vec![Fact::Datapath(datapath.clone()), Fact::NoBackend(none), flows];
            let remembered = std::mem::take(&mut self.vrrp.remembered);
            self.vrrp.router = Some(Router::start(self.dataplane.tables().clone(), facts, remembered)?);
            self.vrrp.told = Some((datapath, none));
        }
        if let Some(router) = &mut self.vrrp.router {
            let configured = router.configure(setups);
            // So that whoever asks next hears of these instances. A thread that has ended is noticed by its events.
            _ = tokio::time::timeout(CONFIGURED, configured).await;
        }
        self.tell_vrrp_of_flows();
        Ok(())
    }

    /// Before another daemon acts in our place: where we are not MASTER anywhere there is nothing to keep up, and an
    /// instance must not become MASTER now that nobody would take over. Where we are, both advertise for a moment, which
    /// is as if each were said twice; the other one takes up the mastership by its lease.
    pub(super) async fn pause_vrrp(&mut self) {
        if !self.vrrp.reports().iter().any(|report| report.state == State::Master) {
            self.hand_over_vrrp().await;
        }
    }

    /// Ends without a word.
    pub(super) async fn hand_over_vrrp(&mut self) {
        let Some(router) = self.vrrp.router.take() else { return };
        match tokio::task::spawn_blocking(move || router.hand_over()).await {
            Ok(events) => self.vrrp_events(&events),
            Err(error) => log::error!("VRRP: {error}"),
        }
    }

    /// The last word, the addresses removed. Waits for it, but not for ever.
    pub(super) async fn end_vrrp(&mut self) -> Result<()> {
        let Some(router) = self.vrrp.router.take() else { return Ok(()) };
        let events = tokio::task::spawn_blocking(move || router.end()).await?;
        self.vrrp_events(&events);
        Ok(())
    }

    pub(super) fn vrrp_events(&self, events: &[Event]) {
        for event in events {
            let number = self.vrrp.numbers.get(&event.instance).copied().unwrap_or_default();
            self.tell(event.notice(number));
        }
    }

    /// Tests the datapath and counts backends; tells the instances what has changed.
    pub(super) async fn look_at_usefulness(&mut self) {
        let now = self.usefulness().await;
        let Some(router) = self.vrrp.router.as_ref().filter(|_| self.vrrp.told.as_ref() != Some(&now)) else { return };
        let (datapath, none) = now.clone();
        router.fact(Fact::Datapath(datapath));
        router.fact(Fact::NoBackend(none));
        let before = self.vrrp.told.replace(now).map(|(datapath, _)| datapath);
        let (level, text) = match (before, &self.vrrp.told) {
            (Some(before), Some((Some(why), _))) if before.as_ref() != Some(why) => {
                (Level::Error, format!("the datapath fails: {why}"))
            }
            (Some(Some(_)), Some((None, _))) => (Level::Info, "the datapath works again".into()),
            _ => return,
        };
        self.tell(Notice::daemon(level, Kind::Datapath, text));
    }

    /// Why the datapath fails, if it does, and whether no backend of any service is up.
    async fn usefulness(&self) -> (Option<String>, bool) {
        let mut datapath = self.dataplane.self_test();
        for (attached, (priority, handle)) in self.dataplane.clsact() {
            let name = &attached.interface;
            match netlink::has_filter(attached.ifindex, priority, handle).await {
                Ok(true) => {}
                Ok(false) => datapath = Err(format!("the program was taken from {name}: restart evenkeel")),
                Err(error) => datapath = Err(format!("the filters of {name} cannot be listed: {error:#}")),
            }
        }
        let now = clock::monotonic_ns();
        let is_up = |number: &u16| {
            let state = self.controller.standing(*number, 0, now).state;
            matches!(state, BackendState::Up | BackendState::SlowStart)
        };
        let mut backends = self.controller.backends().keys();
        // With nothing to balance nothing is missing.
        let none_up = !self.config.services.is_empty() && !backends.any(is_up);
        (datapath.err(), none_up)
    }

    /// Gives an instance's mastership away; answers when another host has taken it, or this one again. Who asked may be
    /// gone by then.
    pub(super) fn failover(&self, name: &Arc<str>, reply: Reply<Result<FailedOver, Refused>>, peer: &Peer) {
        match self.give_away(name, peer) {
            Ok((reports, transitions)) => {
                let name = name.clone();
                tokio::spawn(async move { _ = reply.send(outcome(&reports, &name, transitions).await) });
            }
            Err(text) => _ = reply.send(Err(Refused { errors: vec![text] })),
        }
    }

    /// Where to look for the outcome, and how many transitions there were before.
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
            return Err(format!("{name} is {} here and has nothing to give away: {master}", tell::name(report.state)));
        }
        router.give_away(name);
        let subject = Subject::Instance(name.clone());
        let text = format!("is given away by {peer}: this host does not take it back while another one has it");
        self.tell(Notice { level: Level::Info, kind: Kind::Admin, subject, text });
        Ok((router.reports(), report.transitions))
    }
}

/// Who has taken over, or that nobody has.
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
                    "nobody has taken {name} over within {after_ms} ms: this host is MASTER again. Is there another one \
                     that hears it (evenkeel vrrp there)?"
                );
                return Err(Refused { errors: vec![text] });
            }
            Some(report) if report.transitions > before && report.master.is_some() => return done(report.master),
            Some(_) if began.elapsed() < PATIENCE => {}
            // Given away it is; with long intervals it takes its time until the other one is heard.
            _ => return done(None),
        }
    }
}
