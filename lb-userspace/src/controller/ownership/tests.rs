use super::*;
use crate::{
    controller::{
        sweep::{Limits, Step, Sweep},
        testbed::Testbed,
    },
    tables::BackendRow,
};

const SECOND: Duration = Duration::from_secs(1);
const START: Instant = Instant(5_000_000_000_000);

/// One pool with a flow of listener 0.
fn tables() -> Testbed {
    let mut tables = Testbed::default();
    tables.add_backend(0, 100, BackendRow::default());
    tables.open(0, 7, State::Established, 0, START);
    tables
}

fn ours(since: Instant, lag: Duration) -> Ownership {
    Ownership::beside_another([(0, since)].into(), lag)
}

/// When the sweep suspects the flow, in seconds after its last packet as it is known here; `None`:
/// not within 40 s.
fn suspected_after(ownership: &Ownership) -> Option<u32> {
    match first_step(ownership)? {
        (second, Step::Suspect(_)) => Some(second),
        (_, other) => panic!("{other:?}"),
    }
}

/// The first thing that the sweep does within 40 s, and when.
fn first_step(ownership: &Ownership) -> Option<(u32, Step)> {
    first_step_in(&tables(), ownership)
}

fn first_step_in(tables: &Testbed, ownership: &Ownership) -> Option<(u32, Step)> {
    let mut sweep = Sweep::default();
    let limits = |_| Limits { service: 0, idle_timeout: 10 * SECOND, connecting: SECOND, reset_rate: 100 };
    (0..400).find_map(|tenth| {
        let now = START + tenth * SECOND / 10;
        let steps = sweep.turn(&[0], &limits, 2 * SECOND, &Ours::new(ownership, tables), now);
        steps.first().map(|step| (tenth / 10, *step))
    })
}

#[test]
fn before_anything_is_said_every_flow_is_ours() {
    assert!(Ownership::default().holds(77));
    assert!((10..12).contains(&suspected_after(&Ownership::default()).unwrap()));
}

#[test]
fn a_host_that_has_not_the_address_suspects_nobody() {
    let elsewhere = Ownership::beside_another(BTreeMap::new(), SECOND);
    assert!(!elsewhere.holds(0));
    assert_eq!(suspected_after(&elsewhere), None);
    assert_eq!(Ours::new(&elsewhere, &tables()).heads(0, 0..100).count(), 0);
}

#[test]
fn what_the_other_host_has_told_may_be_behind_and_that_is_granted_once() {
    // The address came 20 s after the last packet as it is known here; the other host reports it
    // every 15 s.
    assert!((25..27).contains(&suspected_after(&ours(START + 20 * SECOND, 15 * SECOND)).unwrap()));
    // Not beyond the moment at which we began to see for ourselves.
    assert!((13..15).contains(&suspected_after(&ours(START + 3 * SECOND, 15 * SECOND)).unwrap()));
    // A packet that came here is known exactly.
    assert!((10..12).contains(&suspected_after(&ours(START - SECOND, 15 * SECOND)).unwrap()));
}

#[test]
fn without_flow_sync_a_flow_of_another_host_is_forgotten_when_it_has_been_idle_and_never_reset() {
    let elsewhere = Ownership::alone([(1, START)].into(), [].into());
    assert!(!elsewhere.holds(0));
    assert_eq!(Ours::new(&elsewhere, &tables()).heads(0, 0..100).count(), 0);
    let (second, step) = first_step(&elsewhere).unwrap();
    assert!((10..12).contains(&second) && matches!(step, Step::Forget(_)), "{second} {step:?}");
}

#[test]
fn what_is_not_confirmed_began_here_and_is_forgotten_soon_whosever_the_address_is() {
    let tables = tables();
    let flow = tables.heads(0, 0..100).next().unwrap().flow;
    let elsewhere = [Ownership::beside_another([].into(), 4 * SECOND), Ownership::alone([].into(), [].into())];
    for state in [State::HalfOpen, State::Answered] {
        tables.change_slot(flow.at, |slot| slot.ctl = slot.ctl.with_state(state));
        for ownership in &elsewhere {
            let (second, step) = first_step_in(&tables, ownership).unwrap();
            assert!((4..6).contains(&second) && matches!(step, Step::Forget(_)), "{second} {step:?}");
        }
    }
}

#[test]
fn without_flow_sync_nothing_is_known_of_what_a_flow_did_before_it_was_ours() {
    let since = |since| Ownership::alone([(0, since)].into(), [].into());
    assert!((30..32).contains(&suspected_after(&since(START + 20 * SECOND)).unwrap()));
    // What this host has had ever since, it knows exactly.
    assert!((10..12).contains(&suspected_after(&since(Instant::ZERO)).unwrap()));
}

#[test]
fn forgetting_leaves_nothing_behind_and_tells_nobody() {
    let mut tables = tables();
    tables.change_backend(0, |record| record.active = 1);
    let flow = tables.heads(0, 0..100).next().unwrap().flow;
    tables.act(&[crate::controller::Action::Step(Step::Forget(flow))]);
    assert_eq!((tables.state(flow), tables.active(0), tables.backend(0).resets), (State::Closed, 0, 0));
    // One that goes on in the meantime stays.
    let other = tables.open(0, 9, State::Established, 0, START);
    tables.change_slot(other.at, |slot| slot.ctl = slot.ctl.suspected());
    tables.act(&[crate::controller::Action::Step(Step::Forget(other))]);
    assert_eq!(tables.state(other), State::Suspect);
}

#[test]
fn of_an_address_that_may_be_routed_here_what_is_known_from_another_host_only_is_not_ours() {
    let routed = Ownership::alone([].into(), [0].into());
    assert!(routed.holds(0) && !routed.holds(1));
    assert!((10..12).contains(&suspected_after(&routed).unwrap()), "it began here");
    let tables = tables();
    let flow = tables.heads(0, 0..100).next().unwrap().flow;
    tables.change_slot(flow.at, |slot| slot.ctl = slot.ctl.with_flags(LOOSE));
    let ours = Ours::new(&routed, &tables);
    assert_eq!((ours.heads(0, 0..100).count(), ours.foreign(0, 0..100).count()), (0, 1));
    let held = Ownership::alone([(0, START)].into(), [].into());
    assert_eq!(Ours::new(&held, &tables).heads(0, 0..100).count(), 1, "with the address it is ours in any case");
}
