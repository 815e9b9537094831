//! nginx's documented behaviour is the oracle (ngx_stream_upstream_module: max_fails,
//! fail_timeout); where evenkeel departs from it, the test's name says so.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const SETTINGS: Settings = Settings {
    max_fails: 3,
    fail_timeout: Duration::from_secs(10),
    connect_timeout: Duration::from_secs(2),
    slow_start: Duration::ZERO,
    probe: None,
};

fn at(seconds: u64) -> Instant {
    Instant(seconds * 1_000_000_000)
}

fn out_at(seconds: u64) -> Health {
    let mut health = Health::new(Instant::ZERO);
    health.failed(&SETTINGS, Reason::Refused, at(seconds));
    health.failed(&SETTINGS, Reason::Refused, at(seconds));
    let change = health.failed(&SETTINGS, Reason::Refused, at(seconds));
    assert_eq!(change, Change::TakenOut { retry_at: at(seconds + 10) });
    health
}

#[test]
fn the_third_failure_within_fail_timeout_takes_it_out_for_fail_timeout() {
    let mut health = Health::new(Instant::ZERO);
    assert_eq!(health.failed(&SETTINGS, Reason::Refused, at(1)), Change::Nothing);
    assert_eq!(health.failed(&SETTINGS, Reason::ConnectTimeout, at(6)), Change::Nothing);
    let change = health.failed(&SETTINGS, Reason::Refused, at(11));
    assert_eq!(change, Change::TakenOut { retry_at: at(21) });
    assert_eq!(health.state(), State::Out { retry_at: at(21), cause: Some(Cause::Refused) });
    assert_eq!(health.changed_at(), at(11));
}

#[test]
fn failures_further_apart_than_fail_timeout_never_take_it_out_as_nginx_documents_but_does_not_do() {
    let mut health = Health::new(Instant::ZERO);
    for turn in 1..1000 {
        assert_eq!(health.failed(&SETTINGS, Reason::Refused, at(turn * 6)), Change::Nothing);
    }
    assert_eq!(health.state(), State::Up);
}

#[test]
fn every_sequence_of_failures_agrees_with_a_plain_count_of_the_window() {
    // Gaps of 0, 4 and 7 s in every order of eight failures, and every max_fails up to 5.
    for max_fails in 1..=5 {
        for code in 0..3_u32.pow(8) {
            let settings = Settings { max_fails, ..SETTINGS };
            let mut health = Health::new(Instant::ZERO);
            let (mut at, mut times) = (at(100), Vec::new());
            for step in 0..8 {
                at += [0, 4, 7][(code / 3_u32.pow(step) % 3) as usize] * SECOND;
                times.push(at);
                let within = times.iter().filter(|time| at - **time <= settings.fail_timeout).count();
                let change = health.failed(&settings, Reason::Refused, at);
                if within as u32 >= max_fails {
                    assert_eq!(change, Change::TakenOut { retry_at: at + settings.fail_timeout });
                    break;
                }
                assert_eq!(change, Change::Nothing, "max_fails {max_fails}, {times:?}");
            }
        }
    }
}

#[test]
fn a_failed_trial_keeps_it_out_for_fail_timeout_from_its_beginning() {
    let mut health = out_at(5);
    let refused = health.failed(&SETTINGS, Reason::Refused, at(16));
    assert_eq!(refused, Change::TrialFailed);
    assert_eq!(health.state(), State::Out { retry_at: at(26), cause: Some(Cause::Refused) });
    let silent = health.failed(&SETTINGS, Reason::ConnectTimeout, at(28));
    assert_eq!(silent, Change::TrialFailed);
    assert_eq!(health.state(), State::Out { retry_at: at(36), cause: Some(Cause::Timeout) }, "begun at 26 s");
    assert_eq!(health.changed_at(), at(5), "it has been out since then");
}

