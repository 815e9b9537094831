//! Flow sync in `status`.

use crate::{api::types::SyncPeer, sync::station::PeerStatus};

/// One of the other hosts.
pub fn peer(peer: &PeerStatus) -> SyncPeer {
    SyncPeer {
        address: peer.address,
        state: peer.state,
        version: peer.version.clone(),
        silent_ms: peer.silence.map(|silence| silence.as_millis() as u64),
        waiting: peer.waiting as u64,
        lag_ms: peer.lag.as_millis() as u64,
        counts: peer.counts,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::words::{RefusedDatagrams, SyncCounts, SyncState};

    /// The keys, their order and their values are a contract with other programs.
    const GOLDEN: &str = r#"{"address":"10.0.1.2:9644","state":"synced","version":"0.1.0","silent_ms":12,"waiting":3,"lag_ms":20,"lost":1,"datagrams_sent":2,"flows_sent":3,"ends_sent":4,"copies_sent":5,"dropped":6,"flows_received":7,"ends_received":8,"copies_received":9,"conflicts":10,"unknown":11,"refused":{"malformed":12,"not_authentic":13,"replayed":14,"older_format":15}}"#;

    #[test]
    fn a_peer_is_the_json_that_it_always_was() {
        let status = PeerStatus {
            address: "10.0.1.2:9644".parse().unwrap(),
            state: SyncState::Synced,
            version: "0.1.0".into(),
            silence: Some(Duration::from_micros(12_999)),
            waiting: 3,
            lag: Duration::from_micros(20_001),
            counts: SyncCounts {
                lost: 1,
                datagrams_sent: 2,
                flows_sent: 3,
                ends_sent: 4,
                copies_sent: 5,
                dropped: 6,
                flows_received: 7,
                ends_received: 8,
                copies_received: 9,
                conflicts: 10,
                unknown: 11,
                refused: RefusedDatagrams { malformed: 12, not_authentic: 13, replayed: 14, older_format: 15 },
            },
        };
        let shown = peer(&status);
        assert_eq!(serde_json::to_string(&shown).unwrap(), GOLDEN);
        assert_eq!(serde_json::from_str::<SyncPeer>(GOLDEN).unwrap(), shown);
    }
}
