use super::*;
use crate::{
    config::model::VrrpVersion,
    vrrp::{
        machine::Why,
        receive::{Agreement, Heard},
    },
};

const SECOND: u64 = 1_000_000_000;

fn settings(priority: u8) -> Settings {
    Settings {
        version: VrrpVersion::V3,
        priority,
        interval: SECOND,
        preempt: true,
        preempt_delay: 0,
        garp_delay: 0,
        garp_refresh: 0,
    }
}

fn own(number: Number) -> std::net::IpAddr {
    [10, 0, number as u8, 1].into()
}

/// Two of a group, started at 1000 s, and one that is none of theirs.
fn trio() -> (Instances, u64) {
    let now = 1000 * SECOND;
    let mut instances = Instances::default();
    instances.add(0, settings(100), Some("G"));
    instances.add(1, settings(100), Some("G"));
    instances.add(2, settings(100), None);
    for number in 0..3 {
        instances.handle(number, Input::Usable(Some(own(number))), now);
    }
    (instances, now)
}

/// Lets time go by; every advertisement gets out.
fn run(instances: &mut Instances, now: &mut u64, time: u64) {
    let end = *now + time;
    while let Some(at) = instances.deadline().filter(|at| *at <= end) {
        *now = at;
        for (number, output) in instances.timer(at) {
            if matches!(output, Output::Advertise(_)) {
                instances.sent(number, at);
            }
        }
    }
    *now = end;
}

fn hear(instances: &mut Instances, number: Number, priority: u8, now: u64) -> Outputs {
    let heard =
        Heard { source: [10, 0, number as u8, 2].into(), priority, interval_ms: 1000, agreement: Agreement::Same };
    instances.handle(number, Input::Heard(heard), now)
}

fn states(instances: &Instances) -> [State; 3] {
    [0, 1, 2].map(|number| instances.machine(number).unwrap().state())
}

use State::{Backup, Fault, Master};

#[test]
fn a_group_becomes_master_when_all_of_it_is_ready() {
    let (mut instances, mut now) = trio();
    run(&mut instances, &mut now, 4 * SECOND);
    assert_eq!(states(&instances), [Master, Master, Master]);
}

#[test]
fn as_long_as_one_of_it_hears_a_better_master_the_group_waits() {
    let (mut instances, mut now) = trio();
    for _ in 0..10 {
        run(&mut instances, &mut now, SECOND);
        hear(&mut instances, 1, 150, now);
    }
    assert_eq!(states(&instances), [Backup, Backup, Master]);
    assert!(instances.machine(0).unwrap().is_ready());
    run(&mut instances, &mut now, 4 * SECOND);
    assert_eq!(states(&instances), [Master, Master, Master]);
}

#[test]
fn when_one_gives_way_all_do_and_when_one_cannot_none_can() {
    let (mut instances, mut now) = trio();
    run(&mut instances, &mut now, 4 * SECOND);
    let outputs = hear(&mut instances, 1, 150, now);
    let moved = Output::Moved { from: Master, to: Backup, why: Why::Group };
    assert_eq!(outputs[2..], [(0, Output::Release), (0, moved)], "without a resignation");
    assert_eq!(states(&instances), [Backup, Backup, Master]);

    run(&mut instances, &mut now, 4 * SECOND);
    assert_eq!(states(&instances), [Master, Master, Master]);
    let outputs = instances.handle(0, Input::Usable(None), now);
    assert!(outputs.contains(&(1, Output::Advertise(0))), "{outputs:?}");
    assert_eq!(states(&instances), [Fault, Fault, Master]);
    instances.handle(0, Input::Usable(Some(own(0))), now);
    assert_eq!(states(&instances), [Backup, Backup, Master]);
}

#[test]
fn a_group_is_given_away_as_a_whole_and_every_part_says_so() {
    let (mut instances, mut now) = trio();
    run(&mut instances, &mut now, 4 * SECOND);
    let outputs = instances.handle(0, Input::GiveAway, now);
    let resigned: Vec<_> = outputs.iter().filter(|(_, output)| *output == Output::Advertise(0)).collect();
    assert_eq!(resigned.len(), 2);
    assert_eq!(states(&instances), [Backup, Backup, Master]);
}

#[test]
fn one_that_waited_for_a_group_that_is_gone_goes_on() {
    let (mut instances, mut now) = trio();
    run(&mut instances, &mut now, 3 * SECOND);
    hear(&mut instances, 1, 150, now);
    run(&mut instances, &mut now, SECOND);
    assert_eq!(states(&instances)[0], Backup);
    let outputs = instances.remove(1, now);
    assert!(outputs.contains(&(0, Output::Hold)), "{outputs:?}");
}

#[test]
fn a_group_begins_when_all_of_it_is_known_and_a_mastership_is_taken_up_by_all_of_it() {
    let now = 1000 * SECOND;
    let mut instances = Instances::default();
    instances.add(0, settings(100), Some("G"));
    instances.add(1, settings(100), Some("G"));
    assert_eq!(instances.handle(0, Input::Usable(Some(own(0))), now), []);
    let state = |instances: &Instances, number| instances.machine(number).map(Machine::state);
    assert_eq!(state(&instances, 0), Some(State::Init));
    let out = instances.handle(1, Input::Usable(Some(own(1))), now);
    let started = |number| (number, Output::Moved { from: State::Init, to: State::Backup, why: Why::Started });
    assert_eq!(out, [started(0), started(1)]);
    for number in 0..2 {
        instances.handle(number, Input::Resume, now);
    }
    assert_eq!([0, 1].map(|number| state(&instances, number)), [Some(State::Master); 2]);
}
