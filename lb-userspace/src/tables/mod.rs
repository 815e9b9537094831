//! The tables that the kernel program and the controller share, as typed records.
//!
//! A record is written so that the kernel program never acts on half of it: the word that makes it
//! valid (state, count) is written last, with release ordering, and records that the kernel program
//! writes too are changed word by word only. No method waits; the locks are held for the copy of a
//! pointer or one system call.
//!
//! ```text
//! rows        what the controller installs, by row; where a record may stand
//! listeners, pools, services, backends, leases, clients, cookies, rules   one kind of record each
//! write, read what a plan writes, and what is read back: the two directions side by side
//! flow        one connection, as read from its slot; slots, index, adopt: how it gets there and ends
//! ways        next hops towards clients
//! frames      packets built from a slot
//! maps        the seam: the kernel (`dataplane`), or plain memory
//! ```
//! Nothing here knows aya.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::offset_of,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex, RwLock, atomic::Ordering},
};

use anyhow::{Result, bail};
use lb_common::{
    flow::{Key, SlotAt},
    layout::{
        ACTIVE, Address, Backend, ClientLine, ConnectTimes, CookieKey, DELETED, EMPTY, Failures, HASH, Hop, IS_BACKEND,
        IS_LISTENER, IS_SNAT, Interface, LEASE_BITS, LISTENER_BITS, Lease, Listener, MAX_BACKENDS, MAX_INTERFACES,
        MAX_SERVICES, Meta, POOL_BITS, Pool, Ring, RuleLine, Service, SlowStart,
    },
    slot::{CONNECTED, IN_RING},
    verdict::{REASON_LIMIT, Reason},
};

mod adopt;
mod backends;
mod clients;
mod cookies;
mod flow;
pub mod frames;
mod index;
mod leases;
mod listeners;
mod maps;
mod pools;
mod read;
pub mod rows;
mod rules;
mod services;
mod slots;
mod ways;
mod write;

pub use adopt::{Foreign, NotAdopted};
pub use backends::BackendRow;
pub use flow::{Flow, FlowAt, Head};
pub use index::{Bucket, Index};
pub use leases::Claims;
pub use maps::{InnerMap, Maps, Outer};
pub use pools::PortUse;
pub use rows::Installed;
pub use services::ServiceRow;
pub use ways::{WayKey, way_key};
pub use write::Write;

use maps::{Inner, Memory};
use slots::Slots;

use crate::sys::memory::{Record, Table};

/// All tables. Shared between the controller's shell and the threads that answer questions.
pub struct Tables {
    fixed: Fixed,
    /// The inner maps of the pools, by row.
    slots: RwLock<Vec<Option<Arc<Slots>>>>,
    half_open: Inner<u64>,
    rules: Inner<RuleLine>,
    clients: Inner<ClientLine>,
    /// Held while slots are taken out of circulation or put into it, which two threads do: neither
    /// must go by ports that the other one changes.
    circulation: Mutex<()>,
    /// What ADDRESSES holds.
    addresses: Mutex<BTreeMap<Address, u32>>,
    /// What EXEMPT holds: by service, the clients that get no SYN cookies.
    exempt: Mutex<BTreeSet<(u16, WayKey)>>,
    maps: Box<dyn Maps>,
}

/// The maps that exist from the start, mapped.
pub struct Fixed {
    /// LISTENERS: by row.
    pub listeners: Table<Listener>,
    /// POOLS: by row.
    pub pools: Table<Pool>,
    /// RINGS: the ends of the pools' rings of free slots.
    pub rings: Table<Ring>,
    /// BACKENDS: by number.
    pub backends: Table<Backend>,
    /// SERVICES: by number.
    pub services: Table<Service>,
    /// INTERFACES: by number.
    pub interfaces: Table<Interface>,
    /// LEASES: by row.
    pub leases: Table<Lease>,
    /// CONNECT_TIMES: by backend.
    pub connect_times: Table<ConnectTimes>,
    /// INDEX: the flow index.
    pub index: Index,
    /// SLOW_STARTS: by backend.
    pub slow_starts: Table<SlowStart>,
    /// FAILURES: by backend.
    pub failures: Table<Failures>,
    /// COUNTED: by reason, what controllers have counted.
    pub counted: Table<u64>,
    /// COOKIES: one record.
    pub cookie_key: Table<CookieKey>,
}

