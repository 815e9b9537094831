//! The part of the core that decides about backends: what comes in about their health goes through
//! their state machines, and what follows from it comes out: admission, the fate of their
//! connections, a notice for the operator.

use std::time::Duration;

use lb_common::{
    event::{Event, RECOVERED, TOOK_OUT, TRY_FAILED},
    layout::{OUT, UP},
    time::Instant,
    verdict::Reason,
};
use log::Level;

use super::{
    Action, Controller,
    admin_state::Name,
    admission::{self, Admin, Facts, Standing},
    health::{self, Cause, Change, Health, State},
    inquiry,
    ownership::Ours,
    probe_count::Outcome,
    reset_guard::{Member, Reset, Ruling},
    resets::{Job, Only, Which},
    silence::{self, Subject},
    sweep::Step,
};
use crate::tables::{FlowAt, Tables};

/// The least time between two requests to probe one backend sooner.
const HURRY: Duration = Duration::from_millis(250);

impl Controller {
    // ---- what comes in ----

    /// What an event of the ring buffer says about health.
    pub(super) fn health_event(&mut self, event: &Event) -> Vec<Action> {
        let at = event.at;
        match event.kind {
            TRY_FAILED | TOOK_OUT => self.try_failed(event),
            RECOVERED => self.program_has(event.backend, at, |health, _| health.recovered(at)),
            _ => Vec::new(),
        }
    }

    fn try_failed(&mut self, event: &Event) -> Vec<Action> {
        let reason = match Reason::from_number(event.reason) {
            Some(reason @ (Reason::Refused | Reason::ConnectTimeout | Reason::Unreachable)) => reason,
            // It was left because it is drained, or silent on a port that an earlier attempt still
            // holds: whether it is alive is asked, and nothing charged to it.
            Some(Reason::MovedOn) => {
                self.silence.point_at(event.backend);
                return self.hurry(event.backend, event.at).into_iter().collect();
            }
            // An older connection on the port (TIME_WAIT) is no failure of the backend.
            _ => return Vec::new(),
        };
        if reason != Reason::Refused {
            self.silence.point_at(event.backend);
        }
        let at = event.at;
        let mut actions = if event.kind == TOOK_OUT {
            self.program_has(event.backend, at, |health, settings| health.taken_out(settings, reason, at))
        } else {
            self.with_health(event.backend, "", at, |health, settings| health.failed(settings, reason, at))
        };
        actions.extend(self.hurry(event.backend, at));
        actions
    }

    /// Has a backend probed soon, if it is probed; a flood of failures asks for it only now and
    /// then.
    pub(super) fn hurry(&mut self, backend: u16, now: Instant) -> Option<Action> {
        self.backends.get(&backend)?.settings.probe?;
        let last = self.hurried.get(&backend).copied();
        if last.is_some_and(|last| now < last + HURRY) {
            return None;
        }
        self.hurried.insert(backend, now);
        Some(Action::Hurry(backend))
    }

    /// A probe of a backend has ended; `detail` says how, for the log.
    pub fn probed(&mut self, backend: u16, outcome: Outcome, detail: &str, now: Instant) -> Vec<Action> {
        let is_failing = |controller: &Controller| controller.health.get(&backend).is_some_and(Health::is_failing);
        let failed_before = is_failing(self);
        let mut actions =
            self.with_health(backend, detail, now, |health, settings| health.probed(settings, outcome, now));
        if !failed_before && is_failing(self) {
            // Is it alone?
            let others = self.peers(backend).filter(|other| *other != backend).collect::<Vec<_>>();
            actions.extend(others.into_iter().filter_map(|other| self.hurry(other, now)));
        }
        actions
    }

    /// What another host, named `peer`, has found out about a backend of ours that is not probed.
    /// That host has the service's address.
    pub fn found_elsewhere(&mut self, (service, backend): &Name, reason: u8, peer: &str, now: Instant) -> Vec<Action> {
        let Ok(number) = self.find(backend, Some(service)) else { return Vec::new() };
        let ours = self.installed.backends.get(&number).is_none_or(|row| self.is_ours(row.service));
        let cause = Reason::from_number(reason).and_then(Cause::from_reason);
        // Out for a reason that only a newer version knows.
        if ours || reason != 0 && cause.is_none() {
            return Vec::new();
        }
        let detail = format!("as on {peer}");
        self.with_health(number, &detail, now, |health, settings| health.found_elsewhere(settings, cause, now))
    }

