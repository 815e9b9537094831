//! From what the tables hold to what the configuration asks for: the ordered list of writes.
//!
//! The order is such that every packet in between is handled correctly: a pool exists before a
//! backend names it, a backend before a service lists it, a service before a listener leads to it;
//! and the reverse when something goes. What goes is only closed here (a listener becomes
//! `CLOSING`, a backend a tombstone that gets no connections); it is removed by
//! [`removal`](super::removal) when its last flow has ended. A backend or a listener that comes
//! back before that takes its old row again, with its flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    hash,
    layout::{ACTIVE, CLOSING, LISTENED, Listener, MAX_BACKENDS, MAX_SERVICES, Pool},
    schedule,
};

use super::desired::{Desired, DesiredBackend, DesiredService};
pub use crate::tables::Write;
use crate::tables::{
    BackendRow, Installed, ServiceRow,
    rows::{Ports, listener_address, listener_record, pool_record, pool_snat, with_port, with_ports},
};

/// What a plan does, and what is installed afterwards.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The writes, to be carried out in this order.
    pub writes: Vec<Write>,
    /// What the tables hold after the last write.
    pub after: Installed,
    /// The number of each desired service and those of its backends, in the order of the file.
    pub places: Vec<(u16, Vec<u16>)>,
}

/// The writes that lead from `installed` to `desired`. If that is not possible: every error, and no
/// write.
///
/// `known` are the numbers of services by name, as far as this process has seen them: a service
/// whose listen address changes keeps its number.
pub fn plan(installed: &Installed, desired: &Desired, known: &BTreeMap<Arc<str>, u16>) -> Result<Plan, Vec<String>> {
    let mut planner = Planner { plan: Plan { after: installed.clone(), ..Plan::default() }, errors: Vec::new() };
    planner.close_listeners(desired);
    for (service, number) in desired.services.iter().zip(service_places(installed, desired, known)) {
        match number {
            Some(number) => planner.service(service, number, desired),
            None => planner.errors.push(format!("service {}: more than {MAX_SERVICES} services", service.name)),
        }
    }
    planner.empty_other_services();
    for (service, (number, _)) in desired.services.iter().zip(planner.plan.places.clone()) {
        planner.listeners(service, number);
    }
    planner.bury_backends();
    if planner.errors.is_empty() { Ok(planner.plan) } else { Err(planner.errors) }
}

/// Makes room for the flows of a backend that only the other host of a pair has: a tombstone, which
/// gets no connections and goes when its last flow has ended. If there is the backend and only its
/// slots for this SNAT address are missing: those, for as long as they hold flows. `None` if there is
/// no such service, or no free row.
pub fn tombstone(
    installed: &Installed,
    desired: &Desired,
    listener: SocketAddrV4,
    backend: SocketAddrV4,
    snat: Ipv4Addr,
) -> Option<Plan> {
    let of = installed.listener(listener)?.1.service;
    let service = desired.services.iter().find(|service| service.listen.contains(&listener))?;
    if installed.pool(backend, snat).is_some() || !service.snat.contains(&snat) {
        return None;
    }
    let nameless = DesiredBackend {
        name: Arc::from(backend.to_string()),
        address: backend,
        weight: 1,
        max_conns: 0,
        max_fails: 0,
        fail_timeout: Duration::ZERO,
        slow_start: Duration::ZERO,
        backup: false,
        down: true,
    };
    let mut planner = Planner { plan: Plan { after: installed.clone(), ..Plan::default() }, errors: Vec::new() };
    if installed.backend(of, backend).is_some() {
        planner.pool(service, &nameless, snat, desired)?;
        return Some(planner.plan);
    }
    let pools: Option<Vec<_>> =
        service.snat.iter().map(|snat| planner.pool(service, &nameless, *snat, desired)).collect();
    planner.backend(service, of, &nameless, pools?)?;
    Some(planner.plan)
}

