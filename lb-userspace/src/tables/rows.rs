//! Everything that the controller has installed, by row, and the rows in which a record may stand.
//!
//! Numbers are rows of the tables and mean nothing by themselves. What a record is follows from its
//! content: a listener is its address, a pool its backend and SNAT address, a backend its service
//! and address. So a controller that was killed finds everything again, even if the configuration
//! has changed in the meantime.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
};

use lb_common::{
    address::{from_mapped, port_word, to_mapped, word},
    hash,
    layout::{ACTIVE, LISTENER_BITS, Listener, POOL_BITS, Pool},
};

use super::{BackendRow, ServiceRow, slots::EXTENT};

/// Everything that the controller has installed, keyed by row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// LISTENERS in use: active and closing ones.
    pub listeners: BTreeMap<u16, Listener>,
    /// POOLS in use, without what changes while they are used: the next hop and the stamps.
    pub pools: BTreeMap<u16, Pool>,
    /// SERVICES in use.
    pub services: BTreeMap<u16, ServiceRow>,
    /// BACKENDS in use, tombstones included.
    pub backends: BTreeMap<u16, BackendRow>,
}

impl Installed {
    /// The listener at `address`, closing ones included.
    pub fn listener(&self, address: SocketAddrV4) -> Option<(u16, &Listener)> {
        let mut all = self.listeners.iter();
        all.find(|(_, listener)| listener_address(listener) == address).map(|(row, listener)| (*row, listener))
    }

    /// The pool of `backend` and `snat`.
    pub fn pool(&self, backend: SocketAddrV4, snat: Ipv4Addr) -> Option<(u16, &Pool)> {
        let mut all = self.pools.iter();
        all.find(|(_, pool)| pool_backend(pool) == backend && pool_snat(pool) == snat).map(|(row, pool)| (*row, pool))
    }

    /// The address of a backend: that of any of its pools.
    pub fn backend_address(&self, row: &BackendRow) -> Option<SocketAddrV4> {
        row.pools.first().and_then(|pool| self.pools.get(pool)).map(pool_backend)
    }

    /// Every pool that may hold flows of a backend: all that lead to its address. Its row names only
    /// those that new connections get; the others are there as long as they hold flows.
    pub fn pools_of(&self, backend: u16) -> Vec<u16> {
        let address = self.backends.get(&backend).and_then(|row| self.backend_address(row));
        let all = self.pools.iter().filter(|(_, pool)| Some(pool_backend(pool)) == address);
        all.map(|(number, _)| *number).collect()
    }

    /// The backend at `address` in `service`, tombstones included.
    pub fn backend(&self, service: u16, address: SocketAddrV4) -> Option<u16> {
        let mut of_service = self.backends.iter().filter(|(_, row)| row.service == service);
        of_service.find(|(_, row)| self.backend_address(row) == Some(address)).map(|(number, _)| *number)
    }

    /// A free row for a listener that is to be made; `None` if all rows in which it can be found
    /// are taken.
    pub fn free_listener_row(&self, address: SocketAddrV4) -> Option<u16> {
        listener_rows(address).find(|row| !self.listeners.contains_key(row))
    }

    /// A free row for a pool that is to be made; `None` if all rows in which it can be found are
    /// taken.
    pub fn free_pool_row(&self, backend: SocketAddrV4, snat: Ipv4Addr) -> Option<u16> {
        pool_rows(backend, snat).find(|row| !self.pools.contains_key(row))
    }

    /// Whether a backend has been removed from the configuration: its service does not list it.
    pub fn is_tombstone(&self, number: u16) -> bool {
        let Some(row) = self.backends.get(&number) else { return false };
        !self.services.get(&row.service).is_some_and(|service| service.backends.contains(&number))
    }
}

/// The rows in which the kernel program looks for a listener, in its order.
pub fn listener_rows(address: SocketAddrV4) -> impl Iterator<Item = u16> {
    let start = hash::listener_start(word(*address.ip()), port_word(address.port()), LISTENER_BITS);
    hash::probe(start, LISTENER_BITS, hash::PROBES).map(|row| row as u16)
}

