use lb_common::slot::{CONNECTED, LOOSE, State};

use super::*;
use crate::{
    sync::{
        mirror::{ListenerAt, PoolAt},
        wire::{Decision, tests::flow},
    },
    tables::tests::{put_listener, put_pool},
};

const TURN: Duration = Duration::from_millis(20);
const SECOND: Duration = Duration::from_secs(1);
const START: Duration = Duration::from_secs(1000);
const A: &str = "10.0.9.1:9644";
const B: &str = "10.0.9.2:9644";
const PORTS: u16 = 2000;
const MANY: u16 = 55_000;

/// Two hosts and the wire between them.
struct Pair {
    a: Station,
    b: Station,
    /// Since the hosts' boot.
    now: Duration,
    /// Datagrams lost of a hundred.
    loss: u64,
    /// Whether datagrams overtake each other.
    shuffles: bool,
    turn: Duration,
    chance: u64,
}

fn host(own: u8, peer: &str) -> Station {
    host_with_key(own, peer, "7e")
}

fn host_with_key(own: u8, peer: &str, byte: &str) -> Station {
    let tables = Tables::in_memory().unwrap();
    let example = flow(1).name;
    put_pool(&tables, example.backend, example.snat.ip(), PORTS);
    put_listener(&tables, example.listener);
    let key = SharedKey::parse(&byte.repeat(32)).unwrap();
    let mut count = 0_u64;
    let fresh = Box::new(move || {
        count += 1;
        let mut session = [own; 16];
        session[8..].copy_from_slice(&count.to_be_bytes());
        session
    });
    let listen = if peer == A { B } else { A };
    Station::new(&key, listen.parse().unwrap(), &[peer.parse().unwrap()], Arc::new(tables), "0.1.0", fresh)
}

fn directory(station: &Station, ours: bool) -> Arc<Directory> {
    let example = flow(1).name;
    let number = station.mirror.tables.listeners()[0].0;
    let pool = station.mirror.tables.pools()[0].0;
    Arc::new(Directory {
        listeners: [(example.listener, ListenerAt { number, service: 0, ours, lingers: false, interface: Some(1) })]
            .into(),
        backends: [((0, example.backend), 7)].into(),
        pools: [(
            (example.backend, example.snat.ip()),
            PoolAt { number: pool, first_port: 10_240, slots: PORTS.into() },
        )]
        .into(),
        refresh: Duration::from_secs(30),
    })
}

impl Pair {
    fn new(loss: u64) -> Pair {
        let (a, b, chance) = (host(1, B), host(2, A), 0x9e37_79b9 + loss);
        let mut pair = Pair { a, b, now: START, loss, shuffles: false, turn: TURN, chance };
        pair.master('a');
        pair
    }

    fn at(&self) -> Clocks {
        let monotonic = Instant::ZERO + self.now;
        Clocks { monotonic, coarse: monotonic, wall_ms: 1_795_000_000_000 + self.now.as_millis() as u64 }
    }

    /// Moves the VIP.
    fn master(&mut self, who: char) {
        let at = self.at();
        let (of_a, of_b) = (directory(&self.a, who == 'a'), directory(&self.b, who == 'b'));
        self.a.direct(of_a, at);
        self.b.direct(of_b, at);
    }

    fn chance(&mut self) -> u64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        self.chance
    }

    fn is_lost(&mut self) -> bool {
        self.chance() % 100 < self.loss
    }

    fn shuffle(&mut self, datagrams: &mut [Vec<u8>]) {
        let places = if self.shuffles { datagrams.len() } else { 0 };
        for place in (1..places).rev() {
            let other = self.chance() as usize % (place + 1);
            datagrams.swap(place, other);
        }
    }

    fn carry(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds / self.turn.as_millis() as u64 {
            self.now += self.turn;
            let at = self.at();
            let mut to_b: Vec<_> = self.a.turn(at).into_iter().map(|(_, datagram)| datagram).collect();
            let mut to_a: Vec<_> = self.b.turn(at).into_iter().map(|(_, datagram)| datagram).collect();
            while !(to_a.is_empty() && to_b.is_empty()) {
                let (mut for_a, mut for_b) = (std::mem::take(&mut to_a), std::mem::take(&mut to_b));
                self.shuffle(&mut for_a);
                self.shuffle(&mut for_b);
                for datagram in for_b {
                    if !self.is_lost() {
                        to_a.extend(self.b.receive(A.parse().unwrap(), &datagram, at));
                    }
                }
                for datagram in for_a {
                    if !self.is_lost() {
                        to_b.extend(self.a.receive(B.parse().unwrap(), &datagram, at));
                    }
                }
            }
        }
    }

    fn states(&self) -> (SyncState, SyncState) {
        (self.a.status(self.at())[0].state, self.b.status(self.at())[0].state)
    }
}

