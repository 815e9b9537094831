//! Probes in the core: what they find, what happens to connections, and what another controller
//! makes of it.

use lb_common::{event::TRY_FAILED, slot::State as FlowState, time::Ticks};

use super::super::{
    ownership::Ownership,
    plan::tests::service,
    probe_count::Tries,
    tests::{SECOND, START, World},
};
use super::*;
use crate::controller::probe_count::Unready;
use crate::{
    tables::FlowAt,
    words::{BackendReason, BackendState},
};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Backends cp10 and so on, with a probe; two that pass or fail decide.
fn world(hosts: &[u8]) -> World {
    let mut world = World::new(hosts);
    let mut probed = service("api", "10.0.1.100:6443", hosts);
    probed.probe = Some(Tries { rise: 2, fall: 2 });
    world.configure(vec![probed], START);
    world
}

/// A connection of each.
fn opened(world: &mut World, count: u16) -> Vec<FlowAt> {
    (0..count).map(|backend| world.tables.open(backend, 7, FlowState::Established, 0, START)).collect()
}

fn probe(world: &mut World, backend: u16, outcome: Outcome, at: Instant) -> Vec<Action> {
    let actions = world.controller.probed(backend, outcome, "as found", at);
    world.act(&actions);
    actions
}

fn hurried(actions: &[Action]) -> Vec<u16> {
    actions
        .iter()
        .filter_map(|action| if let Action::Hurry(backend) = action { Some(*backend) } else { None })
        .collect()
}

fn stands(world: &World, backend: u16, now: Instant) -> (BackendState, Option<BackendReason>) {
    let standing = world.controller.standing(backend, Instant::ZERO, now);
    (standing.state, standing.reason)
}

fn is_open(world: &World, flow: FlowAt) -> bool {
    world.tables.state(flow) == FlowState::Established
}

use Outcome::{Failed, Passed, Refused};

const NOT_READY: Outcome = Outcome::NotReady(Unready::Status);

#[test]
fn one_that_leaves_probes_unanswered_is_out_and_its_connections_are_reset_once_the_others_have_passed_one() {
    let mut world = world(&[10, 11, 12]);
    let flows = opened(&mut world, 3);
    let first = probe(&mut world, 0, Failed, START + SECOND);
    assert_eq!(hurried(&first), [1, 2], "are they well?");
    probe(&mut world, 1, Passed, START + SECOND + MILLISECOND);
    probe(&mut world, 0, Failed, START + 2 * SECOND);
    let out = (BackendState::Down, Some(BackendReason::ProbeTimeout));
    assert_eq!((world.tables.admission(0), stands(&world, 0, START + 2 * SECOND)), (OUT, out));
    world.run(START + 2 * SECOND, START + 2 * SECOND + 100 * MILLISECOND);
    assert!(is_open(&world, flows[0]), "cp12 may be dead too");
    probe(&mut world, 2, Passed, START + 2 * SECOND + 100 * MILLISECOND);
    world.run(START + 2 * SECOND + 100 * MILLISECOND, START + 2 * SECOND + 200 * MILLISECOND);
    assert_eq!(flows.iter().map(|flow| is_open(&world, *flow)).collect::<Vec<_>>(), [false, true, true]);
    let notes = [
        "backend cp10 of service api is out until its probe passes: probe_timeout (as found)",
        "backend cp10 of service api has had 1 connection(s) reset: probe_timeout",
    ];
    assert_eq!(world.notes, notes);
}

#[test]
fn when_half_fail_together_nobody_is_reset_whatever_the_order_of_their_probes() {
    for silent in [vec![1], vec![1, 2], vec![1, 2, 3]] {
        let mut world = world(&[10, 11, 12, 13]);
        let flows = opened(&mut world, 4);
        // cp10 is known to be dead before a probe of the others has ended.
        probe(&mut world, 0, Failed, START);
        probe(&mut world, 0, Failed, START + 10 * MILLISECOND);
        world.run(START + 10 * MILLISECOND, START + 500 * MILLISECOND);
        for backend in 1..4 {
            let outcome = if silent.contains(&backend) { Failed } else { Passed };
            probe(&mut world, backend, outcome, START + 500 * MILLISECOND);
        }
        world.run(START + 500 * MILLISECOND, START + 5 * SECOND);
        assert!(flows.iter().all(|flow| is_open(&world, *flow)), "{silent:?}");
        assert_eq!(stands(&world, 0, START + 5 * SECOND).0, BackendState::Draining, "{silent:?}");
        let kept =
            "backend cp10 of service api keeps its connections: half or more of the service's backends fail together";
        assert_eq!(world.notes.last().map(String::as_str), Some(kept), "{silent:?}");
    }
}

