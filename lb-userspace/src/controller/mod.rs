//! The controller's decisions, without I/O and without a clock: what is written to the maps, which
//! backend is out, which flow is closed. The shell (`daemon`) reads events, clocks, sockets and
//! files, passes them in and carries out what comes back.
//!
//! How to drive a [`Controller`]:
//! - **Every call that returns actions:** carry them out in order, before the next call. That holds
//!   for [`commit`](Controller::commit), [`event`](Controller::event), [`turn`](Controller::turn),
//!   [`probed`](Controller::probed), [`next_hop`](Controller::next_hop),
//!   [`found_elsewhere`](Controller::found_elsewhere),
//!   [`set_admin_states`](Controller::set_admin_states) and [`adjust`](Controller::adjust).
//! - A configuration: [`plan`](Controller::plan), carry out its writes in order, then `commit`. If
//!   a write fails: [`reread`](Controller::reread); the old configuration stays in force.
//! - Events of the ring buffer: `event`, one by one, in the order in which they were read.
//! - Time: `turn` when [`deadline`](Controller::deadline) has passed. Every other call may bring
//!   the deadline forward, so read it again after each. Without connections it comes once a second.
//! - Whose flows this host may close: [`set_ownership`](Controller::set_ownership). It returns no
//!   actions; what follows from it comes with the next `turn`.
//! - What operators ask for: [`kill`](Controller::kill) and [`rebalance`](Controller::rebalance)
//!   begin a task, whose resets come with the following turns.
//!
//! What has to survive the process is in the maps, including why a backend is out and since when.
//! Failures that were too few to take a backend out are forgotten.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use lb_common::{event::Event, layout::UP, time::Instant, verdict::Reason};
use log::Level;

pub(crate) mod admin_state;
pub(crate) mod admission;
mod backends;
pub(crate) mod clients;
pub(crate) mod commands;
pub(crate) mod cookies;
pub(crate) mod desired;
mod drains;
pub(crate) mod half_open;
pub(crate) mod health;
pub(crate) mod inquiry;
pub(crate) mod left_behind;
pub(crate) mod next_hops;
mod now;
pub(crate) mod ownership;
pub(crate) mod plan;
pub(crate) mod probe_count;
pub(crate) mod rebalance;
mod rebalancing;
pub(crate) mod reconcile;
pub(crate) mod record;
pub(crate) mod removal;
pub(crate) mod reset_guard;
pub(crate) mod resets;
pub(crate) mod silence;
pub(crate) mod sweep;
mod tasks;

#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests;

use admin_state::AdminStates;
pub use backends::cause_of;
use desired::Desired;
use health::Health;
use left_behind::LeftPort;
pub use now::Now;
use ownership::{Ours, Ownership};
use plan::{Plan, Write};
use record::{Names, Recorder};
use resets::Which;

use crate::{
    access_log::Record,
    notice::{Kind, Notice, Subject},
    tables::{FlowAt, Installed, Tables, rows::listener_address},
    words::SynCookies,
};

/// What the shell is to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Write to the maps.
    Write(Write),
    /// Let a backend take part, or not: swap its admission, unless that has changed by now.
    Admit {
        /// The backend.
        backend: u16,
        /// `layout::{NONE, OUT, UP}`.
        from: u32,
        /// Likewise.
        to: u32,
        /// For its record.
        retry_at: Instant,
        /// For its record: it gets less than its share until then; `ZERO`: it gets all of it.
        slow_until: Instant,
    },
    /// Record the state of a backend for the next controller.
    Remember {
        /// The backend.
        backend: u16,
        /// `layout::Backend::out_reason`.
        out_reason: u32,
        /// When it entered its present state.
        changed_at: Instant,
    },
    /// There is a sign that a backend has failed, or has come back: have it probed soon.
    Hurry(u16),
    /// Ask the backend of a connection for a sign of life.
    Ask(FlowAt),
    /// Reset what a try has left behind at the backend of a port.
    ResetPort(LeftPort),
    /// Change one flow.
    Step(sweep::Step),
    /// A half-open flow's backend was silent for connect_timeout: run the client's SYN through the
    /// program once more.
    Retry(FlowAt),
    /// Correct a drift in a backend's `active`.
    Correct(reconcile::Drift),
    /// Turn a service's SYN cookies on or off: swap its word, unless that has changed by now.
    Cookies {
        /// The service.
        service: u16,
        /// `layout::{COOKIES_OFF, COOKIES_READY, COOKIES_ON}`.
        from: u32,
        /// Likewise.
        to: u32,
    },
    /// Bring a client's count in line.
    Client(clients::Step),
    /// Write a line of the service's access log.
    Record {
        /// The service's number.
        service: u16,
        /// The line.
        record: Box<Record>,
    },
    /// Notify the operator.
    Note(Notice),
}

