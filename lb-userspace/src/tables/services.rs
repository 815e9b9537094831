//! The services: how they balance, their Maglev tables and their rings of half-open flows.

use std::{collections::BTreeSet, mem::offset_of, sync::atomic::Ordering, time::Duration};

use anyhow::{Result, ensure};
use lb_common::{
    flow::HalfOpenCell,
    layout::{COOKIES_OFF, EXEMPTS, LOG, MAGLEV_LINES, MAX_SERVICE_BACKENDS, MaglevLine, Rule, Service},
    schedule::MAGLEV_PLACES,
    time::nanoseconds,
};

use super::{Outer, Tables, WayKey, word_of};

/// How a service balances: the controller's part of a record of SERVICES, and its rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRow {
    /// How long a backend has for its SYN-ACK.
    pub connect_timeout: Duration,
    /// One of `schedule::{LEAST_CONN, ROUND_ROBIN, RANDOM_TWO, HASH}`.
    pub balance: u32,
    /// The most backends that one connection tries; at least 1.
    pub tries: u32,
    /// Cells of its ring of half-open flows (`max_half_open`); at least 1.
    pub half_open_cells: u32,
    /// Whether every connection that ends gives an event.
    pub log: bool,
    /// Which clients are let in; the first rule that matches decides. Empty: all clients. At most
    /// [`MAX_RULES`](lb_common::layout::MAX_RULES).
    pub rules: Vec<Rule>,
    /// The most connections of one client, at most [`MOST`](lb_common::clients::MOST); 0:
    /// unlimited.
    pub client_limit: u32,
    /// The clients that get no SYN cookies.
    pub exempt: BTreeSet<WayKey>,
    /// Its backends in the order of the file, rows of BACKENDS; at most
    /// [`MAX_SERVICE_BACKENDS`](lb_common::layout::MAX_SERVICE_BACKENDS).
    pub backends: Vec<u16>,
}

impl Tables {
    /// A copy of a service's record.
    pub fn service(&self, number: u16) -> Service {
        self.fixed.services.read(number.into())
    }

    /// Writes the controller's part of a service. Its ring of half-open flows is made if it has
    /// none of this size; the flows in the old one are carried over.
    pub fn configure_service(&self, number: u16, row: &ServiceRow) -> Result<()> {
        let most = MAX_SERVICE_BACKENDS as usize;
        ensure!(row.backends.len() <= most, "{} backends, at most {most} are possible", row.backends.len());
        ensure!(row.half_open_cells > 0, "a service needs room for half-open connections");
        self.set_rules(number, &row.rules)?;
        self.make_half_open_ring(number, row.half_open_cells)?;
        let index = usize::from(number);
        let store =
            |offset: usize, value: u32| self.fixed.services.word32(index, offset).store(value, Ordering::Release);
        let timeout = self.fixed.services.word64(index, offset_of!(Service, connect_timeout));
        timeout.store(nanoseconds(row.connect_timeout), Ordering::Release);
        store(offset_of!(Service, balance), row.balance);
        store(offset_of!(Service, tries), row.tries.max(1));
        self.set_exempt(number, &row.exempt)?;
        let exempts = if row.exempt.is_empty() { 0 } else { EXEMPTS };
        store(offset_of!(Service, flags), exempts | if row.log { LOG } else { 0 });
        if row.client_limit > 0 {
            self.make_clients(number)?;
        }
        store(offset_of!(Service, client_limit), row.client_limit);
        let before = self.service(number);
        let changes = before.backends.get(..before.backend_count as usize) != Some(&row.backends);
        // The list before its length: what is beyond the length is never read. While the list
        // changes, the SYNs of these nanoseconds may meet a backend twice or not at all.
        for (pair, two) in row.backends.chunks(2).enumerate() {
            let second = two.get(1).copied().unwrap_or(0);
            store(offset_of!(Service, backends) + pair * 4, word_of(two[0], second));
        }
        store(offset_of!(Service, backend_count), row.backends.len() as u32);
        if changes {
            // From now on the positions that connecting flows have noted are those of another list.
            store(offset_of!(Service, list), before.list.wrapping_add(1));
        }
        // Last: a service without cells takes no connections.
        store(offset_of!(Service, half_open_cells), row.half_open_cells);
        Ok(())
    }

