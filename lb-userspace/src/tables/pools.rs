//! Making and removing pools: the slots of one (backend address:port, SNAT address).

use std::{
    collections::BTreeSet,
    mem::offset_of,
    net::{Ipv4Addr, SocketAddrV4},
    panic::resume_unwind,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lb_common::{
    flow::SlotAt,
    layout::{ACTIVE, DELETED, FreeLine, Opening, Pool, Slot, WIDE_LINES},
    time::Ticks,
};

use super::{
    InnerMap, Outer, Tables, check_reach, find_row, lock,
    maps::Made,
    rows::{Ports, listener_address, pool_backend, pool_rows, pool_slots, pool_snat, with_port, with_ports},
    slots::{EXTENT, Extent, Extents, Slots, free_lines, retire_all, ring_lines},
    word_of, write,
};

/// How long a port that new connections no longer get is kept for what may still come to it, before
/// it is the host's.
pub(super) const UNUSED: Duration = Duration::from_secs(60);
/// Longer than any step of the kernel program.
const STEP: Duration = Duration::from_millis(1);

const _: () =
    assert!(offset_of!(Pool, ports).is_multiple_of(4) && offset_of!(Pool, family) == offset_of!(Pool, ports) + 2);
const _: () = assert!(offset_of!(Pool, state) == offset_of!(Pool, family) + 1);

fn step() {
    thread::sleep(STEP);
}

/// What the port of a slot may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortUse {
    /// New connections get it.
    Connections,
    /// Clients connect to it at the same address.
    Listener,
    /// New connections do not get it, but some that are older or another host's may have it.
    Outside,
}

/// Extents that nothing else can reach yet, in the order of their numbers.
struct MadeExtents(Vec<(usize, Made<Slot>, Made<Opening>)>);

impl MadeExtents {
    fn retire(&self) {
        self.0.iter().for_each(|(_, slots, _)| retire_all(&slots.table));
    }

    fn extents(self) -> Extents {
        let mut extents = Extents::default();
        for (part, slots, openings) in self.0 {
            extents[part] = Some(Arc::new(Extent { slots: slots.table, openings: openings.table }));
        }
        extents
    }
}

impl Tables {
    /// The pool of a backend and a SNAT address.
    pub fn find_pool(&self, backend: SocketAddrV4, snat: Ipv4Addr) -> Option<u16> {
        let is_meant = |row| {
            let record = self.pool(row);
            pool_backend(&record) == backend && pool_snat(&record) == snat
        };
        find_row(pool_rows(backend, snat), |row| self.pool(row).state, is_meant)
    }

    /// When anything came from a pool's backend last, up to
    /// [`HEARD_STEP`](lb_common::layout::HEARD_STEP) behind.
    pub fn heard(&self, pool: u16) -> Ticks {
        Ticks(self.fixed.pools.word32(pool.into(), offset_of!(Pool, heard)).load(Ordering::Relaxed))
    }

    /// When a client's segment was last sent on to a pool's backend; up to the same step behind.
    pub fn sent(&self, pool: u16) -> Ticks {
        Ticks(self.fixed.pools.word32(pool.into(), offset_of!(Pool, sent)).load(Ordering::Relaxed))
    }

    /// Makes a pool, with all its slots free, in the row that was chosen for it
    /// ([`Installed::free_pool_row`](super::Installed)). The ports in `withheld` are never used:
    /// they are those of listeners at the SNAT address.
    ///
    /// `upper_first`: the upper half of the ports is handed out first. The other host of a pair
    /// begins with the lower one, so that the two seldom collide when both hand out ports for a
    /// while.
    pub fn put_pool(&self, row: u16, pool: &Pool, withheld: &[u16], upper_first: bool) -> Result<()> {
        let ports = u32::from(pool.ports);
        ensure!(ports > 0 && u32::from(pool.first_port) + ports <= 1 << 16, "no valid range of SNAT ports");
        let (backend, snat) = (pool_backend(pool), pool_snat(pool));
        ensure!(self.find_pool(backend, snat).is_none(), "the pool of {backend} and {snat} exists already");
        ensure!(self.pool(row).state != ACTIVE, "row {row} holds another pool");
        check_reach(pool_rows(backend, snat), row, |row| self.pool(row).state)?;
        let new = self.make_extents(0..ports.div_ceil(EXTENT) as usize)?;
        let free = self.make::<FreeLine>(Outer::Free, free_lines(ports))?;
        self.install(row, &new, Some((Outer::Free, &free.map)))?;
        let slots = Slots::new(row, ports, new.extents(), free.table, None);
        let first = if upper_first { pool.ports / 2 } else { 0 };
        slots.fill(&self.fixed.rings, first, |slot| withheld.contains(&(pool.first_port + slot)));
        write(&self.slots)[usize::from(row)] = Some(Arc::new(slots));
        self.fixed.pools.publish(row.into(), pool, offset_of!(Pool, state));
        self.note_addresses()
    }

