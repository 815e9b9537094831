use super::*;
use crate::{
    controller::{Action, testbed::Testbed},
    tables::BackendRow,
};
use lb_common::layout::{Opening, Slot};

const SECOND: Duration = Duration::from_secs(1);
const START: Instant = Instant(1_000_000_000_000);
const PORTS: u16 = 3000;

fn limits(_: u16) -> Limits {
    Limits { service: 0, idle_timeout: 600 * SECOND, connecting: 12 * SECOND, reset_rate: 5000 }
}

fn tables(pools: u16) -> Testbed {
    let mut tables = Testbed::default();
    for number in 0..pools {
        tables.add_backend(number, PORTS, BackendRow::default());
    }
    tables
}

/// Turns whenever one is due until `end`, doing what comes out; returns every step with its time.
fn run(
    sweep: &mut Sweep,
    tables: &mut Testbed,
    limits: &dyn Fn(u16) -> Limits,
    from: Instant,
    end: Instant,
) -> Vec<(Instant, Step)> {
    let pools: Vec<_> = tables.installed().pools.keys().copied().collect();
    let (mut now, mut all) = (from, Vec::new());
    while now <= end {
        let steps = sweep.turn(&pools, limits, limits(0).idle_timeout, &tables.ours(), now);
        tables.act(&steps.iter().map(|step| Action::Step(*step)).collect::<Vec<_>>());
        all.extend(steps.into_iter().map(|step| (now, step)));
        now = sweep.deadline(now);
    }
    all
}

#[test]
fn an_idle_flow_is_suspected_and_closed_a_second_later() {
    let (mut sweep, mut tables) = (Sweep::default(), tables(2));
    let idle = tables.open(1, 2500, State::Established, 0, START);
    let steps = run(&mut sweep, &mut tables, &limits, START, START + 640 * SECOND);
    let [(suspected, Step::Suspect(first)), (closed, Step::Close(second, Reason::IdleTimeout))] = steps[..] else {
        panic!("{steps:?}")
    };
    assert_eq!((first, second.at, tables.state(idle)), (idle, idle.at, State::Closed));
    let idle_for = suspected - START;
    assert!((600 * SECOND..=631 * SECOND).contains(&idle_for), "suspected after {idle_for:?}");
    assert!((SECOND..=2 * SECOND).contains(&(closed - suspected)));
    assert_eq!(tables.backend(1).active, 0);
}

#[test]
fn a_short_idle_timeout_is_kept_within_half_of_it() {
    let short = |backend| Limits { idle_timeout: 5 * SECOND, ..limits(backend) };
    let (mut sweep, mut tables) = (Sweep::default(), tables(3));
    let mut flows = Vec::new();
    for slot in (0..PORTS).step_by(100) {
        flows.push(tables.open(slot % 3, slot, State::Established, 0, START));
    }
    run(&mut sweep, &mut tables, &short, START, START + 10 * SECOND);
    assert!(flows.iter().all(|flow| tables.state(*flow) == State::Closed), "15 s are promised to nobody");
}

#[test]
fn a_sign_of_life_clears_the_suspicion() {
    let (mut sweep, mut tables) = (Sweep::default(), tables(1));
    let flow = tables.open(0, 0, State::Established, 0, START);
    let late = START + 601 * SECOND;
    sweep.turn(&[0], &limits, limits(0).idle_timeout, &tables.ours(), late - SECOND);
    let mut steps = Vec::new();
    let mut now = late;
    while steps.is_empty() {
        steps = sweep.turn(&[0], &limits, limits(0).idle_timeout, &tables.ours(), now);
        now += SECOND;
    }
    tables.act(&steps.iter().map(|step| Action::Step(*step)).collect::<Vec<_>>());
    assert_eq!(tables.state(flow), State::Suspect);
    tables.change_slot(flow.at, |slot| (slot.ctl, slot.last_seen) = (slot.ctl.cleared(), now.ticks()));
    let steps = run(&mut sweep, &mut tables, &limits, now, now + 500 * SECOND);
    assert_eq!((steps.len(), tables.state(flow)), (0, State::Established));
}

