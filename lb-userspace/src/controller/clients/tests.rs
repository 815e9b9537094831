use super::*;
use crate::controller::{fake::Fake, installed::BackendRow, plan::Write, view::Place};
use lb_common::{
    layout::{ACTIVE, Pool},
    slot::{Ctl, KILLED},
};

const NOW: Instant = Instant(500_000_000_000);

/// Service 3 with one backend, and five counted flows of client 0.
fn tables() -> Fake {
    let mut tables = Fake::default();
    let pool = Pool { first_port: 1024, ports: 100, state: ACTIVE, ..Pool::default() };
    tables.write(&Write::NewPool { number: 0, pool, withheld: Vec::new() });
    let row = BackendRow { service: 3, pools: vec![0], ..BackendRow::default() };
    tables.write(&Write::NewBackend { number: 0, row });
    for slot in 0..5 {
        let flow = tables.open(0, slot, State::Established, 0, Instant(1));
        mark(&mut tables, flow.place);
    }
    count(&mut tables, 5);
    tables
}

fn mark(tables: &mut Fake, place: Place) -> Ctl {
    let (ctl, _) = tables.slots.get_mut(&place).expect("a flow");
    *ctl = ctl.with_flags(COUNTED);
    *ctl
}

fn count(tables: &mut Fake, count: u32) {
    tables.clients.insert(3, vec![ClientCount::new(0, count)]);
}

fn turn(clients: &mut Clients, tables: &Fake, now: Instant) -> Vec<Step> {
    clients.turn(&[3], &[0], &|backend| (backend == 0).then_some(3), tables, now)
}

#[test]
fn counts_that_agree_are_left_alone_and_looked_at_every_five_seconds() {
    let (mut clients, mut tables) = (Clients::default(), tables());
    assert_eq!(turn(&mut clients, &tables, NOW), []);
    count(&mut tables, 9);
    assert_eq!(turn(&mut clients, &tables, NOW + PERIOD - Duration::from_nanos(1)), [], "not yet");
    assert!(clients.suspected.is_none());
    turn(&mut clients, &tables, NOW + PERIOD);
    assert!(clients.suspected.is_some());
}

#[test]
fn a_difference_is_corrected_when_two_looks_in_a_row_find_it() {
    for (stands, by) in [(7, 2), (4, -1), (0, -5)] {
        let (mut clients, mut tables) = (Clients::default(), tables());
        count(&mut tables, stands);
        tables.clients.get_mut(&3).expect("words").retain(|word| word.count() > 0);
        assert_eq!(turn(&mut clients, &tables, NOW), [], "seen once");
        let steps = turn(&mut clients, &tables, NOW + AGAIN);
        assert_eq!(steps, [Step::Correct { service: 3, client: 0, by }]);
        count(&mut tables, 5);
        assert!((2..20).all(|n| turn(&mut clients, &tables, NOW + n * PERIOD).is_empty()));
        assert_eq!(clients.corrected(), u64::from(by.unsigned_abs()));
    }
}

#[test]
fn a_difference_that_passes_or_is_another_one_each_time_is_none() {
    let (mut clients, mut tables) = (Clients::default(), tables());
    for stands in [6, 5, 6, 7, 6, 5] {
        count(&mut tables, stands);
        let now = clients.due.max(NOW);
        assert_eq!(turn(&mut clients, &tables, now), []);
    }
    assert_eq!(clients.corrected(), 0);
}

#[test]
fn two_words_of_one_client_are_one_count() {
    let (mut clients, mut tables) = (Clients::default(), tables());
    tables.clients.insert(3, vec![ClientCount::new(0, 2), ClientCount::new(0, 3)]);
    assert!((0..4).all(|n| turn(&mut clients, &tables, NOW + n * PERIOD).is_empty()));
}

#[test]
fn flows_that_are_older_than_the_limit_are_brought_into_the_count_and_half_open_ones_are_left() {
    let (mut clients, mut tables) = (Clients::default(), tables());
    let older = tables.open(0, 50, State::ClosingClient, 0, Instant(1));
    tables.rings.insert(3, vec![0; 4]);
    tables.open(0, 51, State::HalfOpen, 0, Instant(1));
    assert_eq!(turn(&mut clients, &tables, NOW), [Step::Count(older)]);
    mark(&mut tables, older.place);
    count(&mut tables, 6);
    assert_eq!(turn(&mut clients, &tables, NOW + PERIOD), []);
}

#[test]
fn flows_that_have_ended_and_those_of_other_services_do_not_count() {
    let (mut clients, mut tables) = (Clients::default(), tables());
    let row = BackendRow { service: 4, pools: vec![0], ..BackendRow::default() };
    tables.write(&Write::NewBackend { number: 1, row });
    let other = tables.open(1, 60, State::Established, 0, Instant(1));
    mark(&mut tables, other.place);
    let ended = tables.open(0, 61, State::Established, 0, Instant(1));
    let ctl = mark(&mut tables, ended.place);
    tables.slots.get_mut(&ended.place).expect("a flow").0 = ctl.with_flags(KILLED).closed(63);
    assert!((0..4).all(|n| turn(&mut clients, &tables, NOW + n * PERIOD).is_empty()));
}

#[test]
fn services_with_a_limit_take_turns_and_without_any_nothing_is_read() {
    let (mut clients, mut tables) = (Clients::default(), tables());
    count(&mut tables, 9);
    assert_eq!(clients.turn(&[], &[0], &|_| Some(3), &tables, NOW), []);
    assert_eq!(clients.due, Instant::ZERO);
    let seen: Vec<_> = (0..4)
        .map(|n| {
            clients.suspected = None;
            clients.turn(&[1, 3], &[], &|_| Some(3), &tables, NOW + n * PERIOD);
            clients.next - 1
        })
        .collect();
    assert_eq!(seen, [1, 3, 1, 3]);
}
