use super::*;
use crate::{
    controller::{
        Action,
        rebalance::{Load, shares},
        resets::{Job, Only, Resets, Which},
        testbed::Testbed,
    },
    tables::BackendRow,
};
use lb_common::verdict::Reason;

const SECOND: Duration = Duration::from_secs(1);
const START: Instant = Instant(100_000_000_000_000);

/// Three backends with a pool each.
fn tables() -> Testbed {
    let mut tables = Testbed::default();
    for number in 0..3 {
        tables.add_backend(number, 4096, BackendRow::default());
    }
    tables
}

fn loads(tables: &Testbed) -> Vec<Load> {
    let load = |backend| Load { backend, weight: 1, active: tables.active(backend), max_conns: 0 };
    (0..3).map(load).collect()
}

/// Runs it to its end; returns which flows were reset, and when. `meanwhile` is called between the
/// turns.
fn run(tables: &mut Testbed, rate: u32, mut meanwhile: impl FnMut(&mut Testbed, Instant)) -> Vec<(Instant, FlowAt)> {
    let mut rebalancing = Rebalancing::new(0, &shares(&loads(tables), 1), rate, START);
    let mut resets = Resets::default();
    let (mut now, mut reset) = (START, Vec::new());
    loop {
        if rebalancing.deadline().is_some_and(|deadline| deadline <= now) {
            let batch = rebalancing.batch(&tables.installed(), &tables.ours(), now);
            if batch.is_empty() {
                return reset;
            }
            let (which, reason) = (Which::Flows(batch), Reason::Rebalanced);
            let job = Job { which, only: Only::Established, reason, rate, not_before: now, begun_by: Instant::NEVER };
            rebalancing.job = Some(resets.push(job));
        }
        let turn = resets.turn(&tables.installed(), &tables.ours(), now);
        for step in &turn.steps {
            let crate::controller::sweep::Step::Close(flow, Reason::Rebalanced) = step else { panic!("{step:?}") };
            reset.push((now, *flow));
        }
        tables.act(&turn.steps.into_iter().map(Action::Step).collect::<Vec<_>>());
        if !turn.over.is_empty() {
            rebalancing.job = None;
        }
        meanwhile(tables, now);
        now =
            resets.deadline().min(rebalancing.deadline().unwrap_or(Instant::NEVER)).max(now + Duration::from_nanos(1));
        assert!(now < START + 3600 * SECOND, "it never ends");
    }
}

#[test]
fn the_idlest_go_first_at_the_rate_and_only_as_many_as_needed() {
    let mut tables = tables();
    for slot in 0..300_u16 {
        // The higher the slot, the longer it is without a packet.
        tables.open(slot % 2, slot, State::Established, 0, START - u32::from(slot) * SECOND);
    }
    let reset = run(&mut tables, 10, |_, _| {});
    assert_eq!(reset.len(), 100);
    assert_eq!([0, 1, 2].map(|backend| tables.backend(backend).active), [100, 100, 0]);
    for (index, (at, _)) in reset.iter().enumerate() {
        let ideal = START + index as u32 * SECOND / 10;
        assert!(*at >= ideal && *at - ideal < SECOND / 5, "the {index}th came {:?} late", *at - ideal);
    }
    for backend in 0..2 {
        let slots: Vec<_> = reset.iter().map(|(_, flow)| flow.at.slot()).filter(|slot| slot % 2 == backend).collect();
        let idlest: Vec<_> = (200 + backend..300).step_by(2).rev().collect();
        assert_eq!(slots, idlest);
    }
}

#[test]
fn clients_that_leave_by_themselves_are_resets_saved() {
    let mut tables = tables();
    let flows: Vec<_> = (0..300).map(|slot| tables.open(slot % 2, slot, State::Established, 0, START)).collect();
    let mut leaving = flows.iter().filter(|flow| flow.at.pool() == 0).copied().collect::<Vec<_>>().into_iter().rev();
    let reset = run(&mut tables, 10, |tables, now| {
        // From the second second on, one of cp01's connections each turn, until it has its share.
        if now > START + 2 * SECOND && tables.backend(0).active > 100 {
            leaving.by_ref().take(1).for_each(|flow| tables.end(flow));
        }
    });
    let of_first = reset.iter().filter(|(_, flow)| flow.at.pool() == 0).count();
    assert!(of_first < 25, "{of_first} were reset");
    assert!(tables.backend(0).active >= 99, "{}: below its share", tables.backend(0).active);
    assert_eq!(tables.backend(1).active, 100);
}

#[test]
fn connections_that_are_being_made_or_closed_are_left_alone() {
    let mut tables = tables();
    tables.add_ring(0, 64);
    for slot in 0..30 {
        let states = [State::Established, State::ClosingClient, State::ClosingBackend, State::HalfOpen, State::Suspect];
        let flow = tables.open(0, slot, states[usize::from(slot) % 5], 0, START - SECOND);
        if tables.state(flow) == State::Suspect {
            tables.change_slot(flow.at, |slot| slot.ctl = slot.ctl.with_state(State::Established).suspected());
        }
    }
    let reset = run(&mut tables, 100, |_, _| {});
    assert_eq!(reset.len(), 12, "established ones, under suspicion or not: twenty were to be reset");
    assert!(reset.iter().all(|(_, flow)| matches!(flow.at.slot() % 5, 0 | 4)));
}

#[test]
fn most_are_taken_from_where_most_are_left() {
    assert_eq!(take_from_largest(&[5, 3, 0], 4), [3, 1, 0]);
    assert_eq!(take_from_largest(&[5, 3, 0], 100), [5, 3, 0]);
    assert_eq!(take_from_largest(&[], 4), [0_u32; 0]);
}