/// Opens a flow in a slot, as a connection of this host's own; [`end`] ends it.
fn open(station: &mut Station, slot: u16, at: Clocks) {
    let mut flow = flow(5000 + slot);
    flow.name.snat.set_port(10_240 + slot);
    flow.established_at = at.wall_ms;
    // As the kernel program would: by way of the directory of a host that is not master, which
    // takes what comes.
    let applied = station.mirror.apply(&flow, at);
    let Applied::Taken(place) = applied else { panic!("{applied:?}") };
    let generation = station.mirror.tables.occupant(place).unwrap().ctl.generation();
    station.peers.iter_mut().for_each(|peer| peer.push(Item::Flow(place, generation)));
}

fn end(station: &mut Station, slot: u16) {
    let pool = station.mirror.tables.pools()[0].0;
    let flow = station.mirror.tables.occupant(SlotAt::new(pool, slot)).unwrap();
    assert!(station.mirror.tables.end_quietly(SlotAt::new(pool, slot), |_| true));
    station.ended(flow.listener(), flow.client(), pool, slot);
}

fn open_slots(station: &Station) -> Vec<u16> {
    let pool = station.mirror.tables.pools()[0].0;
    let heads = station.mirror.tables.heads(pool, 0..u32::MAX);
    heads.filter(|head| head.flow.ctl.state().is_active()).map(|head| head.flow.at.slot()).collect()
}

#[test]
fn flows_are_on_the_other_host_after_a_turn_and_their_ends_too() {
    let mut pair = Pair::new(0);
    pair.carry(100);
    assert_eq!(pair.states(), (SyncState::Synced, SyncState::Synced));
    let at = pair.at();
    (0..50).for_each(|slot| open(&mut pair.a, slot, at));
    pair.carry(20);
    assert_eq!(open_slots(&pair.b), (0..50).collect::<Vec<_>>());
    (0..50).step_by(2).for_each(|slot| end(&mut pair.a, slot));
    pair.carry(20);
    assert_eq!(open_slots(&pair.b), (1..50).step_by(2).collect::<Vec<_>>());
    let counts = pair.b.status(pair.at())[0].counts;
    assert_eq!((counts.ends_received, counts.conflicts), (25, 0));
    // Some were sent once more in their turn.
    assert!((50..60).contains(&counts.flows_received), "{counts:?}");
}

#[test]
fn a_host_that_joins_late_gets_a_full_copy() {
    let mut pair = Pair::new(0);
    let at = pair.at();
    (0..PORTS).for_each(|slot| open(&mut pair.a, slot, at));
    pair.carry(400);
    assert_eq!(open_slots(&pair.b).len(), usize::from(PORTS));
    assert_eq!(pair.states().1, SyncState::Synced);
}