/// Makes room for the flows that another host has with this SNAT port, which new connections do not
/// get here: the ports were changed on one of the hosts. `None` if there are no slots of this
/// backend and SNAT address.
pub fn reach(installed: &Installed, backend: SocketAddrV4, snat: SocketAddrV4) -> Option<Plan> {
    let (number, pool) = installed.pool(backend, *snat.ip())?;
    let mut after = installed.clone();
    after.pools.insert(number, with_port(*pool, snat.port()));
    let writes = vec![Write::ReachPort { number, port: snat.port() }];
    Some(Plan { writes, after, ..Plan::default() })
}

/// The number of every desired service: that of the first of its listeners that is installed, else
/// the one known for its name, else a free one.
fn service_places(installed: &Installed, desired: &Desired, known: &BTreeMap<Arc<str>, u16>) -> Vec<Option<u16>> {
    let mut taken = BTreeSet::new();
    let mut places: Vec<Option<u16>> = Vec::new();
    for service in &desired.services {
        let by_listener = service.listen.iter().filter_map(|address| Some(installed.listener(*address)?.1.service));
        let by_name = known.get(&service.name).copied();
        let place = by_listener.chain(by_name).find(|number| !taken.contains(number));
        taken.extend(place);
        places.push(place);
    }
    for place in places.iter_mut().filter(|place| place.is_none()) {
        *place =
            (0..MAX_SERVICES as u16).find(|number| !taken.contains(number) && !installed.services.contains_key(number));
        taken.extend(*place);
    }
    places
}

struct Planner {
    plan: Plan,
    errors: Vec<String>,
}

impl Planner {
    fn after(&mut self) -> &mut Installed {
        &mut self.plan.after
    }

    fn close_listeners(&mut self, desired: &Desired) {
        let wanted: BTreeSet<_> = desired.services.iter().flat_map(|service| service.listen.iter().copied()).collect();
        let gone = self
            .plan
            .after
            .listeners
            .iter()
            .filter(|(_, listener)| listener.state == ACTIVE && !wanted.contains(&listener_address(listener)));
        let gone: Vec<_> = gone.map(|(number, listener)| (*number, Listener { state: CLOSING, ..*listener })).collect();
        for (number, listener) in gone {
            self.write_listener(number, listener);
        }
    }

    fn service(&mut self, service: &DesiredService, number: u16, desired: &Desired) {
        let mut backends = Vec::new();
        for backend in &service.backends {
            let pools = service.snat.iter().map(|snat| self.pool(service, backend, *snat, desired)).collect();
            match pools {
                Some(pools) => backends.extend(self.backend(service, number, backend, pools)),
                None => self.errors.push(format!(
                    "service {}, backend {}: no row for its slots within {} probes; another SNAT address finds one",
                    service.name,
                    backend.name,
                    hash::PROBES
                )),
            }
        }
        let row = ServiceRow { backends: backends.clone(), ..service.row.clone() };
        self.write_service(number, row);
        self.maglev(service, number);
        self.plan.places.push((number, backends));
    }

    /// The pool of a backend and a SNAT address, made if it does not exist; `None` if no row is
    /// free.
    fn pool(
        &mut self,
        service: &DesiredService,
        backend: &DesiredBackend,
        snat: Ipv4Addr,
        desired: &Desired,
    ) -> Option<u16> {
        let flags = if desired.is_listened(snat) { LISTENED } else { 0 };
        if let Some((number, pool)) = self.plan.after.pool(backend.address, snat) {
            let pool = *pool;
            if Ports::of(&pool) != service.ports {
                let after = with_ports(pool, service.ports);
                self.after().pools.insert(number, after);
                let withheld = withheld_ports(&self.plan.after, desired, &after);
                self.plan.writes.push(Write::SetPorts { number, ports: service.ports, withheld });
            }
            if pool.flags != flags {
                self.after().pools.entry(number).and_modify(|pool| pool.flags = flags);
                self.plan.writes.push(Write::FlagPool { number, flags });
            }
            return Some(number);
        }
        let number = self.plan.after.free_pool_row(backend.address, snat)?;
        let pool = Pool { flags, ..pool_record(backend.address, snat, service.ports.first, service.ports.count) };
        self.after().pools.insert(number, pool);
        let withheld = withheld_ports(&self.plan.after, desired, &pool);
        self.plan.writes.push(Write::NewPool { number, pool, withheld });
        Some(number)
    }