#[test]
fn a_trial_that_outlasts_fail_timeout_may_be_followed_at_once() {
    let settings = Settings { fail_timeout: SECOND, ..SETTINGS };
    let mut health = Health::new(Instant::ZERO);
    for _ in 0..3 {
        health.failed(&settings, Reason::ConnectTimeout, at(5));
    }
    assert_eq!(health.failed(&settings, Reason::ConnectTimeout, at(8)), Change::TrialFailed);
    assert_eq!(health.state(), State::Out { retry_at: at(8), cause: Some(Cause::Timeout) });
}

#[test]
fn connections_begun_before_it_went_out_do_not_prolong_it() {
    let mut health = out_at(5);
    for tenth in 0..20 {
        let change = health.failed(&SETTINGS, Reason::ConnectTimeout, at(5) + tenth * SECOND / 10);
        assert_eq!(change, Change::Nothing, "as it was");
    }
    let late = health.failed(&SETTINGS, Reason::ConnectTimeout, at(16));
    assert_eq!(late, Change::Nothing, "begun at 14 s: a trial may be under way");
    assert_eq!(health.state(), State::Out { retry_at: at(15), cause: Some(Cause::Refused) });
}

#[test]
fn an_answered_trial_brings_it_back_at_once_with_a_clean_record() {
    let mut health = out_at(5);
    assert_eq!(health.recovered(at(15)), Change::Recovered);
    assert_eq!((health.state(), health.changed_at()), (State::Up, at(15)));
    assert_eq!(health.recovered(at(16)), Change::Nothing, "said once");
    assert_eq!(health.failed(&SETTINGS, Reason::Refused, at(15)), Change::Nothing);
    assert_eq!(health.failed(&SETTINGS, Reason::Refused, at(15)), Change::Nothing);
}

#[test]
fn a_lost_recovery_is_seen_in_the_map() {
    let mut health = out_at(5);
    let record = |admission| Backend { admission, retry_at: at(20), ..Backend::default() };
    assert_eq!(health.compared(&SETTINGS, &record(OUT), at(16)), Change::Nothing);
    let moved = State::Out { retry_at: at(20), cause: Some(Cause::Refused) };
    assert_eq!(health.state(), moved, "a trial has begun");
    assert_eq!(health.compared(&SETTINGS, &record(UP), at(17)), Change::Recovered);
    assert_eq!(health.compared(&SETTINGS, &record(UP), at(18)), Change::Nothing);
}

#[test]
fn with_max_fails_zero_nothing_is_counted_and_a_reload_to_zero_brings_it_back() {
    let never = Settings { max_fails: 0, ..SETTINGS };
    let mut health = Health::new(Instant::ZERO);
    for turn in 0..100 {
        assert_eq!(health.failed(&never, Reason::Refused, Instant(turn)), Change::Nothing);
    }
    let mut health = out_at(5);
    assert_eq!(health.configured(&SETTINGS, at(6)), Change::Nothing, "a reload keeps health");
    assert_eq!(health.configured(&never, at(6)), Change::Recovered);
}

fn adopted(admission: u32, retry_at: Instant, out_reason: u32, changed_at: Instant) -> Health {
    Health::adopted(&Backend { admission, retry_at, out_reason, changed_at, ..Backend::default() }, at(25))
}

#[test]
fn a_restarted_controller_takes_health_from_the_map() {
    let mut health = adopted(OUT, at(30), Reason::Refused as u32, at(20));
    assert_eq!(health.state(), State::Out { retry_at: at(30), cause: Some(Cause::Refused) });
    assert_eq!(health.changed_at(), at(20));
    assert_eq!(health.failed(&SETTINGS, Reason::Refused, at(31)), Change::TrialFailed);
    let up = adopted(UP, Instant::ZERO, 0, at(7));
    assert_eq!((up.state(), up.changed_at()), (State::Up, at(7)));
}

