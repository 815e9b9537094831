//! Answers about flow sync.

use crate::{
    api::types::SyncPeer,
    sync::{link::Standing, station::PeerStatus},
    words::SyncState,
};

/// One of the other hosts.
pub fn peer(peer: &PeerStatus) -> SyncPeer {
    let turned_away = &peer.refused;
    let refused = [
        ("not_authentic", turned_away.not_authentic),
        ("replayed", turned_away.replayed),
        ("malformed", turned_away.malformed),
    ];
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
        counts: peer.counts,
        refused: refused.map(|(reason, count)| (reason.to_owned(), count)).into(),
    }
}