    fn backend(&mut self, service: &DesiredService, of: u16, backend: &DesiredBackend, pools: Vec<u16>) -> Option<u16> {
        let row = BackendRow {
            service: of,
            pools,
            weight: backend.weight,
            max_conns: backend.max_conns,
            backup: backend.backup,
            max_fails: backend.max_fails,
            retry_after: backend.fail_timeout,
            slow_start_ms: u32::try_from(backend.slow_start.as_millis()).unwrap_or(u32::MAX),
            closed: backend.down,
        };
        if let Some(number) = self.plan.after.backend(of, backend.address) {
            self.write_backend(number, row);
            return Some(number);
        }
        let free = (0..MAX_BACKENDS as u16).find(|number| !self.plan.after.backends.contains_key(number));
        let Some(number) = free else {
            self.errors.push(format!(
                "service {}, backend {}: more than {MAX_BACKENDS} backends, removed ones with connections included",
                service.name, backend.name
            ));
            return None;
        };
        self.after().backends.insert(number, row.clone());
        self.plan.writes.push(Write::NewBackend { number, row });
        Some(number)
    }

    /// Fills the hash table of a service. Always: the records do not show what the table holds.
    fn maglev(&mut self, service: &DesiredService, number: u16) {
        if service.row.balance == schedule::HASH {
            self.plan.writes.push(Write::Maglev { service: number, backends: maglev_entries(&service.backends) });
        }
    }

    /// Empties the lists of services that the file no longer has; their listeners are closing
    /// already.
    fn empty_other_services(&mut self) {
        let kept: BTreeSet<_> = self.plan.places.iter().map(|(number, _)| *number).collect();
        let others: Vec<_> = self.plan.after.services.keys().filter(|number| !kept.contains(number)).copied().collect();
        for number in others {
            let row = ServiceRow {
                backends: Vec::new(),
                exempt: BTreeSet::new(),
                ..self.plan.after.services[&number].clone()
            };
            self.write_service(number, row);
        }
    }

    fn listeners(&mut self, service: &DesiredService, number: u16) {
        for address in &service.listen {
            let installed = self.plan.after.listener(*address).map(|(row, _)| row);
            let Some(row) = installed.or_else(|| self.plan.after.free_listener_row(*address)) else {
                self.errors.push(format!(
                    "service {}: no row for listener {address} within {} probes; use another port",
                    service.name,
                    hash::PROBES
                ));
                continue;
            };
            if installed.is_none() {
                self.withhold(*address);
            }
            self.write_listener(row, listener_record(*address, number));
        }
    }

    /// A SNAT port must never equal a listen port of the same address: a backend's answer would
    /// look like a client's packet.
    fn withhold(&mut self, address: SocketAddrV4) {
        let new: BTreeSet<_> = self
            .plan
            .writes
            .iter()
            .filter_map(|write| if let Write::NewPool { number, .. } = write { Some(*number) } else { None })
            .collect();
        let pools = self.plan.after.pools.iter().filter(|(number, pool)| {
            !new.contains(number) && pool_snat(pool) == *address.ip() && covers(pool, address.port())
        });
        let writes: Vec<_> = pools.map(|(pool, _)| Write::WithholdPort { pool: *pool, port: address.port() }).collect();
        self.plan.writes.extend(writes);
    }

    /// Closes the backends that no service lists any longer.
    fn bury_backends(&mut self) {
        let numbers: Vec<_> = self.plan.after.backends.keys().copied().collect();
        for number in numbers.into_iter().filter(|number| self.plan.after.is_tombstone(*number)).collect::<Vec<_>>() {
            let row = BackendRow { closed: true, ..self.plan.after.backends[&number].clone() };
            self.write_backend(number, row);
        }
    }

