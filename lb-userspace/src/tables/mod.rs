//! The tables that the kernel program and the controller share, as typed records.
//!
//! A record is written so that the kernel program never acts on half of it: the word that makes it valid (state, count)
//! goes last, with release ordering, and records that the kernel program writes too are changed by the word only.
//! No method waits; the locks are held for a pointer's copy or one system call.

use std::{
    mem::offset_of,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, RwLock, atomic::Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use lb_common::{
    address::to_mapped,
    flow::{HalfOpenCell, Key},
    hash,
    layout::{
        ACTIVE, BACKUP, Backend, CLOSING, CONNECT_TIME_BUCKETS, ClientLine, ConnectTimes, DELETED, EMPTY, HASH, Hop,
        Interface, LEASE_BITS, LISTENER_BITS, LOG, Lease, Listener, MAGLEV_LINES, MAX_BACKENDS, MAX_INTERFACES,
        MAX_SERVICE_BACKENDS, MAX_SERVICES, MAX_SNAT, MaglevLine, Meta, POOL_BITS, Pool, Ring, Rule, RuleLine, Service,
        SlowStart,
    },
    schedule::MAGLEV_PLACES,
    slot::{CONNECTED, Ctl, IN_RING},
    verdict::Reason,
};

mod adopt;
mod clients;
mod flow;
pub mod frames;
mod index;
mod leases;
mod maps;
mod pools;
mod rules;
mod slots;

pub use adopt::{Foreign, NotAdopted};
pub use flow::{Flow, Head};
pub use index::{Bucket, Index};
pub use leases::Claims;
pub use maps::{EXTENT, Extents, Maps, Outer};
pub use pools::NewPool;

use maps::{Inner, Memory};
use slots::Slots;

use crate::sys::memory::{Record, Table};

/// All tables. Shared between the controller's shell and the threads that answer questions.
pub struct Tables {
    fixed: Fixed,
    /// The inner maps of the pools, by number.
    slots: RwLock<Vec<Option<Arc<Slots>>>>,
    half_open: Inner<u64>,
    rules: Inner<RuleLine>,
    clients: Inner<ClientLine>,
    maps: Box<dyn Maps>,
}

/// The maps that are there from the beginning, mapped.
pub struct Fixed {
    /// LISTENERS.
    pub listeners: Table<Listener>,
    /// POOLS.
    pub pools: Table<Pool>,
    /// RINGS: the ends of the pools' rings of free slots.
    pub rings: Table<Ring>,
    /// BACKENDS.
    pub backends: Table<Backend>,
    /// SERVICES.
    pub services: Table<Service>,
    /// INTERFACES.
    pub interfaces: Table<Interface>,
    /// LEASES.
    pub leases: Table<Lease>,
    /// CONNECT_TIMES.
    pub connect_times: Table<ConnectTimes>,
    /// INDEX: the flow index.
    pub index: Index,
    /// SLOW_STARTS.
    pub slow_starts: Table<SlowStart>,
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
        })
    }
}

/// How a backend is to be used: what the controller may change while connections are open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSetup {
    /// The service, its place in SERVICES.
    pub service: u16,
    /// Share of new connections; at least 1.
    pub weight: u32,
    /// Most active connections; 0: no limit.
    pub max_conns: u32,
    /// Used only when no other backend is up.
    pub backup: bool,
    /// How long a failed trial keeps it out, in nanoseconds.
    pub retry_after_ns: u64,
    /// For how long it gets less than its share when it has come back, in milliseconds.
    pub slow_start_ms: u32,
    /// Its pools, one for each SNAT address; at most [`MAX_SNAT`].
    pub pools: Vec<u16>,
}

/// How a service balances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSetup {
    /// How long a backend has for its SYN-ACK, in nanoseconds.
    pub connect_timeout_ns: u64,
    /// One of `schedule::{LEAST_CONN, ROUND_ROBIN, RANDOM_TWO, HASH}`.
    pub balance: u32,
    /// Most backends one connection tries; at least 1.
    pub tries: u32,
    /// Cells of its ring of half-open flows (`max_half_open`); at least 1.
    pub half_open_cells: u32,
    /// Whether an event is wanted for every connection that ends.
    pub log: bool,
    /// Who is let in, the first rule that matches decides; none: everybody. At most [`MAX_RULES`](lb_common::layout::MAX_RULES).
    pub rules: Vec<Rule>,
    /// Most connections of one client, [`MOST`](lb_common::clients::MOST) at most; 0: no limit.
    pub client_limit: u32,
    /// Its backends, places in BACKENDS; at most [`MAX_SERVICE_BACKENDS`].
    pub backends: Vec<u16>,
}

