use super::*;
use crate::vrrp::receive::Agreement;
use Output::{Advertise, Announce, Hold, Release};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The time at which every test begins.
const START: Instant = Instant(1000 * 1_000_000_000);

fn ip(last: u8) -> IpAddr {
    [10, 0, 1, last].into()
}

/// An instance of version 3 that preempts, with an advertisement per second.
pub fn settings(priority: u8) -> Settings {
    Settings {
        version: VrrpVersion::V3,
        priority,
        interval: SECOND,
        preempt: true,
        preempt_delay: Duration::ZERO,
        garp_delay: 5 * SECOND,
        garp_refresh: 60 * SECOND,
    }
}

/// A machine with its clock, at 10.0.1.1. Its advertisements always leave.
struct Host {
    machine: Machine,
    now: Instant,
}

impl Host {
    fn new(settings: Settings) -> Host {
        let mut host = Host { machine: Machine::new(settings), now: START };
        host.input(Input::Usable(Some(ip(1))));
        host
    }

    /// A host that is MASTER because it heard no other.
    fn master(settings: Settings) -> Host {
        let mut host = Host::new(settings);
        host.run(4 * SECOND);
        assert_eq!(host.machine.state(), State::Master);
        host
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        let out = self.machine.handle(input, self.now);
        if out.iter().any(|output| matches!(output, Advertise(_))) {
            self.machine.sent(self.now);
        }
        out
    }

    fn hear(&mut self, from: u8, priority: u8) -> Vec<Output> {
        self.hear_every(from, priority, 1000)
    }

    fn hear_every(&mut self, from: u8, priority: u8, interval_ms: u64) -> Vec<Output> {
        let interval = Duration::from_millis(interval_ms);
        self.input(Input::Heard(Heard { source: ip(from), priority, interval, agreement: Agreement::Same }))
    }

    /// Lets time pass; timers fire when they are due.
    fn run(&mut self, time: Duration) -> Vec<(Duration, Output)> {
        let (begin, end) = (self.now, self.now + time);
        let mut all = Vec::new();
        while let Some(at) = self.machine.deadline().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            let at = begin.age(self.now);
            all.extend(self.input(Input::Timer).into_iter().map(|output| (at, output)));
        }
        self.now = end;
        all
    }

    /// The time until it becomes MASTER.
    fn master_after(&mut self) -> Duration {
        let all = self.run(400 * SECOND);
        let moved = all.iter().find(|(_, output)| matches!(output, Output::Moved { to: State::Master, .. }));
        moved.expect("it becomes MASTER").0
    }
}

/// When the next advertisement is due.
fn beat(host: &Host) -> Instant {
    let Phase::Master(master) = &host.machine.phase else { panic!("it is not MASTER") };
    master.advertise_at
}

fn moved(from: State, to: State, why: Why) -> Output {
    Output::Moved { from, to, why }
}

#[test]
fn the_wait_is_three_intervals_and_the_skew_as_both_versions_count_it() {
    let cases = [
        (VrrpVersion::V2, 100, SECOND, 3_609),
        (VrrpVersion::V3, 100, SECOND, 3_609),
        (VrrpVersion::V3, 254, SECOND, 3_007),
        (VrrpVersion::V3, 100, SECOND / 10, 360),
        (VrrpVersion::V2, 1, 2 * SECOND, 6_996),
        (VrrpVersion::V3, 1, 2 * SECOND, 7_992),
    ];
    for (version, priority, interval, milliseconds) in cases {
        let mut host = Host::new(Settings { version, interval, ..settings(priority) });
        assert_eq!(host.master_after().as_millis(), milliseconds, "{version:?} {priority} {interval:?}");
    }
}

#[test]
fn a_new_master_advertises_then_takes_the_addresses_then_tells_the_segment() {
    let mut host = Host::new(settings(100));
    let all: Vec<_> = host.run(4 * SECOND).into_iter().map(|(_, output)| output).collect();
    let to_master = moved(State::Backup, State::Master, Why::Silence);
    assert_eq!(all, [Advertise(100), Hold, Announce, to_master]);
}

#[test]
fn announcements_come_at_once_after_garp_delay_and_every_garp_refresh() {
    let mut host = Host::master(settings(100));
    host.now = host.machine.since();
    let times = |all: Vec<(Duration, Output)>| -> Vec<u64> {
        all.iter().filter(|(_, output)| *output == Announce).map(|(at, _)| at.as_secs()).collect()
    };
    assert_eq!(times(host.run(130 * SECOND)), [5, 60, 120]);
    let quiet = Settings { garp_delay: Duration::ZERO, garp_refresh: Duration::ZERO, ..settings(100) };
    let mut host = Host::master(quiet);
    assert!(times(host.run(130 * SECOND)).is_empty());
}

