//! Tables in plain memory for tests: every write of a plan is checked before it is carried out, and
//! flows come and go as the kernel program would have them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddrV4,
    ops::Deref,
};

use lb_common::{
    flow::{HalfOpenCell, Key, SlotAt},
    layout::{ACTIVE, CLOSING, NONE, OUT, Opening, Slot, UP},
    slot::State,
    time::{Instant, Ticks},
};

use super::{
    Action,
    ownership::{Ours, Ownership},
    sweep::Step,
};
use crate::tables::{
    BackendRow, FlowAt, Installed, ServiceRow, Tables, Write,
    rows::{Ports, pool_record, pool_rows, with_port, with_ports},
};

pub struct Testbed {
    pub tables: Tables,
    /// What the writes so far have installed.
    installed: Installed,
    /// The ports that each pool does not use.
    pub withheld: BTreeMap<u16, BTreeSet<u16>>,
    /// Pools whose backend is heard only when the test says so; all others answer at once.
    unheard: BTreeSet<u16>,
    /// Pools whose stamp of what was sent stays behind.
    behind: BTreeSet<u16>,
    /// Flows on which the core has asked for a sign of life.
    pub asked: Vec<FlowAt>,
}

impl Default for Testbed {
    fn default() -> Testbed {
        Testbed {
            tables: Tables::in_memory().expect("memory"),
            installed: Installed::default(),
            withheld: BTreeMap::new(),
            unheard: BTreeSet::new(),
            behind: BTreeSet::new(),
            asked: Vec::new(),
        }
    }
}

impl Deref for Testbed {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        &self.tables
    }
}

/// Whether a write may be done now: nothing may name what does not exist, so that after every write
/// the kernel program can run.
fn check(installed: &Installed, tables: &Tables, write: &Write) {
    match write {
        Write::NewPool { number, .. } => {
            assert!(!installed.pools.contains_key(number), "pool {number} is in use");
        }
        Write::WithholdPort { pool: number, .. }
        | Write::FlagPool { number, .. }
        | Write::SetPorts { number, .. }
        | Write::ReachPort { number, .. } => {
            assert!(installed.pools.contains_key(number), "a pool");
        }
        Write::NewBackend { number, row } => {
            assert!(!installed.backends.contains_key(number), "backend {number} is in use");
            check_pools(installed, row);
        }
        Write::SetBackend { number, row } => {
            assert!(installed.backends.contains_key(number), "backend {number} is not in use");
            check_pools(installed, row);
        }
        Write::SetService { row, .. } => {
            let exists = |backend| installed.backends.contains_key(backend);
            assert!(row.backends.iter().all(exists), "a backend is missing");
        }
        Write::Maglev { service, backends } => {
            assert_eq!(installed.services[service].backends.len(), backends.len());
            assert!(backends.iter().any(|(_, weight)| *weight > 0), "the table would never be full");
        }
        Write::SetListener { listener, .. } => {
            assert!(installed.services.contains_key(&listener.service), "a listener leads nowhere");
            assert!(matches!(listener.state, ACTIVE | CLOSING));
            if listener.state == ACTIVE {
                let service = &installed.services[&listener.service];
                assert!(!service.backends.is_empty(), "a listener leads to nobody");
            }
        }
        Write::RemoveListener { number } => assert!(installed.listeners.contains_key(number)),
        Write::RemoveBackend { number } => {
            let row = installed.backends.get(number).expect("a backend");
            let listed = installed.services.get(&row.service).is_some_and(|service| service.backends.contains(number));
            assert!(row.closed && !listed, "backend {number} is still listed");
            assert_eq!(tables.backend(*number).active, 0);
        }
        Write::RemoveService { number } => {
            assert!(!installed.listeners.values().any(|listener| listener.service == *number));
            assert!(installed.services.contains_key(number));
        }
        Write::RemovePool { number } => {
            let names = |row: &BackendRow| row.pools.contains(number);
            assert!(!installed.backends.values().any(names), "pool {number} is still named");
            assert!(installed.pools.contains_key(number));
        }
    }
}

fn check_pools(installed: &Installed, row: &BackendRow) {
    assert!(row.pools.iter().all(|pool| installed.pools.contains_key(pool)), "a pool is missing");
}

