//! The maps inside maps: extents of slots and of what they began with, and one ring for each pool;
//! one ring of half-open flows, one Maglev table, one table of clients and one list of rules for
//! each service. They are made here when a pool or service first appears; the pinned outer map
//! keeps them alive.

use std::{
    os::fd::AsFd,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use aya::maps::{ArrayOfMaps, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key};
use lb_common::{
    layout::{Address, ExemptKey, Hop},
    verdict::Reason,
};

use super::shapes::{INNER, MAPPED};
use crate::{
    sys,
    tables::{InnerMap, Maps, Outer, WayKey},
};

/// The maps that are accessed by system calls.
pub struct Kernel {
    /// In the order of [`Outer::ALL`]; each a second time, because [`ArrayOfMaps`] does not lend
    /// its descriptor.
    outer: Vec<(Mutex<ArrayOfMaps<MapData>>, MapData)>,
    links: Mutex<HashMap<MapData, u32, u32>>,
    addresses: Mutex<HashMap<MapData, Address, u32>>,
    ways: Mutex<LpmTrie<MapData, [u8; 16], u64>>,
    exempt: Mutex<LpmTrie<MapData, ExemptKey, u32>>,
    counters: Mutex<PerCpuArray<MapData, u64>>,
}

impl Kernel {
    /// Opens the pinned maps below `maps`.
    pub fn open(maps: &Path) -> Result<Kernel> {
        let pinned = |name: &str| MapData::from_pin(maps.join(name)).with_context(|| format!("cannot open map {name}"));
        let array = |outer: Outer| -> Result<_> {
            let array = Map::from_map_data(pinned(outer.name())?)?.try_into()?;
            Ok((Mutex::new(array), pinned(outer.name())?))
        };
        Ok(Kernel {
            outer: Outer::ALL.into_iter().map(array).collect::<Result<_>>()?,
            links: Mutex::new(Map::from_map_data(pinned("LINKS")?)?.try_into()?),
            addresses: Mutex::new(Map::from_map_data(pinned("ADDRESSES")?)?.try_into()?),
            ways: Mutex::new(Map::from_map_data(pinned("WAYS")?)?.try_into()?),
            exempt: Mutex::new(Map::from_map_data(pinned("EXEMPT")?)?.try_into()?),
            counters: Mutex::new(Map::from_map_data(pinned("COUNTERS")?)?.try_into()?),
        })
    }
}

impl Maps for Kernel {
    fn make(&self, outer: Outer, record: u32, records: u32) -> Result<InnerMap> {
        let name = outer.name();
        let flags = if outer.has_extents() { MAPPED } else { MAPPED | INNER };
        let map = sys::bpf::create_array(name, record, records, flags)
            .with_context(|| format!("cannot make an inner map of {name} with {records} entries"))?;
        Ok(InnerMap { map: Some(map), records })
    }

    fn open(&self, outer: Outer, number: u16, part: u32) -> Result<Option<InnerMap>> {
        let array = lock(&self.outer[outer as usize].0);
        let position = outer.position(number, part);
        let failed = || format!("cannot open {}[{position}]", outer.name());
        let map = match array.get(&position, 0) {
            Ok(map) => map,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(error).with_context(failed),
        };
        let records = map.info()?.max_entries();
        let map = Some(map.fd().as_fd().try_clone_to_owned().with_context(failed)?);
        Ok(Some(InnerMap { map, records }))
    }

    fn install(&self, outer: Outer, number: u16, first: u32, made: &[&InnerMap]) -> Result<()> {
        let fd = self.outer[outer as usize].1.fd().as_fd();
        let maps: Vec<_> = made.iter().filter_map(|made| made.map.as_ref()).map(AsFd::as_fd).collect();
        let result = sys::bpf::set_inner_maps(fd, outer.position(number, first), &maps);
        result.with_context(|| format!("cannot set {}[{number}]", outer.name()))
    }

    fn delete(&self, outer: Outer, number: u16) -> Result<()> {
        let fd = self.outer[outer as usize].1.fd().as_fd();
        for position in outer.positions(number) {
            match sys::bpf::delete_inner_map(fd, position) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot empty {}[{position}]", outer.name()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn set_link(&self, ifindex: u32, number: u8) -> Result<()> {
        lock(&self.links).insert(ifindex, u32::from(number), 0).context("cannot write LINKS")
    }

    fn remove_link(&self, ifindex: u32) -> Result<()> {
        removed(lock(&self.links).remove(&ifindex)).context("cannot write LINKS")
    }

    fn links(&self) -> Result<Vec<(u32, u32)>> {
        lock(&self.links).iter().collect::<Result<_, _>>().context("cannot read LINKS")
    }

    fn set_uses(&self, address: Address, uses: u32) -> Result<()> {
        let mut addresses = lock(&self.addresses);
        let written = if uses == 0 { removed(addresses.remove(&address)) } else { addresses.insert(address, uses, 0) };
        written.context("cannot write ADDRESSES")
    }

    fn uses(&self) -> Result<Vec<(Address, u32)>> {
        lock(&self.addresses).iter().collect::<Result<_, _>>().context("cannot read ADDRESSES")
    }

    fn set_way(&self, (length, address): WayKey, hop: Option<Hop>) -> Result<()> {
        let (mut ways, key) = (lock(&self.ways), Key::new(length, address));
        let written = match hop {
            Some(hop) => ways.insert(&key, hop.0, 0),
            None => removed(ways.remove(&key)),
        };
        written.context("cannot write WAYS")
    }

    fn ways(&self) -> Result<Vec<WayKey>> {
        let ways = lock(&self.ways);
        let keys = ways.keys().map(|key| key.map(|key| (key.prefix_len(), key.data())));
        keys.collect::<Result<_, _>>().context("cannot read WAYS")
    }

    fn set_exempt(&self, service: u16, (length, address): WayKey, is_exempt: bool) -> Result<()> {
        let mut bytes = [0; size_of::<ExemptKey>()];
        let (of, clients) = bytes.split_at_mut(SERVICE);
        of.copy_from_slice(&u32::from(service).to_ne_bytes());
        clients.copy_from_slice(&address);
        let (mut exempt, key) = (lock(&self.exempt), Key::new(SERVICE_BITS + length, bytes));
        let written = if is_exempt { exempt.insert(&key, 1, 0) } else { removed(exempt.remove(&key)) };
        written.context("cannot write EXEMPT")
    }

    fn exempt(&self) -> Result<Vec<(u16, WayKey)>> {
        let parts = |key: Key<ExemptKey>| {
            let bytes = key.data();
            let (of, address) = bytes.split_first_chunk().expect("a key begins with the service");
            let clients = (key.prefix_len().saturating_sub(SERVICE_BITS), address.try_into().expect("and an address"));
            (u32::from_ne_bytes(*of) as u16, clients)
        };
        let exempt = lock(&self.exempt);
        exempt.keys().map(|key| key.map(parts)).collect::<Result<_, _>>().context("cannot read EXEMPT")
    }

    fn counter(&self, reason: Reason) -> Result<u64> {
        let values = lock(&self.counters).get(&(reason as u32), 0).context("cannot read COUNTERS")?;
        Ok(values.iter().sum())
    }
}

/// Bytes and bits of a key of EXEMPT that name the service.
const SERVICE: usize = size_of::<u32>();
const SERVICE_BITS: u32 = u32::BITS;

/// What was not there need not be removed.
fn removed(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Poisoned only by a panic while held; a map's handle cannot be left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
