//! Flow sync in the daemon: passes to the thread what addresses mean here and which flows have
//! ended, and acts on what the thread reports about the other host.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use lb_common::event::{ENDED, Event};
use log::Level;

use super::{Daemon, admin_file::milliseconds, now, report, territory::Synced, vrrp::carried};
use crate::{
    api::types::SyncStatus,
    config::model::{self, Config},
    controller::{
        Now,
        admin_state::{AdminState, AdminStates, Heard, HeardState, Name},
        plan,
    },
    notice::{Kind, Notice, Subject},
    sync::{
        mirror::{Directory, ListenerAt, PoolAt},
        seal::SharedKey,
        shell::{BackendKnowledge, EndedFlow, HostState, Settings, SyncNews, SyncReport, SyncThread},
        station::PeerNews,
        wire::{AdminDecision, BackendHealth, Decision},
    },
    sys::clock,
    tables::{
        Installed,
        rows::{listener_address, pool_backend, pool_slots, pool_snat},
    },
    vrrp::shell::Fact,
    words::SyncState,
};

/// The bounds of the period within which every flow is sent again.
const REFRESH: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);

/// The thread of flow sync, if the configuration has `[sync]`, and what it said last.
#[derive(Default)]
pub struct FlowSync {
    running: Option<Running>,
    /// The state that the thread reported last.
    state: HostState,
    /// Why its socket cannot be bound, as reported to the operator.
    deaf: Option<String>,
    /// Connections that have no slots here, as reported to the operator since the last reload.
    without_slots: BTreeSet<WithoutSlots>,
}

/// Listener, backend and SNAT address of connections; no listener: only the ports are missing.
type WithoutSlots = (Option<SocketAddrV4>, SocketAddrV4, Ipv4Addr);

/// The thread, and the configuration with which it was started.
struct Running {
    thread: SyncThread,
    config: model::Sync,
    key: SharedKey,
}

impl FlowSync {
    /// Waits for the thread's next news; forever if it does not run.
    pub async fn news(&mut self) -> Result<SyncNews> {
        match &mut self.running {
            Some(running) => running.thread.news().await,
            None => std::future::pending().await,
        }
    }

    /// Whether the thread runs.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The thread's latest report, if it runs.
    pub fn report(&self) -> Option<Arc<SyncReport>> {
        self.running.as_ref().map(|running| running.thread.report())
    }

    /// Ends the thread; the rest of the daemon goes on.
    pub fn end(&mut self) {
        if let Some(running) = self.running.take() {
            running.thread.end();
        }
        self.state = HostState::default();
    }

    /// Whether a full copy is missing, for which an instance of VRRP may wait.
    pub fn lacks_flows(&self) -> bool {
        self.is_running() && !self.state.synced
    }

    /// Flows have ended here.
    pub fn ended(&self, events: &[Event]) {
        let Some(running) = &self.running else { return };
        let ended = events.iter().filter(|event| event.kind == ENDED).map(|event| EndedFlow {
            listener: event.listener,
            client: event.client(),
            pool: event.pool,
            slot: event.slot,
        });
        running.thread.ended(ended.collect());
    }

    /// Events were lost, and ends may have been among them.
    pub fn ends_missed(&self) {
        if let Some(running) = &self.running {
            running.thread.ends_missed();
        }
    }
}

/// The key that a configuration names. An error is found before anything is changed.
pub fn key(config: &Config) -> Result<Option<SharedKey>> {
    let Some(sync) = &config.sync else { return Ok(None) };
    let file = sync.key_file.display();
    let text = fs::read_to_string(&sync.key_file).with_context(|| format!("[sync] key_file {file}"))?;
    let key = SharedKey::parse(&text);
    key.map(Some).with_context(|| {
        format!("[sync] key_file {file}: not a key: it must be an even number of hexadecimal digits, at least 32")
    })
}

/// In a pair, the host with the higher address hands out the upper half of the SNAT ports first.
pub fn begins_with_upper_half(config: &Config) -> bool {
    config.sync.as_ref().is_some_and(|sync| is_above_any(sync.listen, &sync.peers))
}

fn is_above_any(listen: SocketAddr, peers: &[SocketAddr]) -> bool {
    peers.iter().any(|peer| *peer < listen)
}

