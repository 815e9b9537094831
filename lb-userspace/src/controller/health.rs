//! Health of one backend: from tries that failed, probes and silence to whether it gets
//! connections.
//!
//! ```text
//!          max_fails failures within fail_timeout
//!      up ──────────────────────────────────────▶ out until retry_at ─┐
//!       ▲                                            │       ▲        │ the kernel program gives it one
//!       └──── a trial connection is answered ────────┘       └────────┘ connection from retry_at on; it fails
//! ```
//! nginx's rule as it is documented ("the number of unsuccessful attempts ... that should happen in
//! the duration set by the fail_timeout parameter"), not as it behaves: there failures add up until
//! a connection succeeds that was picked `fail_timeout` after the last one, so that three failures
//! a minute apart take a backend out. Here a failure is forgotten after `fail_timeout`, and a
//! success in between forgives nothing.
//!
//! The kernel program closes the door itself, at the failure that is one too many (see
//! [`Window`](lb_common::failures::Window)): however many connect at once, and whether a controller
//! runs or not, no more of them meet a backend that is dead. What is left to this machine is what
//! has to be known about it: why it is out, and when it comes back. It keeps the times of single
//! failures, so it also sees those that the program has counted in two windows.
//!
//! The kernel program makes the trial: it moves `retry_at` forward by compare-and-swap, so there is
//! one trial at a time in the whole system; it swaps `OUT` for `UP` when the trial is answered.
//! When every backend is out, it gives them connections all the same; nothing here is needed for
//! that.
//!
//! With a probe (`[service.health]`) the [`ProbeCount`] of its outcomes decides too, and alone
//! brings the backend back, whatever has taken it out: no client is spent on a trial (`retry_at` is
//! `NEVER`).

use std::{collections::VecDeque, time::Duration};

use lb_common::{
    layout::{Backend, NOT_READY, OUT, UNTRUSTED, UP},
    time::Instant,
    verdict::Reason,
};

use super::probe_count::{Outcome, ProbeCount, Tries, Unready, Verdict};

/// What the configuration says about one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Failures that take it out; 0: none do.
    pub max_fails: u32,
    /// Within how long the failures have to come, and how long it is then out.
    pub fail_timeout: Duration,
    /// How long a try that ended in `ConnectTimeout` lasted.
    pub connect_timeout: Duration,
    /// How long it gets less than its share after it has come back; 0: not at all.
    pub slow_start: Duration,
    /// With a probe: how many it takes.
    pub probe: Option<Tries>,
}

impl Settings {
    /// When a client may try a backend that is out, if it may after `fail_timeout`.
    fn retry_at(&self, then: Instant) -> Instant {
        if self.probe.is_some() { Instant::NEVER } else { then }
    }
}

/// Why a backend is out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It refused connections, as a host does whose API server is restarting.
    Refused,
    /// It did not answer SYNs in time.
    Timeout,
    /// A router or a firewall said that it cannot be reached.
    Unreachable,
    /// It sent no packet on any connection although it was asked for one.
    Silent,
    /// It did not answer probes.
    ProbeTimeout,
}

impl Cause {
    /// How a record says it, and how the connections end that are reset because of it.
    pub fn to_reason(self) -> Reason {
        match self {
            Cause::Refused => Reason::Refused,
            Cause::Timeout => Reason::ConnectTimeout,
            Cause::Unreachable => Reason::Unreachable,
            Cause::Silent => Reason::BackendSilent,
            Cause::ProbeTimeout => Reason::ProbeTimeout,
        }
    }

    /// The reverse.
    pub fn from_reason(reason: Reason) -> Option<Cause> {
        let all = [Cause::Refused, Cause::Timeout, Cause::Unreachable, Cause::Silent, Cause::ProbeTimeout];
        all.into_iter().find(|cause| cause.to_reason() == reason)
    }
}

/// Whether a backend gets its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does.
    Up,
    /// It answers probes, but is not ready for connections: no new ones.
    NotReady(Unready),
    /// Not before `retry_at`, and then one trial connection.
    Out {
        /// The earliest trial, as this state machine has set it; the kernel program moves the word
        /// in the map. `NEVER` with a probe.
        retry_at: Instant,
        /// Unknown if an earlier version took it out.
        cause: Option<Cause>,
    },
}