/// What begins on `b` though `a` has the address, as two of its clients do not know yet. One of the
/// connections is known to `a`.
#[test]
fn what_begins_where_the_address_is_not_stays_only_if_the_master_has_it_too() {
    let mut pair = Pair::new(0);
    pair.carry(1000);
    let at = pair.at();
    open(&mut pair.a, 7, at);
    open(&mut pair.b, 9, at);
    let tables = pair.b.mirror.tables.clone();
    tables.place_lease(flow(1).name.listener.ip()).unwrap();
    let place = SlotAt::new(tables.pools()[0].0, 9);
    tables.change_slot(place, |slot| slot.ctl = slot.ctl.with_state(State::HalfOpen).without_flags(LOOSE | CONNECTED));
    pair.b.opening.insert(place, tables.occupant(place).unwrap().ctl.generation());
    pair.carry(40);
    tables.change_slot(place, |slot| slot.ctl = slot.ctl.with_state(State::Established).with_flags(CONNECTED));
    pair.carry(1500);
    assert_eq!(open_slots(&pair.b).len(), 2, "the master may have it, and its news be under way");
    pair.carry(31_000);
    assert_eq!(open_slots(&pair.b), [7]);
    assert_eq!(pair.b.status(pair.at())[0].counts.copies_received, 2, "one copy shows it");
}

#[test]
fn whatever_is_lost_on_the_way_heals() {
    for loss in [5, 20, 40] {
        let mut pair = Pair::new(loss);
        pair.carry(3000);
        let at = pair.at();
        (0..600).for_each(|slot| open(&mut pair.a, slot, at));
        pair.carry(200);
        (0..600).step_by(3).for_each(|slot| end(&mut pair.a, slot));
        pair.carry(200);
        let at = pair.at();
        (600..700).for_each(|slot| open(&mut pair.a, slot, at));
        pair.loss = 0;
        pair.carry(5000);
        assert_eq!(open_slots(&pair.a), open_slots(&pair.b), "{loss} % lost");
        assert_eq!(pair.states(), (SyncState::Synced, SyncState::Synced));
    }
}

#[test]
fn datagrams_that_overtake_each_other_are_no_loss() {
    let mut pair = Pair::new(0);
    pair.carry(1000);
    pair.shuffles = true;
    let copies = pair.b.status(pair.at())[0].counts.copies_received;
    for round in 0..20 {
        let at = pair.at();
        (0..400).filter(|slot| slot % 20 != round).for_each(|slot| {
            if open_slots(&pair.a).binary_search(&slot).is_err() {
                open(&mut pair.a, slot, at);
            }
        });
        pair.carry(40);
        (0..400).filter(|slot| slot % 20 == round + 1).for_each(|slot| end(&mut pair.a, slot));
        pair.carry(40);
        assert_eq!(open_slots(&pair.a), open_slots(&pair.b), "round {round}");
        assert_eq!(pair.states(), (SyncState::Synced, SyncState::Synced), "round {round}");
    }
    let counts = pair.b.status(pair.at())[0].counts;
    assert_eq!((counts.lost, counts.copies_received), (0, copies), "{counts:?}");
    // A whole copy, too.
    let at = pair.at();
    pair.b.peers[0].link.want_copy(at.monotonic);
    pair.carry(2000);
    assert_eq!(pair.b.status(pair.at())[0].counts.copies_received, copies + 1);
}

#[test]
fn a_copy_completes_though_nothing_is_open() {
    for (pools, turn) in [(16, TURN), (3, SECOND)] {
        let mut pair = Pair::new(0);
        pair.turn = turn;
        for station in [&mut pair.a, &mut pair.b] {
            let mut directory = Directory::clone(&station.mirror.directory);
            for host in 0..pools {
                let backend = SocketAddr::from(([10, 0, 5, host], 6443));
                let number = put_pool(&station.mirror.tables, backend, flow(1).name.snat.ip(), MANY);
                let pool = PoolAt { number, first_port: 10_240, slots: MANY.into() };
                directory.pools.insert((backend, flow(1).name.snat.ip()), pool);
            }
            station.mirror.directory = Arc::new(directory);
        }
        pair.carry(8000);
        assert_eq!(pair.states(), (SyncState::Synced, SyncState::Synced), "{pools} pools");
        assert_eq!(pair.a.status(pair.at())[0].counts.copies_sent, 1, "it did not start over");
    }
}