#[test]
fn others_that_are_not_heard_of_at_all_count_as_failing_after_a_second() {
    let mut world = world(&[10, 11, 12]);
    let flows = opened(&mut world, 3);
    probe(&mut world, 0, Failed, START);
    probe(&mut world, 0, Failed, START + SECOND);
    world.run(START + SECOND, START + 10 * SECOND);
    assert!(is_open(&world, flows[0]));
    probe(&mut world, 1, Passed, START + 10 * SECOND);
    probe(&mut world, 2, Passed, START + 10 * SECOND);
    world.run(START + 10 * SECOND, START + 12 * SECOND);
    assert!(is_open(&world, flows[0]), "what ailed all of them may be over, and it the last to be asked");
    (0..2).for_each(|_| _ = probe(&mut world, 0, Failed, START + 12 * SECOND));
    world.run(START + 12 * SECOND, START + 14 * SECOND);
    assert!(!is_open(&world, flows[0]), "it was looked at again");
}

/// cp10 of five is dead, then cp11, all others pass.
fn two_dead(world: &mut World) {
    for (dead, begin) in [(0, START), (1, START + 5 * SECOND)] {
        probe(world, dead, Failed, begin);
        (dead + 1..5).for_each(|well| _ = probe(world, well, Passed, begin + MILLISECOND));
        probe(world, dead, Failed, begin + SECOND);
        world.run(begin + SECOND, begin + 2 * SECOND);
    }
}

#[test]
fn a_second_one_is_spared_while_the_first_is_out_and_another_controller_knows_that_too() {
    for restarted in [false, true] {
        let mut world = world(&[10, 11, 12, 13, 14]);
        let flows = opened(&mut world, 5);
        two_dead(&mut world);
        let now = START + 7 * SECOND;
        if restarted {
            world.restart(now);
        }
        world.run(now, now + 5 * SECOND);
        assert_eq!([is_open(&world, flows[0]), is_open(&world, flows[1])], [false, true], "restarted: {restarted}");
        probe(&mut world, 0, Passed, now + 5 * SECOND);
        probe(&mut world, 0, Passed, now + 6 * SECOND);
        world.run(now + 6 * SECOND, now + 8 * SECOND);
        for at in [now + 8 * SECOND, now + 9 * SECOND] {
            probe(&mut world, 1, Failed, at);
            [0, 2, 3, 4].iter().for_each(|well| _ = probe(&mut world, *well, Passed, at + MILLISECOND));
        }
        world.run(now + 9 * SECOND, now + 11 * SECOND);
        assert!(!is_open(&world, flows[1]), "the first is back, the second still dead; restarted: {restarted}");
    }
}

#[test]
fn a_controller_that_was_killed_before_all_connections_were_reset_has_the_next_one_go_on() {
    let mut world = world(&[10, 11, 12]);
    let flows = opened(&mut world, 3);
    probe(&mut world, 0, Failed, START);
    (1..3).for_each(|well| _ = probe(&mut world, well, Passed, START + MILLISECOND));
    probe(&mut world, 0, Failed, START + SECOND);
    world.restart(START + SECOND);
    let later = world.tables.open(0, 8, FlowState::Established, 0, START + 2 * SECOND);
    world.run(START + 2 * SECOND, START + 3 * SECOND);
    assert!(is_open(&world, flows[0]), "it may be back");
    for at in [START + 3 * SECOND, START + 4 * SECOND] {
        probe(&mut world, 0, Failed, at);
        (1..3).for_each(|well| _ = probe(&mut world, well, Passed, at + MILLISECOND));
    }
    world.run(START + 4 * SECOND, START + 6 * SECOND);
    assert!(!is_open(&world, flows[0]) && is_open(&world, flows[1]));
    assert!(is_open(&world, later), "begun since, because nothing else was left");
}