#[test]
fn the_owner_is_master_at_once_and_no_weight_changes_its_priority() {
    let mut host = Host { machine: Machine::new(settings(255)), now: Instant::ZERO + SECOND };
    host.input(Input::Weight(-100));
    let out = host.input(Input::Usable(Some(ip(1))));
    assert_eq!(out[..4], [moved(State::Init, State::Backup, Why::Started), Advertise(255), Hold, Announce]);
    assert_eq!(out[4..], [moved(State::Backup, State::Master, Why::Owner)]);
}

#[test]
fn advertisements_keep_their_beat_and_carry_the_priority_of_the_moment() {
    let mut host = Host::master(settings(100));
    host.now = host.machine.since();
    let adverts = |all: Vec<(Duration, Output)>| -> Vec<_> {
        all.into_iter().filter(|(_, output)| matches!(output, Advertise(_))).collect()
    };
    assert_eq!(adverts(host.run(2 * SECOND)), [(SECOND, Advertise(100)), (2 * SECOND, Advertise(100))]);
    host.input(Input::Weight(-60));
    assert_eq!(adverts(host.run(SECOND)), [(SECOND, Advertise(40))]);
    for (weight, priority) in [(-100, 1), (-253, 1), (100, 200), (253, 254)] {
        host.input(Input::Weight(weight));
        assert_eq!(host.machine.priority(), priority);
    }
    // A late advertisement does not make the next one early.
    host.now += SECOND + 300 * MS;
    assert_eq!(host.input(Input::Timer), [Advertise(254)]);
    assert_eq!(adverts(host.run(SECOND)), [(700 * MS, Advertise(254))]);
}

#[test]
fn a_backup_starts_to_wait_again_with_each_advertisement_of_a_better_or_equal_master() {
    for priority in [100, 101, 255] {
        let mut host = Host::new(settings(100));
        host.run(3 * SECOND);
        assert_eq!(host.hear(2, priority), []);
        host.run(3 * SECOND);
        assert_eq!(host.machine.state(), State::Backup, "no tie is broken by the address in BACKUP");
        host.hear(2, priority);
        assert_eq!(host.master_after().as_millis(), 3_609);
    }
}

#[test]
fn a_backup_learns_the_interval_in_version_3_and_not_in_version_2() {
    let mut three = Host::new(settings(100));
    three.hear_every(2, 150, 100);
    assert_eq!(three.master_after().as_millis(), 360);
    let mut two = Host::new(Settings { version: VrrpVersion::V2, ..settings(100) });
    two.hear_every(2, 150, 100);
    assert_eq!(two.master_after().as_millis(), 3_609);
}

#[test]
fn a_new_configuration_does_not_forget_the_interval_of_a_master_that_is_heard() {
    let mut host = Host::new(settings(100));
    host.hear_every(2, 150, 10_000);
    let out = host.machine.configure(Settings { interval: SECOND / 10, ..settings(90) }, host.now);
    assert_eq!(out, []);
    assert!(host.master_after() > 30 * SECOND);
}

#[test]
fn when_the_master_resigns_only_the_skew_is_waited_for() {
    let mut host = Host::new(settings(100));
    host.hear(2, 150);
    host.hear(2, 0);
    let all = host.run(SECOND);
    assert_eq!(all[3], (Duration::from_nanos(609_375_000), moved(State::Backup, State::Master, Why::Resigned)));
}

#[test]
fn a_lower_master_is_preempted_when_the_timer_fires_unless_nopreempt() {
    let mut host = Host::new(settings(100));
    for _ in 0..3 {
        host.run(SECOND);
        assert_eq!(host.hear(2, 90), [], "discarded");
    }
    let all = host.run(SECOND);
    assert_eq!(all[3].1, moved(State::Backup, State::Master, Why::Preempts(ip(2))));

    let mut host = Host::new(Settings { preempt: false, ..settings(100) });
    for _ in 0..20 {
        host.run(SECOND);
        host.hear(2, 90);
    }
    assert_eq!(host.machine.state(), State::Backup);
    assert_eq!(host.master_after().as_millis(), 3_609, "but it takes over when that one is gone");

    let mut owner = Host::master(Settings { preempt: false, ..settings(255) });
    assert_eq!(owner.hear(2, 254)[0], Advertise(255));
}

