use lb_common::{
    flow::Key,
    hash::{Entry, tag},
};

use super::*;
use crate::tables::{
    FlowAt, Tables,
    tests::{address, put_pool},
};

const PORTS: u16 = 64;

fn tables() -> (Tables, u16) {
    let tables = Tables::in_memory().unwrap();
    let pool = put_pool(&tables, address("10.0.1.10:6443"), address("10.0.1.100:0").ip(), PORTS);
    (tables, pool)
}

fn key(client: &str) -> Key {
    Key::of(client.parse().unwrap(), 5)
}

fn foreign(pool: u16, slot: u16, client: &str) -> Foreign {
    Foreign {
        at: SlotAt::new(pool, slot),
        backend: 3,
        key: key(client),
        state: State::Established,
        hop: Hop::new([2, 0, 0, 0, 0, 7], 1),
        initial: [1000, 2000],
        ends: [1501, 2001],
        acks: [2001, 1501],
        edges: [66_000, 67_000],
        scales: Scales::new(7, 9),
        started: Instant(77),
        last_seen: Ticks(10),
        connect_us: 40,
        tries: 1,
    }
}

fn active(tables: &Tables) -> u32 {
    tables.backend(3).active
}

#[test]
fn a_flow_taken_over_is_found_by_its_client_and_counted_once() {
    let (tables, pool) = tables();
    tables.adopt(&foreign(pool, 9, "10.0.1.7:5000")).unwrap();
    let found = tables.find_key(key("10.0.1.7:5000")).unwrap();
    assert_eq!((found.at, found.ctl.state()), (SlotAt::new(pool, 9), State::Established));
    assert_eq!(active(&tables), 1);
    let flow = tables.occupant(SlotAt::new(pool, 9)).unwrap();
    assert_eq!((flow.bytes_in(), flow.bytes_out(), flow.connect_us()), (500, 0, 40));
    assert_eq!(tables.find_key(key("10.0.1.7:5001")), None);
}

#[test]
fn a_slot_or_a_client_that_has_a_flow_takes_no_other() {
    let (tables, pool) = tables();
    tables.adopt(&foreign(pool, 9, "10.0.1.7:5000")).unwrap();
    assert_eq!(tables.adopt(&foreign(pool, 9, "10.0.1.8:5000")), Err(NotAdopted::SlotTaken));
    assert_eq!(tables.adopt(&foreign(pool, 10, "10.0.1.7:5000")), Err(NotAdopted::ClientTaken));
    assert_eq!(tables.adopt(&foreign(pool, PORTS, "10.0.1.9:1")), Err(NotAdopted::SlotTaken));
    assert_eq!((active(&tables), tables.occupant(SlotAt::new(pool, 10))), (1, None));
}

#[test]
fn an_end_frees_the_slot_for_the_next_flow_without_a_second_place_in_the_ring() {
    let (tables, pool) = tables();
    let free = tables.free_slots(pool);
    for turn in 0..3 * u32::from(PORTS) {
        let client = format!("10.0.1.7:{}", 5000 + turn);
        tables.adopt(&foreign(pool, 9, &client)).unwrap();
        assert!(tables.end_quietly(SlotAt::new(pool, 9), |_| true));
        assert_eq!(tables.find_key(key(&client)), None);
    }
    assert_eq!((active(&tables), tables.free_slots(pool)), (0, free));
    assert!(!tables.end_quietly(SlotAt::new(pool, 9), |_| true), "nothing is open there");
}

#[test]
fn the_bytes_of_a_flow_that_ended_elsewhere_stay_and_one_that_found_no_place_has_none() {
    let (tables, pool) = tables();
    let bytes = || (tables.backend(3).bytes_in, tables.backend(3).bytes_out);
    tables.adopt(&foreign(pool, 9, "10.0.1.7:5000")).unwrap();
    assert_eq!(bytes(), (0, 0), "while it is open they are counted from its slot");
    assert_eq!(tables.adopt(&foreign(pool, 10, "10.0.1.7:5000")), Err(NotAdopted::ClientTaken));
    assert_eq!(bytes(), (0, 0));
    assert!(tables.end_quietly(SlotAt::new(pool, 9), |_| true));
    assert_eq!((bytes(), tables.backend(3).resets), ((500, 0), 0));
}

#[test]
fn a_client_whose_flow_has_ended_elsewhere_is_no_longer_counted_for_it() {
    let (tables, pool) = tables();
    let service = tables.backend(3).service;
    tables.make_clients(service).unwrap();
    tables.adopt(&foreign(pool, 9, "10.0.1.7:5000")).unwrap();
    assert!(tables.count_flow(tables.occupant(SlotAt::new(pool, 9)).unwrap().seen()));
    assert_eq!(tables.clients(service).len(), 1);
    assert!(tables.end_quietly(SlotAt::new(pool, 9), |_| true));
    assert_eq!(tables.clients(service), []);
}