    /// The controller's part of a service, as [`configure_service`](Self::configure_service) has
    /// written it.
    pub fn service_row(&self, number: u16) -> ServiceRow {
        let record = self.service(number);
        ServiceRow {
            connect_timeout: Duration::from_nanos(record.connect_timeout),
            balance: record.balance,
            tries: record.tries,
            half_open_cells: record.half_open_cells,
            log: record.flags & LOG != 0,
            rules: self.rules(number),
            client_limit: record.client_limit,
            exempt: self.exempt(number),
            backends: record.backends.get(..record.backend_count as usize).unwrap_or_default().to_vec(),
        }
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

    /// Takes a service out of use: it takes no connections, and its rings and tables are freed.
    pub fn disable_service(&self, number: u16) -> Result<()> {
        let index = usize::from(number);
        self.fixed.services.word32(index, offset_of!(Service, half_open_cells)).store(0, Ordering::Release);
        self.fixed.services.word32(index, offset_of!(Service, backend_count)).store(0, Ordering::Release);
        self.remove(&self.half_open, number)?;
        self.maps.delete(Outer::Maglev, number)?;
        self.fixed.services.word32(index, offset_of!(Service, client_limit)).store(0, Ordering::Release);
        self.remove(&self.clients, number)?;
        let store = |offset, value| self.fixed.services.word32(index, offset).store(value, Ordering::Release);
        store(offset_of!(Service, cookies), COOKIES_OFF);
        store(offset_of!(Service, mss_clamp), 0);
        self.set_exempt(number, &BTreeSet::new())?;
        self.remove(&self.rules, number)
    }

    /// Replaces the table of `balance = "hash"`, whole. Each entry is a position in the service's
    /// list of backends.
    pub fn set_maglev(&self, service: u16, places: &[u16]) -> Result<()> {
        ensure!(places.len() == MAGLEV_PLACES as usize, "a Maglev table has {MAGLEV_PLACES} places");
        let inner = self.make::<MaglevLine>(Outer::Maglev, MAGLEV_LINES)?;
        for (index, chunk) in places.chunks(4).enumerate() {
            let mut line: MaglevLine = [0; 4];
            line[..chunk.len()].copy_from_slice(chunk);
            inner.table.publish(index, &line, 0);
        }
        self.maps.install(Outer::Maglev, service, 0, &[&inner.map])
    }

    /// The cells in use of a service's ring of half-open flows. A flow may have left its slot long
    /// ago.
    pub fn half_open(&self, service: u16) -> Vec<HalfOpenCell> {
        let Some(ring) = self.half_open.of(service) else { return Vec::new() };
        (0..ring.len()).map(|cell| HalfOpenCell(ring.read(cell))).filter(|cell| cell.is_used()).collect()
    }

    /// Whether a flow of a service waits for its client's confirmation.
    pub fn has_unconfirmed(&self, service: u16) -> bool {
        let waits = |cell: &HalfOpenCell| {
            let flow = self.flow(cell.at());
            flow.is_some_and(|flow| flow.ctl.state().is_unconfirmed() && flow.ctl.is_of_low31(cell.generation()))
        };
        self.half_open(service).iter().any(waits)
    }

    /// The cells that a service's ring of half-open flows was given after its first `since` flows
    /// (modulo 2^32), and the number of flows it has had by now. Cells that were overwritten since
    /// are not among them.
    pub fn half_open_since(&self, service: u16, since: u32) -> (Vec<HalfOpenCell>, u32) {
        let head = self.fixed.services.word32(service.into(), offset_of!(Service, half_open)).load(Ordering::Acquire);
        let Some(ring) = self.half_open.of(service) else {
            return (Vec::new(), head);
        };
        let count = (head.wrapping_sub(since) as usize).min(ring.len());
        let cell = |back: usize| HalfOpenCell(ring.read(head.wrapping_sub(back as u32) as usize % ring.len()));
        ((1..=count).rev().map(cell).filter(|cell| cell.is_used()).collect(), head)
    }
}
