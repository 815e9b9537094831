//! Flow sync of one host, without socket and clock: what each turn sends to its peers, and what
//! their datagrams change here.
//!
//! New flows are found where the kernel program leaves a trace of them anyway, in the rings of
//! half-open flows: a cell is watched from the moment a SYN takes it until the flow is connected,
//! so flow sync adds no cost to any packet. Ends arrive as events.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    flow::SlotAt,
    layout::EXTENT_BITS,
    time::{Instant, nanoseconds},
};

use super::{
    link::{Link, Received, Refused},
    mirror::{Applied, Clocks, Directory, Mirror, UNDER_WAY},
    peer::{Item, Payloads, Peer, WalkPos},
    seal::{self, Direction, Session, SharedKey},
    wire::{AdminDecision, BackendHealth, FlowName, FlowRecord, Message},
};
use crate::{
    tables::Tables,
    words::{SyncCounts, SyncState},
};

/// The most half-open flows that are watched until they are connected.
const OPENING: usize = 65_536;
/// How often the states of backends are sent.
const ADMIN: Duration = Duration::from_secs(1);
/// The shortest time between two weedings of the rings of free ports: one costs some 20 ns for each
/// port of the pool.
const WEED: Duration = Duration::from_millis(250);
/// A run of ports in a ring that carry flows, as long as the kernel program skips without trouble:
/// half of what it skips at most.
const RUN: u32 = 4;
/// The most backends unknown here that are reported in [`AGAIN`].
const UNKNOWN: usize = 64;
/// How often a backend is reported that stays unknown: what stood against it may be over, as a
/// SNAT address that the file lacked.
const AGAIN: Duration = Duration::from_secs(5);

/// What the daemon should hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerNews {
    /// A peer's state has changed.
    State {
        /// The peer.
        peer: SocketAddr,
        /// Its new state.
        state: SyncState,
        /// Its version, once known.
        version: String,
    },
    /// A peer runs a version of the program whose datagrams are not believed. Said once.
    OlderFormat {
        /// The peer.
        peer: SocketAddr,
        /// Its version.
        version: String,
    },
    /// Nothing of a peer is believed, and its datagrams are sealed with another key than ours. Said
    /// once, until one is believed.
    OtherKey {
        /// The peer.
        peer: SocketAddr,
    },
    /// There is a flow to a backend that no configuration here has: the backend should become a
    /// tombstone. Said again every few seconds for as long as it does not.
    UnknownBackend {
        /// The listener of the flow's service.
        listener: SocketAddr,
        /// The backend.
        backend: SocketAddr,
        /// The address that the backend sees as the client's.
        snat: IpAddr,
    },
    /// There is a flow with a SNAT port of which there is no slot here.
    UnknownPort {
        /// The backend.
        backend: SocketAddr,
        /// What the backend sees as the client's.
        snat: SocketAddr,
    },
    /// An operator's decision on another host.
    Admin {
        /// The other host.
        peer: SocketAddr,
        /// The decision.
        admin: AdminDecision,
    },
    /// What another host's connections have shown about a backend.
    Health {
        /// The other host.
        peer: SocketAddr,
        /// The backend's health.
        health: BackendHealth,
    },
}

/// A peer as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its address.
    pub address: SocketAddr,
    /// Its state.
    pub state: SyncState,
    /// Its version; empty before it was heard.
    pub version: String,
    /// How long it has been silent; `None`: it was never heard.
    pub silence: Option<Duration>,
    /// Changes that wait to be sent to it.
    pub waiting: usize,
    /// How long the oldest of them has waited.
    pub lag: Duration,
    /// What was counted.
    pub counts: SyncCounts,
}

/// The half-open ring of a service, as the last two turns found it.
#[derive(Clone, Copy)]
struct RingSeen {
    last: u32,
    before: u32,
}

