//! A segment with two hosts, clients and backends on it, over virtual time; and what must never
//! happen.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    fmt,
    net::{SocketAddr, SocketAddrV4},
    time::Duration,
};

use jiff::SignedDuration;
use lb_common::{
    flow::{Key, SlotAt},
    layout::{Opening, Slot, UP},
    slot::{CONNECTED, LOOSE, State},
    time::{Instant, Ticks},
    verdict::Reason,
};

use super::{
    host::{Arrival, Effect, Host, Thread},
    wish::{KEPT, Wish},
};
use crate::{
    controller::admin_state::AdminState,
    daemon::apply,
    tables::{
        Flow,
        rows::{pool_backend, pool_snat},
    },
    vrrp::simulation::random::Random,
    words::SyncState,
};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// How often what must hold all the time is looked at.
const CHECK: Duration = Duration::from_millis(500);
/// How long a host may act by what it knew: the longest batch, and the daemon's second.
const BLIND: Duration = Duration::from_millis(2500);
/// How long a peer that is gone may count as synced: the silence after which it is lost, and a turn.
const UNNOTICED: Duration = Duration::from_secs(5);

/// How the network treats packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conduct {
    /// Of a hundred.
    pub loss: u64,
    /// Of a hundred.
    pub duplicates: u64,
    /// The longest a packet travels.
    pub delay: Duration,
    /// Somebody sends back what the hosts say, and what they have said before.
    pub echo: bool,
}

/// What is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Nothing,
    /// The hosts do not hear each other; clients reach both.
    Between,
    /// This host is reached by nobody.
    Host(usize),
}

/// A client's connection.
#[derive(Clone, Debug)]
pub struct Connection {
    client: SocketAddrV4,
    /// Both hosts have it, and nothing has happened since that may take it from one of them.
    shared: bool,
    /// Where its client's segments arrived last.
    at: usize,
}

#[derive(Clone, Debug)]
enum Happening {
    Arrives {
        to: usize,
        what: Arrival,
        /// From the other host itself.
        genuine: bool,
    },
    /// A client sends a SYN.
    Opens(SocketAddrV4),
    /// Its handshake is over.
    Confirmed(SocketAddrV4, usize, SlotAt),
    Speaks(SocketAddrV4),
    Ends(SocketAddrV4),
    /// Clients ask who has the address.
    Asks,
    Check,
}

/// A word of an operator.
#[derive(Clone, Debug)]
struct Word {
    backend: String,
    /// 0: ready, 1: drained, 2: in maintenance.
    kind: u8,
    at: u64,
    /// Another word was said by somebody who knew of this one.
    superseded: bool,
}