#[test]
fn preempt_delay_leaves_a_lower_master_in_peace_for_that_time() {
    let mut host = Host::new(Settings { preempt_delay: 10 * SECOND, ..settings(100) });
    let mut second = 0;
    while host.machine.state() == State::Backup {
        host.hear(2, 90);
        host.run(SECOND);
        second += 1;
        assert!(second < 30);
    }
    // Ten seconds after it was first heard, and then as without a delay.
    assert_eq!(second, 13);
}

#[test]
fn a_lower_master_is_left_in_peace_until_its_connections_are_known_but_not_for_ever() {
    let takes_over_after = |known_after: Option<u32>| {
        let mut host = Host::new(settings(100));
        host.input(Input::LacksFlows(true));
        for second in 0..60 {
            if known_after == Some(second) {
                host.input(Input::LacksFlows(false));
            }
            host.hear(2, 90);
            host.run(SECOND);
            if host.machine.state() == State::Master {
                return second;
            }
        }
        panic!("it never takes over");
    };
    // Three intervals and the skew after the last advertisement that was respected.
    assert_eq!(takes_over_after(Some(0)), 3);
    assert_eq!(takes_over_after(Some(5)), 7);
    assert_eq!(takes_over_after(None), 12);
    // If no MASTER is heard, there is nothing to wait for.
    let mut alone = Host::new(settings(100));
    alone.input(Input::LacksFlows(true));
    alone.run(4 * SECOND);
    assert_eq!(alone.machine.state(), State::Master);
}

#[test]
fn a_master_gives_way_to_a_higher_priority_and_to_an_equal_one_with_a_higher_address() {
    for (from, priority, gives_way) in [(2, 101, true), (2, 100, true), (0, 100, false), (2, 99, false)] {
        let mut host = Host::master(settings(100));
        host.run(SECOND);
        let out = host.hear_every(from, priority, 2000);
        if gives_way {
            let outranked = moved(State::Master, State::Backup, Why::Outranked(ip(from)));
            let concede = Output::Concede { priority: 100, interval: 2 * SECOND };
            assert_eq!(out, [concede, Release, outranked], "the better one must hear of us");
            assert_eq!(host.machine.master().map(|master| master.address), Some(ip(from)));
            assert_eq!(host.machine.lease(), Instant::ZERO);
        } else {
            let lower = Output::Contention(Contention::LowerMaster { from: ip(from), priority });
            assert_eq!(out, [Advertise(100), Announce, lower], "it must hear of us at once");
        }
    }
}

#[test]
fn the_answer_to_a_lower_master_does_not_move_the_beat_and_a_storm_is_not_answered_with_one() {
    let mut host = Host::master(settings(100));
    host.now = host.machine.since() + 1500 * MS;
    host.input(Input::Timer);
    let due = beat(&host);
    let mut sent = 0;
    let mut announced = 0;
    for _ in 0..1000 {
        host.now += MS / 10;
        let out = host.hear(2, 90);
        sent += out.iter().filter(|output| matches!(output, Advertise(_))).count();
        announced += out.iter().filter(|output| **output == Announce).count();
    }
    assert_eq!((sent, announced, beat(&host)), (10, 1, due));
    // When it has fallen silent, the addresses are announced once more.
    let all = host.run(3 * SECOND);
    assert!(all.contains(&(SECOND / 2, Announce)), "{all:?}");
    assert!(all.contains(&(3 * SECOND, Output::Contention(Contention::SplitHealed))), "{all:?}");
}

#[test]
fn a_lower_master_that_does_not_hear_us_is_not_taken_for_gone_between_its_advertisements() {
    let mut host = Host::master(settings(100));
    for _ in 0..5 {
        host.hear(2, 50);
        let all = host.run(2 * SECOND);
        assert!(!all.iter().any(|(_, output)| *output == Output::Contention(Contention::SplitHealed)), "{all:?}");
    }
}

#[test]
fn a_master_answers_a_resignation_and_tells_the_segment_and_no_operator_of_a_second_master() {
    let mut host = Host::master(settings(100));
    assert_eq!(host.hear(2, 0), [Advertise(100), Announce]);
    let all = host.run(SECOND);
    assert!(!all.iter().any(|(_, output)| matches!(output, Output::Contention(_))), "{all:?}");
}