/// Period of a full refresh: short enough that no active flow looks idle to the peer.
pub(super) fn refresh(config: &Config) -> Duration {
    refresh_for(config.services.iter().map(|service| service.idle_timeout))
}

/// How old the other host's news of an idle flow may be.
pub(super) fn lag(config: &Config) -> Duration {
    refresh(config) + config.sync.as_ref().map_or(Duration::ZERO, |sync| 2 * sync.batch)
}

fn refresh_for(idle_timeouts: impl Iterator<Item = Duration>) -> Duration {
    let shortest = idle_timeouts.min().unwrap_or(*REFRESH.end());
    (shortest / 4).clamp(*REFRESH.start(), *REFRESH.end())
}

impl Daemon {
    /// Brings the thread in line with the configuration. Which listeners are ours is right also if
    /// it cannot be started.
    pub(super) fn configure_sync(&mut self, key: Option<SharedKey>) -> Result<()> {
        let wanted = self.config.sync.clone().zip(key);
        let is_same = match (&self.sync.running, &wanted) {
            (Some(running), Some((wanted, key))) => running.config == *wanted && running.key == *key,
            (None, None) => true,
            _ => false,
        };
        self.sync.without_slots.clear();
        let mut started = Ok(());
        if !is_same {
            self.sync.end();
            started = wanted.map_or(Ok(()), |(sync, key)| self.start_sync(sync, key));
        }
        self.direct_sync();
        self.set_ownership();
        started
    }

    fn start_sync(&mut self, config: model::Sync, key: SharedKey) -> Result<()> {
        let (listen, peers, batch) = (config.listen, config.peers.clone(), config.batch);
        let settings = Settings { listen, peers, batch, key: key.clone() };
        let (directory, backends) = (self.directory(), self.known_of_backends());
        let tables = self.dataplane.tables().clone();
        let thread = SyncThread::start(settings, tables, directory, backends, env!("CARGO_PKG_VERSION"))?;
        self.sync.running = Some(Running { thread, config, key });
        Ok(())
    }

    /// Passes to the thread what addresses mean here now.
    pub(super) fn direct_sync(&self) {
        if let Some(running) = &self.sync.running {
            running.thread.direct(self.directory());
        }
    }

    /// Passes operators' decisions and the health of backends to the peers.
    pub(super) fn tell_peers_of_backends(&self) {
        if let Some(running) = &self.sync.running {
            running.thread.administer(self.known_of_backends());
        }
    }

    fn known_of_backends(&self) -> BackendKnowledge {
        let health = self.controller.found_here().into_iter().map(|((service, backend), cause)| BackendHealth {
            service: service.to_string(),
            backend: backend.to_string(),
            reason: cause.map_or(0, |cause| cause.to_reason() as u8),
        });
        BackendKnowledge { admin: decisions(self.controller.admin_states(), now()), health: health.collect() }
    }

    fn directory(&self) -> Directory {
        directory(self.controller.installed(), refresh(&self.config), |address| self.clients_of(address))
    }

    /// The interface through which the clients of an address are reached; `None`: uncertain.
    fn clients_of(&self, address: IpAddr) -> Option<u8> {
        let of_service = || {
            let service =
                self.config.services.iter().find(|service| service.listen.iter().any(|at| at.ip() == address))?;
            let found = self.wanted.of_service.get(&service.name);
            let only = found.filter(|found| found.len() == 1).and_then(|found| found.first());
            service.interfaces.first().or(only).cloned()
        };
        let name = carried(&self.config).remove(&address).or_else(of_service)?;
        self.dataplane
            .attached()
            .into_iter()
            .find(|attached| attached.interface == name)
            .map(|attached| attached.number)
    }

    /// Tells the controller which listeners are ours: flows of the others are not ours to close,
    /// whether flow sync runs or not. While it runs, its thread finds out.
    pub(super) fn set_ownership(&mut self) {
        let now = clock::monotonic();
        let Daemon { sync, territory, controller, config, dataplane, .. } = self;
        let synced = sync.is_running().then(|| Synced { master_of: &sync.state.master_of, lag: lag(config) });
        let listeners = &controller.installed().listeners;
        let ownership = territory.ownership(synced, listeners, &carried(config), dataplane.tables(), now);
        self.controller.set_ownership(ownership, now);
        self.look_for_stranded();
    }