pub struct World {
    pub hosts: [Host; 2],
    pub conduct: Conduct,
    pub cut: Cut,
    pub now: Instant,
    /// Connections come and go.
    pub opens: bool,
    random: Random,
    /// Decides the order of threads, and nothing else.
    orders: Random,
    agenda: BinaryHeap<Reverse<(Instant, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    next: u64,
    connections: BTreeMap<SocketAddrV4, Connection>,
    clients: u32,
    /// Where clients' frames for the address go.
    route: Option<usize>,
    words: Vec<Word>,
    /// Datagrams that somebody has recorded.
    recorded: Vec<(usize, Vec<u8>)>,
    /// Since when both hosts answer for the address though they hear each other.
    both_since: Option<Instant>,
    /// When each host was heard by the other one's flow sync last, if it was.
    alive: [Instant; 2],
    /// Since when each host holds the lease, and until when it last did.
    held: [(Option<Instant>, Instant); 2],
    /// The host to which the other one has given way, and when, if no packet was lost since.
    prevailed: Option<(usize, Instant)>,
    pub counts: Counts,
    history: Vec<String>,
}

/// What has happened, to see that the runs are no empty ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub opened: u64,
    pub ended: u64,
    pub reset: u64,
    pub unknown: u64,
    pub words: u64,
    pub takeovers: u64,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "{:?} {:?} {:?}", self.hosts[0].wish, self.hosts[1].wish, self.counts)?;
        let skip = self.history.len().saturating_sub(400);
        self.history[skip..].iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl World {
    pub fn new(random: &mut Random) -> World {
        let wish = Wish::any(random);
        let priorities = random.choose(&[[150, 100], [100, 100], [255, 100]]);
        let hosts = [0, 1].map(|host| Host::new(Wish { host, priority: priorities[host], ..wish.clone() }));
        let drawn = random.below(u64::MAX);
        let mut world = World {
            hosts,
            conduct: Conduct { delay: MILLISECOND, ..Conduct::default() },
            cut: Cut::Nothing,
            now: Instant::ZERO + 1000 * SECOND,
            opens: true,
            random: Random::new(drawn),
            orders: Random::new(!drawn),
            agenda: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            next: 0,
            connections: BTreeMap::new(),
            clients: 0,
            route: None,
            words: Vec::new(),
            recorded: Vec::new(),
            both_since: None,
            alive: [Instant::ZERO; 2],
            held: [(None, Instant::ZERO); 2],
            prevailed: None,
            counts: Counts::default(),
            history: Vec::new(),
        };
        for host in 0..2 {
            world.with(host, Host::start);
        }
        world.later(CHECK, Happening::Check);
        world.later(SECOND, Happening::Asks);
        world.next_client();
        world
    }

    // ---- what can happen ----

    /// Something happens at a host.
    pub fn with(&mut self, host: usize, what: impl FnOnce(&mut Host, Instant)) {
        let both = (0..2).all(|host| self.hosts[host].lease() > self.now);
        what(&mut self.hosts[host], self.now);
        if both && self.hosts[host].runs() && self.hosts[host].lease() <= self.now && self.is_whole() {
            self.prevailed = Some((1 - host, self.now));
        }
        self.carry_out(host);
    }

    /// A host that stood still goes on.
    pub fn go_on(&mut self, host: usize) {
        if !self.hosts[host].inbox.is_empty() {
            self.alive[1 - host] = self.now;
        }
        let order = self.order();
        self.with(host, |host, now| host.go_on(order, now));
    }

    pub fn note(&mut self, text: impl fmt::Display) {
        let at = Instant::ZERO.age(self.now).as_millis();
        self.history.push(format!("{at} {text}"));
    }

    pub fn set_cut(&mut self, cut: Cut, carrier: bool) {
        self.note(format_args!("cut: {cut:?}, carrier {carrier}"));
        self.cut = cut;
        for host in 0..2 {
            let has = cut != Cut::Host(host) || carrier;
            if self.hosts[host].carrier != has {
                self.with(host, |host, now| host.set_carrier(has, now));
            }
        }
    }

    pub fn reload(&mut self, host: usize) {
        let mut wish = self.hosts[host].wish.clone();
        wish.change(&mut self.random);
        self.reload_to(host, wish);
    }

    pub fn reload_to(&mut self, host: usize, wish: Wish) {
        if !wish.sync {
            // Nothing is promised without it.
            self.connections.values_mut().for_each(|connection| connection.shared = false);
        }
        self.with(host, |host, now| host.reload(wish, now));
    }

    pub fn step_clock(&mut self, host: usize) {
        let by = SignedDuration::from_millis(self.random.within(-7_200_000, 7_200_000));
        self.note(format_args!("host {host}: the clock is off by {by:#}"));
        self.hosts[host].clock_off = by;
    }

    /// An operator says a word about some backend. Returns which.
    pub fn say(&mut self, host: usize) -> String {
        let backend = format!("cp{}", 10 + self.random.below(KEPT.into()));
        self.say_of(host, backend.clone());
        backend
    }

    pub fn say_of(&mut self, host: usize, backend: String) {
        let kind = self.random.below(3) as u8;
        let deadline = self.random.chance(1, 3).then(|| self.now + self.random.time_below(10 * SECOND));
        let order = match kind {
            0 => None,
            1 => Some(AdminState::Drain { deadline, rate: 50 }),
            _ => Some(AdminState::Maint),
        };
        let known = self.hosts[host].word(&backend);
        let mut at = None;
        let said = &mut at;
        self.with(host, |host, now| *said = host.say(&backend, order, now));
        let Some(at) = at else { return };
        self.note(format_args!("host {host}: an operator says of {backend}: {kind}, at {at}"));
        self.counts.words += 1;
        let known = known.map(|(order, at)| (kind_of(order), at));
        for word in self.words.iter_mut().filter(|word| word.backend == backend) {
            word.superseded |= Some((word.kind, word.at)) == known;
        }
        self.words.push(Word { backend, kind, at, superseded: false });
    }

    /// An operator has the connections of a backend reset.
    pub fn kill_connections(&mut self, host: usize) {
        let tables = &self.hosts[host].tables;
        let numbers: Vec<u16> =
            self.listener(host).map_or_else(Vec::new, |(_, service)| tables.service_row(service).backends);
        if numbers.is_empty() || !self.hosts[host].runs() {
            return;
        }
        let backend = self.random.choose(&numbers);
        let open = self.hosts[host].open();
        let of_backend = |flow: &&Flow| flow.backend() == backend && flow.is_connected();
        let count = open.values().filter(of_backend).count() as u64;
        let mut total = 0;
        self.with(host, |host, now| total = host.kill_connections(backend, now));
        self.note(format_args!("host {host}: {total} of {count} connections of backend {backend} are to be reset"));
        let holds = self.hosts[host].lease() > self.now && self.held_for(host) > BLIND;
        assert!(total == count || !holds, "an operator cannot reach the connections of a backend: {self:#?}");
    }

    /// Lets time go by.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = self.hosts.iter().enumerate().filter_map(|(number, host)| Some((host.deadline()?, number))).min();
            let next = self.agenda.peek().map(|Reverse(first)| *first);
            let (at, host) = match (due, next) {
                (Some((at, host)), Some((other, _))) if at < other => (at, Some(host)),
                (_, Some((at, _))) => (at, None),
                (Some((at, host)), None) => (at, Some(host)),
                (None, None) => break,
            };
            if at > end {
                break;
            }
            self.advance(at.max(self.now));
            match host {
                Some(host) => {
                    let order = self.order();
                    self.with(host, |host, now| host.turn(order, now));
                }
                None => {
                    let Some(Reverse((_, number))) = self.agenda.pop() else { continue };
                    let Some(happening) = self.happenings.remove(&number) else { continue };
                    self.happens(happening);
                }
            }
        }
        self.advance(end);
    }

    // ---- how it works ----

    /// Which thread of a host comes first.
    fn order(&mut self) -> [Thread; 3] {
        let mut order = [Thread::Vrrp, Thread::Sync, Thread::Daemon];
        order.swap(0, self.orders.below(3) as usize);
        order.swap(1, 1 + self.orders.below(2) as usize);
        order
    }

    fn later(&mut self, time: Duration, what: Happening) {
        self.agenda.push(Reverse((self.now + time, self.next)));
        self.happenings.insert(self.next, what);
        self.next += 1;
    }

    fn advance(&mut self, to: Instant) {
        let leases = [0, 1].map(|host| self.hosts[host].lease());
        let whole = self.is_whole();
        let both = leases[0].min(leases[1]);
        if whole && both > self.now {
            let since = *self.both_since.get_or_insert(self.now);
            let longest = 3 * self.hosts[0].wish.interval + 4 * self.conduct.delay;
            let lasts = since.age(both.min(to));
            assert!(lasts <= longest, "both answer for the address for {lasts:?}: {self:#?}");
        }
        if !whole || both <= to {
            self.both_since = None;
        }
        self.prevailed.take_if(|(host, _)| !whole || leases[*host] <= to);
        for (held, lease) in self.held.iter_mut().zip(leases) {
            *held = if lease > self.now { (held.0.or(Some(self.now)), lease.min(to)) } else { (None, held.1) };
        }
        self.now = to;
    }

    /// Whether every packet arrives.
    fn is_whole(&self) -> bool {
        self.cut == Cut::Nothing && self.conduct.loss == 0
    }

    /// How long a host has held the lease without a break, as far as it is known.
    fn held_for(&self, host: usize) -> Duration {
        self.held[host].0.map_or(Duration::ZERO, |since| since.age(self.now))
    }

    /// How long a host has been without the lease.
    fn without(&self, host: usize) -> Duration {
        if self.hosts[host].lease() > self.now { Duration::ZERO } else { self.held[host].1.age(self.now) }
    }

    fn reaches(&self, host: usize) -> bool {
        self.cut != Cut::Host(host)
    }

    fn carry_out(&mut self, host: usize) {
        for effect in std::mem::take(&mut self.hosts[host].effects) {
            match effect {
                Effect::Note(text) => self.note(format_args!("host {host} {text}")),
                Effect::Advert(bytes) => self.send(host, Arrival::Advert(bytes)),
                Effect::Datagram(bytes) => self.send(host, Arrival::Datagram(bytes)),
                Effect::Announce if self.reaches(host) => {
                    self.counts.takeovers += u64::from(self.route != Some(host));
                    self.route = Some(host);
                    if self.reaches(1 - host) {
                        self.hosts[1 - host].hear_claim(self.now);
                    }
                }
                Effect::Announce => {}
                Effect::Ask(at) => self.answer(host, at),
                Effect::Reset { flow, both, reason } => self.reset(host, flow.client(), both, reason),
            }
        }
    }

    fn send(&mut self, from: usize, what: Arrival) {
        if matches!(what, Arrival::Datagram(_)) && self.conduct.echo {
            let delay = self.random.time_below(self.conduct.delay);
            self.later(delay, Happening::Arrives { to: from, what: what.clone(), genuine: false });
            if !self.recorded.is_empty() {
                let (of, old) = self.recorded[self.random.below(self.recorded.len() as u64) as usize].clone();
                self.later(delay, Happening::Arrives { to: 1 - of, what: Arrival::Datagram(old), genuine: false });
            }
        }
        if self.cut != Cut::Nothing || self.random.chance(self.conduct.loss, 100) {
            return;
        }
        if let Arrival::Datagram(bytes) = &what
            && self.recorded.len() < 300
            && self.random.chance(1, 4)
        {
            self.recorded.push((from, bytes.clone()));
        }
        for _ in 0..1 + u64::from(self.random.chance(self.conduct.duplicates, 100)) {
            let delay = self.random.time_below(self.conduct.delay);
            self.later(delay, Happening::Arrives { to: 1 - from, what: what.clone(), genuine: true });
        }
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Arrives { to, what, genuine } => {
                if matches!(what, Arrival::Datagram(_)) && genuine {
                    self.alive[1 - to] = self.now;
                }
                self.with(to, |host, now| host.arrive(what, now));
            }
            Happening::Opens(client) => {
                self.next_client();
                if self.opens {
                    self.open(client);
                }
            }
            Happening::Confirmed(client, host, at) => self.confirm(client, host, at),
            Happening::Speaks(client) => self.speak(client),
            Happening::Ends(client) => self.end(client),
            Happening::Asks => {
                self.later(5 * SECOND, Happening::Asks);
                let answer: Vec<_> =
                    (0..2).filter(|host| self.reaches(*host) && self.hosts[*host].lease() > self.now).collect();
                if !answer.is_empty() {
                    self.route = Some(self.random.choose(&answer));
                }
            }
            Happening::Check => {
                self.later(CHECK, Happening::Check);
                self.check();
            }
        }
    }

    // ---- clients, and the kernel program ----

    fn next_client(&mut self) {
        self.clients += 1;
        let address = (0x0A03_0000 + self.clients).into();
        let pause = self.random.time_below(800 * MILLISECOND);
        self.later(pause, Happening::Opens(SocketAddrV4::new(address, 40_000)));
    }

    fn listener(&self, host: usize) -> Option<(u16, u16)> {
        let listeners = self.hosts[host].tables.listeners();
        listeners.first().map(|(number, listener)| (*number, listener.service))
    }

    /// The host that a client's segment arrives at.
    fn arrives_at(&self) -> Option<usize> {
        self.route.filter(|host| self.reaches(*host))
    }

    fn open(&mut self, client: SocketAddrV4) {
        let Some(host) = self.arrives_at() else { return };
        let Some((listener, service)) = self.listener(host) else { return };
        let tables = self.hosts[host].tables.clone();
        let mut backends = tables.service_row(service).backends;
        backends.retain(|number| tables.backend(*number).admission == UP);
        let Some(backend) = backends.into_iter().min_by_key(|number| tables.backend(*number).active) else { return };
        let pools = tables.backend_row(backend).map_or_else(Vec::new, |row| row.pools);
        let pool = self.random.choose(&pools);
        let (isn_client, isn_backend) = (self.random.below(1 << 32) as u32, self.random.below(1 << 32) as u32);
        let record = Slot { key: Key::of(client, listener), last_seen: self.now.ticks(), backend, ..Slot::default() };
        let opening = Opening { isn_client, isn_backend, started: self.now, tries: 1, ..Opening::default() };
        if let Some(flow) = tables.claim(pool, &record, &opening) {
            let handshake = MILLISECOND + self.random.time_below(20 * MILLISECOND);
            self.later(handshake, Happening::Confirmed(client, host, flow.at));
        }
    }

    /// The backend answers to the host that has the address by then.
    fn confirm(&mut self, client: SocketAddrV4, host: usize, at: SlotAt) {
        if self.arrives_at() != Some(host) {
            return self.note(format_args!("nobody answers {client}"));
        }
        let tables = &self.hosts[host].tables;
        let Some(flow) = tables.occupant(at).filter(|flow| flow.client() == SocketAddr::V4(client)) else { return };
        if flow.ctl.state() != State::HalfOpen {
            return;
        }
        let now = self.now.ticks();
        tables.change_slot(at, |slot| {
            slot.ctl = slot.ctl.with_state(State::Established).with_flags(CONNECTED);
            slot.last_seen = now;
        });
        let connection = Connection { client, shared: false, at: host };
        self.connections.insert(client, connection);
        self.note(format_args!("host {host} opens {client} in {at:?}"));
        self.counts.opened += 1;
        let pause = self.random.time_below(4 * SECOND);
        self.later(pause, Happening::Speaks(client));
        let life = self.random.choose(&[2 * SECOND, 20 * SECOND, 200 * SECOND]);
        let life = self.random.time_below(life);
        self.later(life, Happening::Ends(client));
    }

    /// A segment of a client arrives. Returns the flow that it belongs to, and where.
    fn forward(&mut self, client: SocketAddrV4) -> Option<(usize, SlotAt)> {
        let host = self.arrives_at()?;
        let (listener, _) = self.listener(host)?;
        let tables = self.hosts[host].tables.clone();
        let Some(found) = tables.find_key(Key::of(client, listener)) else {
            self.unknown(host, client);
            return None;
        };
        let now = self.now.ticks();
        tables.change_slot(found.at, |slot| {
            slot.last_seen = now;
            slot.ctl = if slot.ctl.state() == State::Suspect { slot.ctl.cleared() } else { slot.ctl };
            slot.ctl = slot.ctl.without_flags(LOOSE);
        });
        let pool = found.at.pool();
        tables.set_sent(pool, now);
        // It answers at once, which is what a stamp that lies ahead means.
        tables.set_heard(pool, Ticks(now.0.wrapping_add(1 << 15)));
        if let Some(connection) = self.connections.get_mut(&client) {
            connection.at = host;
        }
        Some((host, found.at))
    }

    /// What a backend is asked by one host, it answers to the one that has the address.
    fn answer(&mut self, asker: usize, at: SlotAt) {
        let Some(host) = self.arrives_at() else { return };
        let pool = self.hosts[asker].tables.pool(at.pool());
        let (backend, snat) = (pool_backend(&pool), pool_snat(&pool));
        let tables = &self.hosts[host].tables;
        if let Some(pool) = tables.find_pool(backend, snat) {
            tables.set_heard(pool, Ticks(self.now.ticks().0.wrapping_add(1 << 15)));
        }
    }

    fn speak(&mut self, client: SocketAddrV4) {
        if !self.connections.contains_key(&client) {
            return;
        }
        self.forward(client);
        let pause = self.random.time_below(4 * SECOND);
        self.later(pause, Happening::Speaks(client));
    }

    fn end(&mut self, client: SocketAddrV4) {
        if !self.connections.contains_key(&client) {
            return;
        }
        if !self.opens {
            return self.later(SECOND, Happening::Ends(client));
        }
        let Some((host, at)) = self.forward(client) else {
            // It is sent again, if it was lost on the way.
            self.later(SECOND, Happening::Ends(client));
            return;
        };
        let tables = self.hosts[host].tables.clone();
        let Some(flow) = tables.occupant(at) else { return };
        assert!(tables.end_quietly(at, |found| found.ctl == flow.ctl), "it is open");
        let event = apply::ended(&tables, &flow, Reason::Closed, self.now);
        self.counts.ended += 1;
        self.note(format_args!("host {host} sees the end of {client}"));
        self.connections.remove(&client);
        self.with(host, |host, now| host.ended(event, now));
    }

    // ---- what must never happen ----

    /// A host does not know a client's connection, and resets it.
    fn unknown(&mut self, host: usize, client: SocketAddrV4) {
        let Some(connection) = self.connections.remove(&client) else { return };
        self.note(format_args!("host {host} does not know {connection:?}"));
        self.counts.unknown += 1;
        assert!(!connection.shared, "a connection that both hosts had is reset: {self:#?}");
    }

    fn reset(&mut self, host: usize, client: SocketAddr, both: bool, reason: Reason) {
        let SocketAddr::V4(client) = client else { return };
        self.note(format_args!("host {host} resets {client}: {}", reason.name()));
        let Some(connection) = self.connections.remove(&client).filter(|_| both) else { return };
        self.counts.reset += 1;
        let other_holds = self.hosts[1 - host].lease() > self.now;
        let lives_there = connection.at != host && self.without(host) > BLIND && other_holds;
        assert!(!lives_there, "host {host} resets {connection:?} of the other host: {}: {self:#?}", reason.name());
    }

    fn check(&mut self) {
        let all = [0, 1].map(|host| self.hosts[host].open());
        for (host, open) in all.iter().enumerate() {
            self.check_counts(host, open);
            self.check_peer(host);
        }
        self.check_route();
        let split = (0..2).all(|host| self.hosts[host].lease() > self.now);
        let synced = (0..2).all(|host| self.hosts[host].wish.sync);
        for connection in self.connections.values_mut() {
            let client = SocketAddr::V4(connection.client);
            let on_both = all.iter().all(|open| open.get(&client).is_some_and(|flow| flow.is_connected()));
            connection.shared = synced && !split && (connection.shared || on_both);
        }
    }

    fn check_counts(&self, host: usize, open: &BTreeMap<SocketAddr, Flow>) {
        let tables = &self.hosts[host].tables;
        let mut by_backend = BTreeMap::<u16, u32>::new();
        open.values().for_each(|flow| *by_backend.entry(flow.backend()).or_default() += 1);
        for number in 0..32 {
            let (counted, found) = (tables.backend(number).active, by_backend.get(&number).copied().unwrap_or(0));
            assert_eq!(counted, found, "host {host}: the connections of backend {number}: {self:#?}");
        }
        if let Some(daemon) = &self.hosts[host].daemon {
            assert_eq!(daemon.controller.drift(), 0, "host {host}: {self:#?}");
        }
    }

    /// When one host has given way to the other, clients know where the address is.
    fn check_route(&self) {
        if let Some((host, since)) = self.prevailed {
            let told = self.route == Some(host) || since.age(self.now) < SECOND;
            assert!(told, "nobody says that the address is with host {host}: {self:#?}");
        }
    }

    /// Who is synced has a peer.
    fn check_peer(&self, host: usize) {
        let is_gone = self.alive[1 - host].age(self.now) > UNNOTICED;
        let state = self.hosts[host].sync_state(self.now).filter(|_| self.hosts[host].runs());
        assert!(!(is_gone && state == Some(SyncState::Synced)), "host {host} is synced with nobody: {self:#?}");
    }

    /// After a peace that was long enough, with the same file on both hosts.
    pub fn check_peace(&mut self) {
        self.check();
        // A change of what addresses mean, late, makes another copy.
        let is_synced = |host: &Host, now| host.sync_state(now) == Some(SyncState::Synced);
        for _ in 0..5 {
            if !self.hosts.iter().all(|host| is_synced(host, self.now)) {
                self.run(SECOND);
            }
        }
        let masters: Vec<_> = (0..2).filter(|host| self.hosts[*host].is_master()).collect();
        assert_eq!(masters.len(), 1, "masters: {self:#?}");
        for host in 0..2 {
            assert_eq!(self.hosts[host].sync_state(self.now), Some(SyncState::Synced), "host {host}: {self:#?}");
        }
        let [one, two] = [0, 1].map(|host| {
            let open = self.hosts[host].open();
            // One that is not confirmed belongs to the MASTER, which may still try it.
            let is_meant = |flow: &&Flow| flow.is_connected() || host != masters[0];
            open.values().filter(is_meant).map(|flow| (flow.client(), flow.at)).collect::<BTreeMap<_, _>>()
        });
        let lacks: Vec<_> = one.iter().filter(|(client, _)| !two.contains_key(*client)).collect();
        let more: Vec<_> = two.iter().filter(|(client, _)| !one.contains_key(*client)).collect();
        assert!(lacks.is_empty() && more.is_empty(), "only on host 0: {lacks:?}, only on host 1: {more:?}: {self:#?}");
        let is_gone = |client: &SocketAddr| !one.contains_key(client);
        let gone: Vec<_> = self.connections.keys().map(|client| SocketAddr::V4(*client)).filter(is_gone).collect();
        assert!(gone.is_empty(), "no host knows {gone:?}: {self:#?}");
        self.check_words();
    }

    /// What was said last is in force on both hosts.
    fn check_words(&self) {
        for backend in (10..10 + KEPT).map(|host| format!("cp{host}")) {
            let [one, two] = [0, 1].map(|host| self.hosts[host].word(&backend).expect("it runs"));
            let [one, two] = [one, two].map(|(order, at)| (kind_of(order), at));
            assert_eq!(one, two, "{backend}: {self:#?}");
            let last: Vec<_> = self.words.iter().filter(|word| word.backend == backend && !word.superseded).collect();
            let holds = last.is_empty() || last.iter().any(|word| (word.kind, word.at) == one);
            assert!(holds, "{backend} is {one:?}, and the last words are {last:?}: {self:#?}");
        }
    }
}

fn kind_of(order: Option<AdminState>) -> u8 {
    match order {
        None => 0,
        Some(AdminState::Drain { .. }) => 1,
        Some(AdminState::Maint) => 2,
    }
}