/// What follows from an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// Take it out until then; or it was already out, and the cause is now another one.
    TakenOut {
        /// For the map.
        retry_at: Instant,
    },
    /// No new connections, while it is not ready.
    Drained(Unready),
    /// It stays out, and its trial has another time.
    StaysOut {
        /// For the map.
        retry_at: Instant,
    },
    /// A trial failed: it stays out for longer, as the map says already.
    TrialFailed,
    /// It is up again.
    Recovered,
}

/// A trial is distinguished from a connection begun before its backend went out by the time it
/// began, which comes from the coarse clock with its steps of 4 to 10 ms.
const CLOCK_STEP: Duration = Duration::from_millis(20);

/// The most failure times kept; a higher `max_fails` counts as this many.
const MAX_KEPT: u32 = 1024;

/// The machine.
#[derive(Clone, Debug)]
pub struct Health {
    state: State,
    /// The last failures while up, `max_fails` at most.
    failures: VecDeque<Instant>,
    /// Of the probes, if there are any.
    probe_count: Option<(Tries, ProbeCount)>,
    /// When a probe last passed, and since when they have failed; `ZERO`: none did.
    passed_at: Instant,
    failing_since: Instant,
    changed_at: Instant,
}

impl Health {
    /// A backend nothing is known about gets connections.
    pub fn new(now: Instant) -> Health {
        Health {
            state: State::Up,
            failures: VecDeque::new(),
            probe_count: None,
            passed_at: Instant::ZERO,
            failing_since: Instant::ZERO,
            changed_at: now,
        }
    }

    /// As the map has it, after a restart of the controller.
    pub fn adopted(record: &Backend, now: Instant) -> Health {
        let reason = u8::try_from(record.out_reason).ok().and_then(Reason::from_number);
        let unready = match record.out_reason {
            NOT_READY => Some(Unready::Status),
            UNTRUSTED => Some(Unready::Tls),
            _ => None,
        };
        let is_out = record.admission == OUT;
        // While no controller ran, the kernel program may have taken it back without recording
        // when.
        let known = (Instant(1)..=now).contains(&record.changed_at) && (is_out || record.out_reason == 0);
        let mut health = Health::new(if known { record.changed_at } else { now });
        if is_out {
            let cause = reason.and_then(Cause::from_reason);
            let out = State::Out { retry_at: record.retry_at, cause };
            health.state = unready.map_or(out, State::NotReady);
        }
        health
    }

    /// Its present state.
    pub fn state(&self) -> State {
        self.state
    }

    /// For its record: why it gets no connections.
    pub fn out_reason(&self) -> u32 {
        match self.state {
            State::NotReady(Unready::Status) => NOT_READY,
            State::NotReady(Unready::Tls) => UNTRUSTED,
            State::Out { cause: Some(cause), .. } => cause.to_reason() as u32,
            State::Out { cause: None, .. } | State::Up => 0,
        }
    }

    /// When the state last changed.
    pub fn changed_at(&self) -> Instant {
        self.changed_at
    }

    /// Whether its last probe failed.
    pub fn is_failing(&self) -> bool {
        self.probe_count.is_some_and(|(_, probe_count)| probe_count.is_failing())
    }

    /// Probes without an answer in a row.
    pub fn unanswered(&self) -> u32 {
        self.probe_count.map_or(0, |(_, probe_count)| probe_count.unanswered())
    }

    /// Whether it has passed a probe since those of `other` began to fail: then the two do not
    /// share a cause.
    pub fn is_vouched_against(&self, other: &Health) -> bool {
        self.passed_at >= other.failing_since
    }

    /// Whether clients can be sent there with confidence: it is up, and its last probe did not
    /// fail.
    pub fn is_fit(&self) -> bool {
        self.state == State::Up && !self.is_failing()
    }

