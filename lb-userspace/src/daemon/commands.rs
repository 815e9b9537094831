//! Operators' commands: each is first saved where it outlives the daemon, then written to the
//! kernel's tables, then answered.

use std::time::Duration;

use log::{Level, warn};

use super::{Daemon, admin_file::milliseconds, now};
use crate::{
    api::{
        self, Peer,
        admin::{
            Changed, Drain, InForce, Kill, Maint, Ready, Rebalance, Rebalanced, RebalancedBackend, RebalancedService,
            Set,
        },
        types::Refused,
    },
    config::model::Weight,
    controller::{
        admin_state::{AdminEntry, AdminState, AdminStates, Name},
        commands::{Uneven, Whose},
        rebalance::spread,
        resets::Only,
    },
    notice::{Kind, Notice, Subject},
    words::{AdminWord, Task},
};
use lb_common::{layout::UP, time::Instant, verdict::Reason};

/// The answer to a command.
type Outcome<T> = Result<T, Refused>;

impl Daemon {
    /// Carries out a command and answers it. The requester may have hung up by then.
    pub(super) fn carry_out(&mut self, order: api::Order, peer: &Peer) {
        match order {
            api::Order::Drain(asked, reply) => _ = reply.send(self.drain(&asked, peer)),
            api::Order::Maint(asked, reply) => _ = reply.send(self.maint(&asked, peer)),
            api::Order::Ready(asked, reply) => _ = reply.send(self.ready(&asked, peer)),
            api::Order::Set(asked, reply) => _ = reply.send(self.set(&asked, peer)),
            api::Order::Kill(asked, reply) => _ = reply.send(self.kill(&asked, peer)),
            api::Order::Rebalance(asked, reply) => _ = reply.send(self.rebalance(&asked, peer)),
            api::Order::Failover(asked, reply) => self.failover(&asked.instance, reply, peer),
            api::Order::StopTask(id, reply) => _ = reply.send(self.stop_task(id, peer)),
        }
    }

    fn drain(&mut self, asked: &Drain, peer: &Peer) -> Outcome<Changed> {
        let number = self.find(&asked.backend, asked.service.as_deref())?;
        if asked.deadline_ms.is_some_and(|deadline| deadline > Drain::LONGEST_MS) {
            return Err(refused("deadline: longer than 30 days; without a deadline nothing is ever reset"));
        }
        let now = now();
        let after = asked.deadline_ms.map(Duration::from_millis);
        let deadline = after.map(|after| now.monotonic + after);
        let order = AdminState::Drain { deadline, rate: asked.rate.get() };
        let mut changed = self.order(number, Some(order), peer)?;
        let rest = match after {
            Some(after) => format!("those left after {} s are reset at {}/s", after.as_secs_f64(), asked.rate),
            None => "all may stay".into(),
        };
        let active = changed.active;
        self.tell_of(
            number,
            format!("is drained by {peer}: it gets no new connections; of its {active} open ones, {rest}"),
        );
        self.warn_if_last(&mut changed);
        Ok(changed)
    }

    fn maint(&mut self, asked: &Maint, peer: &Peer) -> Outcome<Changed> {
        let number = self.find(&asked.backend, asked.service.as_deref())?;
        // Clients whose SYN is not answered yet are served elsewhere when they repeat it.
        let (whose, only) = (Whose::Backend(number), Only::Connected);
        let (here, elsewhere) = match asked.reset {
            true => self.controller.count(whose, only, self.dataplane.tables()),
            false => (0, 0),
        };
        if here == 0 && elsewhere > 0 {
            let name = &asked.backend;
            return Err(refused(format!(
                "the {elsewhere} connections of {name} are those of another host, which has their address: \
                 maint {name} --reset there; nothing has changed"
            )));
        }
        let mut changed = self.order(number, Some(AdminState::Maint), peer)?;
        if asked.reset {
            let tables = self.dataplane.tables().clone();
            changed.task = self.controller.kill(whose, (only, Reason::Maintenance), &tables, now().monotonic);
        }
        let rest = match (asked.reset, elsewhere) {
            (false, _) => format!("its {} connections stay", changed.active),
            (true, 0) => format!("its {here} connections are reset"),
            (true, _) => format!("{here} of its connections are reset, {elsewhere} of another host stay"),
        };
        self.tell_of(number, format!("is put into maintenance by {peer}: it is out of service; {rest}"));
        self.warn_if_last(&mut changed);
        Ok(changed)
    }

    fn ready(&mut self, asked: &Ready, peer: &Peer) -> Outcome<Changed> {
        let number = self.find(&asked.backend, asked.service.as_deref())?;
        if self.controller.health(number).is_none() {
            let name = &asked.backend;
            return Err(refused(format!(
                "{name} has down = true in the configuration, which wins: remove that and reload"
            )));
        }
        let changed = self.order(number, None, peer)?;
        if changed.state != changed.was {
            self.tell_of(
                number,
                format!("is made ready by {peer}: it was {} and is now {}", changed.was, changed.state),
            );
        }
        Ok(changed)
    }