impl Fixed {
    fn in_memory() -> Result<Fixed> {
        Ok(Fixed {
            listeners: Table::anonymous(1 << LISTENER_BITS)?,
            pools: Table::anonymous(1 << POOL_BITS)?,
            rings: Table::anonymous(1 << POOL_BITS)?,
            backends: Table::anonymous(MAX_BACKENDS as usize)?,
            services: Table::anonymous(MAX_SERVICES as usize)?,
            interfaces: Table::anonymous(MAX_INTERFACES as usize)?,
            leases: Table::anonymous(1 << LEASE_BITS)?,
            connect_times: Table::anonymous(MAX_BACKENDS as usize)?,
            index: Index {
                table: Table::anonymous(IN_MEMORY_BUCKETS as usize)?,
                meta: Meta { layout: HASH, seed: 1, buckets: IN_MEMORY_BUCKETS, reserved: 0 },
            },
            slow_starts: Table::anonymous(MAX_BACKENDS as usize)?,
            failures: Table::anonymous(MAX_BACKENDS as usize)?,
            counted: Table::anonymous(REASON_LIMIT as usize)?,
            cookie_key: Table::anonymous(1)?,
        })
    }
}

/// Buckets of the flow index of tables in plain memory.
const IN_MEMORY_BUCKETS: u32 = 1024;

impl Tables {
    /// Tables in plain memory, without a kernel program: for tests and simulations.
    pub fn in_memory() -> Result<Tables> {
        Tables::open(Fixed::in_memory()?, Box::new(Memory::default()))
    }

    /// The tables in `fixed`, with the inner maps of the pools and services in use.
    pub fn open(fixed: Fixed, maps: Box<dyn Maps>) -> Result<Tables> {
        let tables = Tables {
            fixed,
            slots: RwLock::new(vec![None; 1 << POOL_BITS]),
            half_open: Inner::new(Outer::HalfOpen, MAX_SERVICES),
            rules: Inner::new(Outer::Rules, MAX_SERVICES),
            clients: Inner::new(Outer::Clients, MAX_SERVICES),
            circulation: Mutex::default(),
            addresses: Mutex::default(),
            exempt: Mutex::default(),
            maps,
        };
        tables.adopt_pools()?;
        tables.half_open.adopt(&*tables.maps)?;
        tables.rules.adopt(&*tables.maps)?;
        tables.clients.adopt(&*tables.maps)?;
        *lock(&tables.addresses) = tables.maps.uses()?.into_iter().collect();
        tables.note_addresses()?;
        *lock(&tables.exempt) = tables.maps.exempt()?.into_iter().collect();
        Ok(tables)
    }

    /// Brings ADDRESSES up to date with the listeners and pools. An address is known before the
    /// record that it is of is used, but for a moment.
    fn note_addresses(&self) -> Result<()> {
        let mut wanted = BTreeMap::new();
        let mut note = |address: [u8; 16], usage| *wanted.entry(halves(address)).or_insert(0) |= usage;
        for (_, listener) in self.listeners() {
            note(listener.address, IS_LISTENER);
        }
        for (_, pool) in self.pools() {
            note(pool.snat, IS_SNAT);
            note(pool.backend, IS_BACKEND);
        }
        let mut noted = lock(&self.addresses);
        let gone = noted.keys().filter(|address| !wanted.contains_key(*address)).map(|address| (*address, 0));
        let new = wanted.iter().filter(|(address, uses)| noted.get(*address) != Some(*uses));
        let changes: Vec<_> = gone.chain(new.map(|(address, uses)| (*address, *uses))).collect();
        changes.into_iter().try_for_each(|(address, uses)| self.maps.set_uses(address, uses))?;
        *noted = wanted;
        Ok(())
    }

    // ---- pools ----

    /// A pool's record.
    pub fn pool(&self, number: u16) -> Pool {
        self.fixed.pools.read(number.into())
    }

    /// All pools in use.
    pub fn pools(&self) -> Vec<(u16, Pool)> {
        numbered(&self.fixed.pools).filter(|(_, record)| record.state == ACTIVE).collect()
    }

    /// Sets a pool's next hop.
    pub fn set_pool_hop(&self, number: u16, hop: Hop) {
        self.fixed.pools.word64(number.into(), offset_of!(Pool, hop)).store(hop.0, Ordering::Release);
    }

