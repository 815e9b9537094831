//! The maps inside maps: extents of slots and of what they began with, and one ring for each pool, one ring of half-open flows, one Maglev table,
//! one table of clients and one list of rules for each service. Made here when a pool or service first appears; the pinned outer map keeps them alive.

use std::{
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray};
use lb_common::layout::{EXTENT_BITS, POOL_EXTENTS};

use super::{
    shapes::{INNER, MAPPED},
    tables::Tables,
};
use crate::sys::{
    self,
    memory::{Record, Table},
};

/// The maps of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// By pool, [`POOL_EXTENTS`] for each: its slots.
    Slots,
    /// The same way: what the slots' flows began with.
    Openings,
    /// By pool: the cells of its ring of free slots.
    Free,
    /// By service: its ring of half-open flows.
    HalfOpen,
    /// By service: its Maglev table.
    Maglev,
    /// By service: its rules.
    Rules,
    /// By service: how many connections every client has.
    Clients,
}

impl Outer {
    const ALL: [Outer; 7] =
        [Outer::Slots, Outer::Openings, Outer::Free, Outer::HalfOpen, Outer::Maglev, Outer::Rules, Outer::Clients];

    /// The place of the first inner map of a pool or service.
    fn first(self, place: u16) -> u32 {
        u32::from(place) * self.most()
    }

    /// Most inner maps of a pool or service.
    fn most(self) -> u32 {
        if matches!(self, Outer::Slots | Outer::Openings) { POOL_EXTENTS } else { 1 }
    }

    /// The places of all of them.
    fn places(self, place: u16) -> Range<u32> {
        self.first(place)..self.first(place) + self.most()
    }

    /// The name of the map.
    pub const fn name(self) -> &'static str {
        match self {
            Outer::Slots => "SLOTS",
            Outer::Openings => "OPENINGS",
            Outer::Free => "FREE",
            Outer::HalfOpen => "HALF_OPEN",
            Outer::Maglev => "MAGLEV",
            Outer::Rules => "RULES",
            Outer::Clients => "CLIENTS",
        }
    }
}

/// Slots of one extent.
const EXTENT: u32 = 1 << EXTENT_BITS;

/// The maps that are reached by system calls.
pub struct Kernel {
    /// In the order of [`Outer::ALL`]; each a second time, for [`ArrayOfMaps`] does not lend its descriptor.
    outer: Vec<(Mutex<ArrayOfMaps<MapData>>, MapData)>,
    links: Mutex<HashMap<MapData, u32, u32>>,
    counters: Mutex<PerCpuArray<MapData, u64>>,
}