/// What is known about a service by number; a removed one is kept until it is empty.
#[derive(Clone, Debug)]
pub struct ServiceFacts {
    /// Its name in the file.
    pub name: Arc<str>,
    /// For the sweep.
    pub limits: sweep::Limits,
    /// When it sends SYN cookies.
    pub syn_cookies: SynCookies,
}

/// What is known about a backend by number, tombstones included.
#[derive(Clone, Debug)]
pub struct BackendFacts {
    /// The name of its service.
    pub service: Arc<str>,
    /// Its name in the file.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddrV4,
    /// For its health.
    pub settings: health::Settings,
    /// `down = true`, or no longer in the file.
    pub down: bool,
}

impl BackendFacts {
    fn note(&self, level: Level, text: impl Into<String>) -> Action {
        Action::Note(Notice::health(level, &self.service, &self.name, text))
    }
}

/// The core. See the module's contract.
#[derive(Debug, Default)]
pub struct Controller {
    installed: Installed,
    desired: Desired,
    services: BTreeMap<u16, ServiceFacts>,
    backends: BTreeMap<u16, BackendFacts>,
    /// Of every backend that is neither `down` nor a tombstone.
    health: BTreeMap<u16, Health>,
    silence: silence::Silence,
    reset_guard: reset_guard::ResetGuard,
    inquiry: inquiry::Inquiry,
    /// When probes were last asked to hurry.
    hurried: BTreeMap<u16, Instant>,
    names: Names,
    next_hops: next_hops::NextHops,
    half_open: half_open::HalfOpen,
    cookies: cookies::Cookies,
    sweep: sweep::Sweep,
    resets: resets::Resets,
    /// What operators have said.
    admin_states: AdminStates,
    drains: drains::Drains,
    tasks: tasks::Tasks,
    removal: removal::Removal,
    reconcile: reconcile::Reconcile,
    clients: clients::Clients,
    recorder: Recorder,
    /// Which flows are ours to close.
    ownership: Ownership,
    due: Due,
}

/// When the controller's own periodic work is due.
#[derive(Debug, Default)]
struct Due {
    /// The next look at the rings of half-open flows.
    half_open: Instant,
    /// The next piece of the walk over the slots.
    sweep: Instant,
    /// What happens once a second.
    second: Instant,
}

/// The idle timeout of flows whose service has been removed: nginx's default.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Resets per second for the same flows.
const RESET_RATE: u32 = 5000;

impl Controller {
    /// A controller for tables that hold `installed`, and what operators have said to the one
    /// before it.
    pub fn new(installed: Installed, admin_states: AdminStates) -> Controller {
        Controller { installed, admin_states, ..Controller::default() }
    }

    /// The writes that lead from what is installed to `desired`; every error, if that is not
    /// possible.
    pub fn plan(&self, desired: &Desired) -> Result<Plan, Vec<String>> {
        let known = self.services.iter().map(|(number, facts)| (facts.name.clone(), *number)).collect();
        plan::plan(&self.installed, desired, &known)
    }

