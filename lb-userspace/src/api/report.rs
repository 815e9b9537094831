//! The daemon's state at one moment: the source of `status`, the metrics and readiness.

use std::net::{IpAddr, SocketAddr};

use lb_common::layout::ConnectTimes;

use super::types::Status;
use crate::words::BackendState;

/// The daemon's state at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// The status as JSON has it.
    pub status: Status,
    /// Whether the last reload was applied; true before the first.
    pub reloaded: bool,
    /// What is wrong with the listeners whose address this host cannot have.
    pub stranded: Vec<String>,
    /// Number of connections that the flow index has room for.
    pub capacity: u64,
    /// One per backend of the status, in the same order.
    pub connects: Vec<Connects>,
    /// Every pool; those of removed backends are included until they are empty.
    pub pools: Vec<PoolUse>,
}

/// The connect times of a backend.
#[derive(Clone, Copy, Debug)]
pub struct Connects {
    /// The number per bucket (`lb_common::layout::connect_time_bucket`).
    pub times: ConnectTimes,
    /// The sum in microseconds.
    pub sum_us: u64,
}

/// The SNAT ports towards one backend address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// The backend's address.
    pub backend: SocketAddr,
    /// The source address it sees.
    pub snat: IpAddr,
    /// Number of ports.
    pub ports: u64,
    /// Number of ports that carry a connection or are held back.
    pub used: u64,
}

impl Report {
    /// Reasons why new connections would not be served; empty if they are.
    pub fn unready(&self) -> Vec<String> {
        let services = self.status.services.iter();
        let reasons = services.flat_map(|service| {
            let admitted = service.backends.iter().any(|backend| admitted(backend.state));
            let detached = service.datapath.is_empty();
            let detached =
                detached.then(|| format!("service {}: the program is attached to no interface", service.name));
            let nobody = (!admitted).then(|| format!("service {}: no backend is up", service.name));
            detached.into_iter().chain(nobody)
        });
        reasons.chain(self.stranded.iter().cloned()).collect()
    }
}

/// Whether a backend gets new connections.
fn admitted(state: BackendState) -> bool {
    matches!(state, BackendState::Up | BackendState::SlowStart)
}