#[test]
fn a_second_master_that_resigns_has_fallen_silent() {
    let mut host = Host::master(settings(100));
    host.run(SECOND);
    let two = Output::Contention(Contention::LowerMaster { from: ip(2), priority: 50 });
    assert!(host.hear(2, 50).contains(&two));
    assert!(!host.hear(2, 0).contains(&two));
    let all = host.run(3 * SECOND);
    assert!(all.iter().any(|(_, output)| *output == Output::Contention(Contention::SplitHealed)), "{all:?}");
}

#[test]
fn a_dispute_ends_with_the_resignation_of_a_second_master_that_was_never_heard() {
    let mut host = Host::master(settings(100));
    host.input(Input::Claimed);
    assert_eq!(host.hear(2, 0)[0], Advertise(100));
    let healed = |all: Vec<(Duration, Output)>| {
        all.iter().filter(|(_, output)| *output == Output::Contention(Contention::SplitHealed)).count()
    };
    assert_eq!(healed(host.run(3 * SECOND)), 1);
    host.hear(2, 0);
    assert_eq!(healed(host.run(3 * SECOND)), 0, "it was over");
}

#[test]
fn who_gives_way_before_it_has_spoken_has_nothing_to_concede() {
    let mut host = Host::new(settings(100));
    host.now = host.machine.deadline().unwrap();
    // Nothing leaves.
    host.machine.handle(Input::Timer, host.now);
    assert_eq!(host.machine.state(), State::Master);
    assert_eq!(host.hear(2, 150)[0], Release);
}

#[test]
fn the_master_before_us_which_concedes_is_answered_and_no_news_for_the_operator() {
    let mut host = Host::new(settings(150));
    host.hear(2, 100);
    host.run(3500 * MS);
    assert_eq!(host.machine.state(), State::Master);
    let of_contention = |output: &Output| matches!(output, Output::Contention(_));
    let out = host.hear(2, 100);
    assert_eq!(out[0], Advertise(150));
    assert!(!out.iter().any(of_contention), "{out:?}");
    let all = host.run(5 * SECOND);
    assert!(!all.iter().any(|(_, output)| of_contention(output)), "{all:?}");
    assert!(host.hear(2, 100).iter().any(of_contention), "it does not give way");
}

#[test]
fn a_master_that_was_stopped_longer_than_its_lease_steps_down_whatever_wakes_it() {
    let lapsed = [Release, moved(State::Master, State::Backup, Why::LeaseLapsed)];
    let heard = Heard { source: ip(2), priority: 90, interval: SECOND, agreement: Agreement::Same };
    for input in [Input::Timer, Input::Heard(heard), Input::GiveAway, Input::Claimed, Input::Weight(0)] {
        let mut host = Host::master(settings(100));
        host.now += 10 * SECOND;
        assert_eq!(host.input(input), lapsed, "{input:?}");
        assert_eq!(host.master_after().as_millis(), 3_609, "then it waits like any other");
    }
    let mut host = Host::master(settings(100));
    host.now += 2 * SECOND;
    assert_eq!(host.input(Input::Timer), [Advertise(100)], "a shorter stop does not matter");
}

#[test]
fn only_a_sent_advertisement_extends_the_lease() {
    let mut host = Host::master(settings(100));
    let begin = host.machine.since();
    let mut out = Vec::new();
    for at in [1, 2, 3].map(|seconds| begin + seconds * SECOND) {
        out = host.machine.handle(Input::Timer, at);
    }
    assert_eq!(out, [Release, moved(State::Master, State::Backup, Why::LeaseLapsed)]);
}

#[test]
fn what_is_given_away_stays_away_until_the_other_router_is_gone() {
    let mut host = Host::master(settings(150));
    let given = host.input(Input::GiveAway);
    assert_eq!(given, [Advertise(0), Release, moved(State::Master, State::Backup, Why::GivenAway)]);
    for _ in 0..20 {
        host.hear(2, 100);
        host.run(SECOND);
    }
    assert_eq!(host.machine.state(), State::Backup);
    assert!(host.master_after() < 3 * SECOND);
    host.run(SECOND);
    assert_eq!(host.machine.state(), State::Master);
}

#[test]
fn in_fault_nothing_is_heard_and_it_is_left_for_backup() {
    let mut host = Host::master(settings(100));
    let fault = host.input(Input::Usable(None));
    assert_eq!(fault, [Advertise(0), Release, moved(State::Master, State::Fault, Why::Fault)]);
    assert_eq!(host.machine.deadline(), None);
    assert_eq!(host.hear(2, 0), []);
    let back = host.input(Input::Usable(Some(ip(1))));
    assert_eq!(back, [moved(State::Fault, State::Backup, Why::Recovered)]);
    assert_eq!(host.master_after().as_millis(), 3_609);
}

