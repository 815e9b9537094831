//! Translates between the records on the wire, which use addresses, and the slots of this host's
//! tables, which use numbers. Only this part of flow sync touches the tables.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    address::from_mapped,
    flow::{Key, SlotAt},
    layout::Hop,
    slot::{CONNECTED, LOOSE, State},
    syn::Scales,
    tcp::Side,
    time::Instant,
};

use super::wire::{self, Phase};
use crate::tables::{Flow, Foreign, NotAdopted, Tables};

/// How long the news of a flow may be under way: the longest `batch`, and as much again.
pub const UNDER_WAY: Duration = Duration::from_secs(2);

/// One moment on the clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// On CLOCK_MONOTONIC.
    pub monotonic: Instant,
    /// On CLOCK_MONOTONIC_COARSE.
    pub coarse: Instant,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

/// A listener of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerAt {
    /// Its row in LISTENERS.
    pub number: u16,
    /// The number of its service.
    pub service: u16,
    /// This host holds its address, and so is master of it.
    pub ours: bool,
    /// This host held it until a moment ago, and clients may not know yet: what begins or ends here
    /// is still sent.
    pub lingers: bool,
    /// The interface that leads to its clients, by its position in INTERFACES; `None`: uncertain.
    pub interface: Option<u8>,
}

/// A pool of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolAt {
    /// Its row in POOLS.
    pub number: u16,
    /// The SNAT port of slot 0.
    pub first_port: u16,
    /// The number of its slots, if no extent is missing.
    pub slots: u32,
}

impl PoolAt {
    /// The slot of a SNAT port.
    fn slot(&self, port: u16) -> SlotAt {
        SlotAt::new(self.number, port.wrapping_sub(self.first_port))
    }
}

/// What addresses mean on this host; replaced whenever the configuration or the mastership changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directory {
    /// The listeners, by address.
    pub listeners: BTreeMap<SocketAddr, ListenerAt>,
    /// The backends' numbers, by service and address; tombstones included.
    pub backends: BTreeMap<(u16, SocketAddr), u16>,
    /// The pools, by backend and SNAT address.
    pub pools: BTreeMap<(SocketAddr, IpAddr), PoolAt>,
    /// The time within which every flow is sent again.
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

/// The outcome of applying a flow's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The flow is new here, in this slot.
    Taken(SlotAt),
    /// The flow was here before, in this slot, and is now up to date.
    Kept(SlotAt),
    /// This host is master and has the same flow, of which it knows more.
    Ours,
    /// A younger flow holds the slot or the client, and stays.
    Conflict,
    /// An older flow gave way to this one, which is in this slot now.
    Replaced(SlotAt),
    /// No service here listens on that address.
    UnknownListener,
    /// No configuration here has this backend with this SNAT address.
    UnknownBackend,
    /// There is no slot for its SNAT port here yet.
    UnknownPort,
    /// The SNAT port is reserved, or the slot is changing hands.
    NoSuchPort,
    /// There is no room in the flow index.
    Full,
}

/// The flows that a complete copy does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Absent {
    /// Those that were ended.
    pub ended: u32,
    /// Connections that stay, because they may have begun too late for it: the next copy shows
    /// whether the other host has them.
    pub too_young: u32,
}

/// The tables, and what addresses mean in them.
pub struct Mirror {
    /// The tables.
    pub tables: Arc<Tables>,
    /// What addresses mean here.
    pub directory: Arc<Directory>,
}

impl Mirror {
    /// The record of a flow that the other host should have: one that is connected, of a listener
    /// that we are master of, or were a moment ago.
    pub fn record(&self, flow: &Flow, now: Clocks) -> Option<wire::FlowRecord> {
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
        Some(wire::FlowRecord {
            name: self.name(flow)?,
            phase,
            tries: flow.opening.tries,
            mac: record.hop.mac(),
            initial: [flow.opening.isn_client, flow.opening.isn_backend],
            ends: [record.end_client, record.end_backend],
            acks: [record.ack_client, record.ack_backend],
            established_at: now.wall_ms.saturating_sub(flow.opening.started.age(now.monotonic).as_millis() as u64),
            idle_ms: u32::try_from(flow.idle_ms(now.coarse.0)).unwrap_or(u32::MAX),
            connect_us: flow.opening.connect_us,
            windows: Some(wire::Windows {
                edges: [record.edge_client, record.edge_backend],
                scales: [Side::Client, Side::Backend].map(|side| record.scales.of(side) as u8),
            }),
        })
    }

    /// Whether VRRP carries the address of a listener: some host is master of it.
    pub fn is_carried(&self, listener: u16) -> bool {
        let Some((address, _)) = self.directory.listener(listener) else { return false };
        self.tables.leases().iter().any(|(_, carried)| *carried == address.ip())
    }

    /// The name of a flow of a listener that is ours, or was a moment ago.
    pub fn name(&self, flow: &Flow) -> Option<wire::FlowName> {
        self.name_of(flow.listener(), flow.client(), flow.at.pool(), flow.at.slot())
    }

    /// The same from the fields of an event.
    pub fn name_of(&self, listener: u16, client: SocketAddr, pool: u16, slot: u16) -> Option<wire::FlowName> {
        let (listener, at) = self.directory.listener(listener)?;
        let pool = self.tables.pool(pool);
        (at.ours || at.lingers).then(|| wire::FlowName {
            listener,
            client,
            backend: SocketAddr::new(from_mapped(pool.backend), u16::from_be_bytes(pool.port)),
            snat: SocketAddr::new(from_mapped(pool.snat), pool.first_port.wrapping_add(slot)),
        })
    }