#[test]
fn a_host_that_takes_another_ones_place_resets_what_that_one_had_on_a_backend_that_is_dead() {
    let mut world = world(&[10, 11, 12]);
    let elsewhere = Ownership::beside_another([].into(), SECOND);
    world.controller.set_ownership(elsewhere, START);
    // They are the other host's, which sends them here as they are.
    let flows = opened(&mut world, 3);
    probe(&mut world, 0, Failed, START);
    (1..3).for_each(|well| _ = probe(&mut world, well, Passed, START + MILLISECOND));
    probe(&mut world, 0, Failed, START + SECOND);
    world.run(START + SECOND, START + 10 * SECOND);
    assert!(is_open(&world, flows[0]), "nothing of its to close");
    // The listener's own number, and that of the flows.
    let installed = world.tables.installed();
    let listeners = installed.listeners.keys().copied().chain([0]);
    let ours = listeners.map(|number| (number, START + 10 * SECOND)).collect();
    world.controller.set_ownership(Ownership::beside_another(ours, SECOND), START + 10 * SECOND);
    world.run(START + 10 * SECOND, START + 11 * SECOND);
    assert_eq!(flows.iter().map(|flow| is_open(&world, *flow)).collect::<Vec<_>>(), [false, true, true]);
}

#[test]
fn a_host_that_takes_another_ones_place_asks_every_backend_though_all_connections_are_idle() {
    let mut world = World::new(&[10, 11, 12]);
    world.configure(vec![service("api", "10.0.1.100:6443", &[10, 11, 12])], START);
    world.controller.set_ownership(Ownership::beside_another([].into(), SECOND), START);
    let flows = opened(&mut world, 3);
    // Whatever goes to them and comes from them goes through the other host.
    let pools: Vec<_> = world.tables.installed().backends.values().flat_map(|row| row.pools.clone()).collect();
    for pool in pools {
        world.tables.heard_at(pool, Ticks(0));
        world.tables.sent_at(pool, Ticks(0));
    }
    world.run(START + SECOND, START + 10 * SECOND);
    assert_eq!(world.tables.asked, []);
    let installed = world.tables.installed();
    let listeners = installed.listeners.keys().copied().chain([0]);
    let ours = listeners.map(|number| (number, START + 10 * SECOND)).collect();
    world.controller.set_ownership(Ownership::beside_another(ours, SECOND), START + 10 * SECOND);
    world.run(START + 10 * SECOND, START + 11 * SECOND);
    assert!(flows.iter().all(|flow| world.tables.asked.contains(flow)), "{:?}", world.tables.asked);
}

#[test]
fn one_that_was_left_without_an_answer_is_asked_whether_it_lives_and_is_charged_with_nothing() {
    let mut world = World::new(&[10, 11]);
    let flows = opened(&mut world, 2);
    let pools: Vec<_> = world.tables.installed().backends.values().flat_map(|row| row.pools.clone()).collect();
    for pool in pools {
        world.tables.heard_at(pool, Ticks(0));
        world.tables.sent_at(pool, Ticks(0));
    }
    world.run(START + SECOND, START + 5 * SECOND);
    assert_eq!(world.tables.asked, []);
    for _ in 0..100 {
        world.event(TRY_FAILED, Reason::MovedOn, 0, START + 5 * SECOND);
    }
    assert_eq!((world.tables.admission(0), world.tables.backend(0).connect_failures), (UP, 0));
    world.run(START + 5 * SECOND, START + 6 * SECOND);
    assert!(world.tables.asked.contains(&flows[0]), "{:?}", world.tables.asked);
}

