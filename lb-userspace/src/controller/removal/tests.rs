use super::*;
use crate::controller::{desired::Desired, plan, testbed::Testbed};
use lb_common::slot::State;

fn install(tables: &mut Testbed, services: Vec<crate::controller::desired::DesiredService>) {
    let plan = plan::plan(&tables.installed(), &Desired { services }, &BTreeMap::new()).expect("a plan");
    plan.writes.iter().for_each(|write| tables.write(write));
}

fn run(removal: &mut Removal, tables: &mut Testbed, from: u64, seconds: u64) {
    let mut installed = tables.installed();
    for second in from..from + seconds {
        for write in removal.turn(&mut installed, tables, Instant(second * 1_000_000_000)) {
            tables.write(&write);
        }
        assert_eq!(installed, tables.installed());
    }
}

#[test]
fn a_tombstone_stays_until_its_last_flow_is_gone_and_its_pool_goes_after_it() {
    let (mut removal, mut tables) = (Removal::default(), Testbed::default());
    install(&mut tables, vec![plan::tests::service("api", "10.0.1.100:6443", &[10, 11])]);
    let flow = tables.open(0, 3, State::Established, 0, Instant::ZERO);
    install(&mut tables, vec![plan::tests::service("api", "10.0.1.100:6443", &[11])]);
    run(&mut removal, &mut tables, 0, 100);
    assert_eq!((tables.installed().backends.len(), tables.installed().pools.len()), (2, 2), "a flow keeps them");
    tables.end(flow);
    run(&mut removal, &mut tables, 100, 10);
    assert_eq!(
        (tables.installed().backends.len(), tables.installed().pools.len()),
        (2, 2),
        "a late segment still finds its way"
    );
    run(&mut removal, &mut tables, 110, 15);
    assert_eq!((tables.installed().backends.len(), tables.installed().pools.len()), (1, 1));
}

#[test]
fn a_pool_that_another_service_shares_stays() {
    let (mut removal, mut tables) = (Removal::default(), Testbed::default());
    let one = plan::tests::service("one", "10.0.1.100:6443", &[10]);
    let two = plan::tests::service("two", "10.0.1.100:7443", &[10]);
    install(&mut tables, vec![one.clone(), two]);
    install(&mut tables, vec![one]);
    run(&mut removal, &mut tables, 0, 40);
    assert_eq!(
        (
            tables.installed().backends.len(),
            tables.installed().pools.len(),
            tables.installed().services.len(),
            tables.installed().listeners.len()
        ),
        (1, 1, 1, 1)
    );
}

#[test]
fn a_closing_listener_stays_until_the_last_flow_that_came_by_it() {
    let (mut removal, mut tables) = (Removal::default(), Testbed::default());
    let one = plan::tests::service("api", "10.0.1.100:6443", &[10]);
    let mut both = one.clone();
    both.listen.push("10.0.1.101:6443".parse().expect("an address"));
    install(&mut tables, vec![both.clone()]);
    let number = |tables: &Testbed, state| {
        *tables.installed().listeners.iter().find(|(_, listener)| listener.state == state).expect("a listener").0
    };
    install(&mut tables, vec![one]);
    let closing = number(&tables, CLOSING);
    let by_it = tables.open(0, 3, State::Established, closing, Instant::ZERO);
    tables.open(0, 4, State::Established, number(&tables, lb_common::layout::ACTIVE), Instant::ZERO);
    run(&mut removal, &mut tables, 0, 60);
    assert_eq!(tables.installed().listeners.len(), 2);
    tables.end(by_it);
    run(&mut removal, &mut tables, 60, 15);
    assert_eq!(tables.installed().listeners.len(), 1);
}

#[test]
fn nothing_is_left_of_a_service_that_was_removed() {
    let (mut removal, mut tables) = (Removal::default(), Testbed::default());
    install(&mut tables, vec![plan::tests::service("api", "10.0.1.100:6443", &[10, 11, 12])]);
    install(&mut tables, Vec::new());
    run(&mut removal, &mut tables, 0, 60);
    assert_eq!(tables.installed(), Installed::default());
}