    /// The backends that are not probed, of services whose address is on this host, and why each is
    /// out, if it is.
    pub fn found_here(&self) -> Vec<(Name, Option<Cause>)> {
        let is_told = |number: &u16| {
            let facts = self.backends.get(number)?;
            let service = self.installed.backends.get(number)?.service;
            (facts.settings.probe.is_none() && self.is_ours(service))
                .then(|| (facts.service.clone(), facts.name.clone()))
        };
        self.health.iter().filter_map(|(number, health)| Some((is_told(number)?, cause_of(health)))).collect()
    }

    // ---- what follows ----

    /// The state of a backend. `slow_until` is that of its record.
    pub fn standing(&self, number: u16, slow_until: Instant, now: Instant) -> Standing {
        let facts = Facts {
            down: self.backends.get(&number).is_none_or(|facts| facts.down),
            admin: self.admin(number),
            health: self.health.get(&number).map_or(State::Up, Health::state),
            reachable: self.is_reachable(number),
            spared: self.reset_guard.is_spared(number) || self.inquiry.is_spared(number),
            slow_until,
        };
        admission::standing(&facts, now)
    }

    /// What an operator has said about a backend.
    fn admin(&self, number: u16) -> Admin {
        self.name_of(number).map_or(Admin::None, |name| self.admin_states.admin(&name))
    }

    /// What the kernel program has done with a backend. The map says it already, and may say
    /// something later by now: nothing is written but that a trial is not due, if only a probe brings
    /// the backend back.
    pub(super) fn program_has(
        &mut self,
        backend: u16,
        now: Instant,
        input: impl Fn(&mut Health, &health::Settings) -> Change,
    ) -> Vec<Action> {
        let actions = self.with_health(backend, "", now, input);
        let admitted = |action| match action {
            Action::Admit { to: OUT, retry_at: Instant::NEVER, .. } => {
                let (retry_at, slow_until) = (Instant::NEVER, Instant::ZERO);
                Some(Action::Admit { backend, from: OUT, to: OUT, retry_at, slow_until })
            }
            Action::Admit { .. } => None,
            other => Some(other),
        };
        actions.into_iter().filter_map(admitted).collect()
    }

    pub(super) fn with_health(
        &mut self,
        backend: u16,
        detail: &str,
        now: Instant,
        input: impl Fn(&mut Health, &health::Settings) -> Change,
    ) -> Vec<Action> {
        let before = self.standing(backend, Instant::ZERO, now);
        let (Some(health), Some(facts)) = (self.health.get_mut(&backend), self.backends.get(&backend)) else {
            return Vec::new();
        };
        let was_out = matches!(health.state(), State::Out { .. });
        let change = input(health, &facts.settings);
        let state = health.state();
        self.changed(backend, change, (was_out, state), now);
        let after = self.standing(backend, Instant::ZERO, now);
        let again = matches!(change, Change::StaysOut { .. });
        let slow_until = if after.admission == UP { self.slow_until(backend, now) } else { Instant::ZERO };
        let mut actions = Vec::new();
        if again || before.admission != after.admission {
            actions.extend(self.admit(backend, before, after, slow_until));
        }
        if change != Change::Nothing {
            actions.extend(self.remember(backend));
        }
        actions.extend(self.note(backend, change, detail, now));
        actions
    }

    fn changed(&mut self, backend: u16, change: Change, (was_out, state): (bool, State), now: Instant) {
        match (change, state) {
            (Change::TakenOut { .. }, State::Out { cause: Some(cause), .. }) => {
                self.reset_guard.went_out(backend, cause, now);
                match cause {
                    Cause::Refused => self.inquiry.begin(backend, now),
                    Cause::Timeout | Cause::Unreachable | Cause::Silent | Cause::ProbeTimeout => {
                        self.inquiry.end(backend);
                    }
                }
            }
            (Change::Recovered | Change::Drained(_), _) => {
                self.reset_guard.came_back(backend);
                // Its host may have been started anew.
                if was_out {
                    self.inquiry.begin(backend, now);
                }
            }
            _ => {}
        }
    }

