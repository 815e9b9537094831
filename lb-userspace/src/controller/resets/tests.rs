use super::*;
use crate::{
    controller::{Action, testbed::Testbed},
    tables::BackendRow,
};
use lb_common::flow::Key;

const SECOND: Duration = Duration::from_secs(1);
const START: Instant = Instant(1_000_000_000_000);
const PORTS: u16 = 22_528;

/// Three backends with a pool each.
fn tables() -> Testbed {
    let mut tables = Testbed::default();
    for number in 0..3 {
        tables.add_backend(number, PORTS, BackendRow::default());
    }
    tables
}

fn job(which: Which) -> Job {
    let only = Only::Connected;
    Job { which, only, reason: Reason::BackendSilent, rate: 5000, not_before: START, begun_by: START }
}

/// Turns whenever one is due until no job is left; returns every step with its time, and what is
/// over.
fn run(resets: &mut Resets, tables: &mut Testbed, from: Instant) -> (Vec<(Instant, FlowAt)>, Vec<Over>) {
    let (mut now, mut steps, mut over) = (from, Vec::new(), Vec::new());
    while resets.deadline() != Instant::NEVER {
        assert!(now < from + 3600 * SECOND, "it never ends");
        now = resets.deadline().max(now);
        let turn = resets.turn(&tables.installed(), &tables.ours(), now);
        assert!(turn.steps.len() <= STEPS);
        tables.act(&turn.steps.iter().map(|step| Action::Step(*step)).collect::<Vec<_>>());
        for step in turn.steps {
            let Step::Close(flow, Reason::BackendSilent) = step else { panic!("{step:?}") };
            steps.push((now, flow));
        }
        over.extend(turn.over);
        now += Duration::from_nanos(1);
    }
    (steps, over)
}

#[test]
fn all_of_a_backend_are_closed_smoothly_at_the_rate_and_nobody_elses() {
    let (mut resets, mut tables) = (Resets::default(), tables());
    for slot in 0..10_000 {
        tables.open(slot % 3, slot, State::Established, 0, START);
    }
    let id = resets.push(Job { rate: 1000, ..job(Which::Backend(1)) });
    let (steps, over) = run(&mut resets, &mut tables, START);
    assert_eq!(steps.len(), 3333);
    assert!(steps.iter().all(|(_, flow)| flow.at.pool() == 1));
    for (index, (at, _)) in steps.iter().enumerate() {
        let ideal = START + index as u32 * SECOND / 1000;
        assert!(*at >= ideal && *at <= ideal + 2 * PERIOD, "step {index} came {:?} after its time", *at - ideal);
    }
    assert_eq!((over.len(), over[0].id, over[0].closed), (1, id, 3333));
    assert_eq!([0, 1, 2].map(|backend| tables.backend(backend).active), [3334, 0, 3333]);
    assert_eq!(resets.closed(id), None);
}

#[test]
fn five_thousand_a_second_are_kept_in_a_pool_that_is_nearly_empty() {
    let (mut resets, mut tables) = (Resets::default(), tables());
    for slot in (0..PORTS).step_by(22) {
        tables.open(0, slot, State::Established, 0, START);
    }
    let wanted = u64::from(tables.active(0));
    resets.push(job(Which::Backend(0)));
    let (steps, _) = run(&mut resets, &mut tables, START);
    assert_eq!(steps.len() as u64, wanted);
    let took = steps.last().expect("steps").0 - START;
    assert!(took <= wanted as u32 * SECOND / 5000 + Duration::from_millis(50), "{wanted} took {took:?}");
}

#[test]
fn it_begins_when_it_shall_and_leaves_flows_alone_that_began_later() {
    let (mut resets, mut tables) = (Resets::default(), tables());
    tables.open(0, 5, State::Established, 0, START);
    let later = tables.open(0, 6, State::Established, 0, START + Duration::from_nanos(1));
    let not_before = START + 2 * SECOND;
    resets.push(Job { not_before, ..job(Which::Backend(0)) });
    assert_eq!(resets.deadline(), not_before);
    let (steps, over) = run(&mut resets, &mut tables, START);
    assert_eq!((steps[0].0, steps.len(), over[0].closed), (not_before, 1, 1));
    assert_eq!(tables.state(later), State::Established);
}

#[test]
fn states_are_chosen_over_all_there_are() {
    let suspect = Ctl::new(1, State::ClosingClient).suspected();
    for ctl in State::ALL.map(|state| Ctl::new(1, state)).into_iter().chain([suspect]) {
        let state = ctl.state();
        let closing = matches!(state, State::ClosingClient | State::ClosingBackend) || ctl == suspect;
        let unconfirmed = matches!(state, State::HalfOpen | State::Answered);
        let open = closing || unconfirmed || state == State::Established;
        assert_eq!(Only::Open.takes(ctl), open, "{ctl:?}");
        assert_eq!(Only::Connected.takes(ctl), open && !unconfirmed, "{ctl:?}");
        assert_eq!(Only::Established.takes(ctl), state == State::Established, "{ctl:?}");
    }
    assert!(Only::Established.takes(Ctl::new(1, State::Established).suspected()));
}