/// An inner map that nobody else can reach yet.
pub struct Made<T> {
    pub table: Table<T>,
    /// The extents of slots, or the one map.
    maps: Vec<MapData>,
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
            counters: Mutex::new(Map::from_map_data(pinned("COUNTERS")?)?.try_into()?),
        })
    }

    fn array(&self, outer: Outer) -> MutexGuard<'_, ArrayOfMaps<MapData>> {
        lock(&self.outer[outer as usize].0)
    }

    /// Opens the inner map at a place; nothing if there is none.
    pub fn open_inner<T: Record>(&self, outer: Outer, place: u16) -> Result<Option<Table<T>>> {
        let map = match self.array(outer).get(&u32::from(place), 0) {
            Ok(map) => map,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot open {}[{place}]", outer.name())),
        };
        let entries = map.info()?.max_entries() as usize;
        Ok(Some(Table::map(map.fd().as_fd(), entries)?))
    }

    /// Opens the extents of a pool's slots, or of their openings, as one table; nothing if one of them is missing.
    pub fn open_extents<T: Record>(&self, outer: Outer, pool: u16, ports: u16) -> Result<Option<Table<T>>> {
        let array = self.array(outer);
        let mut maps = Vec::new();
        for place in outer.places(pool).take(u32::from(ports).div_ceil(EXTENT) as usize) {
            match array.get(&place, 0) {
                Ok(map) if map.info()?.max_entries() == EXTENT => maps.push(map),
                Ok(_) | Err(MapError::KeyNotFound) => return Ok(None),
                Err(error) => return Err(error).with_context(|| format!("cannot open {}[{place}]", outer.name())),
            }
        }
        Ok(Some(Table::joined(&descriptors(&maps), EXTENT as usize, ports.into())?))
    }

    /// Which interface number the kernel program finds for an interface.
    pub fn set_link(&self, ifindex: u32, number: u8) -> Result<()> {
        lock(&self.links).insert(ifindex, u32::from(number), 0).context("cannot write LINKS")
    }

    pub fn remove_link(&self, ifindex: u32) -> Result<()> {
        match lock(&self.links).remove(&ifindex) {
            Ok(()) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).context("cannot write LINKS"),
        }
    }

    /// One counter, summed over the CPUs.
    pub fn counter(&self, number: u32) -> Result<u64> {
        let values = lock(&self.counters).get(&number, 0).context("cannot read COUNTERS")?;
        Ok(values.iter().sum())
    }

    /// Adds one to a counter that the kernel program never counts: all CPUs' values are written, and what it added
    /// meanwhile would be lost.
    pub fn count(&self, number: u32) -> Result<()> {
        let mut counters = lock(&self.counters);
        let mut values = counters.get(&number, 0).context("cannot read COUNTERS")?.to_vec();
        if let Some(first) = values.first_mut() {
            *first += 1;
        }
        counters.set(number, values.try_into()?, 0).context("cannot write COUNTERS")
    }
}

impl Tables {
    /// Makes an inner map of `entries` records, zeroed.
    pub(super) fn make<T: Record>(&self, outer: Outer, entries: u32) -> Result<Made<T>> {
        if self.kernel.is_none() {
            return Ok(Made { table: Table::anonymous(entries as usize)?, maps: Vec::new() });
        }
        let name = outer.name();
        let (count, each, flags) = match outer {
            Outer::Slots | Outer::Openings => (entries.div_ceil(EXTENT), EXTENT, MAPPED),
            _ => (1, entries, MAPPED | INNER),
        };
        let one = |_| -> Result<MapData> {
            let fd = sys::bpf::create_array(name, size_of::<T>() as u32, each, flags)
                .with_context(|| format!("cannot make an inner map of {name} with {each} entries"))?;
            Ok(MapData::from_fd(fd)?)
        };
        let maps = (0..count).map(one).collect::<Result<Vec<_>>>()?;
        let table = if let [map] = &maps[..] {
            Table::map(map.fd().as_fd(), entries as usize)?
        } else {
            Table::joined(&descriptors(&maps), each as usize, entries as usize)?
        };
        Ok(Made { table, maps })
    }

    /// Puts an inner map in its place; the kernel program finds it from now on.
    pub(super) fn install<T: Record>(&self, outer: Outer, place: u16, made: &Made<T>) -> Result<()> {
        let Some(kernel) = &self.kernel else { return Ok(()) };
        let fd = kernel.outer[outer as usize].1.fd().as_fd();
        let result = sys::bpf::set_inner_maps(fd, outer.first(place), &descriptors(&made.maps));
        result.with_context(|| format!("cannot set {}[{place}]", outer.name()))
    }

    /// Takes an inner map out of its place, if there is one.
    pub(super) fn delete(&self, outer: Outer, place: u16) -> Result<()> {
        let Some(kernel) = &self.kernel else { return Ok(()) };
        let fd = kernel.outer[outer as usize].1.fd().as_fd();
        for place in outer.places(place) {
            match sys::bpf::delete_inner_map(fd, place) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot empty {}[{place}]", outer.name()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn descriptors(maps: &[MapData]) -> Vec<BorrowedFd<'_>> {
    maps.iter().map(|map| map.fd().as_fd()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Poisoned only by a panic while held; a map's handle cannot be left half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
