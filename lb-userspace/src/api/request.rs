//! What the control socket asks the daemon: values over one bounded queue, each with the place for its answer.

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

/// Length of the queue of requests: more than this many at once are told to come again.
pub const QUEUE: usize = 64;

/// Where an answer goes. Who asked may be gone: sending to it then fails, which is fine.
pub type Reply<T> = oneshot::Sender<T>;

/// One request.
#[derive(Debug)]
pub enum Request {
    /// Nothing but whether the loop turns.
    Ping(Reply<()>),
    Report(Reply<Report>),
    /// Refused if there is no backend of that name.
    Conns(ConnsFilter, Reply<Result<Conns, Refused>>),
    Counters(Reply<Counters>),
    Vrrp(Reply<Vec<VrrpStatus>>),
    /// One connection explained, or what a SYN would meet.
    Trace(TraceQuery, Reply<Result<Trace, Refused>>),
    /// Which backends operators have taken out.
    InForce(Reply<Vec<InForce>>),
    /// How far a task is.
    Task(u64, Reply<Result<Task, Refused>>),
    /// An operator's command, and whose it is.
    Order(Order, Peer),
    /// Read the configuration anew; refused with nothing changed if it has an error.
    Reload(Reply<Result<Reloaded, Refused>>),
    /// Start the program that is now on disk, which takes over. Answered when it has.
    Upgrade(Reply<Result<Upgraded, Refused>>),
    /// End the daemon. Answered when the datapath is as it shall stay; the server is shut down after that.
    Stop {
        detach: bool,
        reply: Reply<Result<(), Refused>>,
    },
}

/// A command that acts. Answered when it is done, resets apart: those go on at their pace.
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

/// Which connections are wanted: those for which all that is given holds. It is the query string of `/api/v1/conns`.
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
    /// Seconds since the connection began, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_s: Option<u64>,
    /// Most rows; nothing: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

impl ConnsFilter {
    /// Whether this connection is wanted (`limit` apart).
    pub fn takes(&self, conn: &Conn) -> bool {
        self.backend.as_deref().is_none_or(|backend| backend == &*conn.backend)
            && self.client.is_none_or(|client| client == conn.client.ip())
            && self.state.is_none_or(|state| state == conn.state)
            && self.older_s.is_none_or(|age| conn.age_s >= age)
    }
}

/// Which events are wanted: the query string of `/api/v1/events`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsFilter {
    /// Those with a higher number.
    pub after: u64,
    /// Most of those that have happened, the newest; nothing: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// And those to come: a line of JSON each, without end.
    pub follow: bool,
}

/// The connections that were wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conns {
    /// At most `limit` of them.
    pub rows: Vec<Conn>,
    /// How many there are without the limit.
    pub total: u64,
}