    /// A plan's writes have been carried out: `desired` is the configuration from now on.
    pub fn commit(&mut self, desired: Desired, plan: Plan, tables: &Tables, now: Instant) -> Vec<Action> {
        self.installed = plan.after;
        self.backends.values_mut().for_each(|facts| facts.down = true);
        for (service, (number, backends)) in desired.services.iter().zip(&plan.places) {
            let limits = sweep::Limits {
                service: *number,
                idle_timeout: service.idle_timeout,
                connecting: 2 * service.row.connect_timeout * service.row.tries,
                reset_rate: service.reset_rate,
            };
            let (name, syn_cookies) = (service.name.clone(), service.syn_cookies);
            self.services.insert(*number, ServiceFacts { name, limits, syn_cookies });
            for (backend, number) in service.backends.iter().zip(backends) {
                let settings = health::Settings {
                    max_fails: backend.max_fails,
                    fail_timeout: backend.fail_timeout,
                    connect_timeout: service.row.connect_timeout,
                    slow_start: backend.slow_start,
                    probe: service.probe,
                };
                let (name, address, down) = (backend.name.clone(), backend.address, backend.down);
                let service = service.name.clone();
                self.backends.insert(*number, BackendFacts { service, name, address, settings, down });
            }
        }
        self.desired = desired;
        self.forget_removed();
        let mut actions = self.keep_health(tables, now);
        actions.extend(self.cookies_turn(tables, now));
        actions
    }

    /// What the maps hold after a write has failed.
    pub fn reread(&mut self, installed: Installed) {
        self.installed = installed;
        self.forget_removed();
    }

    /// Drops what is known of numbers that are not in use, and gives names to those that were
    /// found.
    fn forget_removed(&mut self) {
        let installed = &self.installed;
        self.services.retain(|number, _| installed.services.contains_key(number));
        self.cookies.retain(|number| installed.services.contains_key(&number));
        self.backends.retain(|number, _| installed.backends.contains_key(number));
        self.hurried.retain(|number, _| installed.backends.contains_key(number));
        for (number, row) in &installed.backends {
            let Some(address) = installed.backend_address(row) else { continue };
            // A tombstone found at the start: its name is no longer in the file.
            self.backends.entry(*number).or_insert_with(|| BackendFacts {
                service: self.services.get(&row.service).map_or_else(|| Arc::from("-"), |facts| facts.name.clone()),
                name: Arc::from(address.to_string()),
                address,
                settings: health::Settings::default(),
                down: true,
            });
        }
        self.names = Names {
            services: self.services.iter().map(|(number, facts)| (*number, facts.name.clone())).collect(),
            backends: self
                .backends
                .iter()
                .map(|(number, facts)| (*number, (facts.name.clone(), SocketAddr::V4(facts.address))))
                .collect(),
            listeners: installed
                .listeners
                .iter()
                .map(|(number, listener)| (*number, SocketAddr::V4(listener_address(listener))))
                .collect(),
            pools: installed.pools.clone(),
        };
        self.next_hops.retain(|pool| installed.pools.contains_key(&pool));
    }

    /// Health goes on for backends that stay; that of a new one, or of one found at the start, is
    /// what the map says. Then the map is made to say what the file, operators and health say
    /// together.
    fn keep_health(&mut self, tables: &Tables, now: Instant) -> Vec<Action> {
        let Controller { backends, health, reset_guard, inquiry, .. } = self;
        health.retain(|number, _| backends.get(number).is_some_and(|facts| !facts.down));
        reset_guard.retain(|number| health.contains_key(&number));
        inquiry.retain(|number| health.contains_key(&number));
        let open: Vec<_> = self.backends.iter().filter(|(_, facts)| !facts.down).map(|(number, _)| *number).collect();
        let mut actions = Vec::new();
        for number in open {
            let record = tables.backend(number);
            if !self.health.contains_key(&number) {
                let adopted = Health::adopted(&record, now);
                if let Some(cause) = cause_of(&adopted) {
                    self.reset_guard.adopted(number, cause, adopted.changed_at(), now);
                }
                // The kernel program has taken it back in while no controller ran.
                let came_back = record.admission == UP && record.out_reason != 0;
                if came_back || cause_of(&adopted) == Some(health::Cause::Refused) {
                    self.inquiry.begin(number, now);
                }
                self.health.insert(number, adopted);
            }
            let mut told = self.program_has(number, now, |health, settings| health.compared(settings, &record, now));
            told.extend(self.with_health(number, "", now, |health, settings| health.configured(settings, now)));
            if told.is_empty() && self.health[&number].changed_at() != record.changed_at {
                actions.extend(self.remember(number));
            }
            actions.extend(told);
            actions.extend(self.admit_anew(number, tables, Instant::ZERO, now));
        }
        actions
    }