    fn admit(&self, backend: u16, before: Standing, after: Standing, slow_until: Instant) -> Option<Action> {
        let (from, to, retry_at) = (before.admission, after.admission, after.retry_at);
        (from != to || to == OUT).then_some(Action::Admit { backend, from, to, retry_at, slow_until })
    }

    /// Until when a backend gets less than its share if it comes back now; `ZERO`: it does not
    /// start slowly.
    pub(super) fn slow_until(&self, backend: u16, now: Instant) -> Instant {
        let slow_start = self.backends.get(&backend).map_or(Duration::ZERO, |facts| facts.settings.slow_start);
        if slow_start.is_zero() { Instant::ZERO } else { now + slow_start }
    }

    fn note(&self, backend: u16, change: Change, detail: &str, now: Instant) -> Option<Action> {
        let facts = self.backends.get(&backend)?;
        let why = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        let (level, text) = match change {
            Change::Nothing | Change::StaysOut { .. } | Change::TrialFailed => return None,
            Change::TakenOut { retry_at } => {
                let cause = self.health.get(&backend).and_then(cause_of);
                let word = cause.map_or_else(|| "unknown".to_owned(), |cause| cause.reason().to_string());
                let until = match facts.settings.probe {
                    Some(_) => "until its probe passes".to_owned(),
                    None => format!("for {:.1} s", retry_at.left(now).as_secs_f64()),
                };
                // What clients met is counted; every other cause says what happened.
                let why = if detail.is_empty() { format!(" ({} failures)", facts.settings.max_fails) } else { why };
                (Level::Warn, format!("is out {until}: {word}{why}"))
            }
            Change::Drained(unready) => {
                let reason = unready.reason();
                (Level::Warn, format!("is not ready and gets no new connections: {reason}{why}"))
            }
            Change::Recovered if !facts.settings.slow_start.is_zero() => {
                let seconds = facts.settings.slow_start.as_secs_f64();
                (Level::Info, format!("is up; it starts slowly, for {seconds} s"))
            }
            Change::Recovered => (Level::Info, "is up".to_owned()),
        };
        Some(facts.note(level, text))
    }

    /// Its state, the reason and the time of the last change, for the next controller.
    pub(super) fn remember(&self, backend: u16) -> Option<Action> {
        let health = self.health.get(&backend)?;
        Some(Action::Remember { backend, out_reason: health.out_reason(), changed_at: health.changed_at() })
    }

    // ---- in its turn ----

    /// Asks backends that are quiet while something waits for them, and takes out those that are
    /// silent.
    pub(super) fn silence_turn(&mut self, ours: &Ours, now: Instant) -> Vec<Action> {
        let look = self.silence.turn(&self.subjects(), ours, now);
        let mut actions: Vec<_> = look.ask.into_iter().map(Action::Ask).collect();
        for backend in look.silent {
            let detail = "no packet from it on any connection";
            actions.extend(self.with_health(backend, detail, now, |health, settings| health.silent(settings, now)));
            actions.extend(self.hurry(backend, now));
        }
        actions
    }

    /// The backends to watch: all that the clients' connections may take out and that are not known
    /// to be dead. If a backend's connections were spared, its flows may say more than its probes.
    /// A host that does not hold the address sees no packets.
    fn subjects(&self) -> Vec<Subject> {
        let watched = |number: &u16, health: &Health| {
            let settings = self.backends.get(number)?.settings;
            let row = self.installed.backends.get(number)?;
            let known = match cause_of(health) {
                Some(Cause::Silent) => true,
                Some(Cause::ProbeTimeout) => !self.reset_guard.is_spared(*number),
                _ => false,
            };
            let passive = settings.max_fails > 0 || settings.probe.is_some();
            let connect_timeout = settings.connect_timeout;
            (passive && !known && self.is_ours(row.service)).then(|| Subject {
                backend: *number,
                pools: self.installed.pools_of(*number),
                connect_timeout,
            })
        };
        self.health.iter().filter_map(|(number, health)| watched(number, health)).collect()
    }

