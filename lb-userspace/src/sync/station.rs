//! Flow sync of one host, without a socket and a clock: what its peers are to be told in each turn, and what they have
//! told.
//!
//! New flows are found where the kernel program leaves a trace of them anyway, in the rings of half-open flows: a cell is
//! looked at from when a SYN has taken it until the flow is connected, so no packet costs anything more than without
//! flow sync. Ends come as events.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use lb_common::slot::State;

use super::{
    link::{Link, News, Refused, Standing},
    mirror::{Applied, Directory, Mirror, Now},
    peer::{Item, Payloads, Peer, RefusedCounts},
    seal::{Session, SharedKey},
    wire::{self, Admin, Health, Message},
};
use crate::{controller::view::Place, tables::Tables, words::SyncCounts};

/// Half-open flows that are watched until they are connected.
const OPENING: usize = 65_536;
/// How often the states of backends are sent, in nanoseconds.
const ADMIN: u64 = 1_000_000_000;

/// How often rings of free ports are weeded at most, in nanoseconds: some 20 ns for each port of the pool.
const WEED: u64 = 250_000_000;
/// Ports in a ring that carry flows which the kernel program passes over easily: half of what it does.
const RUN: u32 = 4;

/// What the daemon should hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It stands otherwise with a peer now.
    Standing {
        /// Which one.
        peer: SocketAddr,
        /// How.
        standing: Standing,
        /// Its version, once known.
        version: String,
    },
    /// A flow to a backend that no configuration here has: it should become a tombstone.
    UnknownBackend {
        /// Of this service: the listener.
        listener: SocketAddr,
        /// The backend.
        backend: SocketAddr,
        /// What it sees as the client's address.
        snat: IpAddr,
    },
    /// An operator's decision on the other host.
    Admin {
        /// Which host.
        peer: SocketAddr,
        /// What.
        admin: Admin,
    },
    /// What the other host's connections have shown of a backend.
    Health {
        /// Which host.
        peer: SocketAddr,
        /// What.
        health: Health,
    },
}

/// How it stands with a peer, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its address.
    pub address: SocketAddr,
    /// In a word.
    pub standing: Standing,
    /// Its version; empty before it is known.
    pub version: String,
    /// Milliseconds since it was heard.
    pub silent_ms: Option<u64>,
    /// Changes that wait to be sent to it.
    pub waiting: usize,
    /// For how long the oldest of them has waited, in milliseconds.
    pub lag_ms: u64,
    /// Its datagrams that never came.
    pub missing: u64,
    /// What was counted.
    pub counts: SyncCounts,
    /// Its datagrams that were turned away.
    pub refused: RefusedCounts,
}

/// See the module.
pub struct Station {
    mirror: Mirror,
    /// Each with how it stood when that was last told, and its version.
    peers: Vec<(Peer, Standing, String)>,
    fresh: Box<dyn FnMut() -> Session + Send>,
    /// By service: how many half-open flows it had had at the last turn and at the one before. A cell is looked at twice,
    /// for it may have been taken but not written yet.
    heads: BTreeMap<u16, (u32, u32)>,
    opening: BTreeMap<Place, u32>,
    /// By pool: flows taken over whose ports still wait in the ring of free ones; and when rings were weeded last.
    adopted: BTreeMap<u16, u32>,
    weeded_at: u64,
    /// Where the walk over all flows goes on: rank of the pool and slot.
    walk: (usize, u32),
    walked_at: Option<u64>,
    admin: Vec<Admin>,
    health: Vec<Health>,
    admin_at: u64,
    notices: Vec<Notice>,
    /// Unknown backends that were told of since the directory last changed.
    told: Vec<Notice>,
}

impl Station {
    /// A host with these peers. `fresh` gives random numbers.
    pub fn new(
        key: &SharedKey,
        peers: &[SocketAddr],
        tables: Arc<Tables>,
        version: &str,
        mut fresh: Box<dyn FnMut() -> Session + Send>,
    ) -> Station {
        let peers = peers.iter().map(|address| {
            let link = Link::new(key, fresh(), fresh(), version);
            (Peer::new(*address, link), Standing::Connecting, String::new())
        });
        Station {
            peers: peers.collect(),
            mirror: Mirror { tables, directory: Arc::new(Directory::default()) },
            fresh,
            heads: BTreeMap::new(),
            opening: BTreeMap::new(),
            adopted: BTreeMap::new(),
            weeded_at: 0,
            walk: (0, 0),
            walked_at: None,
            admin: Vec::new(),
            health: Vec::new(),
            admin_at: 0,
            notices: Vec::new(),
            told: Vec::new(),
        }
    }

