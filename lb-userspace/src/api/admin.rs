//! The JSON of the commands that act: the requests and the answers. Unknown fields are refused.
//!
//! | `POST /api/v1/...` | asks | answers |
//! |---|---|---|
//! | `drain` | [`Drain`] | [`Changed`] |
//! | `maint` | [`Maint`] | [`Changed`] |
//! | `ready` | [`Ready`] | [`Changed`] |
//! | `set` | [`Set`] | [`Changed`] |
//! | `kill` | [`Kill`] | [`Task`] |
//! | `rebalance` | [`Rebalance`] | [`Rebalanced`] |
//! | `failover` | [`Failover`] | [`FailedOver`](super::types::FailedOver) |
//! | `tasks/ID/stop` | | [`Task`] |
//!
//! The answer is sent when the kernel's tables are written. Resets continue after it, at their
//! rate: `GET /api/v1/tasks/ID` shows the progress. `GET /api/v1/admin` lists what is in force
//! ([`InForce`]).

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::words::{AdminWord, BackendReason, BackendState, Task};

/// Sends a backend no new connections. Existing ones continue until the deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    pub backend: String,
    /// Needed if several services have a backend of this name; the same applies to the other
    /// commands.
    #[serde(default)]
    pub service: Option<String>,
    /// Milliseconds until what is left is reset; `None`: never.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Resets per second after the deadline.
    #[serde(default = "Drain::default_rate")]
    pub rate: NonZeroU32,
}

impl Drain {
    /// The default number of resets per second.
    pub const RATE: NonZeroU32 = NonZeroU32::new(50).unwrap();
    /// The longest deadline: thirty days.
    pub const LONGEST_MS: u64 = 30 * 86_400_000;

    fn default_rate() -> NonZeroU32 {
        Self::RATE
    }
}

/// Takes a backend out at once. Its connections stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Maint {
    pub backend: String,
    #[serde(default)]
    pub service: Option<String>,
    /// Also reset its connections, at the service's `reset_rate`.
    #[serde(default)]
    pub reset: bool,
}

/// Ends a drain or a maint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    pub backend: String,
    #[serde(default)]
    pub service: Option<String>,
}

/// Hands a VRRP instance, and its group, over to another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    pub instance: Arc<str>,
}

/// Changes settings until the next reload. Fields that are left out stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Set {
    pub backend: String,
    #[serde(default)]
    pub service: Option<String>,
    /// 1 to 65,535.
    #[serde(default)]
    pub weight: Option<u32>,
    /// 0: no limit.
    #[serde(default)]
    pub max_conns: Option<u32>,
}

/// Selects the connections to reset, by one of `connection`, `client` and `backend`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    /// The connection from this address and port.
    #[serde(default)]
    pub connection: Option<SocketAddr>,
    /// All connections of this client.
    #[serde(default)]
    pub client: Option<IpAddr>,
    /// All connections of this backend.
    #[serde(default)]
    pub backend: Option<String>,
    /// The service of `backend`.
    #[serde(default)]
    pub service: Option<String>,
}

/// Resets as few connections as possible to even out the backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// Only this service; `None`: all.
    #[serde(default)]
    pub service: Option<String>,
    /// Resets per second in each service.
    #[serde(default = "Rebalance::default_rate")]
    pub rate: NonZeroU32,
    /// Difference in connections that is acceptable between backends.
    #[serde(default = "Rebalance::default_tolerance")]
    pub tolerance: NonZeroU32,
    /// Only report what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

impl Rebalance {
    /// The default number of resets per second.
    pub const RATE: NonZeroU32 = NonZeroU32::new(5).unwrap();
    /// The default tolerance.
    pub const TOLERANCE: NonZeroU32 = NonZeroU32::new(1).unwrap();

    fn default_rate() -> NonZeroU32 {
        Self::RATE
    }

    fn default_tolerance() -> NonZeroU32 {
        Self::TOLERANCE
    }
}

/// The state of a backend after a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub service: Arc<str>,
    pub backend: Arc<str>,
    pub state: BackendState,
    pub reason: Option<BackendReason>,
    /// Its state before the command.
    pub was: BackendState,
    pub weight: u32,
    pub max_conns: u32,
    /// Open connections, half-open ones included.
    pub active: u64,
    /// For a drain: when the rest is reset.
    pub deadline: Option<Timestamp>,
    /// The resets that the command started.
    pub task: Option<Task>,
    /// What the operator may not have meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// A backend that an operator took out: a row of `GET /api/v1/admin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    pub service: Arc<str>,
    pub backend: Arc<str>,
    pub order: AdminWord,
    pub since: Timestamp,
    /// The user who gave the command.
    pub by: Arc<str>,
    /// For a drain: when the rest is reset.
    pub deadline: Option<Timestamp>,
    /// For a drain with a deadline: resets per second.
    pub rate: Option<u32>,
    /// Connections still open.
    pub active: u64,
}

/// What a rebalancing does or, with `dry_run`, would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rebalanced {
    pub services: Vec<RebalancedService>,
    /// The sum over all services.
    pub resets: u64,
    /// The duration at this rate.
    pub seconds: f64,
    /// One per service with something to do; empty with `dry_run`.
    pub tasks: Vec<Task>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalancedService {
    pub service: Arc<str>,
    /// The imbalance of its backends: with equal weights, the largest number of connections minus
    /// the smallest.
    pub spread: u32,
    /// The imbalance once every client has reconnected.
    pub spread_after: u32,
    pub backends: Vec<RebalancedBackend>,
    /// Why the service cannot be rebalanced.
    pub skipped: Option<String>,
}

/// A backend that takes part. Backends that are out, drained or `backup` do not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalancedBackend {
    pub backend: Arc<str>,
    pub weight: u32,
    pub active: u32,
    /// Number of its connections that are reset.
    pub resets: u32,
    /// Number of connections it has once every client has reconnected.
    pub after: u32,
}
