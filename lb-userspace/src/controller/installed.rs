//! What stands in the maps, as far as the controller writes it: read back at the start, kept in step by every plan.
//!
//! Numbers are places in the maps and mean nothing by themselves. What a record is follows from what it says: a listener
//! is its address, a pool its backend and SNAT address, a backend its service and address. So a controller that was
//! killed finds everything again, whatever the configuration has become in the meantime.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use lb_common::layout::{Listener, Pool, Rule};

/// The controller's view of the maps. Every table is keyed by place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// LISTENERS in use: active and closing ones.
    pub listeners: BTreeMap<u16, Listener>,
    /// POOLS in use. The next hop is not the plan's business and is left out.
    pub pools: BTreeMap<u16, Pool>,
    /// SERVICES in use.
    pub services: BTreeMap<u16, ServiceRow>,
    /// BACKENDS in use, tombstones included.
    pub backends: BTreeMap<u16, BackendRow>,
}

/// The controller's part of a record of SERVICES.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRow {
    /// How long a backend has for its SYN-ACK, in nanoseconds.
    pub connect_timeout: u64,
    /// One of `lb_common::schedule::{LEAST_CONN, ROUND_ROBIN, RANDOM_TWO, HASH}`.
    pub balance: u32,
    /// Most backends one connection tries; at least 1.
    pub tries: u32,
    /// Cells of its ring of half-open flows.
    pub half_open_cells: u32,
    /// `layout::LOG`.
    pub flags: u32,
    /// Who is let in, in the order of the file.
    pub rules: Vec<Rule>,
    /// Most connections of one client; 0: no limit.
    pub client_limit: u32,
    /// Its backends in the order of the file, places in BACKENDS.
    pub backends: Vec<u16>,
}

/// The controller's part of a record of BACKENDS, without what health decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendRow {
    /// The service, its place in SERVICES.
    pub service: u16,
    /// Its pools, one for each SNAT address of the service; never empty.
    pub pools: Vec<u16>,
    /// Share of new connections; at least 1.
    pub weight: u32,
    /// Most active connections; 0: no limit.
    pub max_conns: u32,
    /// Used only when no other backend is up.
    pub backup: bool,
    /// How long a failed trial keeps it out: fail_timeout in nanoseconds.
    pub retry_after: u64,
    /// For how long it gets less than its share when it has come back, in milliseconds.
    pub slow_start_ms: u32,
    /// It gets no connections whatever its health: `down`, or a tombstone. Admission `NONE` in the map.
    pub closed: bool,
}

impl Installed {
    /// The listener at `address`, closing ones included.
    pub fn listener(&self, address: SocketAddrV4) -> Option<(u16, &Listener)> {
        let mut all = self.listeners.iter();
        all.find(|(_, listener)| listener_address(listener) == address).map(|(place, listener)| (*place, listener))
    }

    /// The pool of `backend` and `snat`.
    pub fn pool(&self, backend: SocketAddrV4, snat: Ipv4Addr) -> Option<(u16, &Pool)> {
        let mut all = self.pools.iter();
        all.find(|(_, pool)| pool_backend(pool) == backend && pool_snat(pool) == snat)
            .map(|(place, pool)| (*place, pool))
    }

    /// The address of a backend: that of any of its pools.
    pub fn backend_address(&self, row: &BackendRow) -> Option<SocketAddrV4> {
        row.pools.first().and_then(|pool| self.pools.get(pool)).map(pool_backend)
    }

    /// The backend at `address` in `service`, tombstones included.
    pub fn backend(&self, service: u16, address: SocketAddrV4) -> Option<u16> {
        let mut of_service = self.backends.iter().filter(|(_, row)| row.service == service);
        of_service.find(|(_, row)| self.backend_address(row) == Some(address)).map(|(number, _)| *number)
    }

    /// Whether a backend has been removed from the configuration: its service does not list it.
    pub fn is_tombstone(&self, number: u16) -> bool {
        let Some(row) = self.backends.get(&number) else { return false };
        !self.services.get(&row.service).is_some_and(|service| service.backends.contains(&number))
    }
}

/// The IPv4 address of a v4-mapped one; 0.0.0.0 for what is none (the plan writes no others).
fn unmapped(address: [u8; 16]) -> Ipv4Addr {
    Ipv6Addr::from(address).to_ipv4_mapped().unwrap_or(Ipv4Addr::UNSPECIFIED)
}

/// Where a listener listens.
pub fn listener_address(listener: &Listener) -> SocketAddrV4 {
    SocketAddrV4::new(unmapped(listener.address), u16::from_be_bytes(listener.port))
}

/// Which backend a pool leads to.
pub fn pool_backend(pool: &Pool) -> SocketAddrV4 {
    SocketAddrV4::new(unmapped(pool.backend), u16::from_be_bytes(pool.port))
}

/// The address that the backend of a pool sees.
pub fn pool_snat(pool: &Pool) -> Ipv4Addr {
    unmapped(pool.snat)
}