    /// The configuration has changed, or who is master.
    pub fn direct(&mut self, directory: Arc<Directory>, now: Now) {
        let (before, after) = (self.mirror.directory.ours(), directory.ours());
        let known = directory.backends != self.mirror.directory.backends;
        // An earlier run may have taken flows over and not come to it.
        let new = directory.pools.values().filter(|pool| !self.mirror.directory.pools.values().any(|old| old == *pool));
        self.adopted.extend(new.map(|pool| (pool.number, RUN)));
        self.mirror.directory = directory;
        for (peer, ..) in &mut self.peers {
            if after.iter().any(|listener| !before.contains(listener)) {
                peer.offer_copy();
            }
            if before.iter().any(|listener| !after.contains(listener)) || known {
                peer.link.want_copy(now.monotonic);
            }
            if before != after {
                peer.restart_copy();
            }
        }
        self.told.clear();
    }

    /// The operator's decisions as they stand here, and how backends do whose connections are ours.
    pub fn administer(&mut self, admin: Vec<Admin>, health: Vec<Health>) {
        if admin != self.admin || health != self.health {
            (self.admin, self.health) = (admin, health);
            self.admin_at = 0;
        }
    }

    /// A flow has ended here.
    pub fn ended(&mut self, listener: u16, client: SocketAddr, pool: u16, slot: u16) {
        if let Some(name) = self.mirror.name_of(listener, client, pool, slot) {
            self.peers.iter_mut().for_each(|(peer, ..)| peer.push(Item::Ended(name)));
        }
    }

    /// Ends may have been missed: the peers should ask for a copy.
    pub fn ends_missed(&mut self) {
        self.peers.iter_mut().for_each(|(peer, ..)| peer.offer_copy());
    }

    /// What the daemon should hear, since the last call.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// For `status`.
    pub fn status(&self, now: Now) -> Vec<PeerStatus> {
        let of = |(peer, _, version): &(Peer, Standing, String)| PeerStatus {
            address: peer.address,
            standing: peer.link.standing(now.monotonic),
            version: version.clone(),
            silent_ms: peer.link.silent_ms(now.monotonic),
            waiting: peer.waiting(),
            lag_ms: peer.lag(now.monotonic) / 1_000_000,
            missing: peer.link.missing,
            counts: peer.counts,
            refused: peer.refused,
        };
        self.peers.iter().map(of).collect()
    }

    /// Everything that is to be sent in this turn, and to whom.
    pub fn turn(&mut self, now: Now) -> Vec<(SocketAddr, Vec<u8>)> {
        self.look_for_new_flows();
        self.walk(now);
        self.weed(now);
        let admin = self.due_admin(now);
        let mut out = Vec::new();
        for (peer, standing, version) in &mut self.peers {
            let mut datagrams = peer.turn(&self.mirror, now);
            if peer.link.is_accepted() {
                datagrams.extend(admin.iter().map(|payload| peer.link.seal(payload)));
            }
            out.extend(datagrams.into_iter().map(|datagram| (peer.address, datagram)));
            let stands = peer.link.standing(now.monotonic);
            // That something was lost and is copied once more is nothing to tell of.
            let is_news = stands != *standing && (*standing, stands) != (Standing::Synced, Standing::Copying);
            if is_news {
                if *standing == Standing::Connecting {
                    self.admin_at = 0;
                }
                *standing = stands;
                self.notices.push(Notice::Standing { peer: peer.address, standing: stands, version: version.clone() });
            }
        }
        out
    }

    fn look_for_new_flows(&mut self) {
        let services: Vec<u16> = self.mirror.directory.listeners.values().map(|at| at.service).collect();
        self.heads.retain(|service, _| services.contains(service));
        for service in services {
            let now = self.mirror.tables.service(service).half_open;
            let (last, before) = *self.heads.entry(service).or_insert((now, now));
            let (cells, head) = self.mirror.tables.half_open_since(service, before);
            self.heads.insert(service, (head, last));
            for cell in cells.into_iter().take(OPENING.saturating_sub(self.opening.len())) {
                self.opening.insert(Place { pool: cell.pool, slot: cell.slot }, cell.generation);
            }
        }
        let Station { opening, peers, mirror, .. } = self;
        opening.retain(|place, generation| {
            let Some(flow) = mirror.tables.occupant(place.pool, place.slot) else { return false };
            if !flow.ctl.is_of_low31(*generation) {
                return false;
            }
            if flow.ctl.state() == State::HalfOpen {
                return true;
            }
            peers.iter_mut().for_each(|(peer, ..)| peer.push(Item::Flow(*place, flow.ctl.generation())));
            false
        });
    }

    /// Sends every flow once more in its turn: sequence numbers and idle times grow old, and whatever was missed heals.
    fn walk(&mut self, now: Now) {
        let elapsed = now.monotonic.saturating_sub(self.walked_at.replace(now.monotonic).unwrap_or(now.monotonic));
        if self.mirror.directory.ours().is_empty() {
            return;
        }
        let pools: Vec<_> = self.mirror.directory.pools.values().copied().collect();
        let all: u64 = pools.iter().map(|pool| u64::from(pool.ports)).sum();
        let round = self.mirror.directory.refresh.as_nanos().max(1) as u64;
        let mut share = (all.saturating_mul(elapsed.min(round))).div_ceil(round);
        while share > 0 {
            let Some(pool) = pools.get(self.walk.0) else {
                self.walk = (0, 0);
                if pools.is_empty() {
                    return;
                }
                continue;
            };
            let to = (u64::from(self.walk.1) + share).min(u64::from(pool.ports)) as u32;
            for head in self.mirror.tables.heads(pool.number, self.walk.1..to) {
                if !self.mirror.directory.is_ours(head.listener()) {
                    continue;
                }
                let item = Item::Flow(Place { pool: pool.number, slot: head.slot }, head.ctl.generation());
                self.peers.iter_mut().for_each(|(peer, ..)| peer.push(item));
            }
            share -= u64::from(to - self.walk.1).clamp(1, share);
            self.walk = if to >= u32::from(pool.ports) { (self.walk.0 + 1, 0) } else { (self.walk.0, to) };
        }
    }

