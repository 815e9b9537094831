//! Making and removing pools: the slots of one (backend address:port, SNAT address).

use std::{
    mem::offset_of,
    net::{Ipv4Addr, SocketAddrV4},
    panic::resume_unwind,
    sync::{Arc, atomic::Ordering},
    thread,
};

use anyhow::{Result, bail, ensure};
use lb_common::{
    layout::{ACTIVE, DELETED, FreeLine, Opening, Pool, Slot},
    time::Ticks,
};

use super::{
    Outer, Tables, check_reach, find_row,
    rows::{pool_backend, pool_rows, pool_snat},
    slots::{Slots, free_lines},
    write,
};

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
        let slots = self.make::<Slot>(Outer::Slots, ports)?;
        let openings = self.make::<Opening>(Outer::Openings, ports)?;
        let free = self.make::<FreeLine>(Outer::Free, free_lines(ports))?;
        // Each waits until no program uses the earlier map (RCU), so all of them wait together.
        thread::scope(|scope| {
            let others = [
                scope.spawn(|| self.maps.install(Outer::Slots, row, &slots.maps)),
                scope.spawn(|| self.maps.install(Outer::Openings, row, &openings.maps)),
            ];
            self.maps.install(Outer::Free, row, &free.maps)?;
            others.into_iter().try_for_each(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })?;
        let slots = Slots::new(row, slots.table, openings.table, free.table);
        let first = if upper_first { pool.ports / 2 } else { 0 };
        slots.fill(&self.fixed.rings, first, |slot| withheld.contains(&(pool.first_port + slot)));
        write(&self.slots)[usize::from(row)] = Some(Arc::new(slots));
        self.fixed.pools.publish(row.into(), pool, offset_of!(Pool, state));
        self.note_addresses()
    }

    /// Maps the slots of the pools that an earlier run has made.
    pub(super) fn adopt_pools(&self) -> Result<()> {
        for (number, record) in self.pools() {
            let ports = u32::from(record.ports);
            let slots = self.open_inner(Outer::Slots, number, ports)?;
            let openings = self.open_inner(Outer::Openings, number, ports)?;
            let free = self.open_inner(Outer::Free, number, free_lines(ports))?;
            let (Some(slots), Some(openings), Some(free)) = (slots, openings, free) else {
                bail!("pool {number} has no slots: the tables are damaged");
            };
            write(&self.slots)[usize::from(number)] = Some(Arc::new(Slots::new(number, slots, openings, free)));
        }
        Ok(())
    }

    /// Takes a port out of use for good, because a listener was added at the SNAT address. `false`:
    /// a connection has it at the moment; ask again later.
    pub fn withhold_port(&self, pool: u16, port: u16) -> bool {
        let Some(slots) = self.slots_of(pool) else { return true };
        match port.checked_sub(self.pool(pool).first_port) {
            Some(slot) if u32::from(slot) < slots.len() => slots.retire(slot),
            _ => true,
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
        self.maps.delete(Outer::Free, number)
    }
}
