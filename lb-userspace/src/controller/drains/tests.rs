use super::*;
use crate::{
    controller::{Action, testbed::Testbed},
    tables::BackendRow,
};
use lb_common::slot::State;

const SECOND: Duration = Duration::from_secs(1);
const START: Instant = Instant(1_000_000_000_000);

/// Two backends with a pool each.
fn tables() -> Testbed {
    let mut tables = Testbed::default();
    for number in 0..2 {
        tables.add_backend(number, 2048, BackendRow::default());
    }
    tables
}

/// Turns whenever one is due; returns what happened when, and when connections were closed.
fn run(
    (drains, resets): (&mut Drains, &mut Resets),
    admin_states: &[(u16, AdminState)],
    tables: &mut Testbed,
    (from, to): (Instant, Instant),
) -> (Vec<(Duration, Happened)>, Vec<Instant>) {
    let (mut happened, mut closed) = (Vec::new(), Vec::new());
    let mut now = from;
    while now < to {
        if now >= drains.deadline() {
            let seen = drains.turn(admin_states, resets, tables, now);
            happened.extend(seen.into_iter().map(|(_, what)| (now - START, what)));
        }
        let turn = resets.turn(&tables.installed(), &tables.ours(), now);
        closed.extend(turn.steps.iter().map(|_| now));
        tables.act(&turn.steps.into_iter().map(Action::Step).collect::<Vec<_>>());
        now = drains.deadline().min(resets.deadline()).max(now + Duration::from_nanos(1));
    }
    (happened, closed)
}

#[test]
fn at_the_deadline_the_rest_is_reset_at_the_rate_and_not_before() {
    let (mut drains, mut resets, mut tables) = (Drains::default(), Resets::default(), tables());
    for slot in 0..500 {
        tables.open(slot % 2, slot, State::Established, 0, START);
    }
    let order = AdminState::Drain { deadline: Some(START + 5 * SECOND), rate: 50 };
    let span = (START, START + 20 * SECOND);
    let (happened, closed) = run((&mut drains, &mut resets), &[(0, order)], &mut tables, span);
    assert_eq!(closed.len(), 250);
    assert!(closed[0] >= START + 5 * SECOND && closed[0] < START + 5 * SECOND + SECOND / 10);
    for (index, at) in closed.iter().enumerate() {
        let ideal = START + 5 * SECOND + index as u32 * SECOND / 50;
        assert!(*at >= ideal && *at - ideal < SECOND / 20, "the {index}th came at {:?}", *at - START);
    }
    assert_eq!([0, 1].map(|backend| tables.backend(backend).active), [0, 250]);
    let [(at, Happened::Deadline(250)), (empty, Happened::Empty)] = happened[..] else { panic!("{happened:?}") };
    assert!(at == 5 * SECOND && (9 * SECOND..12 * SECOND).contains(&empty), "{happened:?}");
}

#[test]
fn one_that_is_made_after_the_deadline_is_met_too_and_one_that_is_not_made_is_left_to_its_timeout() {
    let (mut drains, mut resets, mut tables) = (Drains::default(), Resets::default(), tables());
    tables.add_ring(0, 8);
    tables.open(0, 1, State::Established, 0, START);
    let half_open = tables.open(0, 2, State::HalfOpen, 0, START);
    let admin_states = [(0, AdminState::Drain { deadline: Some(START), rate: 50 })];
    run((&mut drains, &mut resets), &admin_states, &mut tables, (START, START + 5 * SECOND));
    assert_eq!(tables.state(half_open), State::HalfOpen);
    tables.change_slot(half_open.at, |slot| slot.ctl = slot.ctl.with_state(State::Established));
    let span = (START + 5 * SECOND, START + 7 * SECOND);
    let (happened, closed) = run((&mut drains, &mut resets), &admin_states, &mut tables, span);
    assert_eq!((closed.len(), &happened[..]), (1, &[(6 * SECOND, Happened::Empty)][..]));
}

#[test]
fn without_a_deadline_nothing_is_ever_reset() {
    let (mut drains, mut resets, mut tables) = (Drains::default(), Resets::default(), tables());
    let held = tables.open(0, 1, State::Established, 0, START);
    let admin_states = [(0, AdminState::Drain { deadline: None, rate: 50 }), (1, AdminState::Maint)];
    let span = (START, START + 3600 * SECOND);
    let (happened, closed) = run((&mut drains, &mut resets), &admin_states, &mut tables, span);
    assert!(happened.is_empty() && closed.is_empty());
    tables.end(held);
    let span = (START + 3600 * SECOND, START + 3610 * SECOND);
    let (happened, _) = run((&mut drains, &mut resets), &admin_states, &mut tables, span);
    assert_eq!(happened.iter().map(|(_, what)| *what).collect::<Vec<_>>(), [Happened::Empty], "told once");
}

#[test]
fn a_drain_that_is_taken_back_stops_its_resets() {
    let (mut drains, mut resets, mut tables) = (Drains::default(), Resets::default(), tables());
    for slot in 0..100 {
        tables.open(0, slot, State::Established, 0, START);
    }
    let admin_states = [(0, AdminState::Drain { deadline: Some(START), rate: 10 })];
    let (_, closed) = run((&mut drains, &mut resets), &admin_states, &mut tables, (START, START + 2 * SECOND));
    drains.forget(0, &mut resets);
    let (_, more) = run((&mut drains, &mut resets), &[], &mut tables, (START + 2 * SECOND, START + 9 * SECOND));
    assert_eq!((closed.len(), more.len()), (20, 0));
    assert_eq!(drains.deadline(), Instant::NEVER, "and nobody wakes for it");
}
