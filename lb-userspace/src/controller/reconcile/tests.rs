use super::*;
use crate::{
    controller::{Action, testbed::Testbed},
    tables::BackendRow,
};
use lb_common::slot::State;

fn tables() -> Testbed {
    let mut tables = Testbed::default();
    for number in 0..2 {
        tables.add_backend(number, 100, BackendRow::default());
        for slot in 0..10 {
            tables.open(number, slot, State::Established, 0, lb_common::time::Instant(1));
        }
    }
    tables
}

fn turn(reconcile: &mut Reconcile, tables: &Testbed) -> Option<Drift> {
    reconcile.turn(&tables.installed(), tables)
}

#[test]
fn counts_that_agree_are_left_alone() {
    let (mut reconcile, tables) = (Reconcile::default(), tables());
    assert!((0..20).all(|_| turn(&mut reconcile, &tables).is_none()));
    assert_eq!(reconcile.corrected(), 0);
}

#[test]
fn a_drift_is_corrected_when_two_counts_in_a_row_find_it() {
    for off in [3_i32, -2] {
        let (mut reconcile, mut tables) = (Reconcile::default(), tables());
        tables.change_backend(1, |record| record.active = record.active.wrapping_add_signed(off));
        assert_eq!(turn(&mut reconcile, &tables), None, "backend 0 is right");
        assert_eq!(turn(&mut reconcile, &tables), None, "seen once");
        let drift = turn(&mut reconcile, &tables).expect("seen twice");
        assert_eq!(drift, Drift { backend: 1, by: off });
        tables.act(&[Action::Correct(drift)]);
        assert_eq!(tables.backend(1).active, 10);
        assert!((0..10).all(|_| turn(&mut reconcile, &tables).is_none()));
        assert_eq!(reconcile.corrected(), u64::from(off.unsigned_abs()));
    }
}

#[test]
fn a_difference_that_passes_is_no_drift() {
    let (mut reconcile, tables) = (Reconcile::default(), tables());
    tables.change_backend(0, |record| record.active += 1);
    assert_eq!(turn(&mut reconcile, &tables), None);
    tables.change_backend(0, |record| record.active -= 1);
    assert!((0..10).all(|_| turn(&mut reconcile, &tables).is_none()));
}

#[test]
fn what_may_have_changed_during_the_count_is_no_drift() {
    let at = |active, opened| Backend { active, opened, ..Backend::default() };
    assert_eq!(moved(&at(10, 100), &at(10, 100)), 0);
    assert_eq!(moved(&at(10, 100), &at(13, 103)), 3);
    assert_eq!(moved(&at(10, 100), &at(10, 105)), 10);
    assert_eq!(moved(&at(10, 100), &at(4, 100)), 6);
}