    /// Gives new connections of a pool these ports. Those that are open keep theirs, and a port
    /// that is no longer among them is not used again. `withheld` and `upper_first`: as in
    /// [`put_pool`](Self::put_pool).
    pub fn set_ports(&self, number: u16, ports: Ports, withheld: &[u16], upper_first: bool) -> Result<()> {
        let _circulation = lock(&self.circulation);
        let before = self.pool(number);
        let after = with_ports(before, ports);
        let slot_of = |nth: u16| ports.first.wrapping_add(nth).wrapping_sub(after.first_port);
        let parts: BTreeSet<_> = (0..ports.count).map(|nth| usize::from(slot_of(nth)) / EXTENT as usize).collect();
        let slots = self.extend(number, &after, parts)?;
        let (was, is) = (Ports::of(&before), ports);
        let stays = |slot: u16| was.has_slot(&after, slot) && is.has_slot(&after, slot);
        ensure!(slots.close_off(&self.fixed.rings, stays, step), "ports of pool {number} change hands all the time");
        let begin = if upper_first { ports.count / 2 } else { 0 };
        let nths = (begin..ports.count).chain(0..begin);
        let added = nths.map(slot_of).filter(|slot| !was.has_slot(&after, *slot));
        let added = added.filter(|slot| !withheld.contains(&after.first_port.wrapping_add(*slot)));
        ensure!(slots.open_up(&self.fixed.rings, added, step), "ports of pool {number} change hands all the time");
        Ok(())
    }

    /// Makes the slot of a port that new connections do not get: another host has one there.
    pub fn reach_port(&self, number: u16, port: u16) -> Result<()> {
        let after = with_port(self.pool(number), port);
        let part = usize::from(port.wrapping_sub(after.first_port)) / EXTENT as usize;
        self.extend(number, &after, [part].into()).map(|_| ())
    }

    /// Gives a pool the slots that its new record speaks of, as far as they are in these extents,
    /// and writes the record. The new ones are retired.
    fn extend(&self, number: u16, after: &Pool, parts: BTreeSet<usize>) -> Result<Arc<Slots>> {
        let slots = self.slots_of(number).with_context(|| format!("pool {number} has no slots"))?;
        let len = pool_slots(after);
        let new = self.make_extents(parts.into_iter().filter(|part| !slots.has_extent(*part)))?;
        let wide = slots.is_too_narrow_for(&self.fixed.rings, len);
        let wide = wide.then(|| self.make::<FreeLine>(Outer::Wide, WIDE_LINES)).transpose()?;
        // Retired before the kernel program can find them.
        new.retire();
        self.install(number, &new, wide.as_ref().map(|wide| (Outer::Wide, &wide.map)))?;
        let unused_from = slots.len();
        let slots = Arc::new(slots.with(len, new.extents(), wide.map(|wide| wide.table)));
        slots.retire_unused(unused_from);
        slots.begin_wide(&self.fixed.rings);
        write(&self.slots)[usize::from(number)] = Some(slots.clone());
        let word = |offset: usize| self.fixed.pools.word32(number.into(), offset);
        word(offset_of!(Pool, range)).store(after.range, Ordering::Release);
        let family_and_state = u16::from_ne_bytes([after.family, after.state]);
        word(offset_of!(Pool, ports)).store(word_of(after.ports, family_and_state), Ordering::Release);
        Ok(slots)
    }

    /// Makes extents of slots and of what the flows in them began with.
    fn make_extents(&self, parts: impl IntoIterator<Item = usize>) -> Result<MadeExtents> {
        let one = |part| Ok((part, self.make(Outer::Slots, EXTENT)?, self.make(Outer::Openings, EXTENT)?));
        parts.into_iter().map(one).collect::<Result<_>>().map(MadeExtents)
    }

