//! The JSON of the commands that act: what is asked, and what was done. Fields that nobody knows are refused.
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
//! An answer comes when the kernel's tables are written. Resets go on after it, at their pace: `GET /api/v1/tasks/ID` says
//! how far. `GET /api/v1/admin` lists what is in force ([`InForce`]).

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::words::{AdminWord, BackendReason, BackendState, Task};

/// No new connections for a backend; those it has go on, until the deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    pub backend: String,
    /// Needed where several services have a backend of this name; so in all the others.
    #[serde(default)]
    pub service: Option<String>,
    /// After so many milliseconds the rest is reset; nothing: never.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
    /// Resets a second, from the deadline on.
    #[serde(default = "Drain::default_rate")]
    pub rate: NonZeroU32,
}

impl Drain {
    /// Resets a second if nothing else is said.
    pub const RATE: NonZeroU32 = NonZeroU32::new(50).unwrap();
    /// Thirty days: longer is never.
    pub const LONGEST_MS: u64 = 30 * 86_400_000;

    fn default_rate() -> NonZeroU32 {
        Self::RATE
    }
}

/// A backend is out at once; its connections stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Maint {
    pub backend: String,
    #[serde(default)]
    pub service: Option<String>,
    /// Reset its connections as well, at the service's `reset_rate`.
    #[serde(default)]
    pub reset: bool,
}

/// Takes a drain or a maint back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    pub backend: String,
    #[serde(default)]
    pub service: Option<String>,
}

/// The mastership of a VRRP instance, and of its group, is given to another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    pub instance: Arc<str>,
}

/// Other settings until the next reload. What is left out stays.
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

/// Which connections to reset: one of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    /// The one from this address and port.
    #[serde(default)]
    pub connection: Option<SocketAddr>,
    /// Those of this client.
    #[serde(default)]
    pub client: Option<IpAddr>,
    /// Those of this backend.
    #[serde(default)]
    pub backend: Option<String>,
    /// With `backend`.
    #[serde(default)]
    pub service: Option<String>,
}

/// Resets the fewest connections after which backends are even.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// Only this service; nothing: all.
    #[serde(default)]
    pub service: Option<String>,
    /// Resets a second, in each service.
    #[serde(default = "Rebalance::default_rate")]
    pub rate: NonZeroU32,
    /// By how many connections backends may differ.
    #[serde(default = "Rebalance::default_tolerance")]
    pub tolerance: NonZeroU32,
    /// Say what would be done, and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

impl Rebalance {
    /// Resets a second if nothing else is said.
    pub const RATE: NonZeroU32 = NonZeroU32::new(5).unwrap();
    /// Connections that backends may differ by if nothing else is said.
    pub const TOLERANCE: NonZeroU32 = NonZeroU32::new(1).unwrap();

    fn default_rate() -> NonZeroU32 {
        Self::RATE
    }

    fn default_tolerance() -> NonZeroU32 {
        Self::TOLERANCE
    }
}

/// How a backend stands after a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub service: Arc<str>,
    pub backend: Arc<str>,
    pub state: BackendState,
    pub reason: Option<BackendReason>,
    /// How it stood before.
    pub was: BackendState,
    pub weight: u32,
    pub max_conns: u32,
    /// Open connections, half-open ones included.
    pub active: u64,
    /// Of a drain: when the rest is reset.
    pub deadline: Option<Timestamp>,
    /// The resets that were begun.
    pub task: Option<Task>,
}

/// A backend that an operator has taken out: a row of `GET /api/v1/admin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    pub service: Arc<str>,
    pub backend: Arc<str>,
    pub order: AdminWord,
    pub since: Timestamp,
    /// Who has said so.
    pub by: Arc<str>,
    /// Of a drain: when the rest is reset.
    pub deadline: Option<Timestamp>,
    /// Of a drain with a deadline: resets a second.
    pub rate: Option<u32>,
    /// Connections that are still open.
    pub active: u64,
}

/// What a rebalancing does, or (`dry_run`) would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rebalanced {
    pub services: Vec<RebalancedService>,
    /// The sum over the services.
    pub resets: u64,
    /// How long it takes at this rate.
    pub seconds: f64,
    /// One for each service with something to do; none with `dry_run`.
    pub tasks: Vec<Task>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalancedService {
    pub service: Arc<str>,
    /// How far its backends differ: with equal weights the most connections less the fewest.
    pub spread: u32,
    /// The same when every client has come back.
    pub spread_after: u32,
    pub backends: Vec<RebalancedBackend>,
    /// Why nothing can be done about it.
    pub skipped: Option<String>,
}

/// A backend that takes part: those that are out, drained or `backup` do not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebalancedBackend {
    pub backend: Arc<str>,
    pub weight: u32,
    pub active: u32,
    /// How many of its connections are reset.
    pub resets: u32,
    /// How many it has when every client has come back.
    pub after: u32,
}
