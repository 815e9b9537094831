//! Tables for tests: they do what a plan says, check that it may be done at that moment, and read back what stands.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_common::{
    clients::ClientCount,
    flow::{HalfOpenCell, Key, SlotAt},
    layout::{ACTIVE, Backend, CLOSING, Listener, NONE, OUT, Opening, Pool, Slot, UP},
    slot::{Ctl, State},
    time::{Instant, Ticks},
};

use super::{
    Action,
    installed::{BackendRow, Installed, ServiceRow},
    plan::Write,
    sweep::Step,
    view::{FlowAt, Head, Place, View},
};

#[derive(Default)]
pub struct Fake {
    pub listeners: BTreeMap<u16, Listener>,
    pub pools: BTreeMap<u16, (Pool, BTreeSet<u16>)>,
    pub services: BTreeMap<u16, ServiceRow>,
    pub rows: BTreeMap<u16, BackendRow>,
    pub records: BTreeMap<u16, Backend>,
    pub slots: BTreeMap<Place, (Ctl, Slot)>,
    pub rings: BTreeMap<u16, Vec<u64>>,
    pub clients: BTreeMap<u16, Vec<ClientCount>>,
    pub heard: BTreeMap<u16, Ticks>,
    /// Stamps that are behind what the slots show.
    pub sent: BTreeMap<u16, Ticks>,
    /// Until when backends start slowly.
    pub slow_until: BTreeMap<u16, Instant>,
    /// Flows on which the core has asked for a sign of life.
    pub asked: Vec<FlowAt>,
}

impl Fake {
    /// Does what the core asked for.
    pub fn act(&mut self, actions: &[Action]) {
        for action in actions {
            match action {
                Action::Write(write) => self.write(write),
                Action::Admit { backend, from, to, retry_at, slow_until } => {
                    self.admit(*backend, (*from, *to), *retry_at, *slow_until);
                }
                Action::Ask(flow) => self.asked.push(*flow),
                Action::Remember { backend, out_reason, changed_at } => {
                    let record = self.records.get_mut(backend).expect("a backend");
                    (record.out_reason, record.changed_at) = (*out_reason, *changed_at);
                }
                Action::Step(Step::Suspect(flow)) => self.swap(*flow, flow.ctl.suspected()),
                Action::Step(Step::Close(flow, reason)) => {
                    if let Some((_, slot)) = self.slots.get(&flow.place).filter(|(ctl, _)| *ctl == flow.ctl).copied() {
                        self.records.get_mut(&slot.backend).expect("a backend").active -= 1;
                    }
                    self.swap(*flow, flow.ctl.closed(*reason as u8));
                }
                Action::Step(Step::Release(flow)) => self.swap(*flow, flow.ctl.with_state(State::Closed)),
                Action::Correct(drift) => {
                    let record = self.records.get_mut(&drift.backend).expect("a backend");
                    record.active = record.active.wrapping_add_signed(-drift.by);
                }
                Action::Hurry(_) | Action::Client(_) | Action::Retry(_) | Action::Record { .. } | Action::Note(..) => {}
            }
        }
    }

    fn admit(&mut self, backend: u16, (from, to): (u32, u32), retry_at: Instant, slow_until: Instant) {
        let record = self.records.get_mut(&backend).expect("a backend");
        // To take it out counts whatever the kernel program has made of it meanwhile.
        if record.admission == from || to == NONE {
            (record.admission, record.retry_at) = (to, retry_at);
            self.slow_until.insert(backend, slow_until);
        }
    }

    fn swap(&mut self, flow: FlowAt, to: Ctl) {
        if let Some((ctl, _)) = self.slots.get_mut(&flow.place).filter(|(ctl, _)| *ctl == flow.ctl) {
            *ctl = to;
        }
    }

