//! What is known of a connection when its line is written.

use lb_common::verdict::Reason;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The client.
    pub client: SocketAddr,
    /// The listen address it connected to.
    pub server: SocketAddr,
    /// When the connection ended, or for a line in between: now.
    pub ended: jiff::Timestamp,
    /// From the first SYN to the end.
    pub session: Duration,
    /// Payload bytes that the client sent.
    pub bytes_received: u64,
    /// Payload bytes that the client received.
    pub bytes_sent: u64,
    pub status: Status,
    /// The backends that were tried, in order; the last one is the one that served, if any did.
    pub tries: Vec<Try>,
    pub service: Arc<str>,
    /// The backend's name; `None` if no backend was tried.
    pub backend: Option<Arc<str>>,
    /// How it ended; `None` while it is open.
    pub reason: Option<Reason>,
    /// The source address that the backend saw.
    pub snat: Option<SocketAddr>,
    /// The connection's own number, the same in all of its lines.
    pub connection: u64,
}

/// A backend that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    pub address: SocketAddr,
    /// How long it took to answer; `None` if it did not connect.
    pub connected_in: Option<Duration>,
}

/// nginx's session status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Still open (`interval`).
    Open,
    /// A backend was connected, however the connection ended.
    Served,
    /// Denied by `rules`.
    Denied,
    /// No backend could be connected.
    NoBackend,
    /// Over a limit.
    OverLimit,
}

impl Status {
    /// `$status`
    pub fn code(self) -> &'static str {
        match self {
            Status::Open => "-",
            Status::Served => "200",
            Status::Denied => "403",
            Status::NoBackend => "502",
            Status::OverLimit => "503",
        }
    }
}

impl Record {
    /// Whether the client was turned away before any backend was tried. Attackers choose how many
    /// such lines there are.
    pub fn is_turned_away(&self) -> bool {
        self.tries.is_empty() && !matches!(self.status, Status::Open | Status::Served)
    }
}
