//! One host: what outlives the daemon (tables, files, the configuration), and the daemon's cores with
//! what the shells around them do: flow sync in [`sync`], VRRP in [`router`].

mod router;
mod sync;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use lb_common::{
    event::{ENDED, Event},
    flow::SlotAt,
    layout::NONE,
    time::Instant,
    verdict::Reason,
};
use tokio::sync::watch;

use super::wish::Wish;
use crate::{
    config::model::Config,
    controller::{
        Action, Controller, Now,
        admin_state::{AdminEntry, AdminState, AdminStates, Name},
        commands::Whose,
        desired::Desired,
        plan,
        resets::Only,
        sweep::Step,
    },
    daemon::{
        admin_file, apply, flow_sync,
        territory::{Synced, Territory},
        vrrp::carried,
    },
    sync::{
        mastership::Mastership,
        mirror::{Clocks, Directory},
        seal::SharedKey,
        shell::{BackendKnowledge, EndedFlow, HostState},
        station::{PeerNews, Station},
        wire::{AdminDecision, BackendHealth},
    },
    tables::{Flow, Installed, Tables},
    vrrp::{
        group::{Machines, Outputs},
        holdings::{HoldingOrder, Holdings, LeaseRecord, Resumption},
        machine::{Input, Output, Past, RESIGN, State},
        receive::Voice,
        setup::Setup,
        wire::ipv4,
    },
    words::SyncState,
};

/// The address that clients connect to.
pub const VIP: [u8; 4] = [10, 0, 1, 100];
/// How often the daemon looks after what no event tells.
const SECOND: Duration = Duration::from_secs(1);
/// Milliseconds since 1970 at the beginning.
const WALL_MS: i64 = 1_795_000_000_000;

/// What a host does to the world.
#[derive(Debug)]
pub enum Effect {
    /// An advertisement leaves.
    Advert(Vec<u8>),
    /// A datagram of flow sync leaves.
    Datagram(Vec<u8>),
    /// The segment is told that the address is here.
    Announce,
    /// A backend is asked for a sign of life.
    Ask(SlotAt),
    /// A connection is reset.
    Reset { flow: Box<Flow>, both: bool, reason: Reason },
    /// For the history.
    Note(String),
}

/// What runs on a host. Which comes first, nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    Vrrp,
    Sync,
    Daemon,
}

/// What arrives at a host.
#[derive(Clone, Debug)]
pub enum Arrival {
    Advert(Vec<u8>),
    Datagram(Vec<u8>),
}

pub struct Host {
    pub wish: Wish,
    pub tables: Arc<Tables>,
    /// `admin.json`
    pub admin: Vec<u8>,
    /// `given-away.json`
    pub given_away: bool,
    pub daemon: Option<Daemon>,
    pub paused: bool,
    /// What has arrived while it was paused.
    pub inbox: Vec<Arrival>,
    /// The ring buffer.
    pub events: Vec<Event>,
    /// How far its wall clock is off.
    pub clock_off: SignedDuration,
    /// Whether its interface has a carrier.
    pub carrier: bool,
    pub effects: Vec<Effect>,
    /// The row of the address's lease, once there is one.
    lease: Option<u16>,
    sessions: u64,
}

/// The daemon's cores.
pub struct Daemon {
    config: Arc<Config>,
    pub controller: Controller,
    territory: Territory,
    machines: Machines,
    holdings: Holdings,
    setup: Setup,
    pub sync: Option<Sync>,
    /// What the thread of flow sync said last.
    state: HostState,
    turn_at: Instant,
}

/// The thread of flow sync.
pub struct Sync {
    pub station: Station,
    base: Directory,
    is_new: bool,
    mastership: Mastership,
    known: BackendKnowledge,
    knows_more: bool,
    batch: Duration,
    turn_at: Instant,
}

impl Host {
    pub fn new(wish: Wish) -> Host {
        Host {
            wish,
            tables: Arc::new(Tables::in_memory().expect("memory")),
            admin: Vec::new(),
            given_away: false,
            daemon: None,
            paused: false,
            inbox: Vec::new(),
            events: Vec::new(),
            clock_off: SignedDuration::ZERO,
            carrier: true,
            effects: Vec::new(),
            lease: None,
            sessions: 0,
        }
    }

    fn address(number: usize) -> IpAddr {
        [10, 0, 1, 1 + number as u8].into()
    }

