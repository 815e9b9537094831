//! Whether and when the connections of a backend that is out are reset.
//!
//! *Silent*, or no answer to probes: they are reset at once. *Refused*, or a *timeout* of SYNs alone,
//! says nothing about established connections: those of a backend that refuses are asked one by one
//! ([`inquiry`](super::inquiry)), and the guard says whether one that gives no answer may be reset.
//!
//! The guard: a balancer that is mistaken must not drive every client to servers that are already
//! overloaded.
//! - If half or more of a service's backends fail together, nothing is reset: their connections
//!   stay. A common cause shows first at the backend that is probed first, so before a reset by
//!   probes the others have to pass a probe.
//! - Probes alone reset the connections of one backend at a time; for a second one its flows have
//!   to show that it is silent.
//! - If no other backend is well, nothing is reset: there is nowhere to go.
//!
//! A spared backend is checked again every second while it is out. The common cause may be over and
//! this backend merely the last to be probed, so it has to prove dead again before its connections
//! are reset.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::time::Instant;

use super::health::Cause;

/// How long the others have to pass a probe, before it is assumed that they cannot, and how often
/// that is looked at.
const PATIENCE: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(50);
/// Between two looks at a backend that is spared, or not yet known to be dead.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a packet of a silent backend may still have been on its way after the backend went out.
const LATE: Duration = Duration::from_secs(1);

/// One backend of a service, as the guard sees it. Backends that the file or an operator has taken
/// out are not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub backend: u16,
    /// It is up and nothing speaks against it, a failed probe or an unanswered question included.
    pub fit: bool,
    /// It has passed a probe since those of the backend in question began to fail.
    pub vouched: bool,
    /// Probes without an answer in a row.
    pub unanswered: u32,
    /// When anything came from it last.
    pub heard: Instant,
    /// Why it is out, if it is.
    pub out: Option<Cause>,
}

/// Why connections are not reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spared {
    /// Half or more of the backends are not well.
    TooMany,
    /// Another one was reset because of its probes, and is not back.
    OneAtATime,
    /// No other backend is well.
    NowhereToGo,
}

impl Spared {
    /// For the log.
    pub fn text(self) -> &'static str {
        match self {
            Spared::TooMany => "half or more of the service's backends fail together",
            Spared::OneAtATime => "probes alone reset the connections of one backend at a time",
            Spared::NowhereToGo => "no other backend is well",
        }
    }
}

/// The connections of a backend are to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// Whose.
    pub backend: u16,
    /// Why.
    pub cause: Cause,
    /// Flows that began later are alive.
    pub begun_by: Instant,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// Reset them.
    Reset(Reset),
    /// Spare them; reported once.
    Spare(u16, Spared),
}

#[derive(Clone, Copy, Debug)]
struct Case {
    cause: Cause,
    due: Instant,
    begun_by: Instant,
    spared: bool,
    /// Spared until now, or adopted: how many probes had gone without an answer when it could have
    /// been reset.
    unanswered: Option<u32>,
}

impl Case {
    /// Whether a backend that was spared or adopted is dead by all that is known now: two more
    /// probes without an answer, of which the second began later; or no packet from it.
    fn is_confirmed(&mut self, member: &Member) -> bool {
        match self.cause {
            _ if !self.spared && self.unanswered.is_none() => true,
            Cause::ProbeTimeout => {
                let before = self.unanswered.get_or_insert(member.unanswered);
                *before = member.unanswered.min(*before);
                member.unanswered >= *before + 2
            }
            Cause::Silent => member.heard <= self.begun_by + LATE,
            // No cases.
            Cause::Refused | Cause::Timeout | Cause::Unreachable => true,
        }
    }
}

/// The machine.
#[derive(Debug, Default)]
pub struct ResetGuard {
    cases: BTreeMap<u16, Case>,
    /// Backends whose connections were reset because probes were not answered, while they are out.
    by_probe: BTreeSet<u16>,
}

impl ResetGuard {
    /// A backend went out.
    pub fn went_out(&mut self, backend: u16, cause: Cause, now: Instant) {
        if matches!(cause, Cause::Refused | Cause::Timeout | Cause::Unreachable) {
            self.cases.remove(&backend);
            return;
        }
        let spared = self.is_spared(backend);
        self.cases.insert(backend, Case { cause, due: now, begun_by: now, spared, unanswered: None });
    }

