//! nginx's documented behaviour is the oracle (ngx_stream_upstream_module: max_fails, fail_timeout); where evenkeel
//! departs from it, the test's name says so.

use super::*;

const SECOND: u64 = 1_000_000_000;
const SETTINGS: Settings = Settings { max_fails: 3, fail_timeout: 10 * SECOND, connect_timeout: 2 * SECOND };

fn out_at(seconds: u64) -> Health {
    let mut health = Health::new(0);
    health.failed(&SETTINGS, Reason::Refused, seconds * SECOND);
    health.failed(&SETTINGS, Reason::Refused, seconds * SECOND);
    let change = health.failed(&SETTINGS, Reason::Refused, seconds * SECOND);
    assert_eq!(change, Change::TakenOut { retry_at: (seconds + 10) * SECOND });
    health
}

#[test]
fn the_third_failure_within_fail_timeout_takes_it_out_for_fail_timeout() {
    let mut health = Health::new(0);
    assert_eq!(health.failed(&SETTINGS, Reason::Refused, SECOND), Change::Nothing);
    assert_eq!(health.failed(&SETTINGS, Reason::ConnectTimeout, 6 * SECOND), Change::Nothing);
    let change = health.failed(&SETTINGS, Reason::Refused, 11 * SECOND);
    assert_eq!(change, Change::TakenOut { retry_at: 21 * SECOND });
    assert_eq!(health.state(), State::Out { retry_at: 21 * SECOND, reason: Some(Reason::Refused) });
    assert_eq!(health.changed_at(), 11 * SECOND);
}

#[test]
fn failures_further_apart_than_fail_timeout_never_take_it_out_as_nginx_documents_but_does_not_do() {
    let mut health = Health::new(0);
    for turn in 1..1000 {
        assert_eq!(health.failed(&SETTINGS, Reason::Refused, turn * 6 * SECOND), Change::Nothing);
    }
    assert_eq!(health.state(), State::Up);
}