/// News that waits for the daemon.
#[derive(Default)]
struct Outbox {
    waiting: Vec<PeerNews>,
    /// What was reported since `forgot_at`, or since the directory last changed: listener, backend,
    /// SNAT address, and the extent of an unknown port.
    unknown: Vec<(Option<SocketAddr>, SocketAddr, IpAddr, Option<u16>)>,
    forgot_at: Instant,
}

impl Outbox {
    fn unknown_backend(&mut self, name: &FlowName) {
        let (listener, backend, snat) = (name.listener, name.backend, name.snat.ip());
        self.report((Some(listener), backend, snat, None), PeerNews::UnknownBackend { listener, backend, snat });
    }

    fn unknown_port(&mut self, name: &FlowName) {
        let (backend, snat) = (name.backend, name.snat);
        let extent = Some(snat.port() >> EXTENT_BITS);
        self.report((None, backend, snat.ip(), extent), PeerNews::UnknownPort { backend, snat });
    }

    /// The list is short: a host has few backends that the other does not know.
    fn report(&mut self, what: (Option<SocketAddr>, SocketAddr, IpAddr, Option<u16>), news: PeerNews) {
        if self.unknown.len() < UNKNOWN && !self.unknown.contains(&what) {
            self.unknown.push(what);
            self.waiting.push(news);
        }
    }

    fn forget_unknown(&mut self, now: Instant) {
        self.unknown.clear();
        self.forgot_at = now;
    }
}

/// One host and its peers.
pub struct Station {
    mirror: Mirror,
    peers: Vec<Peer>,
    fresh: Box<dyn FnMut() -> Session + Send>,
    /// By service: how many half-open flows it had had. A cell is read twice, because at first it
    /// may have been taken but not written yet.
    rings: BTreeMap<u16, RingSeen>,
    opening: BTreeMap<SlotAt, u32>,
    /// By pool: adopted flows whose ports still wait in the ring of free ones.
    adopted: BTreeMap<u16, u32>,
    weeded_at: Instant,
    /// Where the walk over all flows goes on.
    walk: WalkPos,
    walked_at: Option<Instant>,
    admin: Vec<AdminDecision>,
    health: Vec<BackendHealth>,
    admin_at: Instant,
    news: Outbox,
}

impl Station {
    /// A host that the peers know as `listen`. `fresh` returns a random number.
    pub fn new(
        key: &SharedKey,
        listen: SocketAddr,
        peers: &[SocketAddr],
        tables: Arc<Tables>,
        version: &str,
        mut fresh: Box<dyn FnMut() -> Session + Send>,
    ) -> Station {
        let peers = peers.iter().map(|address| {
            let direction = Direction { from: listen, to: *address };
            Peer::new(*address, Link::new(key, direction, fresh(), fresh(), version))
        });
        Station {
            peers: peers.collect(),
            mirror: Mirror { tables, directory: Arc::new(Directory::default()) },
            fresh,
            rings: BTreeMap::new(),
            opening: BTreeMap::new(),
            adopted: BTreeMap::new(),
            weeded_at: Instant::ZERO,
            walk: WalkPos::default(),
            walked_at: None,
            admin: Vec::new(),
            health: Vec::new(),
            admin_at: Instant::ZERO,
            news: Outbox::default(),
        }
    }