    /// Shows the kernel program new extents of a pool, and the cells of a ring.
    fn install(&self, row: u16, new: &MadeExtents, ring: Option<(Outer, &InnerMap)>) -> Result<()> {
        // Each waits until no program uses the earlier map (RCU), so all of them wait together.
        thread::scope(|scope| {
            let mut waiting = Vec::new();
            for run in new.0.chunk_by(|(one, ..), (next, ..)| one + 1 == *next) {
                let first = run.first().map_or(0, |(part, ..)| *part as u32);
                let slots: Vec<_> = run.iter().map(|(_, slots, _)| &slots.map).collect();
                let openings: Vec<_> = run.iter().map(|(.., openings)| &openings.map).collect();
                for (outer, maps) in [(Outer::Slots, slots), (Outer::Openings, openings)] {
                    waiting.push(scope.spawn(move || self.maps.install(outer, row, first, &maps)));
                }
            }
            ring.map_or(Ok(()), |(outer, map)| self.maps.install(outer, row, 0, &[map]))?;
            waiting.into_iter().try_for_each(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }

    /// Maps the slots of the pools that an earlier run has made.
    pub(super) fn adopt_pools(&self) -> Result<()> {
        for (number, record) in self.pools() {
            let mut extents = Extents::default();
            for (part, extent) in extents.iter_mut().enumerate() {
                let slots = self.open_inner(Outer::Slots, number, part as u32, EXTENT)?;
                let openings = self.open_inner(Outer::Openings, number, part as u32, EXTENT)?;
                *extent = slots.zip(openings).map(|(slots, openings)| Arc::new(Extent { slots, openings }));
            }
            let bits = self.fixed.rings.read(number.into()).first.bits;
            let free = self.open_inner(Outer::Free, number, 0, ring_lines(bits))?;
            let wide = self.open_inner(Outer::Wide, number, 0, WIDE_LINES)?;
            let (Some(_), Some(free)) = (extents.iter().flatten().next(), free) else {
                bail!("pool {number} has no slots: the tables are damaged");
            };
            let slots = Slots::new(number, pool_slots(&record), extents, free, wide);
            write(&self.slots)[usize::from(number)] = Some(Arc::new(slots));
        }
        Ok(())
    }

    /// Takes a port out of use for good, because a listener was added at the SNAT address. `false`:
    /// a connection has it at the moment; ask again later.
    pub fn withhold_port(&self, pool: u16, port: u16) -> bool {
        let slot = port.wrapping_sub(self.pool(pool).first_port);
        self.slots_of(pool).filter(|slots| slots.has(slot)).is_none_or(|slots| slots.retire(slot))
    }

    /// Whether new connections of a pool get the port of a slot.
    pub(super) fn insides(&self, number: u16) -> impl Fn(u16) -> bool {
        let pool = self.pool(number);
        move |slot| Ports::of(&pool).has_slot(&pool, slot)
    }

    /// What the ports of a pool's slots may be used for.
    pub(super) fn port_uses(&self, number: u16) -> impl Fn(u16) -> PortUse {
        let pool = self.pool(number);
        let listeners = self.listeners().into_iter().map(|(_, listener)| listener_address(&listener));
        let same = listeners.filter(|address| *address.ip() == pool_snat(&pool));
        let listened: BTreeSet<_> = same.map(|address| address.port()).collect();
        move |slot| {
            let port = pool.first_port.wrapping_add(slot);
            match Ports::of(&pool).has(port) {
                _ if listened.contains(&port) => PortUse::Listener,
                true => PortUse::Connections,
                false => PortUse::Outside,
            }
        }
    }

    /// Takes the ports of a pool out of use that new connections no longer get and that were not
    /// used for a while, so that the host may use them itself.
    pub fn retire_outside(&self, number: u16, now: Ticks) {
        let (pool, Some(slots)) = (self.pool(number), self.slots_of(number)) else { return };
        if pool.range == 0 {
            return;
        }
        let is_inside = self.insides(number);
        for slot in slots.all().filter(|slot| !is_inside(*slot)) {
            let key = slots.key(slot);
            if let Some(before) = slots.retire_outside(slot, now, UNUSED) {
                self.leave(key, SlotAt::new(number, slot), before.generation());
            }
        }
    }

    /// Removes a pool in which no connection is open, and frees its memory.
    pub fn remove_pool(&self, number: u16) -> Result<()> {
        let open = self.heads(number, 0..u32::MAX).filter(|head| head.flow.ctl.state().is_active()).count();
        ensure!(open == 0, "{open} connections are open in pool {number}");
        let mut record = self.pool(number);
        record.state = DELETED;
        self.fixed.pools.publish(number.into(), &record, offset_of!(Pool, state));
        self.note_addresses()?;
        write(&self.slots)[usize::from(number)] = None;
        self.maps.delete(Outer::Slots, number)?;
        self.maps.delete(Outer::Openings, number)?;
        self.maps.delete(Outer::Wide, number)?;
        self.maps.delete(Outer::Free, number)
    }
}
