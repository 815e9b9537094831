//! Between the records on the wire, which name things by address, and the slots of this host's tables, which number them.
//! The only part of flow sync that touches the tables.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    address::from_mapped,
    flow::Key,
    layout::{Hop, OPENING_ISN_BACKEND, OPENING_ISN_CLIENT},
    slot::{CONNECTED, State},
    time::Instant,
};

use super::wire::{self, Phase};
use crate::{
    controller::view::Place,
    tables::{Flow, Foreign, NotAdopted, Tables},
};

/// One moment on the clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// CLOCK_MONOTONIC in nanoseconds.
    pub monotonic: u64,
    /// CLOCK_MONOTONIC_COARSE in nanoseconds.
    pub coarse: u64,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

/// A listener of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerAt {
    /// Its place in LISTENERS.
    pub number: u16,
    /// Its service.
    pub service: u16,
    /// Its address is on an interface of this host: we are master of it.
    pub ours: bool,
    /// It was until a moment ago, and clients may not know yet: what begins or ends here is still told.
    pub lingers: bool,
    /// Through which of our interfaces its clients are reached; its place in INTERFACES.
    pub interface: Option<u8>,
}

/// A pool of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolAt {
    /// Its place in POOLS.
    pub number: u16,
    /// The SNAT port of slot 0.
    pub first_port: u16,
    /// How many slots there are.
    pub ports: u16,
}

/// What addresses mean on this host; made anew with every change of the configuration and of who is master.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directory {
    /// By address.
    pub listeners: BTreeMap<SocketAddr, ListenerAt>,
    /// By service and address, tombstones included.
    pub backends: BTreeMap<(u16, SocketAddr), u16>,
    /// By backend and SNAT address.
    pub pools: BTreeMap<(SocketAddr, IpAddr), PoolAt>,
    /// In which time every flow is sent once more.
    pub refresh: Duration,
}

impl Directory {
    /// The listener with this number.
    pub fn listener(&self, number: u16) -> Option<(SocketAddr, ListenerAt)> {
        self.listeners.iter().find(|(_, at)| at.number == number).map(|(address, at)| (*address, *at))
    }

    /// Whether this host is master of the listener with this number.
    pub fn is_ours(&self, number: u16) -> bool {
        self.listener(number).is_some_and(|(_, at)| at.ours)
    }

    /// The addresses of the listeners this host is master of.
    pub fn ours(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter(|(_, at)| at.ours).map(|(address, _)| *address).collect()
    }
}

/// What became of a flow that the other host has told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It stands in this slot now.
    Taken(Place),
    /// It stood there before, and is up to date now.
    Kept(Place),
    /// This host is master and has the same flow: it knows better.
    Ours,
    /// Another flow stood in the slot or had the client, and was younger: it stays.
    Conflict,
    /// Another flow gave way to this one.
    Replaced(Place),
    /// No service here listens on that address.
    UnknownListener,
    /// The backend, with this SNAT address, is in no configuration here.
    UnknownBackend,
    /// The SNAT port is outside `snat_ports` here, or reserved, or the slot is changing hands.
    NoSuchPort,
    /// There is no room in the flow index.
    Full,
}

/// The door to the tables.
pub struct Mirror {
    /// The tables.
    pub tables: Arc<Tables>,
    /// What addresses mean.
    pub directory: Arc<Directory>,
}

impl Mirror {
    /// The record of a flow, if the other host is to have it: connected, and of a listener that we are master of, or were a
    /// moment ago.
    pub fn record(&self, flow: &Flow, now: Now) -> Option<wire::Flow> {
        let phase = match flow.ctl.state() {
            State::Suspect => flow.ctl.previous(),
            state => state,
        };
        let phase = match phase {
            State::Established => Phase::Established,
            State::ClosingClient => Phase::ClosingClient,
            State::ClosingBackend => Phase::ClosingBackend,
            _ => return None,
        };
        if flow.ctl.flags() & CONNECTED == 0 {
            return None;
        }
        let record = &flow.record;
        Some(wire::Flow {
            name: self.name(flow)?,
            phase,
            tries: record.tries,
            mac: record.hop.mac(),
            initial: [flow.opening.words[OPENING_ISN_CLIENT], flow.opening.words[OPENING_ISN_BACKEND]],
            ends: [record.end_client, record.end_backend],
            acks: [record.ack_client, record.ack_backend],
            established_at: now.wall_ms.saturating_sub(now.monotonic.saturating_sub(record.started.0) / 1_000_000),
            idle_ms: u32::try_from(flow.idle_ms(now.coarse)).unwrap_or(u32::MAX),
            connect_us: flow.opening.connect_us,
        })
    }

    /// The name of a flow of such a listener.
    pub fn name(&self, flow: &Flow) -> Option<wire::Name> {
        self.name_of(flow.listener(), flow.client(), flow.pool, flow.slot)
    }

    /// The same, by the parts that an event has.
    pub fn name_of(&self, listener: u16, client: SocketAddr, pool: u16, slot: u16) -> Option<wire::Name> {
        let (listener, at) = self.directory.listener(listener)?;
        let pool = self.tables.pool(pool);
        (at.ours || at.lingers).then(|| wire::Name {
            listener,
            client,
            backend: SocketAddr::new(from_mapped(pool.backend), u16::from_be_bytes(pool.port)),
            snat: SocketAddr::new(from_mapped(pool.snat), pool.first_port.wrapping_add(slot)),
        })
    }

