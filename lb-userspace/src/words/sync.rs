//! Flow sync: the state of a peer, and what is counted about it.

use serde::{Deserialize, Serialize};

/// The state of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncState {
    /// Nothing authentic was received yet: the peer is away, or has another key.
    Connecting,
    /// A full copy of its connections was requested and is not complete yet.
    Copying,
    /// All its connections are known here.
    Synced,
    /// Nothing was received for three seconds.
    Lost,
}

impl SyncState {
    /// Every state there is.
    pub const ALL: &[SyncState] = &[SyncState::Connecting, SyncState::Copying, SyncState::Synced, SyncState::Lost];
}

/// What this process has counted about one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncCounts {
    /// The peer's datagrams that never arrived; a full copy makes up for them.
    pub lost: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Connections sent, each one repeatedly.
    pub flows_sent: u64,
    /// Ends of connections sent.
    pub ends_sent: u64,
    /// Full copies sent.
    pub copies_sent: u64,
    /// Changes dropped because the queue was full.
    pub dropped: u64,
    /// Connections received.
    pub flows_received: u64,
    /// Ends of connections received.
    pub ends_received: u64,
    /// Full copies received completely.
    pub copies_received: u64,
    /// Received connections whose slot or client was taken by another one; the younger one stays.
    pub conflicts: u64,
    /// Received connections whose service, backend or port is unknown here.
    pub unknown: u64,
    /// Datagrams refused.
    pub refused: RefusedDatagrams,
}

/// Refused datagrams, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedDatagrams {
    /// Authentic, but their messages cannot be understood.
    pub malformed: u64,
    /// Sealed with another key, or altered on the way.
    pub not_authentic: u64,
    /// Received before, or of an old session.
    pub replayed: u64,
    /// Sealed with our key by an older version of the program, whose format is not believed.
    #[serde(default)]
    pub older_format: u64,
}

impl RefusedDatagrams {
    /// Each reason's name and number.
    pub const fn by_reason(&self) -> [(&'static str, u64); 4] {
        [
            ("malformed", self.malformed),
            ("not_authentic", self.not_authentic),
            ("older_format", self.older_format),
            ("replayed", self.replayed),
        ]
    }

    /// The number over all reasons.
    pub fn total(&self) -> u64 {
        self.by_reason().iter().map(|(_, count)| count).sum()
    }
}