    /// Tells of listeners whose address this host cannot have, as after a wrong digit in `addresses`.
    fn look_for_stranded(&mut self) {
        let carried = carried(&self.config);
        let listens = self.config.services.iter().flat_map(|service| &service.listen);
        let stranded = self.territory.stranded(listens, &carried);
        for listen in stranded.difference(&self.stranded) {
            let have = carried.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let text = format!("{}; those of [[vrrp]] are {have}", stranded_listener(listen));
            self.tell(Notice::daemon(Level::Warn, Kind::Vrrp, text));
        }
        self.stranded = stranded;
    }

    // ---- what the thread reports ----

    /// If the thread has died, connections do not survive a failover, but the balancing goes on.
    /// Which listeners are ours is the same as before.
    pub(super) fn sync_said(&mut self, news: Result<SyncNews>) {
        match news {
            Ok(SyncNews::Host(state)) => {
                self.sync.state = state;
                self.set_ownership();
                self.tell_vrrp_of_flows();
            }
            Ok(SyncNews::Peer(news)) => self.peer_said(news),
            Err(error) => {
                self.sync.end();
                self.set_ownership();
                self.tell_vrrp_of_flows();
                let text = format!("{error:#}: connections would not survive a failover; restart evenkeel");
                self.tell(Notice::daemon(Level::Error, Kind::Sync, text));
            }
        }
    }

    fn peer_said(&mut self, news: PeerNews) {
        match news {
            PeerNews::State { peer, state, version } => self.tell(state_notice(peer, state, &version)),
            PeerNews::OlderFormat { peer, version } => self.tell(older_notice(peer, &version)),
            PeerNews::OtherKey { peer } => self.tell(other_key_notice(peer)),
            PeerNews::UnknownBackend { listener, backend, snat } => self.bury(listener, backend, snat),
            PeerNews::UnknownPort { backend, snat } => self.reach(backend, snat),
            PeerNews::Admin { peer, admin } => self.heard_decision(peer, &admin),
            PeerNews::Health { peer, health } => {
                let name = (health.service.as_str().into(), health.backend.as_str().into());
                let (peer, now) = (peer.ip().to_string(), clock::monotonic());
                let actions = self.controller.found_elsewhere(&name, health.reason, &peer, now);
                self.act(actions);
            }
        }
    }

    /// An instance that returns waits a while for the flows before it takes the address from
    /// another host.
    pub(super) fn tell_vrrp_of_flows(&self) {
        self.vrrp.fact(Fact::LacksFlows(self.sync.lacks_flows()));
    }

    /// Reports once that the thread cannot bind its socket, and once that it can again.
    pub(super) fn look_at_sync(&mut self) {
        let deaf = self.sync.report().and_then(|report| report.deaf.clone());
        if deaf == self.sync.deaf {
            return;
        }
        let (level, text) = match &deaf {
            Some(why) => (Level::Error, format!("flow sync: {why}; trying again")),
            None => (Level::Info, "flow sync: listening on its address again".to_owned()),
        };
        self.sync.deaf = deaf;
        self.tell(Notice::daemon(level, Kind::Sync, text));
    }

    pub(super) fn sync_status(&self) -> Option<SyncStatus> {
        let running = self.sync.running.as_ref()?;
        let report = running.thread.report();
        let ours = |(number, _): &(&u16, _)| self.sync.state.master_of.contains_key(number);
        let listeners = self.controller.installed().listeners.iter().filter(ours);
        Some(SyncStatus {
            listen: running.config.listen,
            error: report.deaf.clone(),
            master_of: listeners.map(|(_, listener)| SocketAddr::V4(listener_address(listener))).collect(),
            send_failures: report.send_failures,
            peers: report.peers.iter().map(report::flow_sync::peer).collect(),
        })
    }