#[test]
fn a_clients_flows_are_found_at_every_backend() {
    let (mut resets, mut tables) = (Resets::default(), tables());
    for backend in 0..3 {
        for (slot, last) in [(100, 7), (20_000, 8)] {
            let flow = tables.open(backend, slot, State::Established, 0, START);
            let address = u32::from_ne_bytes([10, 0, 2, last]);
            tables.change_slot(flow.at, |slot| slot.key = Key::new(address, 0x1234, 0));
        }
    }
    resets.push(Job { only: Only::Open, ..job(Which::Client([10, 0, 2, 7].into())) });
    let (steps, _) = run(&mut resets, &mut tables, START);
    let found: Vec<_> = steps.iter().map(|(_, flow)| (flow.at.pool(), flow.at.slot())).collect();
    assert_eq!(found, [(0, 100), (1, 100), (2, 100)]);
}

#[test]
fn chosen_flows_are_closed_in_their_order_and_not_one_more() {
    let (mut resets, mut tables) = (Resets::default(), tables());
    let flows: VecDeque<_> = (0..50).rev().map(|slot| tables.open(0, slot, State::Established, 0, START)).collect();
    tables.open(0, 99, State::Established, 0, START);
    resets.push(Job { rate: 10, ..job(Which::Flows(flows.clone())) });
    let (steps, over) = run(&mut resets, &mut tables, START);
    assert_eq!(steps.iter().map(|(_, flow)| *flow).collect::<VecDeque<_>>(), flows);
    assert_eq!(
        steps.iter().map(|(at, _)| *at - START).collect::<Vec<_>>(),
        Vec::from_iter((0..50).map(|n| n * SECOND / 10))
    );
    assert_eq!((over[0].closed, tables.backend(0).active), (50, 1));
}

#[test]
fn a_job_that_is_called_off_closes_no_more() {
    let (mut resets, mut tables) = (Resets::default(), tables());
    for slot in 0..100 {
        tables.open(0, slot, State::Established, 0, START);
    }
    let id = resets.push(Job { rate: 1, ..job(Which::Backend(0)) });
    let turn = resets.turn(&tables.installed(), &tables.ours(), START);
    assert_eq!((turn.steps.len(), resets.closed(id)), (1, Some(1)));
    assert!(resets.cancel(id) && !resets.cancel(id));
    assert_eq!(resets.deadline(), Instant::NEVER);
}

#[test]
fn jobs_side_by_side_keep_their_rates_and_a_turn_its_bounds() {
    let (mut resets, mut tables) = (Resets::default(), tables());
    for slot in 0..3000 {
        tables.open(slot % 3, slot, State::Established, 0, START);
    }
    for backend in 0..3 {
        resets.push(Job { rate: 1_000_000, ..job(Which::Backend(backend)) });
    }
    let (steps, over) = run(&mut resets, &mut tables, START);
    assert_eq!((steps.len(), over.len()), (3000, 3));
}

#[test]
fn a_job_ends_though_no_swap_succeeds_and_though_its_backend_is_gone() {
    let (mut resets, mut tables) = (Resets::default(), tables());
    tables.open(0, 1, State::Established, 0, START);
    resets.push(job(Which::Backend(0)));
    resets.push(job(Which::Backend(77)));
    let (mut now, mut over) = (START, 0);
    while resets.deadline() != Instant::NEVER {
        assert!(now < START + SECOND);
        over += resets.turn(&tables.installed(), &tables.ours(), now).over.len();
        now += PERIOD;
    }
    assert_eq!(over, 2);
}

#[test]
fn a_small_pool_is_walked_over_once_a_turn_and_no_flow_is_handed_out_twice() {
    let mut tables = Testbed::default();
    (0..3).for_each(|number| tables.add_backend(number, 64, BackendRow::default()));
    let mut resets = Resets::default();
    let flows: Vec<_> = (0..12).map(|slot| tables.open(slot % 3, slot, State::Established, 0, START)).collect();
    for which in [Which::Client([0, 0, 0, 0].into()), Which::Backend(1), Which::Flows(flows.clone().into())] {
        resets.push(Job { only: Only::Open, ..job(which) });
    }
    let (steps, over) = run(&mut resets, &mut tables, START);
    let mut found: Vec<_> = steps.iter().map(|(_, flow)| flow.at).collect();
    found.sort();
    found.dedup();
    assert_eq!((steps.len(), found.len()), (12, 12));
    assert_eq!(over.iter().map(|over| over.closed).sum::<u64>(), 12);
}

#[test]
fn what_ends_by_itself_before_its_step_is_not_counted() {
    let (mut resets, mut tables) = (Resets::default(), tables());
    let flows: Vec<_> = (0..5).map(|slot| tables.open(0, slot, State::Established, 0, START)).collect();
    let id = resets.push(job(Which::Backend(0)));
    let mut now = START;
    while resets.closed(id) != Some(5) {
        resets.turn(&tables.installed(), &tables.ours(), now);
        now += PERIOD;
        assert!(now < START + SECOND, "all are handed out");
    }
    resets.not_closed(flows[4].at);
    resets.not_closed(flows[4].at);
    assert_eq!(resets.closed(id), Some(4));
}
