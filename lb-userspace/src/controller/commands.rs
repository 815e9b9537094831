//! What operators ask for: backends taken out and in, other settings, connections reset,
//! rebalancing.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    layout::{OUT, UP},
    schedule,
    time::Instant,
    verdict::Reason,
};
use log::Level;

use super::{
    Action, Controller,
    admin_state::{AdminState, AdminStates, Name},
    admission::{Admin, Standing},
    drains::Happened,
    health::Health,
    ownership::{Ours, Ownership},
    plan::Write,
    rebalance::{self, Load, Share},
    rebalancing::Rebalancing,
    resets::{Job, Only, Which},
    tasks::Work,
};
use crate::{
    notice::{Kind, Notice, Subject},
    tables::{FlowAt, Tables},
    words::{Task, TaskState, did_you_mean},
};

/// Which connections are to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The one from this address and port; there may be one on each listener.
    Connection(SocketAddr),
    /// Those of a client.
    Client(IpAddr),
    /// Those of a backend.
    Backend(u16),
}

/// What a rebalancing would do to one service.
#[derive(Clone, Debug)]
pub struct Uneven {
    /// The service's number.
    pub service: u16,
    /// Its backends that take part.
    pub shares: Vec<Share>,
    /// Why nothing can be done about it.
    pub skipped: Option<&'static str>,
}

impl Controller {
    /// The backend of this name in the configuration; or what is wrong with the name.
    pub fn find(&self, backend: &str, service: Option<&str>) -> Result<u16, String> {
        let all = self.backends.iter().filter(|(number, _)| !self.installed.is_tombstone(**number));
        let all: Vec<_> = all.collect();
        if let Some(service) = service {
            self.find_service(service)?;
        }
        let of_service = |name: &str| service.is_none_or(|service| service == name);
        let candidates = || all.iter().filter(|(_, facts)| of_service(&facts.service));
        let found: Vec<_> = candidates().filter(|(_, facts)| &*facts.name == backend).collect();
        match found[..] {
            [(number, _)] => Ok(**number),
            [] => Err(unknown("backend", backend, candidates().map(|(_, facts)| &*facts.name))),
            _ => {
                let services: Vec<_> = found.iter().map(|(_, facts)| format!("--service {}", facts.service)).collect();
                Err(format!(
                    "{} services have a backend {backend}: choose one with {}",
                    found.len(),
                    services.join(" or ")
                ))
            }
        }
    }

    /// Whether there may be connections to a backend of this name, in any service; also to one that
    /// has left the configuration.
    pub fn knows_backend(&self, name: &str) -> Result<(), String> {
        let names = || self.backends.values().map(|facts| &*facts.name);
        if names().any(|known| known == name) { Ok(()) } else { Err(unknown("backend", name, names())) }
    }

    /// The service of this name in the configuration; or what is wrong with the name.
    pub fn find_service(&self, name: &str) -> Result<u16, String> {
        let desired = |name: &str| self.desired.services.iter().any(|service| &*service.name == name);
        let mut known = self.services.iter().filter(|(_, facts)| desired(&facts.name));
        let found = known.clone().find(|(_, facts)| &*facts.name == name).map(|(number, _)| *number);
        found.ok_or_else(|| unknown("service", name, known.by_ref().map(|(_, facts)| &*facts.name)))
    }

    /// The names under which operators speak of a backend.
    pub fn name_of(&self, number: u16) -> Option<Name> {
        self.backends.get(&number).map(|facts| (facts.service.clone(), facts.name.clone()))
    }

    /// When the state of a backend last changed, if that is known.
    pub fn changed_at(&self, number: u16) -> Option<Instant> {
        let said = self.name_of(number).and_then(|name| self.admin_states.get(&name).map(|said| said.since));
        said.or_else(|| self.health(number).map(Health::changed_at))
    }

    /// What operators have said.
    pub fn admin_states(&self) -> &AdminStates {
        &self.admin_states
    }