    /// Sets a pool's flags.
    pub fn set_pool_flags(&self, number: u16, flags: u32) {
        self.fixed.pools.word32(number.into(), offset_of!(Pool, flags)).store(flags, Ordering::Release);
    }

    /// Changes the next hop towards the client of a flow. For tests.
    #[doc(hidden)]
    pub fn set_client_hop(&self, at: SlotAt, hop: Hop) {
        let slots = self.slots_of(at.pool());
        if let Some((table, index)) = slots.as_ref().and_then(|slots| slots.table(at.slot())) {
            table.word64(index, offset_of!(lb_common::layout::Slot, hop)).store(hop.0, Ordering::Release);
        }
    }

    /// How many slots wait in a pool's rings. For tests.
    #[doc(hidden)]
    pub fn free_slots(&self, pool: u16) -> u32 {
        self.slots_of(pool).map_or(0, |slots| slots.waiting(&self.fixed.rings))
    }

    // ---- interfaces ----

    /// Enters one of our interfaces, or updates its MAC address; returns its number.
    pub fn place_interface(&self, ifindex: u32, mac: [u8; 6]) -> Result<u8> {
        self.place_interface_again(ifindex, mac, &BTreeMap::new(), "")
    }

    /// The same for one that was made anew: it gets the number that its name had, by which open
    /// flows know it, and none that another name had while there are others.
    pub fn place_interface_again(
        &self,
        ifindex: u32,
        mac: [u8; 6],
        had: &BTreeMap<String, u8>,
        name: &str,
    ) -> Result<u8> {
        let free: Vec<_> = numbered(&self.fixed.interfaces)
            .filter(|(_, record)| record.ifindex == 0)
            .map(|(number, _)| number as u8)
            .collect();
        let own = || had.get(name).filter(|number| free.contains(number));
        let unclaimed = || free.iter().find(|number| !had.values().any(|had| had == *number));
        let new = || own().or_else(unclaimed).or(free.first()).copied();
        let Some(number) = self.interface_number(ifindex).or_else(new) else {
            bail!("more than {MAX_INTERFACES} interfaces");
        };
        let before = self.interface(number);
        let mtu = if before.ifindex == ifindex { before.mtu } else { 0 };
        let record = Interface { ifindex, mac, mtu, reserved: [0; 4] };
        if before != record {
            self.fixed.interfaces.publish(number.into(), &record, offset_of!(Interface, ifindex));
        }
        self.maps.set_link(ifindex, number)?;
        Ok(number)
    }

    /// Sets the longest packet that an interface sends. More than an IPv4 packet can have is as
    /// much as that.
    pub fn set_mtu(&self, number: u8, mtu: u32) {
        let before = self.interface(number);
        let record = Interface { mtu: u16::try_from(mtu).unwrap_or(u16::MAX), ..before };
        if before.ifindex != 0 && before != record {
            self.fixed.interfaces.publish(number.into(), &record, offset_of!(Interface, ifindex));
        }
    }

    /// Enters the members of a bond in place of those that it had, of an earlier run too: frames
    /// that come in by them are the bond's. One that is an interface of its own stays that.
    pub fn set_members(&self, number: u8, members: &[u32]) -> Result<()> {
        let bond = self.interface(number).ifindex;
        let links = self.maps.links()?.into_iter();
        let before: Vec<_> = links
            .filter(|(member, of)| *of == u32::from(number) && *member != bond)
            .map(|(member, _)| member)
            .collect();
        for left in before.iter().filter(|member| !members.contains(member)) {
            self.maps.remove_link(*left)?;
        }
        let joined = members.iter().filter(|member| !before.contains(member));
        let mut placed = joined.filter(|member| self.interface_number(**member).is_none());
        placed.try_for_each(|member| self.maps.set_link(*member, number))
    }

    /// An interface's record.
    pub fn interface(&self, number: u8) -> Interface {
        // A hop that the kernel program wrote may carry any byte.
        if u32::from(number) < MAX_INTERFACES {
            self.fixed.interfaces.read(number.into())
        } else {
            Interface::default()
        }
    }

    /// The number of an interface.
    pub fn interface_number(&self, ifindex: u32) -> Option<u8> {
        numbered(&self.fixed.interfaces).find(|(_, record)| record.ifindex == ifindex).map(|(number, _)| number as u8)
    }