    /// Puts a backend into a state, or with `None` back into service.
    fn order(&mut self, number: u16, order: Option<AdminState>, peer: &Peer) -> Outcome<Changed> {
        let now = now();
        let was = self.changed(number);
        let Some(name) = self.controller.name_of(number) else {
            return Err(refused("the backend has just been removed"));
        };
        let mut admin_states = self.controller.admin_states().clone();
        let wall = milliseconds(now.wall);
        match order {
            Some(order) => {
                let said = AdminEntry { order, since: now.monotonic, by: peer.to_string().into() };
                admin_states.say(name, said, wall);
            }
            // Also if it is in no such state here: another host may know of one.
            None => _ = admin_states.take_back(&name, wall),
        }
        self.set_admin_states(admin_states)?;
        Ok(Changed { was: was.state, ..self.changed(number) })
    }

    /// Saves first: a daemon that is killed in between continues with what was decided.
    pub(super) fn set_admin_states(&mut self, admin_states: AdminStates) -> Outcome<()> {
        let now = now();
        if admin_states == *self.controller.admin_states() {
            return Ok(());
        }
        self.admin_file.save(&admin_states, now).map_err(|error| refused(format!("{error:#}; nothing has changed")))?;
        let tables = self.dataplane.tables().clone();
        let actions = self.controller.set_admin_states(admin_states, &tables, now.monotonic);
        self.act(actions);
        self.tell_peers_of_backends();
        Ok(())
    }

    /// Forgets the states of backends that a reload has removed.
    pub(super) fn keep_orders(&mut self) {
        let mut admin_states = self.controller.admin_states().clone();
        admin_states.retain(|(service, backend)| self.controller.find(backend, Some(service)).is_ok());
        if let Err(refused) = self.set_admin_states(admin_states) {
            warn!("{}", refused.errors.join("\n"));
        }
    }

    fn set(&mut self, asked: &Set, peer: &Peer) -> Outcome<Changed> {
        let number = self.find(&asked.backend, asked.service.as_deref())?;
        if asked.weight.is_none() && asked.max_conns.is_none() {
            return Err(refused("nothing to set: weight or max_conns"));
        }
        if asked.weight.is_some_and(|weight| Weight::new(weight).is_none()) {
            let most = Weight::MAX;
            return Err(refused(format!("weight: 1 to {most}; to stop new connections, drain the backend")));
        }
        let actions = self.controller.adjust(number, asked.weight, asked.max_conns);
        self.act(actions);
        let changed = self.changed(number);
        let (weight, max_conns) = (changed.weight, changed.max_conns);
        self.tell_of(number, format!("is set by {peer} until the next reload: weight {weight}, max_conns {max_conns}"));
        Ok(changed)
    }

    fn kill(&mut self, asked: &Kill, peer: &Peer) -> Outcome<Task> {
        let (whose, shown) = match asked {
            Kill { connection: Some(connection), client: None, backend: None, service: None } => {
                (Whose::Connection(*connection), format!("connection of {connection}"))
            }
            Kill { connection: None, client: Some(client), backend: None, service: None } => {
                (Whose::Client(*client), format!("connection of client {client}"))
            }
            Kill { connection: None, client: None, backend: Some(backend), service } => {
                let number = self.find(backend, service.as_deref())?;
                (Whose::Backend(number), format!("connection to backend {backend}"))
            }
            _ => {
                return Err(refused(
                    "give exactly one of connection, client and backend (the latter with its service if necessary)",
                ));
            }
        };
        let tables = self.dataplane.tables().clone();
        let task = self.controller.kill(whose, (Only::Open, Reason::Killed), &tables, now().monotonic);
        let task = task.ok_or_else(|| match self.controller.count(whose, Only::Open, &tables) {
            (_, 0) => refused(format!("there is no {shown}")),
            (_, count) => refused(format!(
                "every {shown} ({count}) is one of another host, which has its address: kill there; nothing is reset"
            )),
        })?;
        let text = format!("every {shown} is reset by {peer}: {} at {}/s", task.total, task.rate);
        self.tell(Notice::daemon(Level::Info, Kind::Admin, text));
        Ok(task)
    }

    fn rebalance(&mut self, asked: &Rebalance, peer: &Peer) -> Outcome<Rebalanced> {
        let tables = self.dataplane.tables().clone();
        let (now, rate) = (now().monotonic, asked.rate.get());
        let found = self.controller.uneven(asked.service.as_deref(), asked.tolerance.get(), &tables, now);
        let found = found.map_err(refused)?;
        let mut tasks = Vec::new();
        if !asked.dry_run {
            for uneven in &found {
                let Some(task) = self.controller.rebalance(uneven, rate, now) else { continue };
                let text = format!("is rebalanced by {peer}: {} connections are reset at {rate}/s", task.total);
                let service = self.controller.services()[&uneven.service].name.clone();
                let subject = Subject::Service(service);
                self.tell(Notice { level: Level::Info, kind: Kind::Admin, subject, text });
                tasks.push(task);
            }
        }
        let services: Vec<_> = found.iter().map(|uneven| self.rebalanced(uneven)).collect();
        let of_service =
            |service: &RebalancedService| service.backends.iter().map(|b| u64::from(b.resets)).sum::<u64>();
        let longest = services.iter().map(of_service).max().unwrap_or(0);
        let resets = services.iter().map(of_service).sum();
        let seconds = longest.saturating_sub(1) as f64 / f64::from(rate);
        Ok(Rebalanced { services, resets, seconds, tasks })
    }

