//! The type, sizes and flags of every map, compared before a program is loaded onto pinned maps:
//! the loader does not check what it finds.

use std::{fmt, path::Path};

use anyhow::{Context, Result, bail};
use aya::maps::{MapData, MapType};
use lb_common::{
    hash,
    layout::{
        Backend, CHALLENGES, ConnectTimes, CookieKey, ERROR_BUCKETS, EVENTS_BYTES, Failures, Interface, LEASE_BITS,
        LISTENER_BITS, Lease, Listener, MARKS, MAX_ADDRESSES, MAX_BACKENDS, MAX_EXEMPT, MAX_INTERFACES, MAX_SERVICES,
        MAX_WAYS, Meta, POOL_BITS, POOL_EXTENTS, Pool, RST_BUCKETS, Ring, Service, SlowStart, Trace,
    },
    verdict::REASON_LIMIT,
};

/// BPF_F_MMAPABLE.
pub const MAPPED: u32 = 1 << 10;
/// BPF_F_INNER_MAP: inner maps of one outer map may differ in size (5.10).
pub const INNER: u32 = 1 << 12;

/// BPF_F_NO_PREALLOC: an entry takes memory when it is written, which only the controller does.
const NO_PREALLOC: u32 = 1;

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    kind: MapType,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { kind, key, value, entries, flags } = self;
        write!(out, "{kind:?} of {entries} entries, key {key} and value {value} bytes, flags {flags:#x}")
    }
}

/// The buckets of a flow index for this many connections: at most half of the entries are in use.
/// At that load no tuple finds both its buckets full, as a test of `lb_common::hash` shows.
pub fn index_buckets(max_connections: u32) -> u32 {
    (u64::from(max_connections) * 2).div_ceil(u64::from(hash::BUCKET)).clamp(1, u64::from(u32::MAX)) as u32
}

/// The connections for which an index of this many buckets was made.
pub fn index_capacity(buckets: u32) -> u32 {
    (u64::from(buckets) * u64::from(hash::BUCKET) / 2).min(u64::from(u32::MAX)) as u32
}

/// Every map of the program, by name.
pub fn shapes(buckets: u32) -> Vec<(&'static str, Shape)> {
    let mapped = |value: usize, entries: u32| Shape {
        kind: MapType::Array,
        key: 4,
        value: value as u32,
        entries,
        flags: MAPPED,
    };
    let outer = |entries| Shape { kind: MapType::ArrayOfMaps, key: 4, value: 4, entries, flags: 0 };
    let per_cpu = |value, entries| Shape { kind: MapType::PerCpuArray, key: 4, value, entries, flags: 0 };
    vec![
        ("META", mapped(size_of::<Meta>(), 1)),
        ("LISTENERS", mapped(size_of::<Listener>(), 1 << LISTENER_BITS)),
        ("LEASES", mapped(size_of::<Lease>(), 1 << LEASE_BITS)),
        ("INTERFACES", mapped(size_of::<Interface>(), MAX_INTERFACES)),
        ("POOLS", mapped(size_of::<Pool>(), 1 << POOL_BITS)),
        ("RINGS", mapped(size_of::<Ring>(), 1 << POOL_BITS)),
        ("BACKENDS", mapped(size_of::<Backend>(), MAX_BACKENDS)),
        ("SERVICES", mapped(size_of::<Service>(), MAX_SERVICES)),
        ("CONNECT_TIMES", mapped(size_of::<ConnectTimes>(), MAX_BACKENDS)),
        ("SLOW_STARTS", mapped(size_of::<SlowStart>(), MAX_BACKENDS)),
        ("FAILURES", mapped(size_of::<Failures>(), MAX_BACKENDS)),
        ("INDEX", mapped(8 * hash::BUCKET as usize, buckets)),
        ("SLOTS", outer(POOL_EXTENTS << POOL_BITS)),
        ("OPENINGS", outer(POOL_EXTENTS << POOL_BITS)),
        ("FREE", outer(1 << POOL_BITS)),
        ("WIDE", outer(1 << POOL_BITS)),
        ("HALF_OPEN", outer(MAX_SERVICES)),
        ("MAGLEV", outer(MAX_SERVICES)),
        ("RULES", outer(MAX_SERVICES)),
        ("CLIENTS", outer(MAX_SERVICES)),
        ("TRACE", mapped(size_of::<Trace>(), 1)),
        ("LINKS", Shape { kind: MapType::Hash, key: 4, value: 4, entries: MAX_INTERFACES, flags: 0 }),
        ("ADDRESSES", Shape { kind: MapType::Hash, key: 16, value: 4, entries: MAX_ADDRESSES, flags: NO_PREALLOC }),
        ("WAYS", Shape { kind: MapType::LpmTrie, key: 20, value: 8, entries: MAX_WAYS, flags: NO_PREALLOC }),
        ("COOKIES", mapped(size_of::<CookieKey>(), 1)),
        ("VERIFIED", mapped(8, MARKS)),
        ("CHALLENGED", mapped(8, CHALLENGES)),
        ("EXEMPT", Shape { kind: MapType::LpmTrie, key: 24, value: 4, entries: MAX_EXEMPT, flags: NO_PREALLOC }),
        ("COUNTERS", per_cpu(8, REASON_LIMIT)),
        ("COUNTED", mapped(8, REASON_LIMIT)),
        ("RST_TOKENS", per_cpu(16, RST_BUCKETS)),
        ("ICMP_TOKENS", per_cpu(16, 1)),
        ("ERROR_TOKENS", per_cpu(16, ERROR_BUCKETS)),
        ("OPTIONS", per_cpu(64, 1)),
        ("EVENTS", Shape { kind: MapType::RingBuf, key: 0, value: 0, entries: EVENTS_BYTES, flags: 0 }),
    ]
}