#[test]
fn what_the_map_does_not_say_is_unknown_and_began_now() {
    let by_an_earlier_version = adopted(OUT, at(30), 0, Instant::ZERO);
    assert_eq!(by_an_earlier_version.state(), State::Out { retry_at: at(30), cause: None });
    assert_eq!(by_an_earlier_version.changed_at(), at(25));
    let recovered_unseen = adopted(UP, Instant::ZERO, Reason::Refused as u32, at(20));
    assert_eq!((recovered_unseen.state(), recovered_unseen.changed_at()), (State::Up, at(25)));
    let damaged = adopted(OUT, at(30), u32::MAX, Instant::NEVER);
    assert_eq!(damaged.state(), State::Out { retry_at: at(30), cause: None });
    assert_eq!(damaged.changed_at(), at(25));
}

#[test]
fn a_host_that_answers_arp_again_is_tried_without_waiting() {
    let mut health = out_at(5);
    assert_eq!(health.reachable(&SETTINGS, at(7)), Change::StaysOut { retry_at: at(7) });
    assert_eq!(health.reachable(&SETTINGS, at(8)), Change::Nothing);
    assert_eq!(Health::new(Instant::ZERO).reachable(&SETTINGS, at(1)), Change::Nothing);
}

const PROBED: Settings = Settings { probe: Some(Tries { rise: 2, fall: 3 }), ..SETTINGS };

fn probed(health: &mut Health, outcomes: &[Outcome], at: Instant) -> Vec<Change> {
    outcomes.iter().map(|outcome| health.probed(&PROBED, *outcome, at)).collect()
}

fn with_probe() -> Health {
    let mut health = Health::new(Instant::ZERO);
    assert_eq!(health.configured(&PROBED, Instant(0)), Change::Nothing);
    health
}

use Outcome::{Failed, Passed};

const UNREADY: Outcome = Outcome::NotReady(Unready::Status);

#[test]
fn probes_that_are_not_answered_take_it_out_until_probes_pass_and_no_client_is_spent_on_a_trial() {
    let mut health = with_probe();
    assert!(health.is_fit());
    let out = Change::TakenOut { retry_at: Instant::NEVER };
    assert_eq!(probed(&mut health, &[Failed, Failed], Instant(5)), [Change::Nothing; 2]);
    assert!(health.state() == State::Up && !health.is_fit());
    assert_eq!(probed(&mut health, &[Failed, Failed], Instant(6)), [out, Change::Nothing]);
    assert_eq!(health.state(), State::Out { retry_at: Instant::NEVER, cause: Some(Cause::ProbeTimeout) });
    assert_eq!(health.failed(&PROBED, Reason::Refused, Instant(7)), Change::Nothing, "given one because all are out");
    assert_eq!(probed(&mut health, &[Passed, Failed, Passed, Passed], Instant(9))[3], Change::Recovered);
    assert!(health.is_fit() && health.changed_at() == Instant(9));
}

#[test]
fn an_unlisted_status_drains_and_a_listed_one_ends_it() {
    let mut health = with_probe();
    assert_eq!(probed(&mut health, &[UNREADY; 3], Instant(5))[2], Change::Drained(Unready::Status));
    assert_eq!(health.state(), State::NotReady(Unready::Status));
    assert_eq!(probed(&mut health, &[UNREADY, Passed, UNREADY, Passed], Instant(6)), [Change::Nothing; 4]);
    assert_eq!(probed(&mut health, &[Passed], Instant(7)), [Change::Recovered]);
}

#[test]
fn a_certificate_that_is_not_accepted_drains_and_is_told_from_a_status_also_by_the_next_controller() {
    const UNTRUSTED_NOW: Outcome = Outcome::NotReady(Unready::Tls);
    let mut health = with_probe();
    assert_eq!(probed(&mut health, &[UNTRUSTED_NOW; 3], Instant(5))[2], Change::Drained(Unready::Tls));
    let record =
        Backend { admission: OUT, out_reason: health.out_reason(), changed_at: Instant(5), ..Backend::default() };
    assert_eq!(Health::adopted(&record, Instant(9)).state(), State::NotReady(Unready::Tls));
    assert_eq!(probed(&mut health, &[UNTRUSTED_NOW, Failed], Instant(6)), [Change::Nothing; 2]);
    assert_eq!(probed(&mut health, &[UNREADY], Instant(7)), [Change::Drained(Unready::Status)]);
    assert_eq!(probed(&mut health, &[Passed; 2], Instant(8))[1], Change::Recovered);
    assert_eq!(probed(&mut health, &[UNTRUSTED_NOW, Failed, Failed], Instant(9))[2], Change::Drained(Unready::Tls));
}