    /// Takes in what the other host has told of a flow.
    pub fn apply(&self, flow: &wire::Flow, now: Now) -> Applied {
        let Some(listener) = self.directory.listeners.get(&flow.name.listener) else { return Applied::UnknownListener };
        let foreign = match self.foreign(flow, listener, now) {
            Ok(foreign) => foreign,
            Err(why) => return why,
        };
        let place = Place { pool: foreign.pool, slot: foreign.slot };
        let Some(current) = self.tables.occupant(place.pool, place.slot) else { return self.adopt(&foreign, false) };
        let initial = [current.opening.words[OPENING_ISN_CLIENT], current.opening.words[OPENING_ISN_BACKEND]];
        let is_same = current.record.key == foreign.key && current.is_connected() && initial == foreign.initial;
        if is_same && listener.ours {
            return Applied::Ours;
        }
        if is_same {
            self.tables.refresh(&current, &foreign);
            return Applied::Kept(place);
        }
        if current.record.started >= foreign.started {
            return Applied::Conflict;
        }
        self.tables.end_quietly(place.pool, place.slot, |flow| flow.ctl == current.ctl);
        self.adopt(&foreign, true)
    }

    fn adopt(&self, foreign: &Foreign, replaced: bool) -> Applied {
        let place = Place { pool: foreign.pool, slot: foreign.slot };
        let done = if replaced { Applied::Replaced(place) } else { Applied::Taken(place) };
        match self.tables.adopt(foreign) {
            Ok(()) => return done,
            Err(NotAdopted::SlotTaken) => return Applied::NoSuchPort,
            Err(NotAdopted::IndexFull) => return Applied::Full,
            Err(NotAdopted::ClientTaken) => {}
        }
        // The client has begun anew from the same port, and the end of the connection before was lost on the way to us.
        let older = self.tables.find_key(foreign.key).and_then(|(pool, slot, _)| self.tables.occupant(pool, slot));
        let Some(older) = older.filter(|older| older.record.started < foreign.started) else {
            return Applied::Conflict;
        };
        self.tables.end_quietly(older.pool, older.slot, |flow| flow.ctl == older.ctl);
        match self.tables.adopt(foreign) {
            Ok(()) => Applied::Replaced(place),
            Err(_) => Applied::Conflict,
        }
    }

    fn foreign(&self, flow: &wire::Flow, listener: &ListenerAt, now: Now) -> Result<Foreign, Applied> {
        let name = &flow.name;
        let pool = self.directory.pools.get(&(name.backend, name.snat.ip())).ok_or(Applied::UnknownBackend)?;
        let backend = self.directory.backends.get(&(listener.service, name.backend)).ok_or(Applied::UnknownBackend)?;
        let slot = name.snat.port().checked_sub(pool.first_port).filter(|slot| *slot < pool.ports);
        let key = key_of(name.client, listener.number).ok_or(Applied::UnknownListener)?;
        let age = now.wall_ms.saturating_sub(flow.established_at).saturating_mul(1_000_000);
        Ok(Foreign {
            pool: pool.number,
            slot: slot.ok_or(Applied::NoSuchPort)?,
            backend: *backend,
            key,
            state: match flow.phase {
                Phase::Established => State::Established,
                Phase::ClosingClient => State::ClosingClient,
                Phase::ClosingBackend => State::ClosingBackend,
            },
            hop: listener.interface.filter(|_| flow.mac != [0; 6]).map_or(Hop::default(), |i| Hop::new(flow.mac, i)),
            initial: flow.initial,
            ends: flow.ends,
            acks: flow.acks,
            started: Instant(now.monotonic.saturating_sub(age).max(1)),
            last_seen: Instant(now.coarse.saturating_sub(u64::from(flow.idle_ms) * 1_000_000)).ticks(),
            connect_us: flow.connect_us,
            tries: flow.tries,
        })
    }

    /// A flow has ended on the other host. What this host is master of ends here.
    pub fn ended(&self, name: &wire::Name) -> bool {
        let Some(listener) = self.directory.listeners.get(&name.listener).filter(|at| !at.ours) else { return false };
        let pool = self.directory.pools.get(&(name.backend, name.snat.ip()));
        let slot = pool.and_then(|pool| name.snat.port().checked_sub(pool.first_port));
        let (Some(pool), Some(slot), Some(key)) = (pool, slot, key_of(name.client, listener.number)) else {
            return false;
        };
        self.tables.end_quietly(pool.number, slot, |flow| flow.record.key == key)
    }

    /// Ends the flows of these listeners that were not in a whole copy of the other host's; how many.
    pub fn end_absent(&self, covered: &[SocketAddr], present: &HashSet<Place>) -> u32 {
        let listeners: Vec<u16> = covered
            .iter()
            .filter_map(|address| self.directory.listeners.get(address).filter(|at| !at.ours).map(|at| at.number))
            .collect();
        let mut ended = 0;
        for pool in self.directory.pools.values().map(|pool| pool.number).filter(|_| !listeners.is_empty()) {
            for head in self.tables.heads(pool, 0..u32::MAX).filter(|head| head.ctl.state().is_active()) {
                let is_meant = |flow: &Flow| flow.ctl.generation() == head.ctl.generation();
                let listener = self.tables.occupant(pool, head.slot).filter(is_meant).map(|flow| flow.listener());
                if listener.is_some_and(|listener| listeners.contains(&listener))
                    && !present.contains(&Place { pool, slot: head.slot })
                {
                    ended += u32::from(self.tables.end_quietly(pool, head.slot, is_meant));
                }
            }
        }
        ended
    }
}

/// The key of a client in the flow index. The datapath has no IPv6 yet.
fn key_of(client: SocketAddr, listener: u16) -> Option<Key> {
    let SocketAddr::V4(client) = client else { return None };
    Some(Key::of(client, listener))
}

#[cfg(test)]
mod tests;