    /// What operators say from now on. The actions bring the map up to date; `ready` backends begin
    /// slowly.
    pub fn set_admin_states(&mut self, admin_states: AdminStates, tables: &Tables, now: Instant) -> Vec<Action> {
        let before = std::mem::replace(&mut self.admin_states, admin_states);
        let numbers: Vec<_> =
            self.backends.keys().copied().filter(|number| !self.installed.is_tombstone(*number)).collect();
        let mut actions = Vec::new();
        for number in numbers {
            let Some(name) = self.name_of(number) else { continue };
            let (old, new) = (before.get(&name), self.admin_states.get(&name));
            if old == new {
                continue;
            }
            self.drains.forget(number, &mut self.resets);
            // A backend that was in maintenance may be another machine now, and cold.
            let slow_until =
                if before.admin(&name) == Admin::Maint { self.slow_until(number, now) } else { Instant::ZERO };
            actions.extend(self.admit_anew(number, tables, slow_until, now));
        }
        actions
    }

    /// Sets a backend's admission in the map to what the file, operators and health say together.
    pub(super) fn admit_anew(&self, number: u16, tables: &Tables, slow_until: Instant, now: Instant) -> Option<Action> {
        let from = tables.backend(number).admission;
        let Standing { admission: to, retry_at, .. } = self.standing(number, Instant::ZERO, now);
        // The kernel program has taken it out, and its event is on the way: that is not undone.
        let closed_by_program = (from, to) == (OUT, UP);
        (from != to && !closed_by_program).then_some(Action::Admit { backend: number, from, to, retry_at, slow_until })
    }

    /// Another weight and limit, until the next reload.
    pub fn adjust(&mut self, number: u16, weight: Option<u32>, max_conns: Option<u32>) -> Vec<Action> {
        let Some(row) = self.installed.backends.get_mut(&number) else { return Vec::new() };
        row.weight = weight.unwrap_or(row.weight);
        row.max_conns = max_conns.unwrap_or(row.max_conns);
        let (service, row) = (row.service, row.clone());
        let mut actions = vec![Action::Write(Write::SetBackend { number, row })];
        actions.extend(self.maglev_anew(service).map(Action::Write));
        actions
    }

    /// The Maglev table of a service with `balance = "hash"`, for the current weights.
    fn maglev_anew(&self, number: u16) -> Option<Write> {
        let row = self.installed.services.get(&number).filter(|row| row.balance == schedule::HASH)?;
        let name = &self.services.get(&number)?.name;
        let service = self.desired.services.iter().find(|service| service.name == *name)?;
        let mut backends = service.backends.clone();
        for (backend, number) in backends.iter_mut().zip(&row.backends) {
            backend.weight = self.installed.backends.get(number).map_or(backend.weight, |row| row.weight);
        }
        Some(Write::Maglev { service: number, backends: super::plan::maglev_entries(&backends) })
    }

    /// Has connections reset; `None` if there are none.
    pub fn kill(
        &mut self,
        whose: Whose,
        (only, reason): (Only, Reason),
        tables: &Tables,
        now: Instant,
    ) -> Option<Task> {
        let flows = self.flows_of(whose, only, &Ours::new(&self.ownership, tables));
        let total = flows.len() as u64;
        if total == 0 {
            return None;
        }
        let (which, service) = match whose {
            Whose::Connection(_) => (Which::Flows(flows), None),
            Whose::Client(client) => (Which::Client(client), None),
            Whose::Backend(number) => {
                (Which::Backend(number), self.installed.backends.get(&number).map(|row| row.service))
            }
        };
        let rate = self.reset_rate(service);
        let job = Job { which, only, reason, rate, not_before: now, begun_by: now };
        let id = self.resets.push(job);
        Some(self.tasks.begin(total, rate, Work::Job(id)))
    }

    /// How many connections there are of those that [`kill`](Self::kill) would reset: of this host,
    /// and of others, which have their addresses.
    pub fn count(&self, whose: Whose, only: Only, tables: &Tables) -> (u64, u64) {
        let all = self.flows_of(whose, only, &Ours::new(&Ownership::default(), tables));
        let is_here =
            |flow: &&FlowAt| tables.flow(flow.at).is_none_or(|it| self.ownership.holds_flow(it.listener(), flow.ctl));
        let here = all.iter().filter(is_here).count() as u64;
        (here, all.len() as u64 - here)
    }

