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
    let tables = tables();
    let mut sweep = Sweep::default();
    let limits = |_| Limits { service: 0, idle_timeout: 10 * SECOND, connecting: SECOND, reset_rate: 100 };
    (0..400).find_map(|tenth| {
        let now = START + tenth * SECOND / 10;
        let steps = sweep.turn(&[0], &limits, 2 * SECOND, &Ours::new(ownership, &tables), now);
        steps.iter().any(|step| matches!(step, Step::Suspect(_))).then_some(tenth / 10)
    })
}

#[test]
fn without_another_host_every_flow_is_ours() {
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