    /// A connection attempt failed at `at` for `reason`.
    pub fn failed(&mut self, settings: &Settings, reason: Reason, at: Instant) -> Change {
        if settings.max_fails == 0 {
            return Change::Nothing;
        }
        let cause = cause_of_failure(reason);
        let timed_out = cause == Cause::Timeout;
        let began = if timed_out { at - settings.connect_timeout } else { at };
        match self.state {
            State::Up | State::NotReady(_) => self.counted(settings, cause, at),
            // Given a connection because every backend is out; the probe will decide.
            State::Out { .. } if settings.probe.is_some() => Change::Nothing,
            // Begun while it was up, or because every backend was out: no trial, and no news.
            State::Out { retry_at, .. } if began + CLOCK_STEP < retry_at => Change::Nothing,
            // From the beginning of the trial, so that a backend that is back is used within
            // fail_timeout.
            State::Out { cause: before, .. } => {
                let retry_at = (began + settings.fail_timeout).max(at);
                let answered = cause == Cause::Refused;
                let silent = before.filter(|before| !answered && *before == Cause::Silent);
                self.state = State::Out { retry_at, cause: silent.or(Some(cause)) };
                Change::TrialFailed
            }
        }
    }

    /// The kernel program took it out at `at`, at a failure for `reason`.
    pub fn taken_out(&mut self, settings: &Settings, reason: Reason, at: Instant) -> Change {
        match self.state {
            // Known already: this machine's own count was first, or the map has shown it.
            State::Out { .. } => self.failed(settings, reason, at),
            State::Up | State::NotReady(_) => {
                self.distrust_probes();
                self.take_out(settings, cause_of_failure(reason), at)
            }
        }
    }

    fn counted(&mut self, settings: &Settings, cause: Cause, at: Instant) -> Change {
        let most = settings.max_fails.min(MAX_KEPT) as usize;
        self.failures.push_back(at);
        while self.failures.len() > most {
            self.failures.pop_front();
        }
        let oldest = self.failures.front().copied().unwrap_or(at);
        if self.failures.len() < most || oldest.age(at) > settings.fail_timeout {
            return Change::Nothing;
        }
        self.distrust_probes();
        self.take_out(settings, cause, at)
    }

    fn take_out(&mut self, settings: &Settings, cause: Cause, at: Instant) -> Change {
        let retry_at = match self.state {
            State::Out { retry_at, .. } => retry_at,
            _ => settings.retry_at(at + settings.fail_timeout),
        };
        self.failures.clear();
        self.enter(State::Out { retry_at, cause: Some(cause) }, at);
        Change::TakenOut { retry_at }
    }

    /// Discards what the probes have found so far.
    fn distrust_probes(&mut self) {
        self.probe_count = self.probe_count.map(|(tries, _)| (tries, ProbeCount::down()));
    }

    fn enter(&mut self, state: State, at: Instant) {
        self.state = state;
        self.changed_at = at;
    }

    /// It sent no packet although it was asked repeatedly.
    pub fn silent(&mut self, settings: &Settings, at: Instant) -> Change {
        match self.state {
            State::Out { cause: Some(Cause::Silent), .. } => Change::Nothing,
            _ => {
                self.distrust_probes();
                self.take_out(settings, Cause::Silent, at)
            }
        }
    }

    /// A probe has come to an end.
    pub fn probed(&mut self, settings: &Settings, outcome: Outcome, at: Instant) -> Change {
        let Some((tries, mut probe_count)) = self.probe_count else { return Change::Nothing };
        if outcome == Outcome::Passed {
            self.passed_at = at;
        } else if !probe_count.is_failing() {
            self.failing_since = at;
        }
        let verdict = probe_count.count(outcome, tries);
        self.probe_count = Some((tries, probe_count));
        match (verdict, self.state) {
            (Verdict::Up, State::Up) | (Verdict::NotYet, State::NotReady(_) | State::Out { .. }) => Change::Nothing,
            (Verdict::Up, _) => self.recovered(at),
            (Verdict::NotReady(unready), State::NotReady(before)) if before == unready => Change::Nothing,
            // Failures of both kinds: it was alive a moment ago.
            (Verdict::NotYet, State::Up) => self.drained(probe_count.unready(), at),
            (Verdict::NotReady(unready), _) => self.drained(unready, at),
            (Verdict::Dead(outcome), _) => self.dead(settings, outcome, at),
        }
    }

    fn drained(&mut self, unready: Unready, at: Instant) -> Change {
        self.failures.clear();
        self.enter(State::NotReady(unready), at);
        Change::Drained(unready)
    }