    /// A backend that an earlier controller took out at `since`: what that controller had not yet
    /// done is done now, by the same rules. If several are out because of their probes, it is not
    /// known whose connections were reset, so no more are.
    pub fn adopted(&mut self, backend: u16, cause: Cause, since: Instant, now: Instant) {
        self.reopen(backend, cause, since, now);
        if let Some(case) = self.cases.get_mut(&backend) {
            // It may have been back for long.
            case.unanswered = Some(0);
        }
        if cause == Cause::ProbeTimeout {
            self.by_probe.insert(backend);
        }
    }

    /// There are more connections of a backend that went out at `since`: those of another host
    /// whose place this one takes.
    pub fn reopen(&mut self, backend: u16, cause: Cause, since: Instant, now: Instant) {
        if self.cases.contains_key(&backend) {
            return;
        }
        self.went_out(backend, cause, now);
        if let Some(case) = self.cases.get_mut(&backend) {
            case.begun_by = since;
        }
    }

    /// A backend answers again.
    pub fn came_back(&mut self, backend: u16) {
        self.by_probe.remove(&backend);
        self.cases.remove(&backend);
    }

    /// Whether and why a connection to a backend that does not answer on it may not be reset. If the
    /// backend takes new connections, it may: its host answers, and the client has where to go.
    pub fn spares(&self, backend: u16, members: &[Member]) -> Option<Spared> {
        let own = members.iter().find(|member| member.backend == backend);
        if own.is_some_and(|own| own.fit) { None } else { self.rule(backend, Cause::Silent, members) }
    }

    /// Forgets backends that are gone.
    pub fn retain(&mut self, keep: impl Fn(u16) -> bool) {
        self.cases.retain(|backend, _| keep(*backend));
        self.by_probe.retain(|backend| keep(*backend));
    }

    /// Whether a backend's connections stay although it is out.
    pub fn is_spared(&self, backend: u16) -> bool {
        self.cases.get(&backend).is_some_and(|case| case.spared)
    }

    /// When the next turn is due; `NEVER` if nothing waits.
    pub fn deadline(&self) -> Instant {
        self.cases.values().map(|case| case.due).min().unwrap_or(Instant::NEVER)
    }

    /// Decides what is due. `members` gives the backends of the service that a backend belongs to,
    /// itself included.
    pub fn turn(&mut self, members: &dyn Fn(u16) -> Vec<Member>, now: Instant) -> Vec<Ruling> {
        let due: Vec<_> = self.cases.iter().filter(|(_, case)| case.due <= now).map(|(b, case)| (*b, *case)).collect();
        let mut rulings = Vec::new();
        for (backend, mut case) in due {
            let members = members(backend);
            let own = members.iter().find(|member| member.backend == backend).copied();
            let waits = |member: &Member| member.backend != backend && member.fit && !member.vouched;
            if case.cause == Cause::ProbeTimeout && now < case.begun_by + PATIENCE && members.iter().any(waits) {
                self.cases.insert(backend, Case { due: now + SOON, ..case });
                continue;
            }
            let is_out = members.iter().any(|member| member.backend == backend && member.out.is_some());
            match self.rule(backend, case.cause, &members) {
                None if is_out && own.is_some_and(|own| !case.is_confirmed(&own)) => {
                    self.cases.insert(backend, Case { due: now + AGAIN, ..case });
                }
                None => {
                    self.cases.remove(&backend);
                    if case.cause == Cause::ProbeTimeout {
                        self.by_probe.insert(backend);
                    }
                    rulings.push(Ruling::Reset(Reset { backend, cause: case.cause, begun_by: case.begun_by }));
                }
                Some(_) if !is_out => _ = self.cases.remove(&backend),
                Some(why) => {
                    self.cases.insert(backend, Case { due: now + AGAIN, spared: true, unanswered: None, ..case });
                    if !case.spared {
                        rulings.push(Ruling::Spare(backend, why));
                    }
                }
            }
        }
        rulings
    }

    fn rule(&self, backend: u16, cause: Cause, members: &[Member]) -> Option<Spared> {
        let others = || members.iter().filter(|member| member.backend != backend);
        let fit = |member: &Member| member.fit && (member.vouched || cause != Cause::ProbeTimeout);
        let all = 1 + others().count();
        let unfit = 1 + others().filter(|member| !fit(member)).count();
        let reset_by_probe = |member: &Member| member.out.is_some() && self.by_probe.contains(&member.backend);
        match () {
            () if unfit > 1 && 2 * unfit >= all => Some(Spared::TooMany),
            () if !others().any(fit) => Some(Spared::NowhereToGo),
            () if cause == Cause::ProbeTimeout && others().any(reset_by_probe) => Some(Spared::OneAtATime),
            () => None,
        }
    }
}

#[cfg(test)]
mod tests;