    /// One event of the ring buffer.
    pub fn event(&mut self, event: &Event, now: Now) -> Vec<Action> {
        let mut actions = self.health_event(event);
        actions.extend(left_behind::left_port(event).map(Action::ResetPort));
        if let Some(record) = self.recorder.event(event, &self.names, now) {
            actions.push(Action::Record { service: event.service, record: Box::new(record) });
        }
        actions
    }

    /// The next hop of a pool became known, or is no longer known: the kernel program passes over a
    /// backend that it cannot reach.
    pub fn next_hop(&mut self, pool: u16, known: bool, now: Instant) -> Vec<Action> {
        let returned = self.next_hops.heard(pool, known, now);
        if !returned {
            return Vec::new();
        }
        let of_pool: Vec<_> = self.backends_of(pool);
        let mut actions = Vec::new();
        for backend in of_pool {
            actions.push(self.backends[&backend].note(Level::Info, "answers ARP again"));
            actions.extend(self.with_health(backend, "", now, |health, settings| health.reachable(settings, now)));
            actions.extend(self.hurry(backend, now));
        }
        actions
    }

    fn backends_of(&self, pool: u16) -> Vec<u16> {
        let named = self.installed.backends.iter().filter(|(_, row)| row.pools.contains(&pool));
        named.map(|(number, _)| *number).filter(|number| self.backends.contains_key(number)).collect()
    }

    /// When [`turn`](Self::turn) is due.
    pub fn deadline(&self) -> Instant {
        let paced = self.resets.deadline().min(self.reset_guard.deadline()).min(self.silence.deadline());
        let paced = paced.min(self.inquiry.deadline());
        self.due.half_open.min(self.due.sweep).min(self.due.second).min(paced).min(self.operators_deadline())
    }

    /// Whatever is due at `now`.
    pub fn turn(&mut self, tables: &Tables, now: Instant) -> Vec<Action> {
        let ours = Ours::new(&self.ownership, tables);
        let mut actions = Vec::new();
        let is_second = now >= self.due.second;
        if is_second {
            // First: the tables do not show yet what is decided below.
            actions.extend(self.heal(tables, now));
        }
        if now >= self.due.half_open {
            let rows = self.installed.services.iter();
            let services: Vec<_> = rows.map(|(number, row)| (*number, row.connect_timeout)).collect();
            let look = self.half_open.look(&services, &ours, now);
            actions.extend(look.due.into_iter().map(Action::Retry));
            let over = look.unconfirmed.into_iter();
            actions.extend(over.map(|flow| Action::Step(sweep::Step::Close(flow, Reason::Unconfirmed))));
            self.due.half_open = look.next;
            actions.extend(self.cookies_turn(tables, now));
        }
        if now >= self.due.sweep {
            actions.extend(self.sweep_turn(&ours, now).into_iter().map(Action::Step));
            self.due.sweep = self.sweep.deadline(now);
        }
        if now >= self.operators_deadline() {
            actions.extend(self.operators_turn(&ours, now));
        }
        if now >= self.silence.deadline() {
            actions.extend(self.silence_turn(&ours, now));
        }
        if now >= self.reset_guard.deadline() {
            actions.extend(self.reset_guard_turn(tables, now));
        }
        if now >= self.inquiry.deadline() {
            actions.extend(self.inquiry_turn(&ours, now));
        }
        if now >= self.resets.deadline() {
            actions.extend(self.resets_turn(&ours, now));
        }
        if is_second {
            actions.extend(self.reconcile(tables));
            actions.extend(self.count_cookies(tables, now));
            actions.extend(self.count_clients(tables, now));
            actions.extend(self.removal.turn(&mut self.installed, tables, now).into_iter().map(Action::Write));
            actions.extend(self.silent_hosts(now));
            self.forget_removed();
            self.due.second = now + Duration::from_secs(1);
        }
        actions
    }

    fn sweep_turn(&mut self, ours: &Ours, now: Instant) -> Vec<sweep::Step> {
        let Controller { installed, services, sweep, .. } = self;
        let pools: Vec<_> = installed.pools.keys().copied().collect();
        let shortest = services.values().map(|facts| facts.limits.idle_timeout).min().unwrap_or(IDLE_TIMEOUT);
        let limits = |backend: u16| {
            let service = installed.backends.get(&backend).map_or(u16::MAX, |row| row.service);
            services.get(&service).map_or(
                sweep::Limits {
                    service,
                    idle_timeout: IDLE_TIMEOUT,
                    connecting: Duration::from_secs(1),
                    reset_rate: RESET_RATE,
                },
                |facts| facts.limits,
            )
        };
        sweep.turn(&pools, &limits, shortest, ours, now)
    }

