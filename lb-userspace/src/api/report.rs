//! Everything the daemon tells of itself at one moment: what `status`, the metrics and readiness are made from.

use std::net::{IpAddr, SocketAddr};

use lb_common::layout::ConnectTimes;

use super::types::Status;
use crate::words::BackendState;

/// The report.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the contract says about it.
    pub status: Status,
    /// Whether the last reload was applied; true before the first.
    pub reloaded: bool,
    /// Most connections that the flow index has room for.
    pub capacity: u64,
    /// One for each backend of the status, in its order.
    pub connects: Vec<Connects>,
    /// Every pool, those of removed backends included until they are empty.
    pub pools: Vec<PoolUse>,
}

/// How long connects to a backend took.
#[derive(Clone, Copy, Debug)]
pub struct Connects {
    /// How many by bucket: `lb_common::layout::connect_time_bucket`.
    pub times: ConnectTimes,
    /// All together, in microseconds.
    pub sum_us: u64,
}

/// The SNAT ports towards one backend address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// Where the backend listens.
    pub backend: SocketAddr,
    /// The address it sees.
    pub snat: IpAddr,
    /// How many ports there are.
    pub ports: u64,
    /// How many of them carry a connection or are held back.
    pub used: u64,
}

impl Report {
    /// Why new connections would not be served; nothing: they are.
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
        reasons.collect()
    }
}

/// Whether a backend gets its share.
fn admitted(state: BackendState) -> bool {
    matches!(state, BackendState::Up | BackendState::SlowStart)
}