    /// Takes the ports of flows that were taken over out of the rings of free ones: a long run of them in the ring would
    /// turn clients away when this host becomes master.
    fn weed(&mut self, now: Now) {
        if self.adopted.is_empty() || now.monotonic < self.weeded_at + WEED {
            return;
        }
        self.weeded_at = now.monotonic;
        let tables = &self.mirror.tables;
        self.adopted.retain(|pool, adopted| {
            let is_run = *adopted >= RUN;
            if is_run {
                tables.weed(*pool);
            }
            !is_run
        });
    }

    fn due_admin(&mut self, now: Now) -> Vec<Vec<u8>> {
        if now.monotonic < self.admin_at {
            return Vec::new();
        }
        self.admin_at = now.monotonic + ADMIN;
        let mut payloads = Payloads::default();
        self.admin.iter().for_each(|admin| payloads.add(&Message::Admin(admin.clone())));
        self.health.iter().for_each(|health| payloads.add(&Message::Health(health.clone())));
        payloads.finish()
    }

    /// A datagram has come; an answer that is to go out at once.
    pub fn receive(&mut self, from: SocketAddr, datagram: &[u8], now: Now) -> Option<Vec<u8>> {
        let fresh = (self.fresh)();
        let Station { peers, mirror, notices, told, adopted, .. } = self;
        // Who is no peer is not answered.
        let (peer, _, version) = peers.iter_mut().find(|(peer, ..)| peer.address == from)?;
        match peer.link.receive(datagram, fresh, now.monotonic) {
            Ok((news, answer)) => {
                for news in news {
                    let taken = take_in(news, peer, version, mirror, now, notices, told);
                    taken.into_iter().for_each(|place| *adopted.entry(place.pool).or_default() += 1);
                }
                answer
            }
            Err(refused) => {
                match refused {
                    Refused::NotAuthentic => peer.refused.not_authentic += 1,
                    Refused::Replayed | Refused::UnknownSession => peer.refused.replayed += 1,
                    Refused::Malformed => peer.refused.malformed += 1,
                }
                None
            }
        }
    }
}

fn take_in(
    news: News,
    peer: &mut Peer,
    version: &mut String,
    mirror: &Mirror,
    now: Now,
    notices: &mut Vec<Notice>,
    told: &mut Vec<Notice>,
) -> Option<Place> {
    let mut taken = None;
    match news {
        News::Accepted(theirs) => *version = theirs,
        News::Flow { flow, in_copy } => {
            peer.counts.flows_received += 1;
            let applied = mirror.apply(&flow, now);
            match applied {
                Applied::Taken(place) | Applied::Replaced(place) => taken = Some(place),
                Applied::UnknownBackend => tell_unknown(&flow.name, notices, told),
                _ => {}
            }
            match applied {
                Applied::Taken(place) | Applied::Kept(place) | Applied::Replaced(place) if in_copy => {
                    peer.present.insert(place);
                }
                _ => {}
            }
            match applied {
                Applied::Taken(_) | Applied::Kept(_) | Applied::Ours => {}
                Applied::Replaced(_) | Applied::Conflict => peer.counts.conflicts += 1,
                _ => peer.counts.unknown += 1,
            }
        }
        News::Ended(name) => {
            peer.counts.ends_received += 1;
            mirror.ended(&name);
        }
        News::CopyWanted(number) => peer.begin_copy(number),
        News::CopyBegins => peer.present.clear(),
        News::CopyWhole(covered) => {
            peer.counts.copies_received += 1;
            mirror.end_absent(&covered, &std::mem::take(&mut peer.present));
        }
        News::Admin(admin) => notices.push(Notice::Admin { peer: peer.address, admin }),
        News::Health(health) => notices.push(Notice::Health { peer: peer.address, health }),
    }
    taken
}

/// Once each; the list is short, for a host has few backends that the other does not know.
fn tell_unknown(name: &wire::Name, notices: &mut Vec<Notice>, told: &mut Vec<Notice>) {
    const MOST: usize = 64;
    let notice = Notice::UnknownBackend { listener: name.listener, backend: name.backend, snat: name.snat.ip() };
    if told.len() < MOST && !told.contains(&notice) {
        told.push(notice.clone());
        notices.push(notice);
    }
}

#[cfg(test)]
mod tests;