#[test]
fn one_that_is_not_ready_and_then_dies_is_out_and_one_that_answers_again_is_not_ready() {
    let mut health = with_probe();
    probed(&mut health, &[UNREADY; 3], Instant(5));
    let changes = probed(&mut health, &[Outcome::Refused; 3], Instant(6));
    assert_eq!(changes, [Change::Nothing, Change::Nothing, Change::TakenOut { retry_at: Instant::NEVER }]);
    assert_eq!(health.state(), State::Out { retry_at: Instant::NEVER, cause: Some(Cause::Refused) });
    assert_eq!(probed(&mut health, &[UNREADY], Instant(7)), [Change::Drained(Unready::Status)]);
}

#[test]
fn failures_of_both_kinds_drain_and_do_not_kill() {
    let mut health = with_probe();
    assert_eq!(probed(&mut health, &[UNREADY, Failed, Failed], Instant(5))[2], Change::Drained(Unready::Status));
    assert_eq!(probed(&mut health, &[Failed], Instant(6)), [Change::TakenOut { retry_at: Instant::NEVER }]);
}

#[test]
fn what_clients_meet_takes_it_out_beside_the_probe_and_only_the_probe_brings_it_back() {
    let mut health = with_probe();
    probed(&mut health, &[Passed; 5], Instant(4));
    for _ in 0..2 {
        health.failed(&PROBED, Reason::Refused, Instant(5));
    }
    assert_eq!(health.failed(&PROBED, Reason::Refused, Instant(5)), Change::TakenOut { retry_at: Instant::NEVER });
    let up = Backend { admission: UP, ..Backend::default() };
    assert_eq!(health.compared(&PROBED, &up, Instant(6)), Change::Nothing);
    assert_eq!(health.reachable(&PROBED, Instant(6)), Change::Nothing);
    assert_eq!(probed(&mut health, &[Passed, Passed], Instant(7)), [Change::Nothing, Change::Recovered]);
}

#[test]
fn silence_is_worse_than_a_timeout_and_bears_out_probes_that_were_not_answered() {
    let mut health = Health::new(Instant::ZERO);
    for _ in 0..3 {
        health.failed(&SETTINGS, Reason::ConnectTimeout, at(5));
    }
    let retry_at = at(15);
    assert_eq!(health.silent(&SETTINGS, at(6)), Change::TakenOut { retry_at });
    assert_eq!(health.state(), State::Out { retry_at, cause: Some(Cause::Silent) });
    assert_eq!(health.silent(&SETTINGS, at(7)), Change::Nothing);
    health.failed(&SETTINGS, Reason::ConnectTimeout, at(17));
    let state = State::Out { retry_at: at(25), cause: Some(Cause::Silent) };
    assert_eq!(health.state(), state, "a trial that is not answered changes nothing about that");

    let mut health = Health::new(Instant::ZERO);
    assert_eq!(health.silent(&SETTINGS, at(1)), Change::TakenOut { retry_at: at(11) });
    let mut health = with_probe();
    probed(&mut health, &[Failed; 3], Instant(5));
    assert_eq!(health.silent(&PROBED, Instant(6)), Change::TakenOut { retry_at: Instant::NEVER });
    assert_eq!(probed(&mut health, &[Failed; 3], Instant(6)), [Change::Nothing; 3], "that is no news");
    assert_eq!(
        probed(&mut health, &[Outcome::Refused], Instant(6)),
        [Change::TakenOut { retry_at: Instant::NEVER }],
        "it has restarted"
    );
}

