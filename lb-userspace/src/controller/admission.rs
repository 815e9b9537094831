//! Whether a backend gets connections: what the file says, what an operator said and what its
//! health is, brought together in one place.
//!
//! | in the file | operator | health | state | new connections |
//! |---|---|---|---|---|
//! | `down = true` | | | down, config | never |
//! | | maint | | maint, admin | never |
//! | | drain | out | down, the cause | never |
//! | | drain | up or not ready | draining, admin | never |
//! | | | next hop unknown | down, silent | when nothing else is left, should it answer |
//! | | | out, connections reset | down, the cause | a trial at `retry_at`; or when nothing else is left |
//! | | | out, connections kept | draining, the cause | the same |
//! | | | not ready | draining, `probe_status` or `probe_tls` | when nothing else is left |
//! | | | up | up, or `slow_start` | its share |

use lb_common::{
    layout::{NONE, OUT, UP},
    time::Instant,
};

use super::{
    health::{Cause, State},
    probe_count::Unready,
};
use crate::words::{BackendReason, BackendState};

/// What an operator has said about a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admin {
    /// Nothing, or `ready`.
    #[default]
    None,
    /// No new connections; those it has go on.
    Drain,
    /// Out at once.
    Maint,
}

/// Everything that decides the state of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// `down = true`, or no longer in the file.
    pub down: bool,
    /// The operator's word.
    pub admin: Admin,
    /// Its health.
    pub health: State,
    /// Its next hop is known.
    pub reachable: bool,
    /// Its established connections stay although it is out, because too many backends failed
    /// together.
    pub spared: bool,
    /// It gets less than its share until then.
    pub slow_until: Instant,
}

/// The state of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The word for it.
    pub state: BackendState,
    /// Why it is not simply up.
    pub reason: Option<BackendReason>,
    /// For the map: `NONE`, `OUT` or `UP`.
    pub admission: u32,
    /// For the map: the time from which a trial connection may be made.
    pub retry_at: Instant,
}

/// The state of a backend at `now`.
pub fn standing(facts: &Facts, now: Instant) -> Standing {
    let (state, reason) = shown(facts, now);
    let (admission, retry_at) = match facts.health {
        _ if facts.down || facts.admin != Admin::None => (NONE, Instant::NEVER),
        State::Up => (UP, Instant::NEVER),
        State::NotReady(_) => (OUT, Instant::NEVER),
        State::Out { retry_at, .. } => (OUT, retry_at),
    };
    Standing { state, reason, admission, retry_at }
}

fn shown(facts: &Facts, now: Instant) -> (BackendState, Option<BackendReason>) {
    let by_admin = Some(BackendReason::Admin);
    match facts.health {
        _ if facts.down => (BackendState::Down, Some(BackendReason::Config)),
        _ if facts.admin == Admin::Maint => (BackendState::Maint, by_admin),
        _ if !facts.reachable => (BackendState::Down, Some(BackendReason::Silent)),
        State::Out { cause, .. } if facts.spared => (BackendState::Draining, cause.map(Cause::reason)),
        State::Out { cause, retry_at } if now < retry_at => (BackendState::Down, cause.map(Cause::reason)),
        _ if facts.admin == Admin::Drain => (BackendState::Draining, by_admin),
        State::Out { cause, .. } => (BackendState::Probing, cause.map(Cause::reason)),
        State::NotReady(unready) => (BackendState::Draining, Some(unready.reason())),
        State::Up if now < facts.slow_until => (BackendState::SlowStart, None),
        State::Up => (BackendState::Up, None),
    }
}

impl Cause {
    /// The word for it in the JSON.
    pub fn reason(self) -> BackendReason {
        match self {
            Cause::Refused => BackendReason::Refused,
            Cause::Timeout => BackendReason::Timeout,
            Cause::Unreachable => BackendReason::Unreachable,
            Cause::Silent => BackendReason::Silent,
            Cause::ProbeTimeout => BackendReason::ProbeTimeout,
        }
    }
}

impl Unready {
    /// The word for it in the JSON.
    pub fn reason(self) -> BackendReason {
        match self {
            Unready::Status => BackendReason::ProbeStatus,
            Unready::Tls => BackendReason::ProbeTls,
        }
    }
}

#[cfg(test)]
mod tests;