    /// Makes room for the flows of a backend that only the other host's configuration has. The
    /// thread asks again while there is none; the operator is told once.
    fn bury(&mut self, listener: SocketAddr, backend: SocketAddr, snat: IpAddr) {
        let (SocketAddr::V4(listener), SocketAddr::V4(backend), IpAddr::V4(snat)) = (listener, backend, snat) else {
            return;
        };
        let (installed, desired) = (self.controller.installed(), self.controller.desired());
        let planned = plan::tombstone(installed, desired, listener, backend, snat);
        let what = format!("{backend}, which is not a backend here");
        let else_said = format!(
            "connections of the other host to {backend} (SNAT {snat}) have no slots here: is the configuration of {listener} the same?"
        );
        self.make_room(planned, (Some(listener), backend, snat), &what, else_said);
    }

    /// Makes room for flows with a SNAT port that only the other host's configuration has.
    fn reach(&mut self, backend: SocketAddr, snat: SocketAddr) {
        let (SocketAddr::V4(backend), SocketAddr::V4(snat)) = (backend, snat) else { return };
        let planned = plan::reach(self.controller.installed(), backend, snat);
        let what = format!("{backend} from {snat}, a port that is not in snat_ports here");
        let else_said = format!("connections of the other host to {backend} from {snat} have no slots here");
        self.make_room(planned, (None, backend, *snat.ip()), &what, else_said);
    }

    /// Carries out a plan that makes room for connections of the other host to `what`.
    fn make_room(&mut self, planned: Option<plan::Plan>, key: WithoutSlots, what: &str, else_said: String) {
        let text = match planned.map(|plan| self.write(&plan).map(|()| plan)) {
            Some(Ok(plan)) => {
                self.sync.without_slots.remove(&key);
                self.controller.reread(plan.after);
                self.hops.want(self.controller.installed());
                self.write_hops();
                self.direct_sync();
                format!("the other host has connections to {what}: they are kept until they end")
            }
            _ if !self.sync.without_slots.insert(key) => return,
            Some(Err(error)) => format!("connections of the other host to {what}, cannot be kept: {error:#}"),
            None => else_said,
        };
        self.tell(Notice::daemon(Level::Warn, Kind::Sync, text));
    }

    /// An operator has decided something on another host: the later decision prevails.
    fn heard_decision(&mut self, peer: SocketAddr, admin: &AdminDecision) {
        let heard = heard(peer, admin);
        let (service, backend) = heard.name.clone();
        if self.controller.find(&backend, Some(&service)).is_err() {
            return;
        }
        let Some(merged) = self.controller.admin_states().merge(&heard, now()) else { return };
        let done = self.set_admin_states(merged.admin_states);
        if !merged.is_news && done.is_ok() {
            return;
        }
        let (level, text) = match (done, merged.order) {
            (Err(refused), _) => {
                (Level::Error, format!("cannot follow the other host {peer}: {}", refused.errors.join("; ")))
            }
            (Ok(()), Some(AdminState::Drain { .. })) => (Level::Info, format!("is drained, as on {peer}")),
            (Ok(()), Some(AdminState::Maint)) => (Level::Info, format!("is put into maintenance, as on {peer}")),
            (Ok(()), None) => (Level::Info, format!("is made ready, as on {peer}")),
        };
        self.tell(Notice { level, kind: Kind::Admin, subject: Subject::Backend { service, backend }, text });
    }
}

/// What the addresses of these tables mean. `clients_of` is the interface towards the clients of an
/// address.
pub(super) fn directory(
    installed: &Installed,
    refresh: Duration,
    clients_of: impl Fn(IpAddr) -> Option<u8>,
) -> Directory {
    let listeners = installed.listeners.iter().map(|(number, listener)| {
        let address = SocketAddr::V4(listener_address(listener));
        let interface = clients_of(address.ip());
        (address, ListenerAt { number: *number, service: listener.service, ours: false, lingers: false, interface })
    });
    let backends = installed.backends.iter().filter_map(|(number, row)| {
        let address = SocketAddr::V4(installed.backend_address(row)?);
        Some(((row.service, address), *number))
    });
    let pools = installed.pools.iter().map(|(number, pool)| {
        let at = PoolAt { number: *number, first_port: pool.first_port, slots: pool_slots(pool) };
        ((SocketAddr::V4(pool_backend(pool)), IpAddr::V4(pool_snat(pool))), at)
    });
    Directory { listeners: listeners.collect(), backends: backends.collect(), pools: pools.collect(), refresh }
}

