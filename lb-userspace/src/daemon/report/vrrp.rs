//! Answers about VRRP.

use super::{Snapshot, ago};
use crate::{
    api::types::{VrrpAdverts, VrrpPeer, VrrpStatus, VrrpWeight},
    vrrp::{
        messages,
        report::{Counters, InstanceReport},
    },
};

/// `/api/v1/vrrp`
pub fn instances(snapshot: &Snapshot) -> Vec<VrrpStatus> {
    snapshot.vrrp.iter().map(|report| instance(snapshot, report)).collect()
}

fn instance(snapshot: &Snapshot, report: &InstanceReport) -> VrrpStatus {
    VrrpStatus {
        name: report.name.to_string(),
        state: report.state,
        priority: report.priority,
        base_priority: report.base_priority,
        addresses: report.addresses.iter().map(ToString::to_string).collect(),
        since: ago(snapshot, report.since),
        transitions: report.transitions,
        master: report.master,
        interface: report.interface.clone(),
        virtual_router_id: report.router,
        version: report.version.number(),
        reason: messages::reason(report.why),
        weights: report
            .weights
            .iter()
            .map(|(what, weight)| VrrpWeight { what: what.clone(), weight: *weight })
            .collect(),
        faults: report.faults.clone(),
        source: report.source,
        lease_ms: report.lease.left(snapshot.now).as_millis() as u64,
        waits_for_flow_sync: report.waits_for_flows,
        peers: report
            .peers
            .iter()
            .map(|peer| VrrpPeer {
                address: peer.address,
                priority: peer.priority,
                last_heard: ago(snapshot, peer.heard),
            })
            .collect(),
        adverts: adverts(&report.counters),
    }
}

fn adverts(counters: &Counters) -> VrrpAdverts {
    let refused = counters.refused().map(|(why, count)| (why.name().to_owned(), count));
    VrrpAdverts { counts: counters.adverts, refused: refused.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{AdvertCounts, AdvertRefusal};

    #[test]
    fn the_json_of_the_counters_has_every_counter_and_every_reason() {
        let mut counters = Counters::default();
        counters.refuse(AdvertRefusal::Password);
        counters.adverts = AdvertCounts {
            sent: 1,
            resignations_sent: 2,
            send_failures: 3,
            received: 4,
            resignations_received: 5,
            address_mismatches: 6,
            dual_master: 7,
            claims: 8,
            announcements: 9,
        };
        let json = concat!(
            r#"{"sent":1,"resignations_sent":2,"send_failures":3,"received":4,"resignations_received":5,"#,
            r#""address_mismatches":6,"dual_master":7,"claims":8,"announcements":9,"#,
            r#""refused":{"addresses":0,"auth_type":0,"checksum":0,"destination":0,"hop_limit":0,"interval":0,"length":0,"#,
            r#""no_address":0,"own_address":0,"password":1,"peer":0,"truncated":0,"type":0,"version":0}}"#
        );
        let adverts = adverts(&counters);
        assert_eq!(serde_json::to_string(&adverts).unwrap(), json);
        assert_eq!(serde_json::from_str::<VrrpAdverts>(json).unwrap(), adverts);
    }
}