    /// One write, with the rule that nothing may name what is not there.
    pub fn write(&mut self, write: &Write) {
        match write {
            Write::NewPool { number, pool, withheld } => {
                assert!(!self.pools.contains_key(number), "pool {number} is in use");
                self.pools.insert(*number, (*pool, withheld.iter().copied().collect()));
            }
            Write::WithholdPort { pool, port } => {
                assert!(self.pools.get_mut(pool).expect("a pool").1.insert(*port));
            }
            Write::NewBackend { number, row } => {
                assert!(!self.rows.contains_key(number), "backend {number} is in use");
                let admission = if row.closed { NONE } else { UP };
                self.records.insert(*number, Backend { admission, retry_at: Instant::NEVER, ..Backend::default() });
                self.backend(*number, row);
            }
            Write::SetBackend { number, row } => {
                assert!(self.rows.contains_key(number), "backend {number} is not in use");
                self.backend(*number, row);
            }
            Write::SetService { number, row } => {
                assert!(row.backends.iter().all(|backend| self.rows.contains_key(backend)), "a backend is missing");
                self.services.insert(*number, row.clone());
                self.rings.entry(*number).or_default().resize(row.half_open_cells as usize, 0);
            }
            Write::Maglev { service, backends } => {
                assert_eq!(self.services[service].backends.len(), backends.len());
                assert!(backends.iter().any(|(_, weight)| *weight > 0), "the table would never be full");
            }
            Write::SetListener { number, listener } => {
                assert!(self.services.contains_key(&listener.service), "a listener leads nowhere");
                assert!(matches!(listener.state, ACTIVE | CLOSING));
                if listener.state == ACTIVE {
                    assert!(!self.services[&listener.service].backends.is_empty(), "a listener leads to nobody");
                }
                self.listeners.insert(*number, *listener);
            }
            Write::RemoveListener { number } => assert!(self.listeners.remove(number).is_some()),
            Write::RemoveBackend { number } => {
                let row = self.rows.remove(number).expect("a backend");
                let listed = self.services.get(&row.service).is_some_and(|service| service.backends.contains(number));
                assert!(row.closed && !listed, "backend {number} is still listed");
                assert_eq!(self.records[number].active, 0);
                self.records.remove(number);
            }
            Write::RemoveService { number } => {
                assert!(!self.listeners.values().any(|listener| listener.service == *number));
                assert!(self.services.remove(number).is_some());
            }
            Write::RemovePool { number } => {
                assert!(!self.rows.values().any(|row| row.pools.contains(number)), "pool {number} is still named");
                assert!(self.pools.remove(number).is_some());
            }
        }
    }

    fn backend(&mut self, number: u16, row: &BackendRow) {
        assert!(row.pools.iter().all(|pool| self.pools.contains_key(pool)), "a pool is missing");
        let record = self.records.get_mut(&number).expect("a record");
        if row.closed {
            (record.admission, record.retry_at) = (NONE, Instant::NEVER);
        }
        self.rows.insert(number, row.clone());
    }

    /// What a controller that starts finds.
    pub fn installed(&self) -> Installed {
        Installed {
            listeners: self.listeners.clone(),
            pools: self.pools.iter().map(|(number, (pool, _))| (*number, *pool)).collect(),
            services: self.services.clone(),
            backends: self.rows.clone(),
        }
    }

    /// Opens a flow, as the kernel program does.
    pub fn open(&mut self, backend: u16, slot: u16, state: State, listener: u16, now: Instant) -> FlowAt {
        let place = Place { pool: self.rows[&backend].pools[0], slot };
        let generation = self.slots.get(&place).map_or(1, |(ctl, _)| ctl.generation() + 1);
        let ctl = Ctl::new(generation, state);
        let key = Key::new(0, 0, listener);
        let record = Slot { key, last_seen: now.ticks(), backend, tries: 1, started: now, ..Slot::default() };
        self.slots.insert(place, (ctl, record));
        let counts = self.records.get_mut(&backend).expect("a backend");
        counts.opened += 1;
        counts.active += u32::from(state.is_active());
        if state == State::HalfOpen {
            let ring = self.rings.get_mut(&self.rows[&backend].service).expect("a ring");
            let cell = HalfOpenCell::new(SlotAt::new(place.pool, slot), generation).0;
            *ring.iter_mut().find(|cell| **cell == 0).expect("room in the ring") = cell;
        }
        FlowAt { place, ctl }
    }