/// A peer's decision in the controller's terms.
pub(super) fn heard(peer: SocketAddr, admin: &AdminDecision) -> Heard {
    Heard {
        name: (admin.service.as_str().into(), admin.backend.as_str().into()),
        state: match admin.decision {
            Decision::Ready => HeardState::Ready,
            Decision::Drain { deadline, rate } => HeardState::Drain { deadline, rate },
            Decision::Maint => HeardState::Maint,
        },
        decided_at: admin.decided_at,
        by: format!("peer {}", peer.ip()).into(),
    }
}

/// The operators' decisions here, for the peers.
pub(super) fn decisions(admin_states: &AdminStates, now: Now) -> Vec<AdminDecision> {
    let decision = |(name, decided_at): (&Name, u64)| {
        let decision = match admin_states.get(name).map(|said| said.order) {
            None => Decision::Ready,
            Some(AdminState::Drain { deadline, rate }) => {
                // To a tenth of a second: the two clocks do not keep step to the last millisecond.
                let deadline = deadline.map(|at| milliseconds(now.wall_at(at)).next_multiple_of(100));
                Decision::Drain { deadline, rate }
            }
            Some(AdminState::Maint) => Decision::Maint,
        };
        AdminDecision { service: name.0.to_string(), backend: name.1.to_string(), decision, decided_at }
    };
    admin_states.decided().map(decision).collect()
}

fn state_notice(peer: SocketAddr, state: SyncState, version: &str) -> Notice {
    let (level, text) = match state {
        SyncState::Connecting => (Level::Info, format!("flow sync: connecting to {peer}")),
        SyncState::Copying => {
            (Level::Info, format!("flow sync: connected to {peer} (version {version}); its flows are being copied"))
        }
        SyncState::Synced => (Level::Info, format!("flow sync: all flows of {peer} are known here")),
        SyncState::Lost => {
            (Level::Warn, format!("flow sync: {peer} has gone silent: connections would not survive a failover"))
        }
    };
    Notice::daemon(level, Kind::Sync, text)
}

/// What is wrong with a listener that this host cannot have.
pub fn stranded_listener(listen: &SocketAddr) -> String {
    format!(
        "a service listens on {listen}, whose address no [[vrrp]] carries and no interface of this host has: clients reach \
         it only if it is routed here"
    )
}

fn older_notice(peer: SocketAddr, version: &str) -> Notice {
    let text = format!(
        "flow sync: {peer} runs version {version}, whose datagrams do not say for whom they are and are not believed: \
         connections would not survive a failover; upgrade evenkeel there"
    );
    Notice::daemon(Level::Error, Kind::Sync, text)
}

fn other_key_notice(peer: SocketAddr) -> Notice {
    let text = format!(
        "flow sync: the datagrams of {peer} arrive, but are sealed with another key, or for another `listen` than this \
         host's or another address than {peer}: connections would not survive a failover; copy key_file to both hosts, \
         compare `listen` here with `peers` there, and reload both"
    );
    Notice::daemon(Level::Error, Kind::Sync, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_refreshed_four_times_within_the_shortest_idle_timeout_but_no_faster_than_every_second() {
        let none = vec![];
        for (idle_timeouts, period) in
            [(none, 7_500), (vec![600], 30_000), (vec![600, 40], 10_000), (vec![2, 40], 1_000)]
        {
            let idle = idle_timeouts.iter().copied().map(Duration::from_secs);
            assert_eq!(refresh_for(idle), Duration::from_millis(period), "{idle_timeouts:?}");
        }
    }

    #[test]
    fn of_two_hosts_exactly_one_begins_with_the_upper_half_of_the_ports() {
        let hosts = ["10.0.1.1:9644", "10.0.1.2:9644", "10.0.1.10:9644"].map(|at| at.parse::<SocketAddr>().unwrap());
        for one in hosts {
            for other in hosts.iter().copied().filter(|other| *other != one) {
                assert_ne!(is_above_any(one, &[other]), is_above_any(other, &[one]), "{one} {other}");
            }
        }
        assert!(is_above_any(hosts[2], &hosts[..2]), "10 is more than 2");
    }
}