/// A cell of a service's ring of half-open flows. The flow it names may have gone on meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfOpen {
    /// The pool.
    pub pool: u16,
    /// The slot in its pool.
    pub slot: u16,
    /// The lower 31 bits of the slot's generation.
    pub generation: u32,
}

/// Buckets of the flow index of tables in plain memory.
const IN_MEMORY_BUCKETS: u32 = 1024;

impl Tables {
    /// Tables in plain memory, without a kernel program: for simulations of the controller.
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
            maps,
        };
        tables.adopt_pools()?;
        tables.half_open.adopt(&*tables.maps)?;
        tables.rules.adopt(&*tables.maps)?;
        tables.clients.adopt(&*tables.maps)?;
        Ok(tables)
    }

    // ---- listeners ----

    /// The listener for an address, made if there is none; it takes connections from now on.
    pub fn place_listener(&self, address: SocketAddr, service: u16) -> Result<u16> {
        ensure!(u32::from(service) < MAX_SERVICES, "service number {service} is out of range");
        let octets = to_mapped(address.ip());
        let port = address.port().to_be_bytes();
        let start = hash::listener_start(ipv4_word(address)?, u16::from_ne_bytes(port), LISTENER_BITS);
        let same = |place: usize| {
            let record = self.fixed.listeners.read(place);
            (record.address, record.port) == (octets, port)
        };
        let state = |place: usize| self.fixed.listeners.read(place).state;
        let place = find_place(start, LISTENER_BITS, state, same)
            .with_context(|| format!("no room for listener {address}: its places in the table are taken by others"))?;
        let record = Listener { address: octets, port, service, family: 4, state: ACTIVE, reserved: [0; 10] };
        self.fixed.listeners.publish(place, &record, offset_of!(Listener, state));
        Ok(place as u16)
    }

    /// No new connections for a listener; those it has go on.
    pub fn close_listener(&self, number: u16) {
        self.set_listener_state(number, CLOSING);
    }

    /// Frees a listener's place. Its last connection must be over.
    pub fn delete_listener(&self, number: u16) {
        self.set_listener_state(number, DELETED);
    }

    fn set_listener_state(&self, number: u16, state: u8) {
        let mut record = self.fixed.listeners.read(number.into());
        record.state = state;
        self.fixed.listeners.publish(number.into(), &record, offset_of!(Listener, state));
    }

    /// A listener's record.
    pub fn listener(&self, number: u16) -> Listener {
        self.fixed.listeners.read(number.into())
    }

    /// All listeners that have connections or may get some.
    pub fn listeners(&self) -> Vec<(u16, Listener)> {
        numbered(&self.fixed.listeners).filter(|(_, record)| matches!(record.state, ACTIVE | CLOSING)).collect()
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

    /// Brings a pool's next hop up to date.
    pub fn set_pool_hop(&self, number: u16, hop: Hop) {
        self.fixed.pools.word64(number.into(), offset_of!(Pool, hop)).store(hop.0, Ordering::Release);
    }

    /// How many slots wait in a pool's ring.
    pub fn free_slots(&self, pool: u16) -> u32 {
        let head = self.fixed.rings.word32(pool.into(), offset_of!(Ring, head)).load(Ordering::Acquire);
        let tail = self.fixed.rings.word32(pool.into(), offset_of!(Ring, tail)).load(Ordering::Acquire);
        // Popped and pushed between the two reads: not more than there are.
        tail.wrapping_sub(head).min(self.slots(pool))
    }

    // ---- backends ----

    /// Empties a backend's record for a new owner. No connection may be open to it.
    pub fn reset_backend(&self, number: u16) {
        self.fixed.backends.publish(number.into(), &Backend::default(), offset_of!(Backend, admission));
        self.fixed.connect_times.publish(number.into(), &[0; CONNECT_TIME_BUCKETS], 0);
        self.fixed.slow_starts.publish(number.into(), &SlowStart::default(), 0);
    }

    /// Writes what the controller decides about a backend, but for its admission; counters are left alone.
    pub fn configure_backend(&self, number: u16, setup: &BackendSetup) {
        let index = usize::from(number);
        let store =
            |offset: usize, value: u32| self.fixed.backends.word32(index, offset).store(value, Ordering::Relaxed);
        store(offset_of!(Backend, weight), setup.weight.max(1));
        store(offset_of!(Backend, max_conns), setup.max_conns);
        store(offset_of!(Backend, flags), if setup.backup { BACKUP } else { 0 });
        let retry_after = self.fixed.backends.word64(index, offset_of!(Backend, retry_after));
        retry_after.store(setup.retry_after_ns, Ordering::Relaxed);
        self.fixed.slow_starts.word32(index, offset_of!(SlowStart, ms)).store(setup.slow_start_ms, Ordering::Release);
        let mut pools = [0; MAX_SNAT as usize];
        let count = setup.pools.len().min(pools.len());
        pools[..count].copy_from_slice(&setup.pools[..count]);
        for (place, pair) in pools.chunks_exact(2).enumerate() {
            store(offset_of!(Backend, pools) + place * 4, word_of(pair[0], pair[1]));
        }
        let word = self.fixed.backends.word32(index, offset_of!(Backend, service));
        word.store(word_of(setup.service, count as u16), Ordering::Release);
    }

    /// Decides what a backend may be given: `NONE`, `OUT` (a trial connection from `retry_at` on, CLOCK_MONOTONIC in
    /// nanoseconds) or `UP`.
    pub fn admit(&self, backend: u16, admission: u32, retry_at: u64) {
        let index = usize::from(backend);
        self.fixed.backends.word64(index, offset_of!(Backend, retry_at)).store(retry_at, Ordering::Release);
        self.fixed.backends.word32(index, offset_of!(Backend, admission)).store(admission, Ordering::Release);
    }

    /// The same, unless the kernel program has changed the admission meanwhile (a trial that succeeded). Until
    /// `slow_until` (CLOCK_MONOTONIC in nanoseconds; 0: no) it gets less than its share.
    pub fn swap_admission(&self, backend: u16, (from, to): (u32, u32), retry_at: u64, slow_until: u64) -> bool {
        let index = usize::from(backend);
        let word = self.fixed.backends.word32(index, offset_of!(Backend, admission));
        if word.load(Ordering::Acquire) != from {
            return false;
        }
        self.start_slowly(backend, slow_until);
        self.fixed.backends.word64(index, offset_of!(Backend, retry_at)).store(retry_at, Ordering::Release);
        word.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Writes down why a backend is out and since when it is as it is; the kernel program reads neither.
    pub fn remember_standing(&self, backend: u16, out_reason: u32, changed_at: u64) {
        let index = usize::from(backend);
        self.fixed.backends.word32(index, offset_of!(Backend, out_reason)).store(out_reason, Ordering::Relaxed);
        self.fixed.backends.word64(index, offset_of!(Backend, changed_at)).store(changed_at, Ordering::Relaxed);
    }

    fn start_slowly(&self, backend: u16, until: u64) {
        let service = self.backend(backend).service;
        self.fixed.slow_starts.word64(backend.into(), offset_of!(SlowStart, until)).store(until, Ordering::Release);
        if u32::from(service) < MAX_SERVICES {
            let latest = self.fixed.services.word64(service.into(), offset_of!(Service, slow_until));
            latest.fetch_max(until, Ordering::AcqRel);
        }
    }

    /// A copy of a backend's record.
    pub fn backend(&self, number: u16) -> Backend {
        self.fixed.backends.read(number.into())
    }

    /// Corrects the count of active connections by the drift that a full count has shown.
    pub fn correct_active(&self, backend: u16, by: i32) {
        let active = self.fixed.backends.word32(backend.into(), offset_of!(Backend, active));
        active.fetch_add(by as u32, Ordering::AcqRel);
    }

    /// Whether a backend starts slowly, and how.
    pub fn slow_start(&self, backend: u16) -> SlowStart {
        self.fixed.slow_starts.read(backend.into())
    }

    /// How many connects to a backend took how long.
    pub fn connect_times(&self, backend: u16) -> ConnectTimes {
        self.fixed.connect_times.read(backend.into())
    }

    // ---- services ----

    /// A copy of a service's record.
    pub fn service(&self, number: u16) -> Service {
        self.fixed.services.read(number.into())
    }

    /// Writes what the controller decides about a service. The ring of half-open flows is made if there is none of this
    /// size; flows that stand in the old one are carried over.
    pub fn configure_service(&self, number: u16, setup: &ServiceSetup) -> Result<()> {
        let most = MAX_SERVICE_BACKENDS as usize;
        ensure!(setup.backends.len() <= most, "{} backends, at most {most} are possible", setup.backends.len());
        ensure!(setup.half_open_cells > 0, "a service needs room for half-open connections");
        self.set_rules(number, &setup.rules)?;
        self.make_half_open_ring(number, setup.half_open_cells)?;
        let index = usize::from(number);
        let store =
            |offset: usize, value: u32| self.fixed.services.word32(index, offset).store(value, Ordering::Release);
        let timeout = self.fixed.services.word64(index, offset_of!(Service, connect_timeout));
        timeout.store(setup.connect_timeout_ns, Ordering::Release);
        store(offset_of!(Service, balance), setup.balance);
        store(offset_of!(Service, tries), setup.tries.max(1));
        store(offset_of!(Service, flags), if setup.log { LOG } else { 0 });
        if setup.client_limit > 0 {
            self.make_clients(number)?;
        }
        store(offset_of!(Service, client_limit), setup.client_limit);
        // The list before its length: what stands beyond the length is never read. While the list changes, a backend may
        // be met twice or not at all by the SYNs of these nanoseconds.
        for (place, pair) in setup.backends.chunks(2).enumerate() {
            let second = pair.get(1).copied().unwrap_or(0);
            store(offset_of!(Service, backends) + place * 4, word_of(pair[0], second));
        }
        store(offset_of!(Service, backend_count), setup.backends.len() as u32);
        // Last: a service without cells takes no connections.
        store(offset_of!(Service, half_open_cells), setup.half_open_cells);
        Ok(())
    }

    fn make_half_open_ring(&self, number: u16, cells: u32) -> Result<()> {
        let old = self.half_open.of(number);
        if old.as_ref().is_some_and(|ring| ring.len() == cells as usize) {
            return Ok(());
        }
        let ring = self.make::<u64>(Outer::HalfOpen, cells)?;
        for cell in 0..old.as_ref().map_or(0, |old| old.len()).min(cells as usize) {
            let flow = old.as_ref().map_or(0, |old| old.read(cell));
            ring.table.word64(cell, 0).store(flow, Ordering::Relaxed);
        }
        let limit = self.fixed.services.word32(number.into(), offset_of!(Service, half_open_cells));
        // Never more cells than the ring in place has.
        limit.fetch_min(cells, Ordering::AcqRel);
        self.replace(&self.half_open, number, ring)
    }

    /// Takes a service out of use: no new connections, its rings and tables are freed.
    pub fn disable_service(&self, number: u16) -> Result<()> {
        let index = usize::from(number);
        self.fixed.services.word32(index, offset_of!(Service, half_open_cells)).store(0, Ordering::Release);
        self.fixed.services.word32(index, offset_of!(Service, backend_count)).store(0, Ordering::Release);
        self.remove(&self.half_open, number)?;
        self.maps.delete(Outer::Maglev, number)?;
        self.fixed.services.word32(index, offset_of!(Service, client_limit)).store(0, Ordering::Release);
        self.remove(&self.clients, number)?;
        self.remove(&self.rules, number)
    }

    /// Puts a new table of `balance = "hash"` in place of the old one, whole: place → position in the service's list of
    /// backends.
    pub fn set_maglev(&self, service: u16, places: &[u16]) -> Result<()> {
        ensure!(places.len() == MAGLEV_PLACES as usize, "a Maglev table has {MAGLEV_PLACES} places");
        let inner = self.make::<MaglevLine>(Outer::Maglev, MAGLEV_LINES)?;
        for (index, chunk) in places.chunks(4).enumerate() {
            let mut line: MaglevLine = [0; 4];
            line[..chunk.len()].copy_from_slice(chunk);
            inner.table.publish(index, &line, 0);
        }
        self.maps.install(Outer::Maglev, service, &inner.maps)
    }

    /// The cells in use of a service's ring of half-open flows, as they stand: a flow may have gone on long since.
    pub fn half_open(&self, service: u16) -> Vec<HalfOpen> {
        let Some(ring) = self.half_open.of(service) else { return Vec::new() };
        (0..ring.len()).filter_map(|cell| half_open_in(HalfOpenCell(ring.read(cell)))).collect()
    }

    /// The cells that a service's ring of half-open flows was given since it had had `since` flows (modulo 2^32), and how
    /// many it has had now. Those that were overwritten since are not among them.
    pub fn half_open_since(&self, service: u16, since: u32) -> (Vec<HalfOpen>, u32) {
        let head = self.fixed.services.word32(service.into(), offset_of!(Service, half_open)).load(Ordering::Acquire);
        let Some(ring) = self.half_open.of(service) else {
            return (Vec::new(), head);
        };
        let count = (head.wrapping_sub(since) as usize).min(ring.len());
        let cell = |back: usize| ring.read(head.wrapping_sub(back as u32) as usize % ring.len());
        ((1..=count).rev().filter_map(|back| half_open_in(HalfOpenCell(cell(back)))).collect(), head)
    }

    // ---- interfaces ----

    /// Enters one of our interfaces, or brings its MAC address up to date; returns its number.
    pub fn place_interface(&self, ifindex: u32, mac: [u8; 6]) -> Result<u8> {
        let free =
            || numbered(&self.fixed.interfaces).find(|(_, record)| record.ifindex == 0).map(|(number, _)| number as u8);
        let Some(number) = self.interface_number(ifindex).or_else(free) else {
            bail!("more than {MAX_INTERFACES} interfaces");
        };
        let record = Interface { ifindex, mac, reserved: [0; 6] };
        if self.interface(number) != record {
            self.fixed.interfaces.publish(number.into(), &record, offset_of!(Interface, ifindex));
        }
        self.maps.set_link(ifindex, number)?;
        Ok(number)
    }

    /// An interface's record.
    pub fn interface(&self, number: u8) -> Interface {
        // A hop of the kernel program may carry any byte.
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

    /// Forgets an interface.
    pub fn remove_interface(&self, ifindex: u32) -> Result<()> {
        self.maps.remove_link(ifindex)?;
        if let Some(number) = self.interface_number(ifindex) {
            self.fixed.interfaces.publish(number.into(), &Interface::default(), offset_of!(Interface, ifindex));
        }
        Ok(())
    }

    // ---- counters ----

    /// Every reason's count, over all CPUs.
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>> {
        Reason::ALL.iter().map(|reason| Ok((*reason, self.counter(*reason)?))).collect()
    }

    /// One reason's count, over all CPUs.
    pub fn counter(&self, reason: Reason) -> Result<u64> {
        self.maps.counter(reason)
    }

    // ---- flows ----

    /// How many slots a pool has; 0 if it is not in use.
    pub fn slots(&self, pool: u16) -> u32 {
        self.slots_of(pool).map_or(0, |slots| slots.len())
    }

    fn slots_of(&self, pool: u16) -> Option<Arc<Slots>> {
        read(&self.slots).get(usize::from(pool)).cloned().flatten()
    }

    /// The slots of a range of a pool that hold a connection or are held back.
    pub fn heads(&self, pool: u16, range: Range<u32>) -> impl Iterator<Item = Head> {
        self.slots_of(pool).into_iter().flat_map(move |slots| slots.heads(range.clone()))
    }

    /// A consistent copy of a slot; nothing if it holds no connection or changes hands just now.
    pub fn flow(&self, pool: u16, slot: u16) -> Option<Flow> {
        self.slots_of(pool)?.flow(slot)
    }

    /// All open connections of a client, by reading every slot's key.
    pub fn find(&self, client: SocketAddr) -> Vec<Flow> {
        let SocketAddr::V4(address) = client else { return Vec::new() };
        let key = Key::of(address, 0);
        let of_pool = |(pool, _): (u16, Pool)| {
            let slots = self.slots_of(pool)?;
            let heads = slots.clone().heads(0..slots.len());
            let ours = heads.filter(|head| head.ctl.state().is_active() && slots.key(head.slot).is_same_client(key));
            Some(
                ours.filter_map(|head| slots.flow(head.slot))
                    .filter(|flow| flow.client() == client)
                    .collect::<Vec<_>>(),
            )
        };
        self.pools().into_iter().filter_map(of_pool).flatten().collect()
    }

    /// Puts an idle flow under suspicion: the first half of an idle timeout.
    pub fn suspect(&self, pool: u16, slot: u16, ctl: Ctl) -> bool {
        self.slots_of(pool).is_some_and(|slots| slots.suspect(slot, ctl))
    }

    /// Ends a flow whose word is still `ctl`. `Some`: we won, all consequences but the RSTs are done, once.
    pub fn close(&self, pool: u16, slot: u16, ctl: Ctl, reason: Reason) -> Option<Flow> {
        let slots = self.slots_of(pool)?;
        let flow = slots.close(slot, ctl, reason)?;
        self.account(&flow);
        self.uncount_flow(&flow);
        self.count(reason);
        if flow.ctl.flags() & IN_RING == 0 {
            slots.push(&self.fixed.rings, slot);
        }
        Some(flow)
    }

    /// Ends that the controller brings about are counted here, the others where they happen.
    fn count(&self, reason: Reason) {
        if let Err(error) = self.maps.count(reason) {
            log::warn!("an end by {} is not counted: {error:#}", reason.name());
        }
    }

    fn account(&self, flow: &Flow) {
        let index = usize::from(flow.record.backend);
        if index >= self.fixed.backends.len() {
            return;
        }
        let add =
            |offset: usize, value: u64| self.fixed.backends.word64(index, offset).fetch_add(value, Ordering::AcqRel);
        self.fixed.backends.word32(index, offset_of!(Backend, active)).fetch_sub(1, Ordering::AcqRel);
        if flow.ctl.flags() & CONNECTED != 0 {
            add(offset_of!(Backend, resets), 1);
            add(offset_of!(Backend, bytes_in), flow.bytes_in());
            add(offset_of!(Backend, bytes_out), flow.bytes_out());
        }
    }

    /// Gives a slot that was held back to the ring again. The caller has looked at its `last_seen`.
    pub fn release_abandoned(&self, pool: u16, slot: u16, ctl: Ctl) -> bool {
        let Some(slots) = self.slots_of(pool) else { return false };
        let won = slots.release(slot, ctl);
        if won {
            slots.push(&self.fixed.rings, slot);
        }
        won
    }
}

/// All records of a table with their numbers.
fn numbered<T: Record>(table: &Table<T>) -> impl Iterator<Item = (u16, T)> {
    (0..table.len()).map(|index| (index as u16, table.read(index)))
}

/// Two halves as they stand in one word of memory.
fn word_of(first: u16, second: u16) -> u32 {
    let (first, second) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([first[0], first[1], second[0], second[1]])
}

/// The flow that a cell of a ring of half-open flows names.
fn half_open_in(cell: HalfOpenCell) -> Option<HalfOpen> {
    let (at, generation) = (cell.at(), cell.generation());
    cell.is_used().then_some(HalfOpen { pool: at.pool(), slot: at.slot(), generation })
}

/// An IPv4 address as the hash functions take it.
pub fn ipv4_word(address: SocketAddr) -> Result<u32> {
    match address {
        SocketAddr::V4(address) => Ok(u32::from_ne_bytes(address.ip().octets())),
        SocketAddr::V6(address) => bail!("{address}: the datapath has no IPv6 yet"),
    }
}

/// Where a record stands in an open-addressed table, or may be put: as the kernel program searches (see [`hash`]).
fn find_place(start: u32, bits: u32, state: impl Fn(usize) -> u8, same: impl Fn(usize) -> bool) -> Option<usize> {
    find_place_within(hash::PROBES, start, bits, state, same)
}

/// The same with another number of probes.
fn find_place_within(
    probes: u32,
    start: u32,
    bits: u32,
    state: impl Fn(usize) -> u8,
    same: impl Fn(usize) -> bool,
) -> Option<usize> {
    let places = (0..probes).map(|probe| (start.wrapping_add(probe) & ((1 << bits) - 1)) as usize);
    let mut free = None;
    for place in places {
        match state(place) {
            EMPTY => return free.or(Some(place)),
            DELETED => free = free.or(Some(place)),
            _ if same(place) => return Some(place),
            _ => {}
        }
    }
    free
}

/// A lock is poisoned only by a panic while it is held; what it guards is whole at every moment.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// As [`read`].
fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
