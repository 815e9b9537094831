//! Whether a backend gets connections: what the file says, what an operator said and what its health is, brought together
//! in one place.

use lb_common::{
    layout::{NEVER, NONE, OUT, UP},
    verdict::Reason,
};

use super::{Controller, health, out_reason};
use crate::api::types::{BackendReason, BackendState};

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

/// How a backend stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The word for it.
    pub state: BackendState,
    /// Why it is not simply up.
    pub reason: Option<BackendReason>,
    /// For the map: `NONE`, `OUT` or `UP`.
    pub admission: u32,
    /// For the map: from when on a trial connection may be made, CLOCK_MONOTONIC in nanoseconds.
    pub retry_at: u64,
}

impl Controller {
    /// How a backend stands at `now`, CLOCK_MONOTONIC in nanoseconds.
    pub fn standing(&self, backend: u16, _slow_until: u64, now: u64) -> Standing {
        let Some(health) = self.health(backend) else {
            let (state, reason) = (BackendState::Down, Some(BackendReason::Config));
            return Standing { state, reason, admission: NONE, retry_at: NEVER };
        };
        let admin = self.name_of(backend).map_or(Admin::None, |name| self.orders.admin(&name));
        let out = match out_reason(health) {
            Some(Reason::Refused) => Some(BackendReason::Refused),
            Some(Reason::ConnectTimeout) => Some(BackendReason::Timeout),
            _ => None,
        };
        let (state, reason) = match health.state() {
            _ if admin == Admin::Maint => (BackendState::Maint, Some(BackendReason::Admin)),
            _ if admin == Admin::Drain => (BackendState::Draining, Some(BackendReason::Admin)),
            _ if !self.is_reachable(backend) => (BackendState::Down, Some(BackendReason::Silent)),
            health::State::Up => (BackendState::Up, None),
            health::State::Out { retry_at, .. } if now < retry_at => (BackendState::Down, out),
            health::State::Out { .. } => (BackendState::Probing, out),
        };
        let (admission, retry_at) = match health.state() {
            _ if admin != Admin::None => (NONE, NEVER),
            health::State::Up => (UP, NEVER),
            health::State::Out { retry_at, .. } => (OUT, retry_at),
        };
        Standing { state, reason, admission, retry_at }
    }
}