    pub fn sync_address(number: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 9, 1 + number as u8], 9644))
    }

    fn now(&self, now: Instant) -> Now {
        let since = SignedDuration::from_nanos(now.0 as i64) + self.clock_off;
        let wall = Timestamp::from_millisecond(WALL_MS).expect("a time") + since;
        Now { monotonic: now, wall }
    }

    fn clocks(&self, now: Instant) -> Clocks {
        let wall_ms = admin_file::milliseconds(self.now(now).wall);
        Clocks { monotonic: now, coarse: now, wall_ms }
    }

    fn note(&mut self, text: impl Into<String>) {
        self.effects.push(Effect::Note(text.into()));
    }

    /// The addresses on its interfaces, but for those that VRRP carries.
    fn addresses(&self) -> BTreeSet<IpAddr> {
        [Self::address(self.wish.host)].into()
    }

    // ---- what can be asked ----

    pub fn runs(&self) -> bool {
        self.daemon.is_some() && !self.paused
    }

    /// Until when it answers for the address.
    pub fn lease(&self) -> Instant {
        self.lease.map_or(Instant::ZERO, |row| Instant(self.tables.lease_until(row)))
    }

    pub fn is_master(&self) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| daemon.machines.is_master(0))
    }

    /// What flow sync says of the other host.
    pub fn sync_state(&self, now: Instant) -> Option<SyncState> {
        let sync = self.daemon.as_ref()?.sync.as_ref()?;
        Some(sync.station.status(self.clocks(now))[0].state)
    }

    pub fn deadline(&self) -> Option<Instant> {
        let daemon = self.daemon.as_ref().filter(|_| !self.paused)?;
        let sync = daemon.sync.as_ref().map(|sync| sync.turn_at);
        let vrrp = daemon.machines.deadline();
        let daemon = daemon.turn_at.min(daemon.controller.deadline().max(Instant(1)));
        [sync, vrrp].into_iter().flatten().chain([daemon]).min()
    }

    // ---- what happens to it ----

    /// A daemon begins, after one that has ended in whatever way.
    pub fn start(&mut self, now: Instant) {
        if self.daemon.is_some() {
            return;
        }
        self.note("starts");
        self.tables.heal_rings(|| ());
        let admin = match &self.admin[..] {
            [] => AdminStates::default(),
            bytes => admin_file::decoded(bytes, self.now(now)).expect("what was written can be read"),
        };
        let (_, addresses) = watch::channel(self.addresses());
        let config = self.wish.config();
        self.daemon = Some(Daemon {
            controller: Controller::new(self.tables.read(), admin),
            territory: Territory::new(addresses),
            machines: Machines::default(),
            holdings: Holdings::default(),
            setup: Setup::of(&config.vrrp[0]),
            config,
            sync: None,
            state: HostState::default(),
            turn_at: now,
        });
        self.apply_tables(now);
        self.configure_sync(now);
        self.begin_vrrp(now);
        self.take_events(now);
    }

    /// It is killed.
    pub fn kill(&mut self) {
        self.note("is killed");
        self.daemon = None;
        self.paused = false;
        self.inbox.clear();
    }

    /// It ends in order.
    pub fn stop(&mut self, now: Instant) {
        if self.paused || self.daemon.is_none() {
            return;
        }
        self.note("ends");
        self.keep_given_away();
        self.vrrp(Input::End, now);
        self.sync_turn(now);
        self.daemon = None;
    }

    pub fn reload(&mut self, wish: Wish, now: Instant) {
        self.note(format!("its file: sync {}, snat {:?}, backends {:?}", wish.sync, wish.snat, wish.backends));
        self.wish = wish;
        if !self.runs() {
            return;
        }
        let config = self.wish.config();
        let daemon = self.daemon.as_mut().expect("it runs");
        daemon.config = config;
        self.apply_tables(now);
        self.configure_sync(now);
        self.judge(now);
    }

    pub fn set_carrier(&mut self, carrier: bool, now: Instant) {
        self.carrier = carrier;
        if self.runs() {
            self.vrrp(Input::Usable(self.source()), now);
        }
    }

    pub fn give_away(&mut self, now: Instant) {
        if self.runs() {
            self.vrrp(Input::GiveAway, now);
        }
    }

    /// It stands still, but for the kernel program.
    pub fn pause(&mut self) {
        self.note("stands still");
        self.paused = self.daemon.is_some();
    }

    /// It goes on after a pause. VRRP reads its socket before its timers.
    pub fn go_on(&mut self, order: [Thread; 3], now: Instant) {
        if !std::mem::take(&mut self.paused) {
            return;
        }
        self.note("goes on");
        let (adverts, datagrams): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.inbox).into_iter().partition(|arrival| matches!(arrival, Arrival::Advert(_)));
        for thread in order {
            let arrivals = match thread {
                Thread::Vrrp => &adverts,
                Thread::Sync => &datagrams,
                Thread::Daemon => &vec![],
            };
            if thread != Thread::Vrrp {
                self.turn_of(thread, now);
            }
            arrivals.iter().for_each(|arrival| self.arrive(arrival.clone(), now));
        }
        self.take_events(now);
    }

    pub fn arrive(&mut self, arrival: Arrival, now: Instant) {
        match arrival {
            _ if self.daemon.is_none() => {}
            arrival if self.paused => self.inbox.push(arrival),
            Arrival::Advert(bytes) => self.advert(&bytes, now),
            Arrival::Datagram(bytes) => self.datagram(&bytes, now),
        }
    }

    /// What is due.
    pub fn turn(&mut self, order: [Thread; 3], now: Instant) {
        order.into_iter().for_each(|thread| self.turn_of(thread, now));
    }

    fn turn_of(&mut self, thread: Thread, now: Instant) {
        let Some(daemon) = self.daemon.as_mut().filter(|_| !self.paused) else { return };
        match thread {
            Thread::Vrrp => {
                let outputs = daemon.machines.timer(now);
                self.act_vrrp(outputs, now);
            }
            Thread::Sync if daemon.sync.as_ref().is_some_and(|sync| sync.turn_at <= now) => self.sync_turn(now),
            Thread::Daemon if daemon.turn_at <= now || daemon.controller.deadline() <= now => self.daemon_turn(now),
            Thread::Sync | Thread::Daemon => {}
        }
    }

    /// The kernel program has ended a connection.
    pub fn ended(&mut self, event: Event, now: Instant) {
        self.events.push(event);
        self.take_events(now);
    }

    // ---- operators ----

    /// Says a word about a backend; `None`: it is ready. Returns when it was said.
    pub fn say(&mut self, backend: &str, order: Option<AdminState>, now: Instant) -> Option<u64> {
        let daemon = self.daemon.as_ref().filter(|_| !self.paused)?;
        let number = daemon.controller.find(backend, Some("api")).ok()?;
        let name = daemon.controller.name_of(number)?;
        let mut admin_states = daemon.controller.admin_states().clone();
        let wall = admin_file::milliseconds(self.now(now).wall);
        match order {
            Some(order) => {
                let said = AdminEntry { order, since: now, by: "an operator".into() };
                admin_states.say(name.clone(), said, wall);
            }
            None => _ = admin_states.take_back(&name, wall),
        }
        let at = admin_states.decided_at(&name);
        self.set_admin_states(admin_states, now);
        Some(at)
    }

    /// What is in force for a backend, and when it was said.
    pub fn word(&self, backend: &str) -> Option<(Option<AdminState>, u64)> {
        let states = self.daemon.as_ref()?.controller.admin_states();
        let name: Name = ("api".into(), backend.into());
        Some((states.get(&name).map(|said| said.order), states.decided_at(&name)))
    }

    /// Resets all connections of a backend. Returns how many.
    pub fn kill_connections(&mut self, backend: u16, now: Instant) -> u64 {
        let tables = self.tables.clone();
        let Some(daemon) = self.daemon.as_mut().filter(|_| !self.paused) else { return 0 };
        let how = (Only::Connected, Reason::Killed);
        daemon.controller.kill(Whose::Backend(backend), how, &tables, now).map_or(0, |task| task.total)
    }

    fn set_admin_states(&mut self, admin_states: AdminStates, now: Instant) {
        let (tables, at) = (self.tables.clone(), self.now(now));
        let Some(daemon) = &mut self.daemon else { return };
        if admin_states == *daemon.controller.admin_states() {
            return;
        }
        self.admin = admin_file::encoded(&admin_states, at).expect("it can be written");
        let actions = daemon.controller.set_admin_states(admin_states, &tables, now);
        self.act(actions, now);
        self.tell_peers(now);
    }

    // ---- the daemon ----

    fn apply_tables(&mut self, now: Instant) {
        let daemon = self.daemon.as_mut().expect("it runs");
        let desired = Desired::new(&daemon.config).expect("a configuration");
        let planned = daemon.controller.plan(&desired).expect("a plan");
        self.write(&planned);
        let tables = self.tables.clone();
        let daemon = self.daemon.as_mut().expect("it runs");
        let actions = daemon.controller.commit(desired, planned, &tables, now);
        let mut admin_states = daemon.controller.admin_states().clone();
        let controller = &daemon.controller;
        admin_states.retain(|(service, backend)| controller.find(backend, Some(service)).is_ok());
        self.act(actions, now);
        self.set_admin_states(admin_states, now);
    }

    fn write(&mut self, planned: &plan::Plan) {
        let config = &self.daemon.as_ref().expect("it runs").config;
        let upper_first = flow_sync::begins_with_upper_half(config);
        for write in &planned.writes {
            self.tables.write(write, upper_first).expect("room");
        }
    }

    fn daemon_turn(&mut self, now: Instant) {
        self.tell_peers(now);
        self.set_ownership(now);
        self.keep_given_away();
        let tables = self.tables.clone();
        let daemon = self.daemon.as_mut().expect("it runs");
        daemon.turn_at = now + SECOND;
        let actions = daemon.controller.turn(&tables, now);
        let pools_changed = actions.iter().any(|action| matches!(action, Action::Write(_)));
        self.act(actions, now);
        if pools_changed {
            self.direct_sync();
        }
    }

    fn take_events(&mut self, now: Instant) {
        if !self.runs() || self.events.is_empty() {
            return;
        }
        let events = std::mem::take(&mut self.events);
        self.sync_ended(&events);
        let at = self.now(now);
        for event in &events {
            let actions = self.daemon.as_mut().expect("it runs").controller.event(event, at);
            self.act(actions, now);
        }
    }

    fn sync_ended(&mut self, events: &[Event]) {
        let Some(sync) = self.daemon.as_mut().and_then(|daemon| daemon.sync.as_mut()) else { return };
        for event in events.iter().filter(|event| event.kind == ENDED) {
            let EndedFlow { listener, client, pool, slot } =
                EndedFlow { listener: event.listener, client: event.client(), pool: event.pool, slot: event.slot };
            sync.station.ended(listener, client, pool, slot);
        }
    }

    fn act(&mut self, actions: Vec<Action>, now: Instant) {
        for action in actions {
            let tables = &self.tables;
            match action {
                Action::Write(write) => _ = tables.write(&write, false).expect("room"),
                Action::Admit { backend, to: NONE, retry_at, .. } => tables.admit(backend, NONE, retry_at),
                Action::Admit { backend, from, to, retry_at, slow_until } => {
                    tables.swap_admission(backend, (from, to), retry_at, slow_until);
                }
                Action::Remember { backend, out_reason, changed_at } => {
                    tables.remember_standing(backend, out_reason, changed_at);
                }
                Action::Cookies { service, from, to } => tables.swap_cookies(service, from, to),
                Action::Step(step) => self.step(&step, now),
                Action::Client(step) => apply::client(tables, step),
                Action::Correct(drift) => tables.correct_active(drift.backend, -drift.by),
                Action::Note(notice) => self.note(notice.to_string()),
                Action::Ask(flow) => self.effects.push(Effect::Ask(flow.at)),
                Action::Hurry(_) | Action::ResetPort(_) | Action::Retry(_) | Action::Record { .. } => {}
            }
        }
    }

    fn step(&mut self, step: &Step, now: Instant) {
        let mut reset = None;
        let event = apply::step_in(&self.tables, step, now, |flow, both| reset = Some((Box::new(*flow), both)));
        match (event, step) {
            (Some(event), Step::Close(_, reason)) => {
                let (flow, both) = reset.expect("a flow that was closed is reset");
                self.effects.push(Effect::Reset { flow, both, reason: *reason });
                self.sync_ended(&[event]);
                let at = self.now(now);
                let actions = self.daemon.as_mut().expect("it runs").controller.event(&event, at);
                self.act(actions, now);
            }
            (None, Step::Close(flow, _)) => self.daemon.as_mut().expect("it runs").controller.not_closed(*flow),
            _ => {}
        }
    }

    fn set_ownership(&mut self, now: Instant) {
        let tables = self.tables.clone();
        let Some(Daemon { config, controller, territory, sync, state, .. }) = &mut self.daemon else { return };
        let synced = sync.is_some().then(|| Synced { master_of: &state.master_of, lag: flow_sync::lag(config) });
        let ownership = territory.ownership(synced, &controller.installed().listeners, &carried(config), &tables, now);
        controller.set_ownership(ownership, now);
    }

    // ---- flow sync ----

    /// Its open connections: by client, where each is.
    pub fn open(&self) -> BTreeMap<SocketAddr, Flow> {
        let all = self.tables.pools().into_iter().flat_map(|(pool, _)| self.tables.heads(pool, 0..u32::MAX));
        let all = all.filter_map(|head| self.tables.occupant(head.flow.at));
        all.map(|flow| (flow.client(), flow)).collect()
    }
}