    fn resets_turn(&mut self, ours: &Ours, now: Instant) -> Vec<Action> {
        let turn = self.resets.turn(&self.installed, ours, now);
        let steps = turn.steps.into_iter().map(Action::Step);
        turn.over.iter().for_each(|over| self.tasks.job_over(over.id, over.closed));
        // A rebalancing has a job for every second.
        let is_told = |over: &resets::Over| over.closed > 0 && over.job.reason != Reason::Rebalanced;
        let notes = turn.over.into_iter().filter(is_told).map(|over| {
            let (closed, why) = (over.closed, over.job.reason.name());
            let of_nobody = |whose| {
                Notice::daemon(Level::Info, Kind::Admin, format!("{closed} connection(s) {whose} were reset: {why}"))
            };
            match &over.job.which {
                Which::Backend(number) => match self.backends.get(number) {
                    Some(facts) => facts.note(Level::Info, format!("has had {closed} connection(s) reset: {why}")),
                    None => Action::Note(of_nobody(format!("of backend number {number}"))),
                },
                Which::Client(address) => Action::Note(of_nobody(format!("of client {address}"))),
                Which::Flows(_) => Action::Note(of_nobody("chosen one by one".into())),
            }
        });
        steps.chain(notes).collect()
    }

    /// A step to close a flow was not carried out: the flow had changed by then.
    pub fn not_closed(&mut self, flow: FlowAt) {
        self.resets.not_closed(flow.at);
        self.inquiry.not_closed(flow.at);
    }

    /// Catches up on what the kernel program has done and no event told, because it was lost.
    fn heal(&mut self, tables: &Tables, now: Instant) -> Vec<Action> {
        let numbers: Vec<_> = self.health.keys().copied().collect();
        let mut actions = Vec::new();
        for number in numbers {
            let record = tables.backend(number);
            actions.extend(self.program_has(number, now, |health, settings| health.compared(settings, &record, now)));
            actions.extend(self.admit_anew(number, tables, Instant::ZERO, now));
        }
        actions
    }

    fn reconcile(&mut self, tables: &Tables) -> Vec<Action> {
        let Some(drift) = self.reconcile.turn(&self.installed, tables) else { return Vec::new() };
        let name = self.backends.get(&drift.backend).map_or("-", |facts| &*facts.name);
        let text = format!("backend {name}: the count of active connections was off by {}, corrected", drift.by);
        vec![Action::Correct(drift), Action::Note(Notice::daemon(Level::Warn, Kind::Datapath, text))]
    }

    fn count_clients(&mut self, tables: &Tables, now: Instant) -> Vec<Action> {
        let Controller { installed, clients, .. } = self;
        let corrected = clients.corrected();
        let limited = installed.services.iter().filter(|(_, row)| row.client_limit > 0);
        let limited: Vec<_> = limited.map(|(number, _)| *number).collect();
        let pools: Vec<_> = installed.pools.keys().copied().collect();
        let service_of = |backend| installed.backends.get(&backend).map(|row| row.service);
        let steps = clients.turn(&limited, &pools, &service_of, tables, now);
        let off = clients.corrected() - corrected;
        let text = || format!("the counts of clients' connections were off by {off} in all, corrected");
        let note = (off > 0).then(|| Action::Note(Notice::daemon(Level::Warn, Kind::Datapath, text())));
        steps.into_iter().map(Action::Client).chain(note).collect()
    }

    /// Turns SYN cookies on and off, by what the last look at the rings has seen.
    fn cookies_turn(&mut self, tables: &Tables, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for (number, facts) in &self.services {
            let Some(row) = self.installed.services.get(number) else { continue };
            let sight = cookies::Sight {
                wanted: facts.syn_cookies,
                word: tables.cookies(*number),
                half_open: self.half_open.open(*number),
                limit: cookies::limit(row.half_open_cells, row.backends.len()),
            };
            let turn = self.cookies.look(*number, sight, now);
            actions.extend(turn.write.map(|to| Action::Cookies { service: *number, from: sight.word, to }));
            actions.extend(turn.told.map(|standing| {
                let (level, text) = cookies::text(standing, &sight);
                let subject = Subject::Service(facts.name.clone());
                Action::Note(Notice { level, kind: Kind::Datapath, subject, text })
            }));
        }
        actions
    }

