use std::time::Duration;

use super::*;
use crate::vrrp::{
    machine::{self, Why},
    receive::{Agreement, Heard},
};

const SECOND: Duration = Duration::from_secs(1);

/// Without repeated announcements, which have tests of their own.
fn settings(priority: u8) -> Settings {
    Settings { garp_delay: Duration::ZERO, garp_refresh: Duration::ZERO, ..machine::tests::settings(priority) }
}

fn own(id: InstanceId) -> std::net::IpAddr {
    [10, 0, id as u8, 1].into()
}

/// Two members of a group, started at 1000 s, and one that belongs to no group.
fn trio() -> (Machines, Instant) {
    let now = Instant::ZERO + 1000 * SECOND;
    let mut machines = Machines::default();
    machines.add(0, settings(100), Some("G"));
    machines.add(1, settings(100), Some("G"));
    machines.add(2, settings(100), None);
    for id in 0..3 {
        machines.handle(id, Input::Usable(Some(own(id))), now);
    }
    (machines, now)
}

/// Lets time pass; every advertisement leaves.
fn run(machines: &mut Machines, now: &mut Instant, time: Duration) {
    let end = *now + time;
    while let Some(at) = machines.deadline().filter(|at| *at <= end) {
        *now = at;
        for (id, output) in machines.timer(at) {
            if matches!(output, Output::Advertise(_)) {
                machines.sent(id, at);
            }
        }
    }
    *now = end;
}

fn hear(machines: &mut Machines, id: InstanceId, priority: u8, now: Instant) -> Outputs {
    let heard = Heard { source: [10, 0, id as u8, 2].into(), priority, interval: SECOND, agreement: Agreement::Same };
    machines.handle(id, Input::Heard(heard), now)
}

fn states(machines: &Machines) -> [State; 3] {
    [0, 1, 2].map(|id| machines.machine(id).unwrap().state())
}

use State::{Backup, Fault, Master};

#[test]
fn a_group_becomes_master_when_all_its_members_are_ready() {
    let (mut machines, mut now) = trio();
    run(&mut machines, &mut now, 4 * SECOND);
    assert_eq!(states(&machines), [Master, Master, Master]);
}

#[test]
fn a_group_waits_while_one_of_its_members_hears_a_better_master() {
    let (mut machines, mut now) = trio();
    for _ in 0..10 {
        run(&mut machines, &mut now, SECOND);
        hear(&mut machines, 1, 150, now);
    }
    assert_eq!(states(&machines), [Backup, Backup, Master]);
    assert!(machines.machine(0).unwrap().is_ready());
    run(&mut machines, &mut now, 4 * SECOND);
    assert_eq!(states(&machines), [Master, Master, Master]);
}

#[test]
fn when_one_gives_way_all_do_and_when_one_cannot_be_a_router_none_can() {
    let (mut machines, mut now) = trio();
    run(&mut machines, &mut now, 4 * SECOND);
    let outputs = hear(&mut machines, 1, 150, now);
    let moved = Output::Moved { from: Master, to: Backup, why: Why::Group };
    assert_eq!(outputs[3..], [(0, Output::Release), (0, moved)], "without a resignation");
    assert_eq!(states(&machines), [Backup, Backup, Master]);

    run(&mut machines, &mut now, 4 * SECOND);
    assert_eq!(states(&machines), [Master, Master, Master]);
    let outputs = machines.handle(0, Input::Usable(None), now);
    assert!(outputs.contains(&(1, Output::Advertise(0))), "{outputs:?}");
    assert_eq!(states(&machines), [Fault, Fault, Master]);
    machines.handle(0, Input::Usable(Some(own(0))), now);
    assert_eq!(states(&machines), [Backup, Backup, Master]);
}

#[test]
fn a_group_is_given_away_as_a_whole_and_every_member_resigns() {
    let (mut machines, mut now) = trio();
    run(&mut machines, &mut now, 4 * SECOND);
    let outputs = machines.handle(0, Input::GiveAway, now);
    let resigned: Vec<_> = outputs.iter().filter(|(_, output)| *output == Output::Advertise(0)).collect();
    assert_eq!(resigned.len(), 2);
    assert_eq!(states(&machines), [Backup, Backup, Master]);
}

#[test]
fn a_member_that_waited_for_a_group_that_is_gone_becomes_master() {
    let (mut machines, mut now) = trio();
    run(&mut machines, &mut now, 3 * SECOND);
    hear(&mut machines, 1, 150, now);
    run(&mut machines, &mut now, SECOND);
    assert_eq!(states(&machines)[0], Backup);
    let outputs = machines.remove(1, now);
    assert!(outputs.contains(&(0, Output::Hold)), "{outputs:?}");
}

#[test]
fn a_group_begins_when_all_its_members_are_known_and_continues_a_mastership_as_a_whole() {
    let now = Instant::ZERO + 1000 * SECOND;
    let mut machines = Machines::default();
    machines.add(0, settings(100), Some("G"));
    machines.add(1, settings(100), Some("G"));
    assert_eq!(machines.handle(0, Input::Usable(Some(own(0))), now), []);
    let state = |machines: &Machines, id| machines.machine(id).map(Machine::state);
    assert_eq!(state(&machines, 0), Some(State::Init));
    let out = machines.handle(1, Input::Usable(Some(own(1))), now);
    let started = |id| (id, Output::Moved { from: State::Init, to: State::Backup, why: Why::Started });
    assert_eq!(out, [started(0), started(1)]);
    for id in 0..2 {
        machines.handle(id, Input::Resume, now);
    }
    assert_eq!([0, 1].map(|id| state(&machines, id)), [Some(State::Master); 2]);
}
