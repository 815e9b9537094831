//! The mapped tables as the core reads them, and what a controller that starts finds in them.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_common::{
    clients::ClientCount,
    layout::{Backend, MAX_BACKENDS, MAX_SERVICES, NONE, Opening, Pool, Slot},
    slot::Ctl,
};

use crate::{
    controller::{
        installed::{BackendRow, Installed, ServiceRow},
        view::{FlowAt, Head, Place, View},
    },
    tables::Tables,
};

impl View for Tables {
    fn backend(&self, number: u16) -> Backend {
        Tables::backend(self, number)
    }

    fn slow_until(&self, backend: u16) -> u64 {
        self.slow_start(backend).until.0
    }

    fn heard(&self, pool: u16) -> u32 {
        Tables::heard(self, pool)
    }

    fn sent(&self, pool: u16) -> u32 {
        Tables::sent(self, pool)
    }

    fn half_open_head(&self, service: u16) -> u32 {
        self.service(service).half_open
    }

    fn half_open(&self, service: u16, each: &mut dyn FnMut(Place, u32)) {
        for cell in Tables::half_open(self, service) {
            each(Place { pool: cell.pool, slot: cell.slot }, cell.generation);
        }
    }

    fn clients(&self, service: u16, each: &mut dyn FnMut(ClientCount)) {
        Tables::clients(self, service).into_iter().for_each(each);
    }

    fn slots(&self, pool: u16) -> u32 {
        Tables::slots(self, pool)
    }

    fn heads(&self, pool: u16, from: u32, to: u32, each: &mut dyn FnMut(Head)) {
        for head in Tables::heads(self, pool, from..to) {
            let flow = FlowAt { place: Place { pool, slot: head.slot }, ctl: head.ctl };
            each(Head { flow, key: head.key, last_seen: head.last_seen, backend: head.backend });
        }
    }

    fn slot(&self, place: Place) -> Option<(Ctl, Slot)> {
        self.flow(place.pool, place.slot).map(|flow| (flow.ctl, flow.record))
    }

    fn opening(&self, place: Place) -> Option<(Ctl, Opening)> {
        self.flow(place.pool, place.slot).map(|flow| (flow.ctl, flow.opening))
    }

    fn client(&self, place: Place) -> Option<SocketAddr> {
        self.flow(place.pool, place.slot).map(|flow| flow.client())
    }
}

/// What stands in the tables. Records of services and backends carry no mark: one is in use if something names it or if
/// it names something.
pub fn installed(tables: &Tables) -> Installed {
    let without_hop = |pool: Pool| Pool { hop: Default::default(), ..pool };
    let mut installed = Installed {
        listeners: tables.listeners().into_iter().collect(),
        pools: tables.pools().into_iter().map(|(number, pool)| (number, without_hop(pool))).collect(),
        ..Installed::default()
    };
    for number in 0..MAX_BACKENDS as u16 {
        let record = tables.backend(number);
        let pools = record.pools.get(..usize::from(record.pool_count)).unwrap_or_default();
        if pools.is_empty() {
            continue;
        }
        let row = BackendRow {
            service: record.service,
            pools: pools.to_vec(),
            weight: record.weight,
            max_conns: record.max_conns,
            backup: record.flags & lb_common::layout::BACKUP != 0,
            retry_after: record.retry_after,
            slow_start_ms: tables.slow_start(number).ms,
            closed: record.admission == NONE,
        };
        installed.backends.insert(number, row);
    }
    let by_listeners = installed.listeners.values().map(|listener| listener.service);
    let named: BTreeSet<_> = by_listeners.chain(installed.backends.values().map(|row| row.service)).collect();
    for number in 0..MAX_SERVICES as u16 {
        let record = tables.service(number);
        if record.half_open_cells == 0 && !named.contains(&number) {
            continue;
        }
        let backends = record.backends.get(..record.backend_count as usize).unwrap_or_default();
        let row = ServiceRow {
            connect_timeout: record.connect_timeout,
            balance: record.balance,
            tries: record.tries,
            half_open_cells: record.half_open_cells,
            flags: record.flags,
            rules: tables.rules(number),
            client_limit: record.client_limit,
            backends: backends.to_vec(),
        };
        installed.services.insert(number, row);
    }
    installed
}