    /// The configuration or the mastership has changed.
    pub fn direct(&mut self, directory: Arc<Directory>, now: Clocks) {
        let (before, after) = (self.mirror.directory.ours(), directory.ours());
        if after.iter().any(|listener| !before.contains(listener)) {
            // Clients' packets come here now: what waits for its turn must be known.
            self.take_in(now, Link::at_once);
        }
        let before_known = (&self.mirror.directory.backends, &self.mirror.directory.pools);
        let known = (&directory.backends, &directory.pools) != before_known;
        // An earlier run may have adopted flows and ended before it weeded their ports.
        let new = directory.pools.values().filter(|pool| !self.mirror.directory.pools.values().any(|old| old == *pool));
        self.adopted.extend(new.map(|pool| (pool.number, RUN)));
        self.mirror.directory = directory;
        for peer in &mut self.peers {
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
        self.news.forget_unknown(now.monotonic);
    }

    /// Sets the operators' decisions here, and the health of backends whose connections are ours.
    pub fn administer(&mut self, admin: Vec<AdminDecision>, health: Vec<BackendHealth>) {
        if admin != self.admin || health != self.health {
            (self.admin, self.health) = (admin, health);
            self.admin_at = Instant::ZERO;
        }
    }

    /// A flow has ended here.
    pub fn ended(&mut self, listener: u16, client: SocketAddr, pool: u16, slot: u16) {
        if let Some(name) = self.mirror.name_of(listener, client, pool, slot) {
            self.peers.iter_mut().for_each(|peer| peer.push(Item::Ended(name)));
        }
    }

    /// Ends may have been missed: the peers should request a copy.
    pub fn ends_missed(&mut self) {
        self.peers.iter_mut().for_each(|peer| peer.offer_copy());
    }

    /// Takes the news since the last call.
    pub fn news(&mut self) -> Vec<PeerNews> {
        std::mem::take(&mut self.news.waiting)
    }

    /// Every peer as `status` shows it.
    pub fn status(&self, now: Clocks) -> Vec<PeerStatus> {
        let of = |peer: &Peer| PeerStatus {
            address: peer.address,
            state: peer.link.state(now.monotonic),
            version: peer.version.clone(),
            silence: peer.link.silence(now.monotonic),
            waiting: peer.waiting(),
            lag: peer.lag(now.monotonic),
            counts: SyncCounts { lost: peer.link.missing, ..peer.counts },
        };
        self.peers.iter().map(of).collect()
    }

    /// Everything to send in this turn, with its destination.
    pub fn turn(&mut self, now: Clocks) -> Vec<(SocketAddr, Vec<u8>)> {
        if self.news.forgot_at.age(now.monotonic) >= AGAIN {
            self.news.forget_unknown(now.monotonic);
        }
        self.take_in(now, Link::in_turn);
        self.look_for_new_flows(now);
        self.walk(now);
        self.weed(now);
        let admin = self.due_admin(now);
        let mut out = Vec::new();
        for peer in &mut self.peers {
            let mut datagrams = peer.turn(&self.mirror, now);
            if peer.link.is_accepted() {
                datagrams.extend(admin.iter().map(|payload| peer.link.seal(payload)));
            }
            out.extend(datagrams.into_iter().map(|datagram| (peer.address, datagram)));
            let state = peer.link.state(now.monotonic);
            if !is_worth_reporting(peer.reported, state) {
                continue;
            }
            if peer.reported == SyncState::Connecting {
                self.admin_at = Instant::ZERO;
            }
            peer.reported = state;
            self.news.waiting.push(PeerNews::State { peer: peer.address, state, version: peer.version.clone() });
        }
        out
    }

    /// Acts on what has waited for its turn.
    fn take_in(&mut self, now: Clocks, waiting: impl Fn(&mut Link, Instant) -> Vec<Received>) {
        let Station { peers, mirror, news, adopted, .. } = self;
        for peer in peers {
            for received in waiting(&mut peer.link, now.monotonic) {
                let taken = take_in(received, peer, mirror, now, news);
                taken.into_iter().for_each(|place| *adopted.entry(place.pool()).or_default() += 1);
            }
        }
    }

    fn look_for_new_flows(&mut self, now: Clocks) {
        let services: Vec<u16> = self.mirror.directory.listeners.values().map(|at| at.service).collect();
        self.rings.retain(|service, _| services.contains(service));
        for service in services {
            let now = self.mirror.tables.service(service).half_open;
            let seen = *self.rings.entry(service).or_insert(RingSeen { last: now, before: now });
            let (cells, head) = self.mirror.tables.half_open_since(service, seen.before);
            self.rings.insert(service, RingSeen { last: head, before: seen.last });
            for cell in cells.into_iter().take(OPENING.saturating_sub(self.opening.len())) {
                self.opening.insert(cell.at(), cell.generation());
            }
        }
        let Station { opening, peers, mirror, .. } = self;
        opening.retain(|place, generation| {
            let Some(flow) = mirror.tables.occupant(*place) else { return false };
            if !flow.ctl.is_of_low31(*generation) {
                return false;
            }
            if flow.ctl.state().is_unconfirmed() {
                return true;
            }
            let is_elsewhere = mirror.name(&flow).is_none() && mirror.is_carried(flow.listener());
            for peer in &mut *peers {
                peer.push(Item::Flow(*place, flow.ctl.generation()));
                if is_elsewhere {
                    // Its client has not noticed yet that the address has moved. It ends here,
                    // unless it goes on there.
                    let pause = peer.present_since + mirror.directory.refresh;
                    peer.again_at.get_or_insert(pause.max(now.monotonic + UNDER_WAY));
                }
            }
            false
        });
    }

    /// Sends every flow again in turn: sequence numbers and idle times grow old, and whatever was
    /// missed is made up for.
    fn walk(&mut self, now: Clocks) {
        let elapsed = self.walked_at.replace(now.monotonic).map_or(Duration::ZERO, |at| at.age(now.monotonic));
        if self.mirror.directory.ours().is_empty() {
            return;
        }
        let pools: Vec<_> = self.mirror.directory.pools.values().copied().collect();
        let all: u64 = pools.iter().map(|pool| u64::from(pool.slots)).sum();
        let mut share = share_of_walk(all, elapsed, self.mirror.directory.refresh);
        while share > 0 {
            let Some(pool) = pools.get(self.walk.pool) else {
                self.walk = WalkPos::default();
                if pools.is_empty() {
                    return;
                }
                continue;
            };
            let to = (u64::from(self.walk.slot) + share).min(u64::from(pool.slots)) as u32;
            for head in self.mirror.tables.heads(pool.number, self.walk.slot..to) {
                if !self.mirror.directory.is_ours(head.listener()) {
                    continue;
                }
                let item = Item::Flow(head.flow.at, head.flow.ctl.generation());
                self.peers.iter_mut().for_each(|peer| peer.push(item));
            }
            share -= u64::from(to.saturating_sub(self.walk.slot)).clamp(1, share);
            self.walk = self.walk.after(to, pool.slots);
        }
    }

    /// Removes the ports of adopted flows from the rings of free ones: a long run of them in a ring
    /// would turn clients away once this host is master.
    fn weed(&mut self, now: Clocks) {
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

    fn due_admin(&mut self, now: Clocks) -> Vec<Vec<u8>> {
        if now.monotonic < self.admin_at {
            return Vec::new();
        }
        self.admin_at = now.monotonic + ADMIN;
        let mut payloads = Payloads::default();
        self.admin.iter().for_each(|admin| payloads.add(&Message::Admin(admin.clone())));
        self.health.iter().for_each(|health| payloads.add(&Message::Health(health.clone())));
        payloads.finish()
    }

    /// Takes a datagram; returns an answer to send at once.
    pub fn receive(&mut self, from: SocketAddr, datagram: &[u8], now: Clocks) -> Option<Vec<u8>> {
        let fresh = (self.fresh)();
        let Station { peers, mirror, news, adopted, .. } = self;
        // Only peers are answered.
        let peer = peers.iter_mut().find(|peer| peer.address == from)?;
        match peer.link.receive(datagram, fresh, now.monotonic) {
            Ok((received, answer)) => {
                for received in received {
                    let taken = take_in(received, peer, mirror, now, news);
                    taken.into_iter().for_each(|place| *adopted.entry(place.pool()).or_default() += 1);
                }
                answer
            }
            Err(why) => {
                let is_of_other_key = why == Refused::NotAuthentic && is_of_other_key(peer, datagram, now.monotonic);
                let refused = &mut peer.counts.refused;
                *match &why {
                    Refused::NotAuthentic => &mut refused.not_authentic,
                    Refused::Replayed | Refused::UnknownSession => &mut refused.replayed,
                    Refused::Malformed => &mut refused.malformed,
                    Refused::OlderFormat(_) => &mut refused.older_format,
                } += 1;
                if let Refused::OlderFormat(version) = why
                    && std::mem::replace(&mut peer.older, version.clone()) != version
                {
                    news.waiting.push(PeerNews::OlderFormat { peer: peer.address, version });
                } else if is_of_other_key && !std::mem::replace(&mut peer.other_key, true) {
                    news.waiting.push(PeerNews::OtherKey { peer: peer.address });
                }
                None
            }
        }
    }
}

/// Whether a datagram that was refused is probably what the peer itself says: in our format, while
/// nothing that it says can be opened.
fn is_of_other_key(peer: &Peer, datagram: &[u8], now: Instant) -> bool {
    let is_heard = matches!(peer.link.state(now), SyncState::Synced | SyncState::Copying);
    !is_heard && seal::head(datagram).is_some()
}

/// Whether the operator should hear of a new state: not that datagrams were lost and a copy makes
/// up for them.
fn is_worth_reporting(reported: SyncState, state: SyncState) -> bool {
    state != reported && (reported, state) != (SyncState::Synced, SyncState::Copying)
}

/// How many of all slots the walk passes in a time, so that it passes every slot once per round.
fn share_of_walk(slots: u64, elapsed: Duration, round: Duration) -> u64 {
    let (elapsed, round) = (nanoseconds(elapsed), nanoseconds(round).max(1));
    slots.saturating_mul(elapsed.min(round)).div_ceil(round)
}

/// Acts on one message of a peer; returns the slot of a flow that was adopted.
fn take_in(received: Received, peer: &mut Peer, mirror: &Mirror, now: Clocks, news: &mut Outbox) -> Option<SlotAt> {
    match received {
        Received::Accepted(version) => {
            peer.version = version;
            peer.older.clear();
            peer.other_key = false;
        }
        Received::Flow { flow, in_copy } => return take_in_flow(&flow, in_copy, peer, mirror, now, news),
        Received::Ended(name) => {
            peer.counts.ends_received += 1;
            mirror.ended(&name);
        }
        Received::CopyWanted(number) => peer.copy_wanted(number),
        Received::CopyBegins { requested } => {
            peer.present.clear();
            peer.present_since = requested;
        }
        Received::CopyWhole(covered) => {
            peer.counts.copies_received += 1;
            let absent = mirror.end_absent(&covered, &std::mem::take(&mut peer.present), peer.present_since);
            peer.again_at = (absent.too_young > 0).then_some(now.monotonic + UNDER_WAY);
        }
        Received::Admin(admin) => news.waiting.push(PeerNews::Admin { peer: peer.address, admin }),
        Received::Health(health) => news.waiting.push(PeerNews::Health { peer: peer.address, health }),
    }
    None
}

fn take_in_flow(
    flow: &FlowRecord,
    in_copy: bool,
    peer: &mut Peer,
    mirror: &Mirror,
    now: Clocks,
    news: &mut Outbox,
) -> Option<SlotAt> {
    peer.counts.flows_received += 1;
    let applied = mirror.apply(flow, now);
    match applied {
        Applied::Taken(_) | Applied::Kept(_) | Applied::Ours => {}
        Applied::Replaced(_) | Applied::Conflict => peer.counts.conflicts += 1,
        Applied::UnknownBackend => {
            peer.counts.unknown += 1;
            news.unknown_backend(&flow.name);
        }
        Applied::UnknownPort => {
            peer.counts.unknown += 1;
            news.unknown_port(&flow.name);
        }
        Applied::UnknownListener | Applied::NoSuchPort | Applied::Full => peer.counts.unknown += 1,
    }
    match applied {
        Applied::Taken(place) | Applied::Kept(place) | Applied::Replaced(place) if in_copy => {
            peer.present.insert(place);
        }
        _ => {}
    }
    match applied {
        Applied::Taken(place) | Applied::Replaced(place) => Some(place),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