impl Testbed {
    /// Checks a write and carries it out.
    pub fn write(&mut self, write: &Write) {
        check(&self.installed, &self.tables, write);
        let done = self.tables.write(write, false).expect("a write that was checked");
        assert!(done, "no flow holds a port that is to be withheld");
        let installed = &mut self.installed;
        match write {
            Write::NewPool { number, pool, withheld } => {
                let free = u32::from(pool.ports) - withheld.len() as u32;
                assert_eq!(self.tables.free_slots(*number), free, "the others can be used");
                self.withheld.insert(*number, withheld.iter().copied().collect());
                installed.pools.insert(*number, *pool);
            }
            Write::SetPorts { number, ports, withheld } => {
                let pool = installed.pools.get_mut(number).expect("a pool");
                let before = Ports::of(pool);
                *pool = with_ports(*pool, *ports);
                // What was taken out of use for good stays so.
                let kept = self.withheld.get_mut(number).expect("a pool");
                kept.retain(|port| before.has(*port) && ports.has(*port));
                kept.extend(withheld);
                let free = u32::from(ports.count) - kept.len() as u32;
                assert_eq!(self.tables.free_slots(*number), free, "the others can be used");
            }
            Write::ReachPort { number, port } => {
                let pool = installed.pools.get_mut(number).expect("a pool");
                *pool = with_port(*pool, *port);
            }
            Write::WithholdPort { pool, port } => {
                assert!(self.withheld.get_mut(pool).expect("a pool").insert(*port));
            }
            Write::FlagPool { number, flags } => {
                installed.pools.get_mut(number).expect("a pool").flags = *flags;
            }
            Write::NewBackend { number, row } | Write::SetBackend { number, row } => {
                installed.backends.insert(*number, row.clone());
            }
            Write::SetService { number, row } => _ = installed.services.insert(*number, row.clone()),
            Write::SetListener { number, listener } => _ = installed.listeners.insert(*number, *listener),
            Write::RemoveListener { number } => _ = installed.listeners.remove(number),
            Write::RemoveBackend { number } => _ = installed.backends.remove(number),
            Write::RemoveService { number } => _ = installed.services.remove(number),
            Write::RemovePool { number } => {
                self.withheld.remove(number);
                installed.pools.remove(number);
            }
            Write::Maglev { .. } => {}
        }
    }

    /// What the writes have installed. The tables say the same when they are read, except for the
    /// admission, which is the core's.
    pub fn installed(&self) -> Installed {
        let (mut read, mut written) = (self.tables.read(), self.installed.clone());
        // A service is read if a backend names it, written or not.
        read.services.retain(|number, row| row.half_open_cells > 0 || written.services.contains_key(number));
        for rows in [&mut read.backends, &mut written.backends] {
            rows.values_mut().for_each(|row| row.closed = false);
        }
        assert_eq!(read, written, "what was written is what is read");
        for (number, row) in self.installed.backends.iter().filter(|(_, row)| row.closed) {
            assert_eq!(self.backend(*number).admission, NONE, "{row:?} is closed");
        }
        self.installed.clone()
    }

    /// How a service is installed.
    pub fn service_of(&self, number: u16) -> ServiceRow {
        self.installed().services[&number].clone()
    }

    /// How a backend is installed.
    pub fn row(&self, number: u16) -> BackendRow {
        self.installed().backends[&number].clone()
    }

