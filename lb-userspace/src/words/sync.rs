//! Flow sync: the state of a peer and what is counted of it.

use serde::{Deserialize, Serialize};

/// How far this host and a peer know each other's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncState {
    /// Not heard yet, or it has another key.
    Connecting,
    /// The full copy of its connections is on the way.
    Copying,
    /// All its connections are known here.
    Synced,
    /// Not heard for three seconds.
    Lost,
}

impl SyncState {
    /// Every state there is.
    pub const ALL: &[SyncState] = &[SyncState::Connecting, SyncState::Copying, SyncState::Synced, SyncState::Lost];
}

/// What was sent to a peer and received from it since this process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncCounts {
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Connections sent, repetitions included.
    pub flows_sent: u64,
    /// Ends of connections sent.
    pub ends_sent: u64,
    /// Full copies sent.
    pub copies_sent: u64,
    /// Changes not sent because the queue was full.
    pub dropped: u64,
    /// Connections received.
    pub flows_received: u64,
    /// Ends of connections received.
    pub ends_received: u64,
    /// Full copies received without a gap.
    pub copies_received: u64,
    /// Connections whose slot held another one; the younger of the two stays.
    pub conflicts: u64,
    /// Connections of a service, backend or port that this host does not have.
    pub unknown: u64,
}