    /// Forgets an interface and its members.
    pub fn remove_interface(&self, ifindex: u32) -> Result<()> {
        self.maps.remove_link(ifindex)?;
        if let Some(number) = self.interface_number(ifindex) {
            self.set_members(number, &[])?;
            self.fixed.interfaces.publish(number.into(), &Interface::default(), offset_of!(Interface, ifindex));
        }
        Ok(())
    }

    /// Forgets the interfaces of which this is not true; returns how many.
    pub fn retain_interfaces(&self, is_there: impl Fn(u32) -> bool) -> Result<usize> {
        let known: Vec<_> = numbered(&self.fixed.interfaces).map(|(_, record)| record.ifindex).collect();
        let gone: Vec<_> = known.into_iter().filter(|ifindex| *ifindex != 0 && !is_there(*ifindex)).collect();
        gone.iter().try_for_each(|ifindex| self.remove_interface(*ifindex))?;
        Ok(gone.len())
    }

    // ---- counters ----

    /// Every reason's count, over all CPUs.
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>> {
        Reason::ALL.iter().map(|reason| Ok((*reason, self.counter(*reason)?))).collect()
    }

    /// One reason's count: of the kernel program on all CPUs, and of controllers.
    pub fn counter(&self, reason: Reason) -> Result<u64> {
        Ok(self.maps.counter(reason)? + self.fixed.counted.word64(reason as usize, 0).load(Ordering::Relaxed))
    }

    // ---- flows ----

    /// How many slots a pool has, if no extent is missing; 0 if it is not in use.
    pub fn slots(&self, pool: u16) -> u32 {
        self.slots_of(pool).map_or(0, |slots| slots.len())
    }

    /// Whether there is a slot.
    pub fn has_slot(&self, at: SlotAt) -> bool {
        self.slots_of(at.pool()).is_some_and(|slots| slots.has(at.slot()))
    }

    fn slots_of(&self, pool: u16) -> Option<Arc<Slots>> {
        read(&self.slots).get(usize::from(pool)).cloned().flatten()
    }

    /// The slots of a range of a pool that hold a connection or are held back.
    pub fn heads(&self, pool: u16, range: Range<u32>) -> impl Iterator<Item = Head> {
        self.slots_of(pool).into_iter().flat_map(move |slots| slots.heads(range.clone()))
    }

    /// A consistent copy of a slot; `None` if it holds no connection or is changing hands.
    pub fn flow(&self, at: SlotAt) -> Option<Flow> {
        self.slots_of(at.pool())?.flow(at.slot())
    }

    /// All open connections of a client, found by reading every slot's key.
    pub fn find(&self, client: SocketAddr) -> Vec<Flow> {
        let SocketAddr::V4(address) = client else { return Vec::new() };
        let key = Key::of(address, 0);
        let of_pool = |(pool, _): (u16, Pool)| {
            let slots = self.slots_of(pool)?;
            let heads = slots.clone().heads(0..slots.len());
            let ours = heads.filter(|head| head.flow.ctl.state().is_active() && head.key.is_same_client(key));
            let flows = ours.filter_map(|head| slots.flow(head.flow.at.slot()));
            Some(flows.filter(|flow| flow.client() == client).collect::<Vec<_>>())
        };
        self.pools().into_iter().filter_map(of_pool).flatten().collect()
    }

    /// Puts an idle flow under suspicion: the first half of an idle timeout.
    pub fn suspect(&self, flow: FlowAt) -> bool {
        self.slots_of(flow.at.pool()).is_some_and(|slots| slots.suspect(flow.at.slot(), flow.ctl))
    }

    /// Ends a flow, if its word is still the same. `Some`: we won, and all consequences but the
    /// RSTs are carried out, once.
    pub fn close(&self, flow: FlowAt, reason: Reason) -> Option<Flow> {
        let slots = self.slots_of(flow.at.pool())?;
        let flow = slots.close(flow.at.slot(), flow.ctl, reason)?;
        self.account(&flow);
        self.uncount_flow(&flow);
        self.count(reason);
        if flow.ctl.flags() & IN_RING == 0 {
            slots.push(&self.fixed.rings, flow.at.slot());
        }
        Some(flow)
    }

