//! The memory that the tables take. They are all created at the start, so it depends on the
//! configuration alone.
//!
//! The sum matches the kernel's own (`bytes_memlock` of `bpftool map`): an array that can be mapped
//! takes whole pages, and one page for its head. A hash of 64 links and the heads of the outer maps
//! are left out, less than 24 KiB.

use lb_common::{
    clients::CLIENT_BUCKETS,
    hash::BUCKET,
    layout::{
        Backend, CHALLENGES, ClientLine, ConnectTimes, CookieKey, EVENTS_BYTES, EXTENT_BITS, Failures, Interface,
        LEASE_BITS, LISTENER_BITS, Lease, Listener, MAGLEV_LINES, MARKS, MAX_ADDRESSES, MAX_BACKENDS, MAX_INTERFACES,
        MAX_SERVICES, MIN_RING_BITS, MaglevLine, Meta, Opening, POOL_BITS, POOL_EXTENTS, Pool, Ring, Rule, RuleLine,
        Service as ServiceRecord, Slot, SlowStart, Trace,
    },
    verdict::REASON_LIMIT,
};

use super::model::{Balance, Config, Service};

/// Bytes per page.
const PAGE: u64 = 4096;

/// Bytes of all tables for a configuration.
pub fn bytes(config: &Config) -> u64 {
    let fixed: u64 = FIXED.iter().map(|(_, record, records)| array(*record, *records)).sum();
    let index = array(INDEX_RECORD, index_records(config.daemon.max_connections));
    let outer: u64 = OUTER.iter().map(|(_, entries)| entries * size_of::<u64>() as u64).sum();
    let events = u64::from(EVENTS_BYTES) + 3 * PAGE;
    let pools: u64 = config.pools().iter().map(|(_, ports)| pool(*ports)).sum();
    let services: u64 = config.services.iter().map(service).sum();
    fixed + ADDRESSES + index + outer + events + pools + services
}

/// Bytes of an array that can be mapped.
const fn array(record: u64, records: u64) -> u64 {
    PAGE + (record * records).next_multiple_of(PAGE)
}

/// The hash of addresses: a bucket of 16 bytes (`struct bucket` of the kernel's hashtab.c) for each
/// that it may have, to the next power of two.
const ADDRESSES: u64 = (MAX_ADDRESSES as u64).next_power_of_two() * 16;

/// The arrays of fixed size: name, bytes per record, number of records.
pub(crate) const FIXED: [(&str, u64, u64); 16] = [
    ("META", size_of::<Meta>() as u64, 1),
    ("LISTENERS", size_of::<Listener>() as u64, 1 << LISTENER_BITS),
    ("LEASES", size_of::<Lease>() as u64, 1 << LEASE_BITS),
    ("INTERFACES", size_of::<Interface>() as u64, MAX_INTERFACES as u64),
    ("POOLS", size_of::<Pool>() as u64, 1 << POOL_BITS),
    ("RINGS", size_of::<Ring>() as u64, 1 << POOL_BITS),
    ("BACKENDS", size_of::<Backend>() as u64, MAX_BACKENDS as u64),
    ("SERVICES", size_of::<ServiceRecord>() as u64, MAX_SERVICES as u64),
    ("CONNECT_TIMES", size_of::<ConnectTimes>() as u64, MAX_BACKENDS as u64),
    ("SLOW_STARTS", size_of::<SlowStart>() as u64, MAX_BACKENDS as u64),
    ("FAILURES", size_of::<Failures>() as u64, MAX_BACKENDS as u64),
    ("COOKIES", size_of::<CookieKey>() as u64, 1),
    ("VERIFIED", 8, MARKS as u64),
    ("CHALLENGED", 8, CHALLENGES as u64),
    ("COUNTED", 8, REASON_LIMIT as u64),
    ("TRACE", size_of::<Trace>() as u64, 1),
];

/// The maps of maps: name and number of entries, each a pointer in the kernel.
pub(crate) const OUTER: [(&str, u64); 8] = [
    ("SLOTS", (POOL_EXTENTS as u64) << POOL_BITS),
    ("OPENINGS", (POOL_EXTENTS as u64) << POOL_BITS),
    ("FREE", 1 << POOL_BITS),
    ("WIDE", 1 << POOL_BITS),
    ("HALF_OPEN", MAX_SERVICES as u64),
    ("MAGLEV", MAX_SERVICES as u64),
    ("RULES", MAX_SERVICES as u64),
    ("CLIENTS", MAX_SERVICES as u64),
];

/// Bytes per bucket of the flow index.
pub(crate) const INDEX_RECORD: u64 = size_of::<u64>() as u64 * BUCKET as u64;

/// Buckets of the flow index, which is at most half full.
pub(crate) fn index_records(max_connections: u32) -> u64 {
    (u64::from(max_connections) * 2).div_ceil(u64::from(BUCKET)).max(1)
}

/// Bytes for one pair of backend address and SNAT address: slots and openings in whole extents, and
/// the ring of free slots, whose number of cells is a power of two.
fn pool(ports: u16) -> u64 {
    const EXTENT: u64 = 1 << EXTENT_BITS;
    let extents = u64::from(ports).div_ceil(EXTENT);
    let cells = u64::from(ports).next_power_of_two().max(1 << MIN_RING_BITS);
    let slots = extents * (array(size_of::<Slot>() as u64, EXTENT) + array(size_of::<Opening>() as u64, EXTENT));
    slots + array(size_of::<u32>() as u64, cells)
}

/// Bytes for one service: the ring of half-open connections, and the tables of `balance = "hash"`,
/// `rules` and `per_client_connections` if it uses them.
fn service(service: &Service) -> u64 {
    let half_open = array(size_of::<u64>() as u64, u64::from(service.max_half_open.get()));
    let hash = service.balance == Balance::Hash;
    let maglev = if hash { array(size_of::<MaglevLine>() as u64, MAGLEV_LINES.into()) } else { 0 };
    let lines = (service.rules.len() as u64).div_ceil(RULES);
    let rules = if lines > 0 { array(size_of::<RuleLine>() as u64, lines) } else { 0 };
    let counted = service.per_client_connections > 0;
    let clients = if counted { array(size_of::<ClientLine>() as u64, CLIENT_BUCKETS.into()) } else { 0 };
    half_open + maglev + rules + clients
}

/// Rules per line of the list.
const RULES: u64 = (size_of::<RuleLine>() / size_of::<Rule>()) as u64;
