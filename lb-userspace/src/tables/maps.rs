//! Where the maps of the tables live: in the kernel (`dataplane`), or in plain memory for tests and
//! simulations.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, RwLock},
};

use anyhow::Result;
use lb_common::{
    layout::{Address, Hop, POOL_EXTENTS},
    verdict::Reason,
};

use super::{Tables, WayKey, read, write};
use crate::sys::memory::{Record, Table};

/// The arrays of inner maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outer {
    /// By pool, [`POOL_EXTENTS`] for each: its slots.
    Slots,
    /// By pool, [`POOL_EXTENTS`] for each: what the flows in its slots began with.
    Openings,
    /// By pool: the cells of its first ring of free slots.
    Free,
    /// By pool: the cells of its wide one.
    Wide,
    /// By service: its ring of half-open flows.
    HalfOpen,
    /// By service: its Maglev table.
    Maglev,
    /// By service: its rules.
    Rules,
    /// By service: the number of connections of each client.
    Clients,
}

impl Outer {
    /// All of them, in the order of their numbers.
    pub const ALL: [Outer; 8] = [
        Outer::Slots,
        Outer::Openings,
        Outer::Free,
        Outer::Wide,
        Outer::HalfOpen,
        Outer::Maglev,
        Outer::Rules,
        Outer::Clients,
    ];

    /// The most inner maps that one pool or service has.
    pub fn most(self) -> u32 {
        if self.has_extents() { POOL_EXTENTS } else { 1 }
    }

    /// Whether the records of one pool are spread over several maps of equal size.
    pub fn has_extents(self) -> bool {
        matches!(self, Outer::Slots | Outer::Openings)
    }

    /// The positions of the inner maps of a pool or service in the array.
    pub fn positions(self, number: u16) -> Range<u32> {
        let first = self.position(number, 0);
        first..first + self.most()
    }

    /// The position of one of them.
    pub fn position(self, number: u16, part: u32) -> u32 {
        u32::from(number) * self.most() + part
    }

    /// The name of the array.
    pub const fn name(self) -> &'static str {
        match self {
            Outer::Slots => "SLOTS",
            Outer::Openings => "OPENINGS",
            Outer::Free => "FREE",
            Outer::Wide => "WIDE",
            Outer::HalfOpen => "HALF_OPEN",
            Outer::Maglev => "MAGLEV",
            Outer::Rules => "RULES",
            Outer::Clients => "CLIENTS",
        }
    }
}

/// One inner map; none in plain memory.
#[derive(Debug)]
pub struct InnerMap {
    /// The map.
    pub map: Option<OwnedFd>,
    /// Its records.
    pub records: u32,
}

impl InnerMap {
    fn table<T: Record>(&self) -> Result<Table<T>> {
        let len = self.records as usize;
        Ok(match &self.map {
            None => Table::anonymous(len)?,
            Some(map) => Table::map(map.as_fd(), len)?,
        })
    }
}

/// What the tables need of their maps beyond mapped memory.
pub trait Maps: Send + Sync {
    /// Makes an inner map of `records` of `record` bytes, zeroed. Nothing else can reach it yet.
    fn make(&self, outer: Outer, record: u32, records: u32) -> Result<InnerMap>;
    /// Opens an inner map of a pool or service; `None` if it has none.
    fn open(&self, outer: Outer, number: u16, part: u32) -> Result<Option<InnerMap>>;
    /// Puts inner maps of a pool or service into the array, from part `first` on: from now on the
    /// kernel program finds them.
    fn install(&self, outer: Outer, number: u16, first: u32, made: &[&InnerMap]) -> Result<()>;
    /// Takes the inner maps of a pool or service out of the array, if there are any.
    fn delete(&self, outer: Outer, number: u16) -> Result<()>;
    /// Enters the number of one of our interfaces where the kernel program looks it up.
    fn set_link(&self, ifindex: u32, number: u8) -> Result<()>;
    /// Removes the number of an interface, if there is one.
    fn remove_link(&self, ifindex: u32) -> Result<()>;
    /// All indexes that were entered, each with its number.
    fn links(&self) -> Result<Vec<(u32, u32)>>;
    /// Enters what an address is used for, by which the kernel program knows fragments; 0: nothing.
    fn set_uses(&self, address: Address, uses: u32) -> Result<()>;
    /// All addresses that were entered, each with what it is used for.
    fn uses(&self) -> Result<Vec<(Address, u32)>>;
    /// Enters the next hop towards a prefix, or removes it.
    fn set_way(&self, prefix: WayKey, hop: Option<Hop>) -> Result<()>;
    /// The prefixes that were entered.
    fn ways(&self) -> Result<Vec<WayKey>>;
    /// Enters clients of a service that get no SYN cookies, or removes them.
    fn set_exempt(&self, service: u16, clients: WayKey, exempt: bool) -> Result<()>;
    /// All that were entered, each with its service.
    fn exempt(&self) -> Result<Vec<(u16, WayKey)>>;
    /// One reason's count by the kernel program, over all CPUs.
    fn counter(&self, reason: Reason) -> Result<u64>;
}

