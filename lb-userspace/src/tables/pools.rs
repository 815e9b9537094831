//! Making and removing pools: the slots of one (backend address:port, SNAT address).

use std::{
    mem::offset_of,
    net::{IpAddr, SocketAddr},
    panic::resume_unwind,
    sync::{Arc, atomic::Ordering},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use lb_common::{
    address::to_mapped,
    hash,
    layout::{ACTIVE, DELETED, FreeLine, Hop, Opening, POOL_BITS, Pool, Slot},
    time::Ticks,
};

use super::{
    Tables, find_place, ipv4_word,
    maps::Outer,
    slots::{Slots, free_lines},
    write,
};

/// A pool to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPool {
    /// The backend's address and port.
    pub backend: SocketAddr,
    /// The source address that the backend sees.
    pub snat: IpAddr,
    /// The SNAT port of slot 0.
    pub first_port: u16,
    /// How many ports there are; at least 1.
    pub ports: u16,
    /// Ports that are never used: those of listeners at the SNAT address.
    pub reserved: Vec<u16>,
    /// Next hop towards the backend, if it is known.
    pub hop: Hop,
    /// The upper half of the ports is handed out first: the other host of a pair begins with the lower one, so that they
    /// seldom meet when both hand out ports for a while.
    pub upper_first: bool,
}

impl Tables {
    /// The pool of a backend and a SNAT address.
    pub fn find_pool(&self, backend: SocketAddr, snat: IpAddr) -> Option<u16> {
        let place = self.pool_place(backend, snat).ok()?;
        (self.pool(place).state == ACTIVE).then_some(place)
    }

    /// When anything came from a pool's backend last, in ticks.
    pub fn heard(&self, pool: u16) -> u32 {
        self.fixed.pools.word32(pool.into(), offset_of!(Pool, heard)).load(Ordering::Relaxed)
    }

    /// When a client's segment was sent on to a pool's backend last, in ticks.
    pub fn sent(&self, pool: u16) -> u32 {
        self.fixed.pools.word32(pool.into(), offset_of!(Pool, sent)).load(Ordering::Relaxed)
    }

    fn pool_place(&self, backend: SocketAddr, snat: IpAddr) -> Result<u16> {
        let (octets, port, source) = (to_mapped(backend.ip()), backend.port().to_be_bytes(), to_mapped(snat));
        let snat_word = ipv4_word(SocketAddr::new(snat, 0))?;
        let start = hash::pool_start(ipv4_word(backend)?, u16::from_ne_bytes(port), snat_word, POOL_BITS);
        let same = |place: usize| {
            let record = self.fixed.pools.read(place);
            (record.backend, record.port, record.snat) == (octets, port, source)
        };
        let place = find_place(start, POOL_BITS, |place| self.fixed.pools.read(place).state, same);
        Ok(place.with_context(|| format!("no room for backend {backend}: its places are taken by others"))? as u16)
    }

    /// Makes a pool with all its slots free. It must not exist yet.
    pub fn create_pool(&self, new: &NewPool) -> Result<u16> {
        let ports = u32::from(new.ports);
        ensure!(ports > 0 && u32::from(new.first_port) + ports <= 1 << 16, "no valid range of SNAT ports");
        let number = self.pool_place(new.backend, new.snat)?;
        ensure!(self.pool(number).state != ACTIVE, "the pool of {} and {} exists already", new.backend, new.snat);
        let slots = self.make::<Slot>(Outer::Slots, ports)?;
        let openings = self.make::<Opening>(Outer::Openings, ports)?;
        let free = self.make::<FreeLine>(Outer::Free, free_lines(ports))?;
        // Each waits until no program uses what stood there before (RCU): all of them at the same time.
        thread::scope(|scope| {
            let others = [
                scope.spawn(|| self.maps.install(Outer::Slots, number, &slots.maps)),
                scope.spawn(|| self.maps.install(Outer::Openings, number, &openings.maps)),
            ];
            self.maps.install(Outer::Free, number, &free.maps)?;
            others.into_iter().try_for_each(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })?;
        let slots = Slots::new(number, slots.table, openings.table, free.table);
        let first = if new.upper_first { new.ports / 2 } else { 0 };
        slots.fill(&self.fixed.rings, first, |slot| new.reserved.contains(&(new.first_port + slot)));
        write(&self.slots)[usize::from(number)] = Some(Arc::new(slots));
        let record = Pool {
            backend: to_mapped(new.backend.ip()),
            snat: to_mapped(new.snat),
            port: new.backend.port().to_be_bytes(),
            first_port: new.first_port,
            ports: new.ports,
            family: 4,
            state: ACTIVE,
            hop: new.hop,
            heard: Ticks(0),
            sent: Ticks(0),
            reserved: [0; 2],
        };
        self.fixed.pools.publish(number.into(), &record, offset_of!(Pool, state));
        Ok(number)
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

    /// Takes a port out of use for good, since a listener was added at the SNAT address. `false`: a connection has it
    /// just now, ask again later.
    pub fn reserve_port(&self, pool: u16, port: u16) -> bool {
        let Some(slots) = self.slots_of(pool) else { return true };
        match port.checked_sub(self.pool(pool).first_port) {
            Some(slot) if u32::from(slot) < slots.len() => slots.retire(slot),
            _ => true,
        }
    }

    /// Removes a pool in which no connection is open, and frees its memory.
    pub fn remove_pool(&self, number: u16) -> Result<()> {
        let open = self.heads(number, 0..u32::MAX).filter(|head| head.ctl.state().is_active()).count();
        ensure!(open == 0, "{open} connections are open in pool {number}");
        let mut record = self.pool(number);
        record.state = DELETED;
        self.fixed.pools.publish(number.into(), &record, offset_of!(Pool, state));
        write(&self.slots)[usize::from(number)] = None;
        self.maps.delete(Outer::Slots, number)?;
        self.maps.delete(Outer::Openings, number)?;
        self.maps.delete(Outer::Free, number)
    }
}