    /// The `reset_rate` of a service, or the largest there is.
    pub(super) fn reset_rate(&self, service: Option<u16>) -> u32 {
        let of = |number: &u16| self.services.get(number).map(|facts| facts.limits.reset_rate);
        let all = || self.services.values().map(|facts| facts.limits.reset_rate).max();
        service.as_ref().and_then(of).or_else(all).unwrap_or(super::RESET_RATE)
    }

    fn flows_of(&self, whose: Whose, only: Only, ours: &Ours) -> VecDeque<FlowAt> {
        let pools: Vec<_> = match whose {
            Whose::Backend(number) => self.installed.pools_of(number),
            _ => self.installed.pools.keys().copied().collect(),
        };
        let mut flows = VecDeque::new();
        for pool in pools {
            ours.heads(pool, 0..ours.slots(pool)).for_each(|head| {
                let client = || ours.flow(head.flow.at).map(|flow| flow.client());
                let ours = match whose {
                    Whose::Backend(number) => head.backend == number,
                    Whose::Client(address) => client().is_some_and(|client| client.ip() == address),
                    Whose::Connection(address) => client() == Some(address),
                };
                if only.takes(head.flow.ctl) && ours {
                    flows.push_back(head.flow);
                }
            });
        }
        flows
    }

    /// How far from even the backends of a service are, and what would make them even; of all
    /// services, or of one.
    pub fn uneven(
        &self,
        service: Option<&str>,
        tolerance: u32,
        tables: &Tables,
        now: Instant,
    ) -> Result<Vec<Uneven>, String> {
        let one = service.map(|name| self.find_service(name)).transpose()?;
        let listed = self.desired.services.iter().filter_map(|service| {
            self.services.iter().find(|(_, facts)| facts.name == service.name).map(|(number, _)| *number)
        });
        let chosen = listed.filter(|number| one.is_none_or(|one| one == *number));
        Ok(chosen.map(|number| self.uneven_service(number, tolerance, tables, now)).collect())
    }

    fn uneven_service(&self, service: u16, tolerance: u32, tables: &Tables, now: Instant) -> Uneven {
        let Some(row) = self.installed.services.get(&service) else {
            return Uneven { service, shares: Vec::new(), skipped: None };
        };
        let takes_part = |number: &&u16| {
            let backup = self.installed.backends.get(number).is_some_and(|row| row.backup);
            let admission = self.standing(**number, Instant::ZERO, now).admission;
            !backup && admission == UP && self.is_reachable(**number)
        };
        let load = |number: &u16| {
            let record = tables.backend(*number);
            let active = tables.active(*number);
            Load { backend: *number, weight: record.weight.max(1), active, max_conns: record.max_conns }
        };
        let loads: Vec<_> = row.backends.iter().filter(takes_part).map(load).collect();
        let is_under_way = self.tasks.is_rebalancing(service);
        let skipped = match row.balance {
            _ if is_under_way => Some("a rebalancing is already running"),
            _ if !self.is_ours(service) => Some("another host holds its address: rebalance there"),
            _ if loads.iter().any(|load| tables.slow_start(load.backend).until > now) => {
                Some("one of its backends is in slow start: returning clients would go to the others")
            }
            schedule::HASH => Some("balance = \"hash\": a client returns to the backend it had"),
            schedule::ROUND_ROBIN => {
                Some("balance = \"round_robin\": a returning client does not go to the least busy backend")
            }
            _ => None,
        };
        let shares = rebalance::shares(&loads, tolerance);
        let left_alone = |share: Share| Share { resets: 0, after: share.load.active, ..share };
        let shares = if skipped.is_some() { shares.into_iter().map(left_alone).collect() } else { shares };
        Uneven { service, shares, skipped }
    }

    /// Carries out what [`uneven`](Self::uneven) has found for one service; `None` if it has found
    /// nothing.
    pub fn rebalance(&mut self, uneven: &Uneven, rate: u32, now: Instant) -> Option<Task> {
        let total: u64 = uneven.shares.iter().map(|share| u64::from(share.resets)).sum();
        if total == 0 {
            return None;
        }
        let work = Work::Rebalancing(Rebalancing::new(uneven.service, &uneven.shares, rate, now));
        Some(self.tasks.begin(total, rate, work))
    }

