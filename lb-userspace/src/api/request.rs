//! Requests to the daemon's loop: values in a bounded queue, each with a channel for the answer.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{
    admin::{Changed, Drain, Failover, InForce, Kill, Maint, Ready, Rebalance, Rebalanced, Set},
    commands::Peer,
    report::Report,
    trace::{Trace, TraceQuery},
    types::{Conn, ConnState, Counters, FailedOver, Refused, Reloaded, VrrpStatus},
};
use crate::{handover::Upgraded, words::Task};

/// Length of the request queue. Requests beyond it are answered with a request to try again.
pub const QUEUE: usize = 64;

/// The channel for an answer. The requester may have hung up: sending then fails, which is fine.
pub type Reply<T> = oneshot::Sender<T>;

/// A request to the daemon's loop.
#[derive(Debug)]
pub enum Request {
    /// Whether the loop runs.
    Ping(Reply<()>),
    Report(Reply<Report>),
    /// Refused if there is no backend of that name.
    Conns(ConnsFilter, Reply<Result<Conns, Refused>>),
    Counters(Reply<Counters>),
    Vrrp(Reply<Vec<VrrpStatus>>),
    /// Explains one connection, or what would happen to a SYN.
    Trace(TraceQuery, Reply<Result<Trace, Refused>>),
    /// The backends that operators took out.
    InForce(Reply<Vec<InForce>>),
    /// The progress of a task.
    Task(u64, Reply<Result<Task, Refused>>),
    /// An operator's command, and the user who gave it.
    Order(Order, Peer),
    /// Reload the configuration; refused without any change if it has an error.
    Reload(Reply<Result<Reloaded, Refused>>),
    /// Start the program that is now on disk; answered when it has taken over.
    Upgrade(Reply<Result<Upgraded, Refused>>),
    /// Stop the daemon. Answered when the datapath is in its final state; the server shuts down
    /// after that.
    Stop {
        detach: bool,
        reply: Reply<Result<(), Refused>>,
    },
}

/// A command that acts. Answered when it is done; only resets continue at their rate.
#[derive(Debug)]
pub enum Order {
    Drain(Drain, Reply<Result<Changed, Refused>>),
    Maint(Maint, Reply<Result<Changed, Refused>>),
    Ready(Ready, Reply<Result<Changed, Refused>>),
    Set(Set, Reply<Result<Changed, Refused>>),
    Kill(Kill, Reply<Result<Task, Refused>>),
    Rebalance(Rebalance, Reply<Result<Rebalanced, Refused>>),
    Failover(Failover, Reply<Result<FailedOver, Refused>>),
    StopTask(u64, Reply<Result<Task, Refused>>),
}

/// The query string of `/api/v1/conns`: connections that match all given conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnsFilter {
    /// The backend's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<ConnState>,
    /// Minimum age in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_s: Option<u64>,
    /// Maximum number of rows; `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl ConnsFilter {
    /// Whether a connection matches, `limit` aside.
    pub fn takes(&self, conn: &Conn) -> bool {
        self.backend.as_deref().is_none_or(|backend| backend == &*conn.backend)
            && self.client.is_none_or(|client| client == conn.client.ip())
            && self.state.is_none_or(|state| state == conn.state)
            && self.older_s.is_none_or(|age| conn.age_s >= age)
    }
}

/// The query string of `/api/v1/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsFilter {
    /// Only events with a higher number.
    pub after: u64,
    /// Only this many of the newest past events; `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Keep sending new events, one line of JSON each, without end.
    pub follow: bool,
}

/// The connections that match a filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conns {
    /// At most `limit` of them.
    pub rows: Vec<Conn>,
    /// Their number without the limit.
    pub total: u64,
}