    /// Checks the rings of free ports and gives back what a process that was killed between two steps
    /// has lost; returns how many ports. Nothing but the kernel program may use the tables meanwhile.
    /// `pause` is longer than any of its steps.
    pub fn heal_rings(&self, pause: impl FnOnce()) -> u32 {
        let look = |slots: &Slots| {
            let port_use = self.port_uses(slots.pool);
            slots.lost(&self.fixed.rings, |slot| port_use(slot) == PortUse::Connections)
        };
        let pools = self.pools().into_iter().filter_map(|(pool, _)| self.slots_of(pool));
        let pools = pools.inspect(|slots| slots.begin_wide(&self.fixed.rings));
        let first = pools.map(|slots| (look(&slots), slots)).filter(|(lost, _)| !lost.is_empty()).collect::<Vec<_>>();
        if first.is_empty() {
            return 0;
        }
        pause();
        first.into_iter().map(|(lost, slots)| slots.heal(&self.fixed.rings, &lost.still(&look(&slots)))).sum()
    }

    /// Counts an end that the controller brought about; others are counted where they happen.
    fn count(&self, reason: Reason) {
        self.fixed.counted.word64(reason as usize, 0).fetch_add(1, Ordering::Relaxed);
    }

    /// A flow was reset: what its backend's record says of it.
    fn account(&self, flow: &Flow) {
        let index = usize::from(flow.record.backend);
        if index >= self.fixed.backends.len() {
            return;
        }
        self.fixed.backends.word32(index, offset_of!(Backend, active)).fetch_sub(1, Ordering::AcqRel);
        if flow.ctl.flags() & CONNECTED != 0 {
            self.fixed.backends.word64(index, offset_of!(Backend, resets)).fetch_add(1, Ordering::AcqRel);
            self.add_bytes(flow);
        }
    }

    /// A flow has ended: its bytes are in its backend's record from now on.
    fn add_bytes(&self, flow: &Flow) {
        let index = usize::from(flow.record.backend);
        if index < self.fixed.backends.len() && flow.ctl.flags() & CONNECTED != 0 {
            let word = |offset: usize| self.fixed.backends.word64(index, offset);
            word(offset_of!(Backend, bytes_in)).fetch_add(flow.bytes_in(), Ordering::AcqRel);
            word(offset_of!(Backend, bytes_out)).fetch_add(flow.bytes_out(), Ordering::AcqRel);
        }
    }

    /// Returns a slot that was held back to the ring. The caller has checked its `last_seen`.
    pub fn release_abandoned(&self, flow: FlowAt) -> bool {
        let Some(slots) = self.slots_of(flow.at.pool()) else { return false };
        let won = slots.release(flow.at.slot(), flow.ctl);
        if won && self.insides(flow.at.pool())(flow.at.slot()) {
            slots.push(&self.fixed.rings, flow.at.slot());
        }
        won
    }
}

/// The row of the record that `is_meant`, as the kernel program finds it in an open-addressed
/// table: an `EMPTY` row ends the search, a `DELETED` one is passed over.
fn find_row(rows: impl Iterator<Item = u16>, state: impl Fn(u16) -> u8, is_meant: impl Fn(u16) -> bool) -> Option<u16> {
    rows.take_while(|row| state(*row) != EMPTY).find(|row| state(*row) != DELETED && is_meant(*row))
}

/// Whether the kernel program would find a record in `row`: it is one of the `rows` that it looks
/// at, and the search does not end before.
fn check_reach(mut rows: impl Iterator<Item = u16>, row: u16, state: impl Fn(u16) -> u8) -> Result<()> {
    match rows.find(|other| *other == row || state(*other) == EMPTY) {
        Some(found) if found == row => Ok(()),
        Some(empty) => bail!("row {row} is not reached: the search for it ends at row {empty}"),
        None => bail!("row {row} is none of those in which it is searched for"),
    }
}

/// All records of a table, with their numbers.
fn numbered<T: Record>(table: &Table<T>) -> impl Iterator<Item = (u16, T)> {
    (0..table.len()).map(|index| (index as u16, table.read(index)))
}

/// An address as a key of ADDRESSES.
fn halves(mapped: [u8; 16]) -> Address {
    let (halves, _) = mapped.as_chunks();
    [halves[0], halves[1]].map(u64::from_ne_bytes)
}

/// Two halves as they stand in one word of memory.
fn word_of(first: u16, second: u16) -> u32 {
    let (first, second) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([first[0], first[1], second[0], second[1]])
}

/// A lock is poisoned only by a panic while it is held; what it guards is whole at every moment.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// As [`read`].
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// As [`read`].
fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests;