#[test]
fn when_flow_sync_ends_on_the_host_without_the_address_nobody_is_asked_and_nothing_reset() {
    let mut world = World::new(&[10, 11, 12]);
    let mut short = service("api", "10.0.1.100:6443", &[10, 11, 12]);
    short.idle_timeout = 20 * SECOND;
    world.configure(vec![short], START);
    world.controller.set_ownership(Ownership::beside_another([].into(), SECOND), START);
    let flows = opened(&mut world, 3);
    let pools: Vec<_> = world.tables.installed().backends.values().flat_map(|row| row.pools.clone()).collect();
    for pool in pools {
        world.tables.heard_at(pool, Ticks(0));
        world.tables.sent_at(pool, Ticks(0));
    }
    world.run(START + SECOND, START + 5 * SECOND);
    world.controller.set_ownership(Ownership::alone([].into(), [].into()), START + 5 * SECOND);
    world.run(START + 5 * SECOND, START + 19 * SECOND);
    assert!(flows.iter().all(|flow| is_open(&world, *flow)), "kept as long as they may live");
    world.run(START + 19 * SECOND, START + 60 * SECOND);
    assert!(flows.iter().all(|flow| !is_open(&world, *flow)), "nobody says when they end");
    assert_eq!(world.tables.asked, []);
    for backend in 0..3 {
        let record = world.tables.backend(backend);
        assert_eq!((record.active, record.resets, stands(&world, backend, START).0), (0, 0, BackendState::Up));
    }
}

#[test]
fn one_that_is_not_ready_is_drained_stays_so_over_a_restart_and_nobody_is_reset() {
    let mut world = world(&[10, 11, 12]);
    let flows = opened(&mut world, 3);
    probe(&mut world, 0, NOT_READY, START);
    probe(&mut world, 0, NOT_READY, START + SECOND);
    let draining = (BackendState::Draining, Some(BackendReason::ProbeStatus));
    assert_eq!((world.tables.admission(0), stands(&world, 0, START + SECOND)), (OUT, draining));
    world.restart(START + 2 * SECOND);
    assert_eq!((world.tables.admission(0), stands(&world, 0, START + 2 * SECOND)), (OUT, draining));
    assert_eq!(world.controller.health(0).map(Health::changed_at), Some(START + SECOND));
    world.run(START + 2 * SECOND, START + 10 * SECOND);
    assert!(flows.iter().all(|flow| is_open(&world, *flow)));
    probe(&mut world, 0, Passed, START + 10 * SECOND);
    probe(&mut world, 0, Passed, START + 11 * SECOND);
    assert_eq!((world.tables.admission(0), stands(&world, 0, START + 11 * SECOND)), (UP, (BackendState::Up, None)));
    let last = world.notes.last().map(String::as_str);
    assert_eq!(last, Some("backend cp10 of service api is up"));
}

#[test]
fn of_one_that_refuses_each_connection_is_asked_and_what_gives_no_answer_twice_is_reset() {
    let mut world = world(&[10, 11, 12]);
    let flows = opened(&mut world, 3);
    let alive = world.tables.open(0, 8, FlowState::Established, 0, START);
    probe(&mut world, 0, Refused, START);
    probe(&mut world, 0, Refused, START + SECOND);
    assert_eq!(stands(&world, 0, START + SECOND), (BackendState::Down, Some(BackendReason::Refused)));
    world.run(START + SECOND, START + 1500 * MILLISECOND);
    assert_eq!(world.tables.asked, [flows[0], alive], "at once");
    world.tables.speak(alive, START + 1500 * MILLISECOND);
    world.run(START + 1500 * MILLISECOND, START + 2900 * MILLISECOND);
    assert!(is_open(&world, flows[0]), "asked twice, a second each");
    world.run(START + 2900 * MILLISECOND, START + 3500 * MILLISECOND);
    assert!(!is_open(&world, flows[0]) && is_open(&world, flows[1]));
    world.tables.speak(alive, START + 3500 * MILLISECOND);
    world.run(START + 3500 * MILLISECOND, START + 20 * SECOND);
    assert!(is_open(&world, alive));
    let last = world.notes.last().map(String::as_str);
    assert_eq!(last, Some("backend cp10 of service api has had 1 connection(s) reset: backend_restarted"));
}

#[test]
fn whatever_one_was_out_for_its_connections_are_asked_when_it_is_back_and_not_when_it_was_not_ready() {
    for (outcome, asked) in [(Refused, true), (Failed, true), (NOT_READY, false)] {
        // Half of them, so that nobody is reset.
        let mut world = world(&[10, 11]);
        let flows = opened(&mut world, 2);
        for backend in 0..2 {
            (0..2).for_each(|_| _ = probe(&mut world, backend, outcome, START));
        }
        world.run(START, START + 5 * SECOND);
        world.tables.asked.clear();
        (0..2).for_each(|_| _ = probe(&mut world, 0, Passed, START + 5 * SECOND));
        world.run(START + 5 * SECOND, START + 5 * SECOND + 500 * MILLISECOND);
        assert_eq!(world.tables.asked.contains(&flows[0]), asked, "{outcome:?}");
        // With cp10 back, those of cp11 may be reset, if it refuses and they are dead.
        assert_eq!(world.tables.asked.contains(&flows[1]), outcome == Refused, "{outcome:?}: still out");
    }
}