#[test]
fn when_the_vip_moves_the_flows_go_on_there_and_their_ends_come_back() {
    let mut pair = Pair::new(0);
    let at = pair.at();
    (0..300).for_each(|slot| open(&mut pair.a, slot, at));
    pair.carry(400);
    pair.master('b');
    pair.carry(400);
    assert_eq!((open_slots(&pair.a).len(), open_slots(&pair.b).len()), (300, 300));
    (0..100).for_each(|slot| end(&mut pair.b, slot));
    pair.carry(100);
    assert_eq!(open_slots(&pair.a).len(), 200);
    pair.master('a');
    pair.carry(400);
    assert_eq!((open_slots(&pair.a).len(), open_slots(&pair.b).len()), (200, 200));
}

#[test]
fn while_both_have_the_vip_neither_ends_what_the_other_has() {
    let mut pair = Pair::new(0);
    let at = pair.at();
    (0..100).for_each(|slot| open(&mut pair.a, slot, at));
    pair.carry(400);
    let both = (directory(&pair.a, true), directory(&pair.b, true));
    pair.a.direct(both.0, at);
    pair.b.direct(both.1, at);
    (0..50).for_each(|slot| end(&mut pair.a, slot));
    pair.carry(2000);
    assert_eq!((open_slots(&pair.a).len(), open_slots(&pair.b).len()), (100, 100), "b has them all, and a has b's");
}

#[test]
fn a_restarted_host_requests_a_copy_and_receives_it() {
    let mut pair = Pair::new(0);
    let at = pair.at();
    (0..100).for_each(|slot| open(&mut pair.a, slot, at));
    pair.carry(400);
    let tables = pair.b.mirror.tables.clone();
    let at = pair.at();
    (0..30).for_each(|slot| end(&mut pair.a, slot));
    pair.b = host(77, A);
    pair.b.mirror.tables = tables;
    let of_b = directory(&pair.b, false);
    pair.b.direct(of_b, at);
    assert_eq!(open_slots(&pair.b).len(), 100, "what the tables held");
    pair.carry(2000);
    assert_eq!(open_slots(&pair.b), (30..100).collect::<Vec<_>>());
}

#[test]
fn decisions_of_an_operator_and_the_health_of_backends_travel_and_are_repeated() {
    let mut pair = Pair::new(0);
    let decision = Decision::Drain { deadline: Some(9), rate: 50 };
    let drain = AdminDecision { service: "api".into(), backend: "cp01".into(), decision, decided_at: 5 };
    let health = BackendHealth { service: "api".into(), backend: "cp02".into(), reason: 3 };
    pair.a.administer(vec![drain.clone()], vec![health.clone()]);
    pair.carry(200);
    let peer = A.parse().unwrap();
    let told = [PeerNews::Admin { peer, admin: drain }, PeerNews::Health { peer, health }];
    for wait in [0, 1100] {
        pair.carry(wait);
        let news = pair.b.news();
        assert!(told.iter().all(|told| news.contains(told)), "{news:?}");
    }
}

#[test]
fn a_backend_that_is_unknown_here_is_told_once_and_again_while_it_stays_so() {
    let mut pair = Pair::new(0);
    pair.carry(200);
    let mut blind = Directory::clone(&directory(&pair.b, false));
    blind.backends.clear();
    let at = pair.at();
    pair.b.direct(Arc::new(blind), at);
    (0..20).for_each(|slot| open(&mut pair.a, slot, at));
    pair.carry(200);
    let unknown = pair.b.news().into_iter().filter(|news| matches!(news, PeerNews::UnknownBackend { .. })).count();
    assert_eq!((unknown, pair.b.status(at)[0].counts.unknown >= 20), (1, true));
    // They are sent again every 30 s.
    let mut again = 0;
    for _ in 0..90 {
        pair.carry(1000);
        again += pair.b.news().iter().filter(|news| matches!(news, PeerNews::UnknownBackend { .. })).count();
    }
    assert!((3..=18).contains(&again), "told {again} times");
    let known = directory(&pair.b, false);
    pair.b.direct(known, pair.at());
    pair.carry(2000);
    assert_eq!(open_slots(&pair.b).len(), 20, "a copy brings what was turned away");
}