#[test]
fn many_at_once_are_closed_at_the_rate_of_their_service() {
    let slow = |backend| Limits { reset_rate: 100, ..limits(backend) };
    let (mut sweep, mut tables) = (Sweep::default(), tables(1));
    for slot in 0..1000 {
        tables.open(0, slot, State::Established, 0, START);
    }
    let steps = run(&mut sweep, &mut tables, &slow, START + 599 * SECOND, START + 760 * SECOND);
    let closed: Vec<_> = steps.iter().filter(|(_, step)| matches!(step, Step::Close(..))).map(|(at, _)| *at).collect();
    assert_eq!(closed.len(), 1000);
    for window in closed.windows(111) {
        assert!(window[110] - window[0] >= SECOND, "more than 110 within a second");
    }
}

#[test]
fn suspects_of_a_killed_controller_are_found_and_closed() {
    let mut tables = tables(1);
    let flow = tables.open(0, 5, State::Established, 0, START);
    tables.change_slot(flow.at, |slot| slot.ctl = slot.ctl.suspected());
    let now = START + 700 * SECOND;
    run(&mut Sweep::default(), &mut tables, &limits, now, now + 40 * SECOND);
    assert_eq!(tables.state(flow), State::Closed);
}

#[test]
fn a_slot_held_back_is_released_after_a_minute_and_not_before() {
    let (mut sweep, mut tables) = (Sweep::default(), tables(1));
    tables.open(0, 5, State::Abandoned, 0, START);
    let steps = run(&mut sweep, &mut tables, &limits, START, START + 100 * SECOND);
    let [(released, Step::Release(_))] = steps[..] else { panic!("{steps:?}") };
    assert!((60 * SECOND..=92 * SECOND).contains(&(released - START)));
}

#[test]
fn a_flow_that_no_ring_knows_does_not_stay_half_open_for_ever() {
    let (mut sweep, mut tables) = (Sweep::default(), tables(1));
    let record = Slot { last_seen: START.ticks(), ..Slot::default() };
    let opening = Opening { started: START, ..Opening::default() };
    tables.put_flow(SlotAt::new(0, 9), State::HalfOpen, &record, &opening);
    tables.change_backend(0, |record| record.active = 1);
    let steps = run(&mut sweep, &mut tables, &limits, START, START + 110 * SECOND);
    let [(closed, Step::Close(_, Reason::ConnectTimeout))] = steps[..] else { panic!("{steps:?}") };
    assert!(closed - START > 72 * SECOND);
}

#[test]
fn a_flow_that_no_ring_knows_does_not_wait_for_its_client_for_ever() {
    let (mut sweep, mut tables) = (Sweep::default(), tables(1));
    let record = Slot { last_seen: START.ticks(), ..Slot::default() };
    tables.put_flow(SlotAt::new(0, 9), State::Answered, &record, &Opening::default());
    tables.change_backend(0, |record| record.active = 1);
    let steps = run(&mut sweep, &mut tables, &limits, START, START + 40 * SECOND);
    let [(closed, Step::Close(_, Reason::Unconfirmed))] = steps[..] else { panic!("{steps:?}") };
    assert!(closed - START >= 6 * SECOND);
}

#[test]
fn every_slot_is_visited_once_in_a_walk() {
    let mut tables = tables(3);
    // A slot that was held back long enough is released by every visit, because nothing carries the
    // release out here.
    for (pool, slot) in (0..3).flat_map(|pool| (0..PORTS).map(move |slot| (pool, slot))) {
        tables.open(pool, slot, State::Abandoned, 0, START - 61 * SECOND);
    }
    let mut sweep = Sweep::default();
    let mut visits = BTreeMap::new();
    for second in 0..=30 {
        for step in sweep.turn(&[0, 1, 2], &limits, 600 * SECOND, &tables.ours(), START + second * SECOND) {
            let Step::Release(flow) = step else { panic!("{step:?}") };
            *visits.entry(flow.at).or_insert(0) += 1;
        }
    }
    assert_eq!(visits.len(), 3 * usize::from(PORTS));
    assert!(visits.values().all(|times| *times == 1));
}