    /// How far a task has got.
    pub fn task(&self, id: u64) -> Option<Task> {
        self.tasks.get(id, |job| self.resets.closed(job))
    }

    /// Stops a task; the connections it has not reset yet stay.
    pub fn stop_task(&mut self, id: u64) -> Option<Task> {
        let resets = &self.resets;
        if let Some(job) = self.tasks.end(id, TaskState::Stopped, |job| resets.closed(job)) {
            self.resets.cancel(job);
        }
        self.task(id)
    }

    /// When the tasks that operators have begun go on.
    pub(super) fn operators_deadline(&self) -> Instant {
        self.tasks.deadline().min(self.drains.deadline())
    }

    /// Drains and rebalancings go on, with their own resets.
    pub(super) fn operators_turn(&mut self, ours: &Ours, now: Instant) -> Vec<Action> {
        let mut actions = self.rebalancings_turn(ours, now);
        actions.extend(self.drains_turn(ours, now));
        actions
    }

    fn drains_turn(&mut self, ours: &Ours, now: Instant) -> Vec<Action> {
        let mut admin_states = Vec::new();
        for number in self.backends.keys().filter(|number| !self.installed.is_tombstone(**number)) {
            let said = self.name_of(*number).and_then(|name| self.admin_states.get(&name));
            let service = self.installed.backends.get(number).map_or(u16::MAX, |row| row.service);
            admin_states.extend(said.map(|said| match said.order {
                // The host that has the address resets what is left at the deadline.
                AdminState::Drain { rate, .. } if !self.is_ours(service) => {
                    (*number, AdminState::Drain { deadline: None, rate })
                }
                order => (*number, order),
            }));
        }
        let happened = self.drains.turn(&admin_states, &mut self.resets, ours, now);
        let note = |(number, what): (u16, Happened)| {
            let (service, backend) = self.name_of(number)?;
            let text = match what {
                Happened::Deadline(left) => {
                    format!("reached its drain deadline: resetting {left} connection(s)")
                }
                Happened::Empty => String::from("is drained: no connection is left"),
            };
            let subject = Subject::Backend { service, backend };
            Some(Action::Note(Notice { level: Level::Info, kind: Kind::Admin, subject, text }))
        };
        happened.into_iter().filter_map(note).collect()
    }

    fn rebalancings_turn(&mut self, ours: &Ours, now: Instant) -> Vec<Action> {
        let Controller { tasks, resets, installed, services, .. } = self;
        let mut over = Vec::new();
        for (id, rebalancing) in tasks.rebalancings() {
            if rebalancing.deadline().is_none_or(|deadline| deadline > now) {
                continue;
            }
            let (rate, flows) = (rebalancing.rate(), rebalancing.batch(installed, ours, now));
            if flows.is_empty() {
                over.push((id, rebalancing.service()));
                continue;
            }
            let (which, only, reason) = (Which::Flows(flows), Only::Established, Reason::Rebalanced);
            rebalancing.job =
                Some(resets.push(Job { which, only, reason, rate, not_before: now, begun_by: Instant::NEVER }));
        }
        let end = |(id, service): (u64, u16)| {
            tasks.end(id, TaskState::Done, |_| None);
            let subject = Subject::Service(services.get(&service)?.name.clone());
            let reset = tasks.get(id, |_| None)?.reset;
            let text = format!("is rebalanced: {reset} connection(s) were reset");
            Some(Action::Note(Notice { level: Level::Info, kind: Kind::Admin, subject, text }))
        };
        over.into_iter().filter_map(end).collect()
    }
}

/// The error for a name that does not exist.
fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: BTreeSet<_> = known.collect();
    let near = did_you_mean(name, known.iter().copied()).map(|near| format!(": did you mean {near}?"));
    let all = known.into_iter().collect::<Vec<_>>().join(", ");
    format!("there is no {what} {name}{} There are {all}", near.unwrap_or_else(|| ".".into()))
}

#[cfg(test)]
mod tests;
