//! `/api/v1/trace`: explains one connection, or what would happen to a SYN of its client now.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::types::ConnState;
use crate::words::{BackendReason, BackendState, VrrpState};

/// The query string: the client in question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceQuery {
    /// The client's address and port.
    pub client: SocketAddr,
    /// Only this service; `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// The answer. If the client has no open connection, `new` has one row per listen address in
/// question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    pub client: SocketAddr,
    pub connections: Vec<Connection>,
    pub new: Vec<Foretold>,
}

/// One open connection, as recorded in its slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    pub service: Arc<str>,
    pub listen: SocketAddr,
    pub backend: Arc<str>,
    pub address: SocketAddr,
    /// The source that the backend sees: the SNAT address and port.
    pub snat: SocketAddr,
    pub state: ConnState,
    pub balance: String,
    /// How the backend was chosen: `up`, `backup`, `fail_open` or `trial`.
    pub chosen: String,
    /// Number of backends tried, the current one included.
    pub tries: u8,
    /// Backends that failed before, as far as this daemon knows.
    pub failed: Vec<SocketAddr>,
    /// Ports skipped because the backend still held an older connection on them.
    pub ports_left: u8,
    /// Whether it counts towards `per_client_connections`.
    pub counted: bool,
    pub pool: u16,
    pub slot: u16,
    pub generation: u32,
    pub client_side: Side,
    pub backend_side: Side,
    pub age_s: f64,
    pub idle_s: f64,
    /// Until idle_timeout; `None` while it is half-open.
    pub idle_left_s: Option<f64>,
    /// Until connect_timeout of this try; only while it is half-open.
    pub connect_left_s: Option<f64>,
    /// Time until the backend answered.
    pub connect_ms: Option<f64>,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// One side of a connection. Sequence numbers are as on the wire; `None` if not seen yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Initial sequence number.
    pub isn: Option<u32>,
    /// The sequence number after the last byte this side sent.
    pub end: Option<u32>,
    /// The last acknowledgement from this side.
    pub acknowledged: Option<u32>,
    /// The next hop towards it; `None` if unknown.
    pub mac: Option<String>,
    pub interface: Option<String>,
    /// Who says so: `neighbour`, this host's own routes and neighbours, or `frame`, the sender of
    /// its frames; of a client only.
    pub way: Option<String>,
    /// Our own MAC address there.
    pub own_mac: Option<String>,
    /// Whether this side has closed (FIN).
    pub fin: bool,
}

/// What the attached program would do with a SYN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Foretold {
    pub service: Arc<str>,
    pub listen: SocketAddr,
    pub verdict: Verdict,
    /// Whether the service sends SYN cookies and this client is not exempt: the SYN is answered
    /// with one, unless the client has answered one in the last seconds, and the rest is what the
    /// SYN that follows meets.
    #[serde(default)]
    pub syn_cookie: bool,
    /// Whether no port is free and the oldest connection that its client has not confirmed gives
    /// way: which backend is chosen then is not foretold.
    #[serde(default)]
    pub makes_room: bool,
    /// Why it is refused: a reason of `counters --list`.
    pub reason: Option<String>,
    pub meaning: Option<String>,
    /// The deciding rule.
    pub rule: Option<DecidingRule>,
    /// Present if the service has a limit.
    pub client_limit: Option<ClientLimit>,
    pub balance: String,
    /// `None` if the SYN is refused, here and below.
    pub chosen: Option<String>,
    pub backend: Option<Arc<str>>,
    pub address: Option<SocketAddr>,
    pub snat: Option<SocketAddr>,
    /// The next hop of the frame that would be sent.
    pub mac: Option<String>,
    pub interface: Option<String>,
    /// All backends of the service with their current states.
    pub backends: Vec<Candidate>,
    /// Present if a VRRP instance carries the listen address and this host is not its master, so
    /// that SYNs go elsewhere.
    pub elsewhere: Option<Elsewhere>,
}

/// A backend that may have been considered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    pub backend: Arc<str>,
    pub address: SocketAddr,
    pub state: BackendState,
    pub reason: Option<BackendReason>,
    pub backup: bool,
    pub weight: u32,
    pub active: u32,
    /// 0: no limit.
    pub max_conns: u32,
}

/// The VRRP instance that carries a listen address, and its master.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    pub instance: String,
    pub state: VrrpState,
    /// The master, if one is known.
    pub master: Option<IpAddr>,
}

/// What happens to a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It goes to a backend.
    Forwarded,
    /// It is answered with a RST.
    Refused,
    /// It goes to this host itself: the program is on no interface of the service, or not on the
    /// one it would arrive by.
    NotOurs,
}

/// A rule: its position in `rules`, from 1, and its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecidingRule {
    pub number: usize,
    pub text: String,
}

/// `per_client_connections`, and the number of connections the client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientLimit {
    pub limit: u32,
    pub open: u32,
}