    fn dead(&mut self, settings: &Settings, outcome: Outcome, at: Instant) -> Change {
        let cause = if outcome == Outcome::Refused { Cause::Refused } else { Cause::ProbeTimeout };
        match self.state {
            State::Out { cause: Some(before), .. } if before == cause => Change::Nothing,
            // No news.
            State::Out { cause: Some(Cause::Silent), .. } if cause == Cause::ProbeTimeout => Change::Nothing,
            _ => self.take_out(settings, cause, at),
        }
    }

    /// What another host has found out from its clients' connections. Where the backend is probed,
    /// its own probe decides.
    pub fn found_elsewhere(&mut self, settings: &Settings, cause: Option<Cause>, at: Instant) -> Change {
        match (cause, self.state) {
            _ if settings.probe.is_some() || settings.max_fails == 0 => Change::Nothing,
            (None, _) => self.recovered(at),
            (Some(cause), State::Out { cause: Some(before), .. }) if cause == before => Change::Nothing,
            (Some(cause), _) => self.take_out(settings, cause, at),
        }
    }

    /// A connection was answered while the backend was out, or enough probes were.
    pub fn recovered(&mut self, at: Instant) -> Change {
        if self.state == State::Up {
            return Change::Nothing;
        }
        self.failures.clear();
        self.enter(State::Up, at);
        Change::Recovered
    }

    /// The host answers ARP again after a silence: the next connection may be its trial.
    pub fn reachable(&mut self, settings: &Settings, now: Instant) -> Change {
        match self.state {
            State::Out { retry_at, cause } if retry_at > now && settings.probe.is_none() => {
                self.state = State::Out { retry_at: now, cause };
                Change::StaysOut { retry_at: now }
            }
            _ => Change::Nothing,
        }
    }

    /// New settings: with `max_fails = 0` and no probe nothing keeps it out; without a probe it
    /// gets its trial.
    pub fn configured(&mut self, settings: &Settings, now: Instant) -> Change {
        let up = self.state == State::Up;
        self.probe_count = settings.probe.map(|tries| match self.probe_count {
            Some((before, probe_count)) if before == tries => (tries, probe_count),
            _ if up => (tries, ProbeCount::up(tries)),
            _ => (tries, ProbeCount::down()),
        });
        match self.state {
            State::Up => Change::Nothing,
            _ if settings.probe.is_none() && settings.max_fails == 0 => self.recovered(now),
            State::NotReady(_) if settings.probe.is_none() => self.recovered(now),
            State::NotReady(_) => Change::Nothing,
            State::Out { retry_at, cause } => {
                let anew = if retry_at == Instant::NEVER { now } else { retry_at };
                let anew = settings.retry_at(anew);
                self.state = State::Out { retry_at: anew, cause };
                if anew == retry_at { Change::Nothing } else { Change::StaysOut { retry_at: anew } }
            }
        }
    }

    /// Compares with the map, where the kernel program may have taken it out or back in a change
    /// whose event did not reach us, or not yet; and where it has moved the next trial.
    pub fn compared(&mut self, settings: &Settings, record: &Backend, now: Instant) -> Change {
        match (record.admission, self.state) {
            (UP, State::Out { .. } | State::NotReady(_)) if settings.probe.is_none() => self.recovered(now),
            (OUT, State::Up) => self.found_out(settings, record, now),
            (OUT, State::Out { cause, .. }) => {
                self.state = State::Out { retry_at: settings.retry_at(record.retry_at), cause };
                Change::Nothing
            }
            _ => Change::Nothing,
        }
    }

    /// The map says that it is out.
    fn found_out(&mut self, settings: &Settings, record: &Backend, now: Instant) -> Change {
        let reason = u8::try_from(record.out_reason).ok().and_then(Reason::from_number);
        let at = if record.changed_at <= now { record.changed_at.max(self.changed_at) } else { now };
        let retry_at = settings.retry_at(record.retry_at);
        self.distrust_probes();
        self.failures.clear();
        self.enter(State::Out { retry_at, cause: reason.and_then(Cause::from_reason) }, at);
        Change::TakenOut { retry_at }
    }
}

/// What a failed try shows.
fn cause_of_failure(reason: Reason) -> Cause {
    match reason {
        Reason::ConnectTimeout => Cause::Timeout,
        Reason::Unreachable => Cause::Unreachable,
        _ => Cause::Refused,
    }
}

#[cfg(test)]
mod tests;
