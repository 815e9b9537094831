//! The place of a record in the open-addressed tables, LISTENERS and POOLS: linear probing from its hash, at most
//! `hash::PROBES` places, for that is how far the kernel program looks. Places of deleted records count as free: a search passes over them.

use std::net::{Ipv4Addr, SocketAddrV4};

use lb_common::{
    hash,
    layout::{LISTENER_BITS, POOL_BITS},
};

use super::installed::Installed;

/// A free place for a new listener at `address`; none when all places it may stand in are taken.
pub fn of_listener(installed: &Installed, address: SocketAddrV4) -> Option<u16> {
    let first = hash::listener_start(word(*address.ip()), port(address.port()), LISTENER_BITS);
    probe(first, LISTENER_BITS, |place| !installed.listeners.contains_key(&place))
}

/// A free place for a new pool; none when all places it may stand in are taken.
pub fn of_pool(installed: &Installed, backend: SocketAddrV4, snat: Ipv4Addr) -> Option<u16> {
    let first = hash::pool_start(word(*backend.ip()), port(backend.port()), word(snat), POOL_BITS);
    probe(first, POOL_BITS, |place| !installed.pools.contains_key(&place))
}

fn probe(first: u32, bits: u32, is_free: impl Fn(u16) -> bool) -> Option<u16> {
    (0..hash::PROBES).map(|step| (first.wrapping_add(step) & ((1 << bits) - 1)) as u16).find(|place| is_free(*place))
}

/// The address as the kernel program reads it from the packet.
fn word(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn port(port: u16) -> u16 {
    u16::from_ne_bytes(port.to_be_bytes())
}