#[test]
fn it_ends_with_a_resignation_if_it_was_master() {
    let mut host = Host::master(settings(100));
    assert_eq!(host.input(Input::End), [Advertise(0), Release, moved(State::Master, State::Init, Why::Ended)]);
    let mut host = Host::new(settings(100));
    assert_eq!(host.input(Input::End), [moved(State::Backup, State::Init, Why::Ended)]);
}

#[test]
fn the_mastership_of_an_earlier_run_is_continued_with_an_advertisement_and_nothing_else() {
    let mut host = Host::new(settings(100));
    let resumed = host.input(Input::Resume);
    assert_eq!(resumed, [Advertise(100), Hold, moved(State::Backup, State::Master, Why::Resumed)]);
    assert!(host.machine.lease() > host.now);
}

#[test]
fn of_two_owners_the_one_with_the_higher_address_gives_in_if_the_other_does_not() {
    let mut higher = Host::master(settings(255));
    assert_eq!(higher.hear(0, 255), [Output::Contention(Contention::TwoOwners(ip(0)))]);
    higher.run(SECOND);
    higher.hear(0, 255);
    assert_eq!(
        higher.machine.state(),
        State::Master,
        "the other must have heard two advertisements before it can be expected to give in"
    );
    higher.run(SECOND);
    higher.hear(0, 255);
    assert_eq!((higher.machine.state(), higher.machine.priority()), (State::Backup, 254));

    let mut gave_in_to_us = Host::master(settings(255));
    gave_in_to_us.hear(0, 255);
    gave_in_to_us.run(10 * SECOND);
    gave_in_to_us.hear(0, 255);
    assert_eq!(gave_in_to_us.machine.priority(), 255, "each contest starts from scratch");

    let mut lower = Host::master(settings(255));
    for _ in 0..10 {
        lower.hear(2, 255);
        lower.run(SECOND);
    }
    assert_eq!(lower.machine.state(), State::Master);
}

#[test]
fn a_claim_of_our_address_is_reported_and_answered_once_a_second() {
    let mut host = Host::master(settings(100));
    host.run(SECOND);
    assert_eq!(host.input(Input::Claimed), [Output::Contention(Contention::Claimed), Announce]);
    assert_eq!(host.input(Input::Claimed), [Output::Contention(Contention::Claimed)]);
}

#[test]
fn a_master_that_is_reconfigured_advertises_at_once() {
    let mut host = Host::master(settings(100));
    assert_eq!(host.machine.configure(settings(100), host.now), [], "nothing has changed");
    assert_eq!(host.machine.configure(settings(90), host.now), [Advertise(90)]);
    assert_eq!(host.machine.state(), State::Master);
}

#[test]
fn what_was_given_away_stays_so_through_a_fault_and_a_restart_until_no_other_host_has_it() {
    for (priority, other) in [(150, 100), (255, 254)] {
        let mut host = Host::master(settings(priority));
        host.input(Input::GiveAway);
        host.hear(2, other);
        for _ in 0..3 {
            host.run(SECOND / 2);
            host.input(Input::Usable(None));
            assert!(host.machine.past().yields && host.machine.state() == State::Fault);
            host.run(3 * SECOND);
            host.input(Input::Usable(Some(ip(1))));
            for _ in 0..30 {
                host.hear(2, other);
                host.run(SECOND);
            }
            assert_eq!(host.machine.state(), State::Backup, "priority {priority}");
        }
        // A process that knows nothing else than this.
        let past = Past { state: State::Init, since: Instant::ZERO, transitions: 0, yields: true };
        let mut next = Host { machine: Machine::new(settings(priority)), now: host.now };
        next.machine.recall(past);
        next.input(Input::Usable(Some(ip(1))));
        for _ in 0..30 {
            next.hear(2, other);
            next.run(SECOND);
        }
        assert_eq!((next.machine.state(), next.machine.past().transitions), (State::Backup, 0), "priority {priority}");
        // The other host ends, or gives it back.
        next.hear(2, 0);
        next.run(SECOND);
        assert_eq!((next.machine.state(), next.machine.past().yields), (State::Master, false));
        next.input(Input::Usable(None));
        next.input(Input::Usable(Some(ip(1))));
        (0..6).for_each(|_| {
            next.hear(2, other);
            next.run(SECOND);
        });
        assert_eq!(next.machine.state(), State::Master, "as before: it preempts");
    }
}