#[test]
fn of_a_client_whose_earlier_flow_has_ended_only_the_open_one_is_in_the_index() {
    // Wherever in its two buckets the entry of the flow that has ended is, and the last free place.
    for (ended, free) in (0..16).flat_map(|ended| (0..16).map(move |free| (ended, free))) {
        let (tables, pool) = tables();
        let client = key("10.0.1.7:5000");
        let index = &tables.fixed.index;
        let hash = index.hash(client);
        let places: Vec<_> = index.places(hash).collect();
        tables.adopt(&foreign(pool, 3, "10.0.1.8:5000")).unwrap();
        let other = Entry::new(
            !tag(hash),
            SlotAt::new(pool, 3),
            tables.occupant(SlotAt::new(pool, 3)).unwrap().ctl.generation(),
        );
        tables.adopt(&foreign(pool, 9, "10.0.1.7:5000")).unwrap();
        let old = places.iter().map(|place| place.load(Ordering::Relaxed)).find(|word| *word != 0).unwrap();
        assert!(tables.end_quietly(SlotAt::new(pool, 9), |_| true));
        places.iter().for_each(|place| place.store(other.0, Ordering::Relaxed));
        places[free].store(0, Ordering::Relaxed);
        places[ended].store(old, Ordering::Relaxed);

        tables.adopt(&foreign(pool, 10, "10.0.1.7:5000")).unwrap();
        let words = places.iter().map(|place| place.load(Ordering::Relaxed));
        let confirmed: Vec<_> = words.filter_map(|word| tables.confirmed(word, client, tag(hash))).collect();
        let open = tables.occupant(SlotAt::new(pool, 10)).unwrap();
        assert_eq!(confirmed, [FlowAt { at: SlotAt::new(pool, 10), ctl: open.ctl }], "ended {ended}, free {free}");
    }
}

#[test]
fn a_flow_is_entered_where_the_kernel_program_looks_first() {
    let (tables, pool) = tables();
    let client = key("10.0.1.7:5000");
    tables.adopt(&foreign(pool, 9, "10.0.1.7:5000")).unwrap();
    let own = tables.fixed.index.own_place(tables.fixed.index.hash(client)).load(Ordering::Relaxed);
    assert_eq!(Entry(own).at(), SlotAt::new(pool, 9));
}

#[test]
fn an_end_that_is_meant_for_another_flow_ends_nothing() {
    let (tables, pool) = tables();
    tables.adopt(&foreign(pool, 9, "10.0.1.7:5000")).unwrap();
    assert!(!tables.end_quietly(SlotAt::new(pool, 9), |flow| flow.record.key == key("10.0.1.8:5000")));
    assert_eq!(active(&tables), 1);
}

#[test]
fn a_refresh_goes_forward_only_and_brings_a_half_close() {
    let (tables, pool) = tables();
    let first = foreign(pool, 9, "10.0.1.7:5000");
    tables.adopt(&first).unwrap();
    let newer =
        Foreign { ends: [9000, 2001], acks: [2001, 9000], last_seen: Ticks(30), state: State::ClosingClient, ..first };
    tables.refresh(&tables.occupant(SlotAt::new(pool, 9)).unwrap(), &newer);
    let flow = tables.occupant(SlotAt::new(pool, 9)).unwrap();
    assert_eq!((flow.record.end_client, flow.record.ack_backend, flow.record.last_seen), (9000, 9000, Ticks(30)));
    assert_eq!((flow.ctl.state(), flow.ctl.flags() & FIN_CLIENT), (State::ClosingClient, FIN_CLIENT));
    tables.refresh(&flow, &first);
    let again = tables.occupant(SlotAt::new(pool, 9)).unwrap();
    assert_eq!(again.record, flow.record, "what is older changes nothing");
}

#[test]
fn every_slot_can_be_taken_over_and_each_client_is_found() {
    let (tables, pool) = tables();
    for slot in 0..PORTS {
        tables.adopt(&foreign(pool, slot, &format!("10.0.2.{slot}:443"))).unwrap();
    }
    for slot in 0..PORTS {
        let found = tables.find_key(key(&format!("10.0.2.{slot}:443")));
        assert_eq!(found.map(|found| found.at.slot()), Some(slot));
    }
    assert_eq!(active(&tables), u32::from(PORTS));
}

/// The ports that a pool hands out, in their order, and gives back.
fn handed_out(tables: &Tables, pool: u16) -> Vec<u16> {
    let slots = tables.slots_of(pool).unwrap();
    let all: Vec<_> = std::iter::from_fn(|| slots.pop(&tables.fixed.rings)).collect();
    all.iter().for_each(|slot| slots.push(&tables.fixed.rings, *slot));
    all
}

#[test]
fn weeding_takes_adopted_ports_out_of_the_ring_and_their_ends_bring_them_back() {
    let (tables, pool) = tables();
    (0..20).for_each(|slot| tables.adopt(&foreign(pool, slot, &format!("10.0.1.7:{}", 5000 + slot))).unwrap());
    assert_eq!(tables.free_slots(pool), u32::from(PORTS));
    // One that has ended stays where it is.
    assert!(tables.end_quietly(SlotAt::new(pool, 3), |_| true));
    tables.weed(pool);
    assert_eq!(handed_out(&tables, pool), [3].into_iter().chain(20..PORTS).collect::<Vec<_>>());
    assert_eq!(tables.occupant(SlotAt::new(pool, 7)).unwrap().ctl.flags() & IN_RING, 0);
    assert!(tables.end_quietly(SlotAt::new(pool, 7), |_| true));
    assert_eq!(handed_out(&tables, pool).last(), Some(&7));
    tables.weed(pool);
    tables.weed(pool);
    assert_eq!(tables.free_slots(pool), 46, "nothing is lost, and nothing is there twice");
}

#[test]
fn the_two_hosts_of_a_pair_begin_with_different_halves() {
    let (lower, pool) = tables();
    assert_eq!(handed_out(&lower, pool)[0], 0);
    let upper = Tables::in_memory().unwrap();
    upper.put_pool(pool, &lower.pool(pool), &[10_240 + 33], true).unwrap();
    assert_eq!(handed_out(&upper, pool), [32].into_iter().chain(34..PORTS).chain(0..32).collect::<Vec<_>>());
}
