use super::*;
use crate::{
    controller::testbed::Testbed,
    tables::{BackendRow, ServiceRow, Write},
};

const MS: Duration = Duration::from_millis(1);
const START: Instant = Instant(100_000_000_000);
const SERVICES: [(u16, Duration); 1] = [(0, Duration::from_secs(2))];

fn tables() -> Testbed {
    let mut tables = Testbed::default();
    tables.add_backend(0, 1000, BackendRow::default());
    let row = ServiceRow { half_open_cells: 1000, backends: vec![0], ..ServiceRow::default() };
    tables.write(&Write::SetService { number: 0, row });
    tables
}

/// Looks whenever a look is due until `end`; returns the times at which each flow was due.
fn run(watch: &mut HalfOpen, tables: &mut Testbed, from: Instant, end: Instant) -> (Vec<(Instant, FlowAt)>, u32) {
    let (mut now, mut due, mut looks) = (from, Vec::new(), 0);
    while now < end {
        let look = watch.look(&SERVICES, &tables.ours(), now);
        for flow in &look.due {
            tables.end(*flow);
            due.push((now, *flow));
        }
        assert!(look.next > now, "time goes on");
        (now, looks) = (look.next, looks + 1);
    }
    (due, looks)
}

#[test]
fn a_silent_backend_is_given_up_right_after_connect_timeout_whenever_the_flow_began() {
    for offset in [0, 1, 333, 999, 1000, 1999] {
        let (mut watch, mut tables) = (HalfOpen::default(), tables());
        let before = watch.look(&SERVICES, &tables.ours(), START);
        assert_eq!(before.due, []);
        let flow = tables.open(0, 7, State::HalfOpen, 0, START + offset * MS);
        let (due, _) = run(&mut watch, &mut tables, before.next.max(START + offset * MS), START + 5_000 * MS);
        assert_eq!(due.len(), 1, "offset {offset}");
        let late = due[0].0 - (START + (offset + 2_000) * MS);
        assert!(due[0].1 == flow && late <= 15 * MS, "offset {offset}: {late:?} late");
    }
}

#[test]
fn with_no_half_open_flow_it_looks_once_a_second() {
    let (mut watch, mut tables) = (HalfOpen::default(), tables());
    let (due, looks) = run(&mut watch, &mut tables, START, START + 60_000 * MS);
    assert_eq!((due.len(), looks), (0, 60));
}

#[test]
fn a_flow_that_was_answered_is_left_alone_and_so_is_a_new_owner_of_its_slot() {
    let (mut watch, mut tables) = (HalfOpen::default(), tables());
    let first = tables.open(0, 7, State::HalfOpen, 0, START);
    tables.end(first);
    let owner = tables.open(0, 7, State::Established, 0, START);
    let (due, _) = run(&mut watch, &mut tables, START, START + 5_000 * MS);
    assert_eq!((due, tables.state(owner)), (Vec::new(), State::Established));
    assert_eq!(watch.open(0), 0);
}

#[test]
fn a_client_that_does_not_acknowledge_the_answer_is_given_up_after_three_seconds() {
    for offset in [0, 1, 333, 999] {
        let (mut watch, mut tables) = (HalfOpen::default(), tables());
        let flow = tables.open(0, 7, State::Answered, 0, START + offset * MS);
        let (mut now, mut closed) = (START + offset * MS, Vec::new());
        while now < START + 6_000 * MS {
            let look = watch.look(&SERVICES, &tables.ours(), now);
            assert_eq!(look.due, [], "no other backend is tried");
            for flow in look.unconfirmed {
                tables.end(flow);
                closed.push((now, flow));
            }
            now = look.next;
        }
        let [(at, ended)] = closed[..] else { panic!("{closed:?}") };
        // Its stamp is in ticks of a millisecond.
        let late = (at - (START + offset * MS)).checked_sub(UNCONFIRMED - 2 * MS).unwrap();
        assert!(ended == flow && late <= 20 * MS, "offset {offset}: {late:?} late");
    }
}

#[test]
fn a_flood_is_worked_off_in_bounded_portions() {
    let (mut watch, mut tables) = (HalfOpen::default(), tables());
    for slot in 0..1000 {
        tables.open(0, slot, State::HalfOpen, 0, START);
    }
    let first = watch.look(&SERVICES, &tables.ours(), START + 2_001 * MS);
    assert_eq!((first.due.len(), watch.open(0)), (MOST, 1000));
    assert_eq!(first.next, START + 2_001 * MS + AT_LEAST);
    let (due, looks) = run(&mut watch, &mut tables, START + 2_001 * MS, START + 2_100 * MS);
    assert!(due.len() == 1000 && looks >= 4, "{} in {looks} looks", due.len());
}

#[test]
fn a_flood_at_one_service_does_not_keep_another_ones_clients_waiting() {
    let mut tables = tables();
    tables.add_backend(1, 10, BackendRow { service: 1, ..BackendRow::default() });
    let row = ServiceRow { half_open_cells: 10, backends: vec![1], ..ServiceRow::default() };
    tables.write(&Write::SetService { number: 1, row });
    (0..1000).for_each(|slot| _ = tables.open(0, slot, State::HalfOpen, 0, START));
    let other = tables.open(1, 3, State::HalfOpen, 0, START);
    let services = [(0, Duration::from_secs(2)), (1, Duration::from_secs(2))];
    let look = HalfOpen::default().look(&services, &tables.ours(), START + 2_001 * MS);
    assert!(look.due.contains(&other), "{} due", look.due.len());
}

#[test]
fn a_restarted_controller_sees_what_was_half_open_before() {
    let mut tables = tables();
    tables.open(0, 7, State::HalfOpen, 0, START);
    let look = HalfOpen::default().look(&SERVICES, &tables.ours(), START + 10_000 * MS);
    assert_eq!(look.due.len(), 1);
}

#[test]
fn stamps_wrap_and_one_from_the_future_is_not_due() {
    // 32 bits of microseconds wrap every 71 minutes.
    let wrap = Instant((1 << 32) * 1000);
    let stamp = |at: Instant| (at.0 / 1000) as u32;
    assert_eq!(due_at(stamp(wrap - 500 * MS), 2_000 * MS, wrap + 500 * MS), wrap + 1_500 * MS);
    assert_eq!(due_at(stamp(wrap + 3 * MS), 2_000 * MS, wrap), wrap + 2_000 * MS);
}