    fn rebalanced(&self, uneven: &Uneven) -> RebalancedService {
        let backends = uneven.shares.iter().map(|share| RebalancedBackend {
            backend: self.controller.backends()[&share.load.backend].name.clone(),
            weight: share.load.weight,
            active: share.load.active,
            resets: share.resets,
            after: share.after,
        });
        RebalancedService {
            service: self.controller.services()[&uneven.service].name.clone(),
            spread: spread(uneven.shares.iter().map(|share| (share.load.active, share.load.weight))),
            spread_after: spread(uneven.shares.iter().map(|share| (share.after, share.load.weight))),
            backends: backends.collect(),
            skipped: uneven.skipped.map(Into::into),
        }
    }

    pub(super) fn task(&self, id: u64) -> Outcome<Task> {
        let gone = || {
            refused(format!(
                "unknown task {id}: it finished long ago, or evenkeel was restarted or upgraded and the remaining resets were \
                 dropped (`evenkeel conns` shows the connections that are left)"
            ))
        };
        self.controller.task(id).ok_or_else(gone)
    }

    fn stop_task(&mut self, id: u64, peer: &Peer) -> Outcome<Task> {
        let running = self.task(id)?;
        let stopped = self.controller.stop_task(id).unwrap_or(running);
        let text = format!("resets are stopped by {peer}: {} of {} were carried out", stopped.reset, stopped.total);
        self.tell(Notice::daemon(Level::Info, Kind::Admin, text));
        Ok(stopped)
    }

    pub(super) fn in_force(&self) -> Vec<InForce> {
        let now = now();
        let in_force = |(name, said): (&Name, &AdminEntry)| {
            let (service, backend) = name.clone();
            let number = self.controller.find(&backend, Some(&service)).ok()?;
            let (order, deadline, rate) = match said.order {
                AdminState::Drain { deadline, rate } => {
                    (AdminWord::Drain, deadline.map(|at| now.wall_at(at)), deadline.is_some().then_some(rate))
                }
                AdminState::Maint => (AdminWord::Maint, None, None),
            };
            Some(InForce {
                service,
                backend,
                order,
                since: now.wall_at(said.since),
                by: said.by.clone(),
                deadline,
                rate,
                active: self.dataplane.tables().active(number).into(),
            })
        };
        self.controller.admin_states().iter().filter_map(in_force).collect()
    }

    /// The state of a backend after a command.
    fn changed(&self, number: u16) -> Changed {
        let now = now();
        let facts = &self.controller.backends()[&number];
        let record = self.dataplane.tables().backend(number);
        let slow_until = self.dataplane.tables().slow_start(number).until;
        let standing = self.controller.standing(number, slow_until, now.monotonic);
        let name = (facts.service.clone(), facts.name.clone());
        let deadline = match self.controller.admin_states().get(&name).map(|said| said.order) {
            Some(AdminState::Drain { deadline, .. }) => deadline.map(|at| now.wall_at(at)),
            _ => None,
        };
        Changed {
            service: name.0,
            backend: name.1,
            state: standing.state,
            reason: standing.reason,
            was: standing.state,
            weight: record.weight,
            max_conns: record.max_conns,
            active: self.dataplane.tables().active(number).into(),
            deadline,
            task: None,
            warning: None,
        }
    }

    /// Tells, after a command that takes a backend out, that its service has none left.
    fn warn_if_last(&self, changed: &mut Changed) {
        let backends = self.controller.backends().iter();
        let numbers = backends.filter(|(_, facts)| facts.service == changed.service).map(|(number, _)| *number);
        let now = now().monotonic;
        let mut admissions = numbers.map(|number| self.controller.standing(number, Instant::ZERO, now).admission);
        if admissions.any(|admission| admission == UP) {
            return;
        }
        let text =
            String::from("has no backend left that is up: new clients are refused, or meet backends that are down");
        changed.warning = Some(format!("service {} {text}", changed.service));
        let subject = Subject::Service(changed.service.clone());
        self.tell(Notice { level: Level::Warn, kind: Kind::Admin, subject, text });
    }

    fn find(&self, backend: &str, service: Option<&str>) -> Outcome<u16> {
        self.controller.find(backend, service).map_err(refused)
    }

    fn tell_of(&self, number: u16, text: String) {
        let Some((service, backend)) = self.controller.name_of(number) else { return };
        self.tell(Notice {
            level: Level::Info,
            kind: Kind::Admin,
            subject: Subject::Backend { service, backend },
            text,
        });
    }
}

fn refused(why: impl Into<String>) -> Refused {
    Refused { errors: vec![why.into()] }
}