#[test]
fn the_next_process_continues_with_what_the_last_one_knew() {
    // A BACKUP that has given its mastership away still yields.
    let mut first = Host::master(settings(150));
    first.input(Input::GiveAway);
    first.now += SECOND / 10;
    first.hear(2, 100);
    let past = first.machine.past();
    assert!(past.yields && past.state == State::Backup && past.transitions == 2, "{past:?}");
    let mut next = Host { machine: Machine::new(settings(150)), now: first.now + SECOND };
    next.machine.recall(past);
    next.input(Input::Usable(Some(ip(1))));
    assert_eq!(next.machine.past(), past);
    for _ in 0..10 {
        next.run(SECOND);
        next.hear(2, 100);
    }
    assert_eq!(next.machine.past(), past, "it does not preempt");

    // A MASTER comes back by its lease, as if nothing had happened.
    let past = Host::master(settings(150)).machine.past();
    let mut next = Host { machine: Machine::new(settings(150)), now: Instant::ZERO + 2000 * SECOND };
    next.machine.recall(past);
    next.input(Input::Usable(Some(ip(1))));
    next.input(Input::Resume);
    assert_eq!(next.machine.past(), past);

    // Without its lease it is BACKUP: one more change, at this moment.
    let mut next = Host { machine: Machine::new(settings(150)), now: Instant::ZERO + 2000 * SECOND };
    next.machine.recall(past);
    next.input(Input::Usable(Some(ip(1))));
    let now = next.machine.past();
    assert_eq!(
        (now.state, now.since, now.transitions),
        (State::Backup, Instant::ZERO + 2000 * SECOND, past.transitions + 1)
    );
}

#[test]
fn a_host_that_slept_longer_than_its_lease_listens_before_it_speaks_though_its_clock_stood_still() {
    let lapsed = [Release, moved(State::Master, State::Backup, Why::LeaseLapsed)];
    for slept in [3, 4, 30, 3600] {
        let mut host = Host::master(settings(150));
        assert_eq!(host.input(Input::Slept(slept * SECOND)), lapsed, "{slept} s");
        // The other host has the addresses, and connections that are not known here.
        host.input(Input::LacksFlows(true));
        for _ in 0..8 {
            host.hear(2, 100);
            assert_eq!(host.run(SECOND), [], "{slept} s");
        }
        assert_eq!(host.machine.lease(), Instant::ZERO);
        // A host that was BACKUP gives the MASTER the whole time, too.
        let mut host = Host::new(settings(100));
        host.hear(2, 150);
        host.run(3 * SECOND);
        host.input(Input::Slept(slept * SECOND));
        assert_eq!(host.master_after().as_millis(), 3_609, "{slept} s");
    }
    // A shorter sleep ends the lease sooner.
    let mut host = Host::master(settings(150));
    let lease = host.machine.lease();
    assert_eq!(host.input(Input::Slept(SECOND)), []);
    assert_eq!((host.machine.state(), host.machine.lease()), (State::Master, lease - SECOND));
}

#[test]
fn the_owner_of_the_addresses_waits_for_connections_too_but_no_longer_than_any_other() {
    let takes_over_after = |known_after: Option<u32>| {
        let mut host = Host { machine: Machine::new(settings(255)), now: START };
        host.input(Input::LacksFlows(true));
        host.input(Input::Usable(Some(ip(1))));
        for second in 0..60 {
            assert_eq!(
                host.machine.waits_for_flows(host.now),
                second > 0 && known_after.is_none_or(|it| it >= second) && second < 10
            );
            if known_after == Some(second) {
                host.input(Input::LacksFlows(false));
            }
            host.hear(2, 254);
            host.run(SECOND);
            if host.machine.state() == State::Master {
                return second;
            }
        }
        panic!("it never takes over");
    };
    assert_eq!((takes_over_after(Some(0)), takes_over_after(Some(5)), takes_over_after(None)), (3, 7, 12));
    // Nobody has the addresses.
    let mut alone = Host { machine: Machine::new(settings(255)), now: START };
    alone.input(Input::LacksFlows(true));
    alone.input(Input::Usable(Some(ip(1))));
    assert_eq!(alone.master_after().as_millis(), 3_003);
    // Without flow sync it begins at once, as ever.
    assert_eq!(Host::new(settings(255)).machine.state(), State::Master);
}