    fn write_listener(&mut self, number: u16, listener: Listener) {
        if self.after().listeners.insert(number, listener) != Some(listener) {
            self.plan.writes.push(Write::SetListener { number, listener });
        }
    }

    fn write_backend(&mut self, number: u16, row: BackendRow) {
        if self.after().backends.insert(number, row.clone()).as_ref() != Some(&row) {
            self.plan.writes.push(Write::SetBackend { number, row });
        }
    }

    fn write_service(&mut self, number: u16, row: ServiceRow) {
        if self.after().services.insert(number, row.clone()).as_ref() != Some(&row) {
            self.plan.writes.push(Write::SetService { number, row });
        }
    }
}

/// What the hash table is filled from. Backends that are down get no share, unless all of them are.
/// Weights are scaled so that each still gets many of the table's 16,381 entries.
pub fn maglev_entries(backends: &[DesiredBackend]) -> Vec<(u64, u32)> {
    const MOST: u64 = schedule::MAGLEV_PLACES as u64 / 10;
    let all_down = backends.iter().all(|backend| backend.down);
    let sum: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let entry = |backend: &DesiredBackend| {
        let address = u32::from_be_bytes(backend.address.ip().octets());
        let name = u64::from(address) << 16 | u64::from(backend.address.port());
        let weight = u64::from(backend.weight);
        let scaled = if sum > MOST { (weight * MOST / sum).max(1) } else { weight };
        (name, if backend.down && !all_down { 0 } else { scaled as u32 })
    };
    backends.iter().map(entry).collect()
}

/// The ports of a pool that are listen ports, now or after this plan.
fn withheld_ports(installed: &Installed, desired: &Desired, pool: &Pool) -> Vec<u16> {
    let desired = desired.services.iter().flat_map(|service| service.listen.iter().copied());
    let installed = installed.listeners.values().map(listener_address);
    let all: BTreeSet<_> = desired.chain(installed).collect();
    let same = all.into_iter().filter(|address| *address.ip() == pool_snat(pool) && covers(pool, address.port()));
    same.map(|address| address.port()).collect()
}

fn covers(pool: &Pool, port: u16) -> bool {
    Ports::of(pool).has(port)
}

/// What a reload changes, as one line per change for the operator.
pub fn changes(old: &Desired, new: &Desired) -> Vec<String> {
    let mut lines = Vec::new();
    for service in &new.services {
        match old.services.iter().find(|before| before.name == service.name) {
            Some(before) => service_changes(before, service, &mut lines),
            None => lines.push(format!("service {} added", service.name)),
        }
    }
    let gone = old.services.iter().filter(|before| !new.services.iter().any(|service| service.name == before.name));
    lines.extend(gone.map(|service| format!("service {} removed", service.name)));
    lines
}

fn service_changes(old: &DesiredService, new: &DesiredService, lines: &mut Vec<String>) {
    for backend in &new.backends {
        match old.backends.iter().find(|before| before.address == backend.address) {
            None => lines.push(format!("service {}: backend {} ({}) added", new.name, backend.name, backend.address)),
            Some(before) if before != backend => {
                lines.push(format!("service {}: backend {} changed", new.name, backend.name));
            }
            Some(_) => {}
        }
    }
    let gone = old.backends.iter().filter(|before| !new.backends.iter().any(|now| now.address == before.address));
    lines.extend(
        gone.map(|backend| format!("service {}: backend {} ({}) removed", new.name, backend.name, backend.address)),
    );
    // `tries` follows from the number of backends, whose changes have their own lines.
    let settings = |service: &DesiredService| {
        let row = ServiceRow { tries: 0, ..service.row.clone() };
        DesiredService { backends: Vec::new(), row, ..service.clone() }
    };
    let same_backends = old.backends.len() == new.backends.len();
    if settings(old) != settings(new) || same_backends && old.row.tries != new.row.tries {
        lines.push(format!("service {}: settings changed", new.name));
    }
}

#[cfg(test)]
pub(crate) mod tests;
