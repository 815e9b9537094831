//! Answers about VRRP.

use lb_common::time::Instant;

use super::{Snapshot, ago};
use crate::{
    api::types::{VrrpAdverts, VrrpPeer, VrrpStatus, VrrpWeight},
    vrrp::{machine::State, messages, report::InstanceReport},
    words::VrrpState,
};

/// `/api/v1/vrrp`
pub fn instances(snapshot: &Snapshot) -> Vec<VrrpStatus> {
    snapshot.vrrp.iter().map(|report| instance(snapshot, report)).collect()
}

/// The state in the words of the API.
pub fn state(state: State) -> VrrpState {
    match state {
        State::Init => VrrpState::Init,
        State::Backup => VrrpState::Backup,
        State::Master => VrrpState::Master,
        State::Fault => VrrpState::Fault,
    }
}

fn instance(snapshot: &Snapshot, report: &InstanceReport) -> VrrpStatus {
    let counted = &report.counters;
    VrrpStatus {
        name: report.name.to_string(),
        state: state(report.state),
        priority: report.priority,
        base_priority: report.base_priority,
        addresses: report.addresses.iter().map(ToString::to_string).collect(),
        since: ago(snapshot, report.since.0),
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
        lease_ms: report.lease.left(Instant(snapshot.now_ns)).as_millis() as u64,
        peers: report
            .peers
            .iter()
            .map(|peer| VrrpPeer {
                address: peer.address,
                priority: peer.priority,
                last_heard: ago(snapshot, peer.heard.0),
            })
            .collect(),
        adverts: VrrpAdverts {
            counts: counted.adverts,
            refused: counted.refused().map(|(why, count)| (why.name().to_owned(), count)).collect(),
        },
    }
}