    /// Ends a flow, as the kernel program does.
    pub fn end(&mut self, flow: FlowAt) {
        let (ctl, slot) = self.slots.get_mut(&flow.place).expect("a flow");
        *ctl = ctl.with_state(State::Closed);
        let backend = slot.backend;
        self.records.get_mut(&backend).expect("a backend").active -= 1;
    }

    /// The state of a flow's slot.
    pub fn state(&self, flow: FlowAt) -> State {
        self.slots[&flow.place].0.state()
    }

    /// Whether a backend is up, out or gets nothing, as the kernel program sees it.
    pub fn admission(&self, backend: u16) -> u32 {
        let admission = self.records[&backend].admission;
        assert!(matches!(admission, NONE | OUT | UP));
        admission
    }
}

impl View for Fake {
    fn backend(&self, number: u16) -> Backend {
        self.records.get(&number).copied().unwrap_or_default()
    }

    fn slow_until(&self, backend: u16) -> Instant {
        self.slow_until.get(&backend).copied().unwrap_or_default()
    }

    fn heard(&self, pool: u16) -> Ticks {
        // Of the others everything is answered at once, which is what a tick that lies ahead means.
        self.heard.get(&pool).copied().unwrap_or(Ticks(self.sent(pool).0 + (1 << 15)))
    }

    fn sent(&self, pool: u16) -> Ticks {
        if let Some(stamp) = self.sent.get(&pool) {
            return *stamp;
        }
        let first = Place { pool, slot: 0 };
        let of_pool = self.slots.range(first..).take_while(|(place, _)| place.pool == pool);
        Ticks(of_pool.map(|(_, (_, slot))| slot.last_seen.0).max().unwrap_or(0))
    }

    fn half_open_head(&self, service: u16) -> u32 {
        self.rings.get(&service).map_or(0, |ring| ring.iter().filter(|cell| **cell != 0).count() as u32)
    }

    fn half_open(&self, service: u16, each: &mut dyn FnMut(Place, u32)) {
        for cell in self.rings.get(&service).into_iter().flatten() {
            let cell = HalfOpenCell(*cell);
            if cell.is_used() {
                each(Place { pool: cell.at().pool(), slot: cell.at().slot() }, cell.generation());
            }
        }
    }

    fn clients(&self, service: u16, each: &mut dyn FnMut(ClientCount)) {
        self.clients.get(&service).into_iter().flatten().copied().for_each(each);
    }

    fn slots(&self, pool: u16) -> u32 {
        self.pools.get(&pool).map_or(0, |(pool, _)| u32::from(pool.ports))
    }

    fn heads(&self, pool: u16, from: u32, to: u32, each: &mut dyn FnMut(Head)) {
        let place = |slot: u32| Place { pool, slot: u16::try_from(slot).unwrap_or(u16::MAX) };
        for (place, (ctl, slot)) in self.slots.range(place(from)..place(to)) {
            if ctl.state().is_active() || ctl.state() == State::Abandoned {
                let flow = FlowAt { place: *place, ctl: *ctl };
                each(Head { flow, key: slot.key, last_seen: slot.last_seen, backend: slot.backend });
            }
        }
    }

    fn slot(&self, place: Place) -> Option<(Ctl, Slot)> {
        self.slots.get(&place).copied()
    }

    fn opening(&self, place: Place) -> Option<(Ctl, Opening)> {
        let connect_us = |slot: &Slot| (slot.started.0 / 1000) as u32;
        self.slots.get(&place).map(|(ctl, slot)| (*ctl, Opening { connect_us: connect_us(slot), ..Opening::default() }))
    }

    fn client(&self, place: Place) -> Option<SocketAddr> {
        self.slots.get(&place).map(|(_, slot)| slot.key.client([0; 16]))
    }
}