#[test]
fn a_probe_that_is_configured_or_removed_keeps_what_is_known() {
    let mut health = out_at(5);
    assert_eq!(health.configured(&PROBED, at(6)), Change::StaysOut { retry_at: Instant::NEVER });
    assert_eq!(probed(&mut health, &[Passed], at(7)), [Change::Nothing], "it has to pass twice");
    assert_eq!(health.configured(&SETTINGS, at(8)), Change::StaysOut { retry_at: at(8) });
    let mut health = with_probe();
    probed(&mut health, &[UNREADY; 3], Instant(5));
    assert_eq!(health.configured(&PROBED, Instant(6)), Change::Nothing);
    assert_eq!(health.configured(&SETTINGS, Instant(6)), Change::Recovered);
    let other = Settings { probe: Some(Tries { rise: 9, fall: 1 }), ..SETTINGS };
    let mut health = with_probe();
    health.configured(&other, Instant(6));
    assert_eq!(health.probed(&other, Passed, Instant(7)), Change::Nothing);
    assert_eq!(health.state(), State::Up, "up stays up under other numbers");
}

#[test]
fn what_another_host_has_found_counts_where_nobody_probes_and_is_no_news_twice() {
    let settings = SETTINGS;
    let mut health = Health::new(Instant::ZERO);
    let out = health.found_elsewhere(&settings, Some(Cause::Refused), at(1));
    assert_eq!(out, Change::TakenOut { retry_at: at(1) + settings.fail_timeout });
    assert_eq!(health.found_elsewhere(&settings, Some(Cause::Refused), at(2)), Change::Nothing);
    assert!(matches!(health.found_elsewhere(&settings, Some(Cause::Silent), at(3)), Change::TakenOut { .. }));
    assert_eq!(health.found_elsewhere(&settings, None, at(4)), Change::Recovered);
    assert_eq!(health.found_elsewhere(&settings, None, at(5)), Change::Nothing);
    let never = Settings { max_fails: 0, ..settings };
    assert_eq!(health.found_elsewhere(&never, Some(Cause::Refused), at(6)), Change::Nothing);
}

#[test]
fn what_the_program_has_taken_out_is_out_whatever_this_machine_has_counted() {
    for counted in 0..2 {
        let mut health = Health::new(Instant::ZERO);
        (0..counted).for_each(|_| _ = health.failed(&SETTINGS, Reason::Refused, at(4)));
        let change = health.taken_out(&SETTINGS, Reason::ConnectTimeout, at(5));
        assert_eq!(change, Change::TakenOut { retry_at: at(15) });
        assert_eq!(health.state(), State::Out { retry_at: at(15), cause: Some(Cause::Timeout) });
        assert_eq!(health.taken_out(&SETTINGS, Reason::Refused, at(5)), Change::Nothing, "said once");
        assert_eq!(health.recovered(at(16)), Change::Recovered);
        assert_eq!(health.failed(&SETTINGS, Reason::Refused, at(16)), Change::Nothing, "a clean record");
    }
    let mut health = with_probe();
    assert_eq!(
        health.taken_out(&PROBED, Reason::Refused, at(5)),
        Change::TakenOut { retry_at: Instant::NEVER },
        "only its probe brings it back"
    );
    assert_eq!(probed(&mut health, &[Passed, Passed], at(6)), [Change::Nothing, Change::Recovered]);
}

#[test]
fn a_map_that_says_out_is_believed_with_the_reason_and_the_time_that_it_gives() {
    let out =
        |out_reason| Backend { admission: OUT, retry_at: at(15), out_reason, changed_at: at(5), ..Backend::default() };
    for (reason, cause) in [
        (Reason::Refused as u32, Some(Cause::Refused)),
        (Reason::ConnectTimeout as u32, Some(Cause::Timeout)),
        (0, None),
        (u32::MAX, None),
    ] {
        let mut health = Health::new(at(1));
        assert_eq!(health.compared(&SETTINGS, &out(reason), at(6)), Change::TakenOut { retry_at: at(15) });
        assert_eq!((health.state(), health.changed_at()), (State::Out { retry_at: at(15), cause }, at(5)));
    }
    let mut health = with_probe();
    let change = health.compared(&PROBED, &out(Reason::Refused as u32), at(6));
    assert_eq!(change, Change::TakenOut { retry_at: Instant::NEVER });
}