#[test]
fn when_half_refuse_together_nobody_is_reset_for_silence_until_one_is_back() {
    let mut world = world(&[10, 11]);
    let flows = opened(&mut world, 2);
    for backend in 0..2 {
        (0..2).for_each(|_| _ = probe(&mut world, backend, Refused, START));
    }
    world.run(START, START + 10 * SECOND);
    assert!(flows.iter().all(|flow| is_open(&world, *flow)));
    assert_eq!(stands(&world, 0, START + 10 * SECOND).0, BackendState::Draining);
    let kept =
        "backend cp10 of service api keeps its connections: half or more of the service's backends fail together";
    assert!(world.notes.iter().any(|note| note == kept), "{:?}", world.notes);
    (0..2).for_each(|_| _ = probe(&mut world, 0, Passed, START + 10 * SECOND));
    world.run(START + 10 * SECOND, START + 15 * SECOND);
    assert!(!is_open(&world, flows[0]), "it takes new ones, and does not know this one");
}

#[test]
fn a_backend_that_a_dead_controller_missed_going_out_and_coming_back_is_asked_by_the_next_one() {
    let mut world = World::new(&[10, 11, 12]);
    let flows = opened(&mut world, 3);
    world.tables.change_backend(1, |record| record.out_reason = Reason::Refused as u32);
    world.restart(START + SECOND);
    world.run(START + SECOND, START + 1500 * MILLISECOND);
    assert_eq!(world.tables.asked, [flows[1]]);
}

#[test]
fn one_that_comes_back_starts_slowly_and_nothing_is_rebalanced_until_it_has_its_whole_share() {
    let mut world = World::new(&[10, 11]);
    let mut slow = service("api", "10.0.1.100:6443", &[10, 11]);
    slow.probe = Some(Tries { rise: 2, fall: 2 });
    slow.backends.iter_mut().for_each(|backend| backend.slow_start = 30 * SECOND);
    world.configure(vec![slow], START);
    assert_eq!(world.tables.slow_start(0).until, Instant::ZERO, "at the start of it all nobody is cold");
    (0..20).for_each(|slot| _ = world.tables.open(1, slot, FlowState::Established, 0, START));
    [Refused, Refused, Passed].iter().for_each(|outcome| _ = probe(&mut world, 0, *outcome, START));
    probe(&mut world, 0, Passed, START + SECOND);
    let until = START + 31 * SECOND;
    assert_eq!((world.tables.admission(0), world.tables.slow_start(0).until), (UP, until));
    assert_eq!(world.controller.standing(0, until, until - Duration::from_nanos(1)).state, BackendState::SlowStart);
    assert_eq!(world.controller.standing(0, until, until).state, BackendState::Up);
    let last = world.notes.last().map(String::as_str);
    assert_eq!(last, Some("backend cp10 of service api is up; it starts slowly, for 30 s"));
    let resets = |now| {
        let uneven = world.controller.uneven(None, 1, &world.tables, now).expect("a service").remove(0);
        (uneven.shares.iter().map(|share| share.resets).sum::<u32>(), uneven.skipped)
    };
    let why = "one of its backends is in slow start: returning clients would go to the others";
    assert_eq!(resets(until - Duration::from_nanos(1)), (0, Some(why)));
    assert_eq!(resets(until), (10, None));
}

#[test]
fn what_clients_meet_hurries_probes_and_a_flood_of_it_does_so_now_and_then() {
    let mut world = world(&[10, 11]);
    let mut orders = 0;
    for turn in 0..1000 {
        let actions = world.event(TRY_FAILED, Reason::Refused, 0, START + turn * MILLISECOND);
        orders += hurried(&actions).len();
    }
    assert_eq!(orders, 4, "in a second");
    let mut unprobed = World::new(&[10, 11]);
    assert!(hurried(&unprobed.event(TRY_FAILED, Reason::Refused, 0, START)).is_empty());
}