    /// Has the connections of backends that refuse, or that came back, asked whether they live.
    pub(super) fn inquiry_turn(&mut self, ours: &Ours, now: Instant) -> Vec<Action> {
        let mut inquiry = std::mem::take(&mut self.inquiry);
        let around = inquiry::Surroundings {
            installed: &self.installed,
            rate: &|backend| self.reset_rate(self.installed.backends.get(&backend).map(|row| row.service)),
            spared: &|backend| self.reset_guard.spares(backend, &self.members(backend, ours, now)),
            ours,
        };
        let turn = inquiry.turn(&around, now);
        self.inquiry = inquiry;
        let note = |backend: u16, level, text: String| self.backends.get(&backend).map(|facts| facts.note(level, text));
        let spared = turn
            .spared
            .iter()
            .filter_map(|(backend, why)| note(*backend, Level::Warn, format!("keeps its connections: {}", why.text())));
        let over = turn.over.iter().filter(|(_, reset)| *reset > 0).filter_map(|(backend, reset)| {
            let why = Reason::BackendRestarted.name();
            note(*backend, Level::Info, format!("has had {reset} connection(s) reset: {why}"))
        });
        let close = |(flow, _): &(FlowAt, u16)| Action::Step(Step::Close(*flow, Reason::BackendRestarted));
        let asked = turn.ask.iter().copied().map(Action::Ask);
        asked.chain(turn.dead.iter().map(close)).chain(spared).chain(over).collect()
    }

    /// Has the connections of dead backends reset, or spares them.
    pub(super) fn reset_guard_turn(&mut self, tables: &Tables, now: Instant) -> Vec<Action> {
        let mut reset_guard = std::mem::take(&mut self.reset_guard);
        let rulings = reset_guard.turn(&|backend| self.members(backend, tables, now), now);
        self.reset_guard = reset_guard;
        rulings.into_iter().filter_map(|ruling| self.carry_out(ruling)).collect()
    }

    /// The backends of the same service that could have connections.
    fn members(&self, of: u16, tables: &Tables, now: Instant) -> Vec<Member> {
        let Some(dead) = self.health.get(&of) else { return Vec::new() };
        let member = |number: u16| {
            let health = self.health.get(&number)?;
            let vouched = health.is_vouched_against(dead);
            let fit = health.is_fit() && self.is_reachable(number) && !self.silence.is_in_doubt(number);
            let out = matches!(health.state(), State::Out { .. }).then(|| cause_of(health)).flatten();
            let unanswered = health.unanswered();
            let heard = silence::heard_at(&self.installed.pools_of(number), tables, now);
            // A backend that an operator has taken out is no refuge, and no sign that the others
            // are in trouble.
            let counts = self.admin(number) == Admin::None || number == of;
            counts.then_some(Member { backend: number, fit, vouched, unanswered, heard, out })
        };
        self.peers(of).filter_map(member).collect()
    }

    /// The backends of the same service, itself included.
    fn peers(&self, of: u16) -> impl Iterator<Item = u16> {
        let service = self.installed.backends.get(&of).map(|row| row.service);
        let same = self.installed.backends.iter().filter(move |(_, row)| Some(row.service) == service);
        same.map(|(number, _)| *number)
    }

    fn carry_out(&mut self, ruling: Ruling) -> Option<Action> {
        match ruling {
            Ruling::Reset(Reset { backend, cause, begun_by }) => {
                let rate = self.reset_rate(self.installed.backends.get(&backend).map(|row| row.service));
                self.resets.push(Job {
                    which: Which::Backend(backend),
                    only: Only::Connected,
                    reason: cause.to_reason(),
                    rate,
                    not_before: Instant::ZERO,
                    begun_by,
                });
                None
            }
            Ruling::Spare(backend, why) => {
                let text = format!("keeps its connections: {}", why.text());
                self.backends.get(&backend).map(|facts| facts.note(Level::Warn, text))
            }
        }
    }
}

/// Why a backend is out, if it is out and the reason is known.
pub fn cause_of(health: &Health) -> Option<Cause> {
    match health.state() {
        State::Out { cause, .. } => cause,
        State::Up | State::NotReady(_) => None,
    }
}

#[cfg(test)]
mod tests;