    /// Applies a record from the other host.
    pub fn apply(&self, flow: &wire::FlowRecord, now: Clocks) -> Applied {
        let Some(listener) = self.directory.listeners.get(&flow.name.listener) else { return Applied::UnknownListener };
        let foreign = match self.foreign(flow, listener, now) {
            Ok(foreign) => foreign,
            Err(why) => return why,
        };
        let place = foreign.at;
        let Some(current) = self.tables.occupant(place) else { return self.adopt(&foreign, false) };
        let initial = [current.opening.isn_client, current.opening.isn_backend];
        let is_same = current.record.key == foreign.key && current.is_connected() && initial == foreign.initial;
        if is_same && listener.ours {
            return Applied::Ours;
        }
        if is_same {
            self.tables.refresh(&current, &foreign);
            return Applied::Kept(place);
        }
        if current.opening.started >= foreign.started {
            return Applied::Conflict;
        }
        self.tables.end_quietly(place, |flow| flow.ctl == current.ctl);
        self.adopt(&foreign, true)
    }

    fn adopt(&self, foreign: &Foreign, replaced: bool) -> Applied {
        let place = foreign.at;
        let done = if replaced { Applied::Replaced(place) } else { Applied::Taken(place) };
        match self.tables.adopt(foreign) {
            Ok(()) => return done,
            Err(NotAdopted::SlotTaken) => return Applied::NoSuchPort,
            Err(NotAdopted::IndexFull) => return Applied::Full,
            Err(NotAdopted::ClientTaken) => {}
        }
        // The client has opened a new connection from the same port, and the end of the earlier one
        // was lost on the way to us.
        let older = self.tables.find_key(foreign.key).and_then(|flow| self.tables.occupant(flow.at));
        let Some(older) = older.filter(|older| older.opening.started < foreign.started) else {
            return Applied::Conflict;
        };
        self.tables.end_quietly(older.at, |flow| flow.ctl == older.ctl);
        match self.tables.adopt(foreign) {
            Ok(()) => Applied::Replaced(place),
            Err(_) => Applied::Conflict,
        }
    }

    fn foreign(&self, flow: &wire::FlowRecord, listener: &ListenerAt, now: Clocks) -> Result<Foreign, Applied> {
        let name = &flow.name;
        let pool = self.directory.pools.get(&(name.backend, name.snat.ip())).ok_or(Applied::UnknownBackend)?;
        let backend = self.directory.backends.get(&(listener.service, name.backend)).ok_or(Applied::UnknownBackend)?;
        let at = Some(pool.slot(name.snat.port())).filter(|at| self.tables.has_slot(*at));
        let key = key_of(name.client, listener.number).ok_or(Applied::UnknownListener)?;
        let age = Duration::from_millis(now.wall_ms.saturating_sub(flow.established_at));
        let idle = Duration::from_millis(flow.idle_ms.into());
        let windows = flow.windows.unwrap_or_else(|| wire::Windows::widest(flow.acks));
        Ok(Foreign {
            at: at.ok_or(Applied::UnknownPort)?,
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
            edges: windows.edges,
            scales: Scales::new(windows.scales[0], windows.scales[1]),
            started: Instant((now.monotonic - age).0.max(1)),
            last_seen: (now.coarse - idle).ticks(),
            connect_us: flow.connect_us,
            tries: flow.tries,
        })
    }

    /// A flow has ended on the other host. Flows that this host is master of end only here.
    pub fn ended(&self, name: &wire::FlowName) -> bool {
        let Some(listener) = self.directory.listeners.get(&name.listener).filter(|at| !at.ours) else { return false };
        let pool = self.directory.pools.get(&(name.backend, name.snat.ip()));
        let (Some(pool), Some(key)) = (pool, key_of(name.client, listener.number)) else { return false };
        self.tables.end_quietly(pool.slot(name.snat.port()), |flow| flow.record.key == key)
    }

    /// Ends the flows of these listeners that were not in a complete copy from the other host,
    /// which was requested at `since`. What has begun here after that, or shortly before, while
    /// clients did not know yet where the address is, may be missing in it.
    pub fn end_absent(&self, covered: &[SocketAddr], present: &HashSet<SlotAt>, since: Instant) -> Absent {
        let listeners: Vec<u16> = covered
            .iter()
            .filter_map(|address| self.directory.listeners.get(address).filter(|at| !at.ours).map(|at| at.number))
            .collect();
        let since = since - UNDER_WAY;
        let mut absent = Absent::default();
        for pool in self.directory.pools.values().map(|pool| pool.number).filter(|_| !listeners.is_empty()) {
            for head in self.tables.heads(pool, 0..u32::MAX).filter(|head| head.flow.ctl.state().is_active()) {
                let is_same = |flow: &Flow| flow.ctl.generation() == head.flow.ctl.generation();
                let Some(flow) = self.tables.occupant(head.flow.at).filter(is_same) else { continue };
                if !listeners.contains(&flow.listener()) || present.contains(&head.flow.at) {
                    continue;
                }
                if flow.ctl.flags() & LOOSE != 0 || flow.opening.started < since {
                    absent.ended += u32::from(self.tables.end_quietly(head.flow.at, is_same));
                } else {
                    absent.too_young += u32::from(flow.is_connected());
                }
            }
        }
        absent
    }
}

/// The key of a client in the flow index; `None` for IPv6, which the datapath does not have yet.
fn key_of(client: SocketAddr, listener: u16) -> Option<Key> {
    let SocketAddr::V4(client) = client else { return None };
    Some(Key::of(client, listener))
}

#[cfg(test)]
mod tests;