    /// Carries out what the core asked for.
    pub fn act(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Write(write) => self.write(write),
                // Taking it out counts, whatever the kernel program has made of it in between.
                Action::Admit { backend, to: NONE, retry_at, .. } => self.admit(*backend, NONE, *retry_at),
                Action::Admit { backend, from, to, retry_at, slow_until } => {
                    self.swap_admission(*backend, (*from, *to), *retry_at, *slow_until);
                }
                Action::Ask(flow) => self.asked.push(*flow),
                Action::Remember { backend, out_reason, changed_at } => {
                    self.remember_standing(*backend, *out_reason, *changed_at);
                }
                Action::Step(Step::Suspect(flow)) => _ = self.suspect(*flow),
                Action::Step(Step::Close(flow, reason)) => _ = self.close(*flow, *reason),
                Action::Step(Step::Release(flow)) => _ = self.release_abandoned(*flow),
                Action::Cookies { service, from, to } => self.swap_cookies(*service, *from, *to),
                Action::Step(Step::Forget(flow)) => _ = self.end_quietly(flow.at, |now| now.ctl == flow.ctl),
                Action::Correct(drift) => self.correct_active(drift.backend, -drift.by),
                Action::Hurry(_) | Action::Client(_) | Action::Retry(_) | Action::ResetPort(_) => {}
                Action::Record { .. } | Action::Note(..) => {}
            }
        }
    }

    /// The tables as they look if all flows are this host's.
    pub fn ours(&self) -> Ours<'_> {
        Ours::new(&Ownership::default(), &self.tables)
    }

    /// Makes backend `number` with one pool of `ports` ports, whose row is `number` too.
    pub fn add_backend(&mut self, number: u16, ports: u16, row: BackendRow) {
        let snat = [10, 0, 1, 100].into();
        let first_row = |port| pool_rows(SocketAddrV4::new([10, 0, 2, 1].into(), port), snat).next();
        let port = (1..=u16::MAX).find(|port| first_row(*port) == Some(number)).expect("a port whose row it is");
        let address = SocketAddrV4::new([10, 0, 2, 1].into(), port);
        let pool = pool_record(address, snat, 1024, ports);
        self.write(&Write::NewPool { number, pool, withheld: Vec::new() });
        self.write(&Write::NewBackend { number, row: BackendRow { pools: vec![number], weight: 1, ..row } });
    }

    /// Gives a service a ring of half-open flows.
    pub fn add_ring(&mut self, service: u16, cells: u32) {
        let row = ServiceRow { half_open_cells: cells, tries: 1, ..ServiceRow::default() };
        self.write(&Write::SetService { number: service, row });
    }

    /// Opens a flow, as the kernel program does.
    pub fn open(&mut self, backend: u16, slot: u16, state: State, listener: u16, now: Instant) -> FlowAt {
        let row = self.installed.backends[&backend].clone();
        let at = SlotAt::new(row.pools[0], slot);
        let key = Key::new(0, 0, listener);
        let record = Slot { key, last_seen: now.ticks(), backend, ..Slot::default() };
        let connect_us = (now.0 / 1000) as u32;
        let opening = Opening { connect_us, tries: 1, started: now, ..Opening::default() };
        let flow = self.put_flow(at, state, &record, &opening);
        self.change_backend(backend, |record| {
            record.opened += 1;
            record.active += u32::from(state.is_active());
        });
        if state.is_unconfirmed() {
            self.enter_half_open(row.service, HalfOpenCell::new(at, flow.ctl.generation()));
        }
        self.sent_on(at.pool(), now.ticks());
        flow
    }

    /// A segment of the flow's client is sent on.
    pub fn speak(&mut self, flow: FlowAt, now: Instant) {
        self.change_slot(flow.at, |slot| slot.last_seen = now.ticks());
        self.sent_on(flow.at.pool(), now.ticks());
    }

    fn sent_on(&mut self, pool: u16, stamp: Ticks) {
        if !self.behind.contains(&pool) && stamp.0 > self.sent(pool).0 {
            self.set_sent(pool, stamp);
        }
        if !self.unheard.contains(&pool) {
            // Everything is answered at once, which is what a stamp that lies ahead means.
            self.set_heard(pool, Ticks(self.sent(pool).0.wrapping_add(1 << 15)));
        }
    }

    /// From now on a pool's backend is heard only when a test says so.
    pub fn heard_at(&mut self, pool: u16, stamp: Ticks) {
        self.unheard.insert(pool);
        self.set_heard(pool, stamp);
    }

    /// From now on the stamp of what was sent to a pool's backend stays behind what the slots show.
    pub fn sent_at(&mut self, pool: u16, stamp: Ticks) {
        self.behind.insert(pool);
        self.set_sent(pool, stamp);
    }

    /// Ends a flow, as the kernel program does.
    pub fn end(&mut self, flow: FlowAt) {
        self.change_slot(flow.at, |slot| slot.ctl = slot.ctl.with_state(State::Closed));
        let backend = self.flow(flow.at).expect("a flow").backend();
        self.change_backend(backend, |record| record.active -= 1);
    }

    /// The state of a flow's slot.
    pub fn state(&self, flow: FlowAt) -> State {
        self.ctl(flow.at).state()
    }

    /// Whether a backend is up, out or gets nothing, as the kernel program sees it.
    pub fn admission(&self, backend: u16) -> u32 {
        let admission = self.backend(backend).admission;
        assert!(matches!(admission, NONE | OUT | UP));
        admission
    }
}