/// The maps without which connections cannot go on. Any other may be missing, because an older
/// version had none of this name: it is made, and filled before the program is put on the links.
const NEEDED: [&str; 14] = [
    "META",
    "LISTENERS",
    "INTERFACES",
    "POOLS",
    "RINGS",
    "BACKENDS",
    "SERVICES",
    "INDEX",
    "SLOTS",
    "FREE",
    "HALF_OPEN",
    "MAGLEV",
    "LINKS",
    "COUNTERS",
];

/// Compares every map pinned in a folder with what the program wants.
pub fn compare(maps: &Path, buckets: u32) -> Result<()> {
    for (name, wanted) in shapes(buckets) {
        if !NEEDED.contains(&name) && !maps.join(name).exists() {
            continue;
        }
        let info = MapData::from_pin(maps.join(name)).and_then(|map| map.info());
        let info = info.with_context(|| format!("cannot open map {}", maps.join(name).display()))?;
        let found = Shape {
            kind: info.map_type()?,
            key: info.key_size(),
            value: info.value_size(),
            entries: info.max_entries(),
            flags: info.map_flags(),
        };
        if found != wanted {
            bail!("map {name} is {found}, but this program wants {wanted}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::memory;

    #[test]
    fn the_index_has_twice_as_many_places_as_connections() {
        assert_eq!(index_buckets(262_144), 65_536);
        assert_eq!(index_capacity(65_536), 262_144);
        assert_eq!((index_buckets(0), index_buckets(1), index_buckets(5)), (1, 1, 2));
        assert_eq!(index_buckets(u32::MAX), 1 << 30);
        assert!(index_capacity(index_buckets(100_001)) >= 100_001);
    }

    /// `check` says how much memory a configuration takes without loading anything.
    #[test]
    fn what_check_says_of_memory_counts_every_map_by_its_size() {
        let max_connections = 67_584;
        for (name, shape) in shapes(index_buckets(max_connections)) {
            let (record, records) = (u64::from(shape.value), u64::from(shape.entries));
            match shape.kind {
                MapType::Array if name == "INDEX" => {
                    assert_eq!((record, records), (memory::INDEX_RECORD, memory::index_records(max_connections)));
                }
                MapType::Array => assert!(memory::FIXED.contains(&(name, record, records)), "{name}: {shape}"),
                MapType::ArrayOfMaps => assert!(memory::OUTER.contains(&(name, records)), "{name}: {shape}"),
                // A page or less on any machine, except for the ring buffer, which is counted by
                // its size, and a place for every address in the configuration
                // and every neighbour of this host.
                _ => assert!(
                    [
                        "LINKS",
                        "ADDRESSES",
                        "WAYS",
                        "EXEMPT",
                        "COUNTERS",
                        "RST_TOKENS",
                        "ICMP_TOKENS",
                        "ERROR_TOKENS",
                        "OPTIONS",
                        "EVENTS"
                    ]
                    .contains(&name),
                    "{name}: {shape}"
                ),
            }
        }
        let arrays = |wanted| shapes(1).iter().filter(|(_, shape)| shape.kind == wanted).count();
        assert_eq!(arrays(MapType::Array), memory::FIXED.len() + 1, "one array more is the index");
        assert_eq!(arrays(MapType::ArrayOfMaps), memory::OUTER.len());
    }
}