/// No kernel: the tables are memory of this process.
#[derive(Default)]
pub struct Memory {
    links: RwLock<BTreeMap<u32, u32>>,
    addresses: RwLock<BTreeMap<Address, u32>>,
    ways: RwLock<BTreeMap<WayKey, Hop>>,
    exempt: RwLock<BTreeSet<(u16, WayKey)>>,
}

impl Maps for Memory {
    fn make(&self, _: Outer, _: u32, records: u32) -> Result<InnerMap> {
        Ok(InnerMap { map: None, records })
    }

    fn open(&self, _: Outer, _: u16, _: u32) -> Result<Option<InnerMap>> {
        Ok(None)
    }

    fn install(&self, _: Outer, _: u16, _: u32, _: &[&InnerMap]) -> Result<()> {
        Ok(())
    }

    fn delete(&self, _: Outer, _: u16) -> Result<()> {
        Ok(())
    }

    fn set_link(&self, ifindex: u32, number: u8) -> Result<()> {
        write(&self.links).insert(ifindex, number.into());
        Ok(())
    }

    fn remove_link(&self, ifindex: u32) -> Result<()> {
        write(&self.links).remove(&ifindex);
        Ok(())
    }

    fn links(&self) -> Result<Vec<(u32, u32)>> {
        Ok(read(&self.links).iter().map(|(ifindex, number)| (*ifindex, *number)).collect())
    }

    fn set_uses(&self, address: Address, uses: u32) -> Result<()> {
        let mut addresses = write(&self.addresses);
        if uses == 0 {
            addresses.remove(&address)
        } else {
            addresses.insert(address, uses)
        };
        Ok(())
    }

    fn uses(&self) -> Result<Vec<(Address, u32)>> {
        Ok(read(&self.addresses).iter().map(|(address, uses)| (*address, *uses)).collect())
    }

    fn set_way(&self, prefix: WayKey, hop: Option<Hop>) -> Result<()> {
        let mut ways = write(&self.ways);
        match hop {
            Some(hop) => ways.insert(prefix, hop),
            None => ways.remove(&prefix),
        };
        Ok(())
    }

    fn ways(&self) -> Result<Vec<WayKey>> {
        Ok(read(&self.ways).keys().copied().collect())
    }

    fn set_exempt(&self, service: u16, clients: WayKey, exempt: bool) -> Result<()> {
        let mut all = write(&self.exempt);
        if exempt {
            all.insert((service, clients))
        } else {
            all.remove(&(service, clients))
        };
        Ok(())
    }

    fn exempt(&self) -> Result<Vec<(u16, WayKey)>> {
        Ok(read(&self.exempt).iter().copied().collect())
    }

    fn counter(&self, _: Reason) -> Result<u64> {
        Ok(0)
    }
}

/// An inner map that nothing else can reach yet, with its records mapped.
pub(super) struct Made<T> {
    pub table: Table<T>,
    pub map: InnerMap,
}

/// The inner maps of the services in one array, as this process has them mapped.
pub(super) struct Inner<T> {
    outer: Outer,
    tables: RwLock<Vec<Option<Arc<Table<T>>>>>,
}

impl<T: Record> Inner<T> {
    /// None is mapped yet.
    pub fn new(outer: Outer, count: u32) -> Inner<T> {
        Inner { outer, tables: RwLock::new((0..count).map(|_| None).collect()) }
    }

    /// Maps those that an earlier run has left.
    pub fn adopt(&self, maps: &dyn Maps) -> Result<()> {
        let mut tables = write(&self.tables);
        for (number, table) in tables.iter_mut().enumerate() {
            let opened = maps.open(self.outer, number as u16, 0)?;
            *table = opened.map(|opened| opened.table()).transpose()?.map(Arc::new);
        }
        Ok(())
    }

    /// The table of a service, if it has one.
    pub fn of(&self, number: u16) -> Option<Arc<Table<T>>> {
        read(&self.tables).get(usize::from(number)).cloned().flatten()
    }
}

impl Tables {
    /// Makes an inner map of `records`, zeroed.
    pub(super) fn make<T: Record>(&self, outer: Outer, records: u32) -> Result<Made<T>> {
        let map = self.maps.make(outer, size_of::<T>() as u32, records)?;
        Ok(Made { table: map.table()?, map })
    }

    /// Opens an inner map of a pool; `None` if there is none, or one of another size.
    pub(super) fn open_inner<T: Record>(
        &self,
        outer: Outer,
        number: u16,
        part: u32,
        records: u32,
    ) -> Result<Option<Table<T>>> {
        let opened = self.maps.open(outer, number, part)?.filter(|opened| opened.records == records);
        opened.map(|opened| opened.table()).transpose()
    }

    /// Puts what [`make`](Self::make) made in place of the service's table: the kernel program uses
    /// the old one or the new one, whole.
    pub(super) fn replace<T: Record>(&self, inner: &Inner<T>, number: u16, made: Made<T>) -> Result<()> {
        self.maps.install(inner.outer, number, 0, &[&made.map])?;
        write(&inner.tables)[usize::from(number)] = Some(Arc::new(made.table));
        Ok(())
    }

    /// Removes the service's table, if it has one, and frees its memory.
    pub(super) fn remove<T: Record>(&self, inner: &Inner<T>, number: u16) -> Result<()> {
        self.maps.delete(inner.outer, number)?;
        write(&inner.tables)[usize::from(number)] = None;
        Ok(())
    }
}
