//! Answers about flow sync.

use crate::{
    api::types::{SyncPeer, SyncState},
    sync::{link::Standing, station::PeerStatus},
};

/// One of the other hosts.
pub fn peer(peer: &PeerStatus) -> SyncPeer {
    let counts = &peer.counts;
    let refused =
        [("not_authentic", counts.not_authentic), ("replayed", counts.replayed), ("malformed", counts.malformed)];
    SyncPeer {
        address: peer.address,
        state: match peer.standing {
            Standing::Connecting => SyncState::Connecting,
            Standing::Copying => SyncState::Copying,
            Standing::Synced => SyncState::Synced,
            Standing::Lost => SyncState::Lost,
        },
        version: peer.version.clone(),
        silent_ms: peer.silent_ms,
        waiting: peer.waiting as u64,
        lag_ms: peer.lag_ms,
        lost: peer.missing,
        datagrams_sent: counts.datagrams_sent,
        flows_sent: counts.flows_sent,
        ends_sent: counts.ends_sent,
        copies_sent: counts.copies_sent,
        dropped: counts.dropped,
        flows_received: counts.flows_received,
        ends_received: counts.ends_received,
        copies_received: counts.copies_received,
        conflicts: counts.conflicts,
        unknown: counts.unknown,
        refused: refused.map(|(reason, count)| (reason.to_owned(), count)).into(),
    }
}