/// The rows in which the kernel program looks for a pool, in its order.
pub fn pool_rows(backend: SocketAddrV4, snat: Ipv4Addr) -> impl Iterator<Item = u16> {
    let start = hash::pool_start(word(*backend.ip()), port_word(backend.port()), word(snat), POOL_BITS);
    hash::probe(start, POOL_BITS, hash::PROBES).map(|row| row as u16)
}

/// The record of a listener that takes connections.
pub fn listener_record(address: SocketAddrV4, service: u16) -> Listener {
    let port = address.port().to_be_bytes();
    Listener { address: to_mapped(*address.ip()), port, service, family: 4, state: ACTIVE, reserved: [0; 10] }
}

/// The record of a pool: `ports` SNAT ports from `first_port` on. Its next hop is not known yet.
pub fn pool_record(backend: SocketAddrV4, snat: Ipv4Addr, first_port: u16, ports: u16) -> Pool {
    Pool {
        backend: to_mapped(*backend.ip()),
        snat: to_mapped(snat),
        port: backend.port().to_be_bytes(),
        first_port,
        ports,
        family: 4,
        state: ACTIVE,
        ..Pool::default()
    }
}

/// A range of SNAT ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first one.
    pub first: u16,
    /// How many; at least one.
    pub count: u16,
}

impl Ports {
    /// Those that new connections of a pool get.
    pub const fn of(pool: &Pool) -> Ports {
        match pool.range {
            0 => Ports { first: pool.first_port, count: pool.ports },
            range => Ports { first: (range >> 16) as u16, count: range as u16 },
        }
    }

    /// As it stands in [`Pool::range`].
    const fn word(self) -> u32 {
        (self.first as u32) << 16 | self.count as u32
    }

    /// Whether a port is one of them.
    pub const fn has(self, port: u16) -> bool {
        port.wrapping_sub(self.first) < self.count
    }

    /// The last one.
    pub const fn last(self) -> u16 {
        self.first.wrapping_add(self.count.wrapping_sub(1))
    }

    /// Whether a slot of a pool is one of them.
    pub const fn has_slot(self, pool: &Pool, slot: u16) -> bool {
        self.has(pool.first_port.wrapping_add(slot))
    }
}

/// The number of slots of a pool, if no extent is missing.
pub const fn pool_slots(pool: &Pool) -> u32 {
    if pool.ports == u16::MAX { 1 << 16 } else { pool.ports as u32 }
}

/// The record of a pool whose new connections get other ports. Its slots stay what they are, and
/// there are as many as the highest one needs.
pub fn with_ports(pool: Pool, ports: Ports) -> Pool {
    // The slots go round once: those of the ports below the first one are at the end.
    let wraps = ports.has(pool.first_port) && ports.first != pool.first_port;
    let highest = if wraps { pool.first_port.wrapping_sub(1) } else { ports.last() };
    Pool { range: ports.word(), ..with_slot(pool, highest.wrapping_sub(pool.first_port)) }
}

/// The record of a pool that has a slot for a port, whatever its new connections get, and for all
/// others of the same extent: another host that has one of them may have many.
pub fn with_port(pool: Pool, port: u16) -> Pool {
    let slot = port.wrapping_sub(pool.first_port);
    if u32::from(slot) < pool_slots(&pool) { pool } else { with_slot(pool, slot | (EXTENT - 1) as u16) }
}

fn with_slot(pool: Pool, slot: u16) -> Pool {
    if u32::from(slot) < pool_slots(&pool) {
        return pool;
    }
    Pool { range: Ports::of(&pool).word(), ports: slot.saturating_add(1), ..pool }
}

/// The IPv4 address in a record; 0.0.0.0 for any other address (the controller writes none).
fn unmapped(octets: [u8; 16]) -> Ipv4Addr {
    match from_mapped(octets) {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
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