#[test]
fn a_peer_of_an_older_format_is_told_once_and_counted() {
    let mut pair = Pair::new(0);
    let mut bytes = Vec::new();
    let hello = Message::Hello { challenge: [5; 16], echo: [0; 16], version: "0.0.9".into() };
    crate::sync::wire::write(&hello, &mut bytes);
    let key = SharedKey::parse(&"7e".repeat(32)).unwrap();
    let at = pair.at();
    let peer = B.parse().unwrap();
    for session in 0..5 {
        let datagram = crate::sync::seal::tests::sealed_as_before(&key, [session; 16], &bytes);
        assert_eq!(pair.a.receive(peer, &datagram, at), None);
    }
    assert_eq!(pair.a.news(), [PeerNews::OlderFormat { peer, version: "0.0.9".into() }]);
    assert_eq!(pair.a.status(at)[0].counts.refused.older_format, 5);
    assert_eq!(pair.states().0, SyncState::Connecting);
    // It is upgraded.
    pair.carry(400);
    assert_eq!(pair.states(), (SyncState::Synced, SyncState::Synced));
}

#[test]
fn a_peer_with_the_same_key_is_not_told_of_when_its_session_goes_on_after_a_restart_here() {
    let mut pair = Pair::new(0);
    pair.carry(400);
    // This host is started anew, and hears a session that it does not know.
    pair.a = host(3, B);
    let flows: Vec<_> = pair.b.turn(pair.at()).into_iter().map(|(_, datagram)| datagram).collect();
    let unknown = crate::sync::seal::Sealer::new(
        &SharedKey::parse(&"7e".repeat(32)).unwrap(),
        [9; 16],
        crate::sync::seal::Direction { from: B.parse().unwrap(), to: A.parse().unwrap() },
    )
    .seal(&[]);
    let (peer, at) = (B.parse().unwrap(), pair.at());
    flows.iter().chain([&unknown]).for_each(|datagram| _ = pair.a.receive(peer, datagram, at));
    assert!(!pair.a.news().contains(&PeerNews::OtherKey { peer }));
    assert!(pair.a.status(at)[0].counts.refused.replayed > 0, "it was refused, for another reason");
}

#[test]
fn a_peer_with_another_key_is_told_once_and_a_stranger_s_datagram_to_synced_hosts_is_not() {
    let mut pair = Pair::new(0);
    pair.b = host_with_key(2, A, "7f");
    pair.master('a');
    pair.carry(2000);
    let of = |peer: &str| vec![PeerNews::OtherKey { peer: peer.parse().unwrap() }];
    assert_eq!((pair.a.news(), pair.b.news()), (of(B), of(A)));
    assert!(pair.a.status(pair.at())[0].counts.refused.not_authentic > 1);
    // The right one is copied.
    pair.b = host(3, A);
    pair.master('a');
    pair.carry(2000);
    assert_eq!(pair.states(), (SyncState::Synced, SyncState::Synced));
    pair.a.news();
    let stranger = host_with_key(4, A, "7f").turn(pair.at());
    let (peer, at) = (B.parse().unwrap(), pair.at());
    stranger.iter().for_each(|(_, datagram)| _ = pair.a.receive(peer, datagram, at));
    assert_eq!(pair.a.news(), []);
}

#[test]
fn a_copy_that_makes_up_for_a_loss_is_not_reported_and_every_other_change_is() {
    for reported in SyncState::ALL {
        for state in SyncState::ALL {
            let silent = reported == state || (*reported, *state) == (SyncState::Synced, SyncState::Copying);
            assert_eq!(is_worth_reporting(*reported, *state), !silent, "{reported:?} {state:?}");
        }
    }
}

#[test]
fn the_walk_passes_every_slot_once_per_round_and_never_more_at_once() {
    let round = Duration::from_secs(30);
    assert_eq!(share_of_walk(30_000, TURN, round), 20);
    assert_eq!(share_of_walk(1, TURN, round), 1, "rounded up: a round is never longer than configured");
    assert_eq!(share_of_walk(30_000, Duration::ZERO, round), 0);
    assert_eq!(share_of_walk(30_000, 10 * round, round), 30_000, "after a stall");
    assert_eq!(share_of_walk(30_000, TURN, Duration::ZERO), 30_000, "a round of no length");
}
