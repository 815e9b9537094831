use super::*;
use crate::{
    controller::testbed::Testbed,
    tables::{BackendRow, Write},
};
use lb_common::{
    flow::SlotAt,
    slot::{Ctl, KILLED, State},
};

const NOW: Instant = Instant(500_000_000_000);

/// Service 3 with one backend, and five counted flows of client 0.
fn tables() -> Testbed {
    let mut tables = Testbed::default();
    tables.add_backend(0, 100, BackendRow { service: 3, ..BackendRow::default() });
    for slot in 0..5 {
        let flow = tables.open(0, slot, State::Established, 0, Instant(1));
        mark(&mut tables, flow.at);
    }
    count(&mut tables, 5);
    tables
}

fn mark(tables: &mut Testbed, at: SlotAt) -> Ctl {
    tables.change_slot(at, |slot| slot.ctl = slot.ctl.with_flags(COUNTED));
    tables.ctl(at)
}

/// Sets the count of client 0; it has no word if that is zero.
fn count(tables: &mut Testbed, count: u32) {
    let words = [ClientCount::new(0, count)];
    tables.set_clients(3, if count > 0 { &words } else { &[] });
}

fn turn(clients: &mut Clients, tables: &Testbed, now: Instant) -> Vec<Step> {
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
    let (mut clients, tables) = (Clients::default(), tables());
    tables.set_clients(3, &[ClientCount::new(0, 2), ClientCount::new(0, 3)]);
    assert!((0..4).all(|n| turn(&mut clients, &tables, NOW + n * PERIOD).is_empty()));
}

#[test]
fn flows_that_are_older_than_the_limit_are_brought_into_the_count_and_half_open_ones_are_left() {
    let (mut clients, mut tables) = (Clients::default(), tables());
    let older = tables.open(0, 50, State::ClosingClient, 0, Instant(1));
    tables.add_ring(3, 4);
    tables.open(0, 51, State::HalfOpen, 0, Instant(1));
    assert_eq!(turn(&mut clients, &tables, NOW), [Step::Count(older)]);
    mark(&mut tables, older.at);
    count(&mut tables, 6);
    assert_eq!(turn(&mut clients, &tables, NOW + PERIOD), []);
}

#[test]
fn flows_that_have_ended_and_those_of_other_services_do_not_count() {
    let (mut clients, mut tables) = (Clients::default(), tables());
    let row = BackendRow { service: 4, pools: vec![0], ..BackendRow::default() };
    tables.write(&Write::NewBackend { number: 1, row });
    let other = tables.open(1, 60, State::Established, 0, Instant(1));
    mark(&mut tables, other.at);
    let ended = tables.open(0, 61, State::Established, 0, Instant(1));
    let ctl = mark(&mut tables, ended.at);
    tables.change_slot(ended.at, |slot| slot.ctl = ctl.with_flags(KILLED).closed(63));
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