    fn count_cookies(&mut self, tables: &Tables, now: Instant) -> Option<Action> {
        let counter = |reason| tables.counter(reason).ok();
        let counts = cookies::Counts {
            sent: counter(Reason::CookieSent)?,
            answered: counter(Reason::CookieAnswered)?,
            unanswered: counter(Reason::CookieUnanswered)?,
        };
        let text = cookies::unanswered(self.cookies.count(counts, now)?);
        Some(Action::Note(Notice::daemon(Level::Warn, Kind::Datapath, text)))
    }

    fn silent_hosts(&mut self, now: Instant) -> Vec<Action> {
        let silent = self.next_hops.silent(now);
        let of_pools: Vec<_> = silent.into_iter().flat_map(|pool| self.backends_of(pool)).collect();
        of_pools.iter().for_each(|backend| self.silence.point_at(*backend));
        let text = "gets no connections: its next hop does not answer ARP";
        of_pools.into_iter().map(|number| self.backends[&number].note(Level::Warn, text)).collect()
    }

    /// Which flows are ours to close from now on. If we take the place of another host, its flows
    /// may include connections to backends whose connections here were dealt with when they went
    /// out.
    pub fn set_ownership(&mut self, ownership: Ownership, now: Instant) {
        let before = std::mem::replace(&mut self.ownership, ownership);
        let more = |listener: &u16| self.ownership.holds(*listener) && !before.holds(*listener);
        if !self.installed.listeners.keys().any(more) {
            return;
        }
        // Nor were its connections looked at that are waiting for an answer.
        self.half_open.forget();
        self.due.half_open = now;
        for (number, health) in &self.health {
            // It is not known here which of its connections wait for an answer, so it is asked.
            self.silence.point_at(*number);
            if let Some(cause) = cause_of(health) {
                self.reset_guard.reopen(*number, cause, health.changed_at(), now);
                if cause == health::Cause::Refused {
                    self.inquiry.begin(*number, now);
                }
            }
        }
    }

    /// Whether this host has the address of any of a service's listeners.
    fn is_ours(&self, service: u16) -> bool {
        let mut listeners = self.installed.listeners.iter().filter(|(_, listener)| listener.service == service);
        listeners.any(|(number, _)| self.ownership.holds(*number))
    }

    /// What is in the maps.
    pub fn installed(&self) -> &Installed {
        &self.installed
    }

    /// The configuration in force.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Services by number.
    pub fn services(&self) -> &BTreeMap<u16, ServiceFacts> {
        &self.services
    }

    /// Whether a service sends SYN cookies, since when and why.
    pub fn cookies(&self, service: u16) -> Option<cookies::Standing> {
        self.cookies.standing(service)
    }

    /// Backends by number, tombstones included.
    pub fn backends(&self) -> &BTreeMap<u16, BackendFacts> {
        &self.backends
    }

    /// The health of a backend; `None` for one that is `down` or a tombstone.
    pub fn health(&self, backend: u16) -> Option<&Health> {
        self.health.get(&backend)
    }

    /// Whether the next hop of any of a backend's pools is known.
    pub fn is_reachable(&self, backend: u16) -> bool {
        let row = self.installed.backends.get(&backend);
        row.is_some_and(|row| row.pools.iter().any(|pool| self.next_hops.is_known(*pool)))
    }

    /// The backends that an open connection has tried without success, as far as events reported
    /// them.
    pub fn failed_tries(&self, client: SocketAddr, listener: u16, started: Instant) -> Vec<SocketAddr> {
        self.recorder.failed(client, listener, started)
    }

    /// Corrections of the counts of clients' connections so far, in connections.
    pub fn client_drift(&self) -> u64 {
        self.clients.corrected()
    }

    /// Corrections of least_conn's counters so far, in connections.
    pub fn drift(&self) -> u64 {
        self.reconcile.corrected()
    }
}