#[test]
fn every_sequence_of_failures_agrees_with_a_plain_count_of_the_window() {
    // Gaps of 0, 4 and 7 s in every order of eight failures, and every max_fails up to 5.
    for max_fails in 1..=5 {
        for code in 0..3_u32.pow(8) {
            let settings = Settings { max_fails, ..SETTINGS };
            let mut health = Health::new(0);
            let (mut at, mut times) = (100 * SECOND, Vec::new());
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
    let refused = health.failed(&SETTINGS, Reason::Refused, 16 * SECOND);
    assert_eq!(refused, Change::StaysOut { retry_at: 26 * SECOND });
    let silent = health.failed(&SETTINGS, Reason::ConnectTimeout, 28 * SECOND);
    assert_eq!(silent, Change::StaysOut { retry_at: 36 * SECOND }, "begun at 26 s");
    assert_eq!(health.state(), State::Out { retry_at: 36 * SECOND, reason: Some(Reason::ConnectTimeout) });
    assert_eq!(health.changed_at(), 5 * SECOND, "it has been out since then");
}

#[test]
fn a_trial_that_outlasts_fail_timeout_may_be_followed_at_once() {
    let settings = Settings { fail_timeout: SECOND, ..SETTINGS };
    let mut health = Health::new(0);
    for _ in 0..3 {
        health.failed(&settings, Reason::ConnectTimeout, 5 * SECOND);
    }
    assert_eq!(health.failed(&settings, Reason::ConnectTimeout, 8 * SECOND), Change::StaysOut { retry_at: 8 * SECOND });
}

#[test]
fn connections_begun_before_it_went_out_do_not_prolong_it() {
    let mut health = out_at(5);
    for tenth in 0..20 {
        let at = 5 * SECOND + tenth * SECOND / 10;
        let change = health.failed(&SETTINGS, Reason::ConnectTimeout, at);
        assert_eq!(change, Change::StaysOut { retry_at: 15 * SECOND }, "as it was");
    }
    let late = health.failed(&SETTINGS, Reason::ConnectTimeout, 16 * SECOND);
    assert_eq!(late, Change::Nothing, "begun at 14 s: a trial may be under way");
    assert_eq!(health.state(), State::Out { retry_at: 15 * SECOND, reason: Some(Reason::Refused) });
}

#[test]
fn an_answered_trial_brings_it_back_at_once_with_a_clean_record() {
    let mut health = out_at(5);
    assert_eq!(health.recovered(15 * SECOND), Change::Recovered);
    assert_eq!((health.state(), health.changed_at()), (State::Up, 15 * SECOND));
    assert_eq!(health.recovered(16 * SECOND), Change::Nothing, "said once");
    assert_eq!(health.failed(&SETTINGS, Reason::Refused, 15 * SECOND), Change::Nothing);
    assert_eq!(health.failed(&SETTINGS, Reason::Refused, 15 * SECOND), Change::Nothing);
}

#[test]
fn a_lost_recovery_is_seen_in_the_map() {
    let mut health = out_at(5);
    assert_eq!(health.compared(OUT, 16 * SECOND), Change::Nothing);
    assert_eq!(health.compared(UP, 17 * SECOND), Change::Recovered);
    assert_eq!(health.compared(UP, 18 * SECOND), Change::Nothing);
}

#[test]
fn with_max_fails_zero_nothing_is_counted_and_a_reload_to_zero_brings_it_back() {
    let never = Settings { max_fails: 0, ..SETTINGS };
    let mut health = Health::new(0);
    for turn in 0..100 {
        assert_eq!(health.failed(&never, Reason::Refused, turn), Change::Nothing);
    }
    let mut health = out_at(5);
    assert_eq!(health.configured(&SETTINGS, 6 * SECOND), Change::Nothing, "a reload keeps health");
    assert_eq!(health.configured(&never, 6 * SECOND), Change::Recovered);
}

fn adopted(admission: u32, retry_at: u64, out_reason: u32, changed_at: u64) -> Health {
    Health::adopted(&Backend { admission, retry_at, out_reason, changed_at, ..Backend::default() }, 25 * SECOND)
}

#[test]
fn a_restarted_controller_takes_health_from_the_map() {
    let mut health = adopted(OUT, 30 * SECOND, Reason::Refused as u32, 20 * SECOND);
    assert_eq!(health.state(), State::Out { retry_at: 30 * SECOND, reason: Some(Reason::Refused) });
    assert_eq!(health.changed_at(), 20 * SECOND);
    assert_eq!(health.failed(&SETTINGS, Reason::Refused, 31 * SECOND), Change::StaysOut { retry_at: 41 * SECOND });
    let up = adopted(UP, 0, 0, 7 * SECOND);
    assert_eq!((up.state(), up.changed_at()), (State::Up, 7 * SECOND));
}

#[test]
fn what_the_map_does_not_say_is_unknown_and_began_now() {
    let by_an_earlier_version = adopted(OUT, 30 * SECOND, 0, 0);
    assert_eq!(by_an_earlier_version.state(), State::Out { retry_at: 30 * SECOND, reason: None });
    assert_eq!(by_an_earlier_version.changed_at(), 25 * SECOND);
    let recovered_unseen = adopted(UP, 0, Reason::Refused as u32, 20 * SECOND);
    assert_eq!((recovered_unseen.state(), recovered_unseen.changed_at()), (State::Up, 25 * SECOND));
    let damaged = adopted(OUT, 30 * SECOND, u32::MAX, u64::MAX);
    assert_eq!(damaged.state(), State::Out { retry_at: 30 * SECOND, reason: None });
    assert_eq!(damaged.changed_at(), 25 * SECOND);
}

#[test]
fn a_host_that_answers_arp_again_is_tried_without_waiting() {
    let mut health = out_at(5);
    assert_eq!(health.reachable(7 * SECOND), Change::StaysOut { retry_at: 7 * SECOND });
    assert_eq!(health.reachable(8 * SECOND), Change::Nothing);
    assert_eq!(Health::new(0).reachable(SECOND), Change::Nothing);
}
