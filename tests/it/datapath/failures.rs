//! Tries that fail, counted by the program itself: no controller runs here.

use std::{collections::BTreeMap, time::Duration};

use evenkeel::sys::clock;
use lab::{
    packet::{ACK, RST, SYN, Segment},
    program::{Bench, Setup, backend_of},
};
use lb_common::{
    layout::{NONE, OUT, UP},
    time::Instant,
    verdict::Reason,
};

use super::{client, with_setup};

const TEN_SECONDS: Duration = Duration::from_secs(10);
/// More than a step of the coarse clock.
const STEP: Duration = Duration::from_millis(20);

/// Clients try one backend only (`next_upstream = false`).
fn one_try(backends: u16) -> Setup {
    let mut setup = Setup { backends, ports: 512, ..Setup::default() };
    setup.service.tries = 1;
    setup.service.half_open_cells = 2048;
    setup
}

fn refusal(bench: &Bench, syn: &Segment) -> Segment {
    bench.from_backend(backend_of(syn), syn.from.port(), RST | ACK).numbers(0, syn.sequence.wrapping_add(1))
}

fn connect(bench: &Bench, n: u16) -> Segment {
    bench.forward(&bench.from_client(client(n), SYN).numbers(77, 0))
}

/// What becomes of a SYN that its backend refuses: another backend, or `None` if its client is
/// refused.
fn refused(bench: &Bench, syn: &Segment) -> Option<u16> {
    let out = bench.forward(&refusal(bench, syn));
    if out.flags == SYN { Some(backend_of(&out)) } else { None }
}

#[test]
fn of_all_that_connect_at_once_exactly_max_fails_meet_a_backend_that_refuses() {
    for max_fails in [1, 3, 20] {
        with_setup(one_try(2), |bench| {
            (0..2).for_each(|n| bench.allows_failures(n, max_fails, TEN_SECONDS));
            let before = clock::monotonic();
            // All SYNs are on the way before the first answer comes, in an order of its own.
            let mut syns: Vec<_> = (0..200).map(|n| connect(bench, n)).filter(|syn| backend_of(syn) == 0).collect();
            assert_eq!(syns.len(), 100);
            syns.sort_by_key(|syn| (u32::from(syn.from.port()) * 7919) % 101);
            let fates: Vec<_> = syns.iter().map(|syn| refused(bench, syn)).collect();
            let (refusals, moved): (Vec<_>, Vec<_>) = fates.iter().partition(|fate| fate.is_none());
            assert_eq!((refusals.len() as u32, moved.len() as u32), (max_fails, 100 - max_fails));
            assert!(fates[..max_fails as usize].iter().all(Option::is_none), "the first ones, before it was out");
            assert!(moved.iter().all(|to: &&Option<u16>| **to == Some(1)), "{moved:?}");
            let record = bench.tables().backend(0);
            assert_eq!((record.admission, record.out_reason), (OUT, Reason::Refused as u32));
            assert!((before..clock::monotonic() + STEP).contains(&(record.changed_at + STEP)));
            assert_eq!(record.retry_at, record.changed_at + TEN_SECONDS);
            assert_eq!(record.connect_failures, 100);
            // And nobody else meets it.
            assert!((200..300).all(|n| backend_of(&connect(bench, n)) == 1));
            assert_eq!(bench.active(), [0, 300 - u32::from(max_fails as u16)]);
        });
    }
}

#[test]
fn one_after_another_exactly_max_fails_meet_it() {
    for max_fails in [1, 3] {
        with_setup(one_try(2), |bench| {
            bench.allows_failures(0, max_fails, TEN_SECONDS);
            let mut refusals = 0;
            for n in 0..100 {
                let syn = connect(bench, n);
                if backend_of(&syn) == 0 {
                    refusals += u32::from(refused(bench, &syn).is_none());
                }
            }
            assert_eq!(refusals, max_fails);
        });
    }
}

#[test]
fn failures_that_are_further_apart_than_fail_timeout_or_not_limited_take_nobody_out() {
    with_setup(one_try(1), |bench| {
        bench.allows_failures(0, 3, Duration::from_millis(60));
        let fail = |n| refused(bench, &connect(bench, n));
        for turn in 0..3 {
            fail(2 * turn);
            fail(2 * turn + 1);
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(bench.tables().backend(0).admission, UP, "two of three in every window");
        }
    });
    with_setup(one_try(1), |bench| {
        let fail = |n| refused(bench, &connect(bench, n));
        bench.allows_failures(0, 0, TEN_SECONDS);
        (10..110).for_each(|n| _ = fail(n));
        assert_eq!(bench.tables().backend(0).admission, UP, "max_fails = 0");
        bench.allows_failures(0, 2, TEN_SECONDS);
        fail(110);
        assert_eq!(bench.tables().backend(0).admission, UP);
        fail(111);
        assert_eq!(bench.tables().backend(0).admission, OUT, "a reload that changes it counts at once");
    });
}

#[test]
fn a_backend_that_comes_back_has_a_clean_record() {
    with_setup(one_try(2), |bench| {
        bench.allows_failures(0, 3, TEN_SECONDS);
        let fail = |from: u16, most: usize| {
            let syns = (from..from + 40).map(|n| connect(bench, n)).filter(|syn| backend_of(syn) == 0);
            syns.take(most).for_each(|syn| _ = refused(bench, &syn));
        };
        fail(0, 2);
        assert!(bench.tables().swap_admission(0, (UP, OUT), Instant::NEVER, Instant::ZERO), "by its probe");
        assert!(bench.tables().swap_admission(0, (OUT, UP), Instant::NEVER, Instant::ZERO));
        fail(100, 2);
        assert_eq!(bench.tables().backend(0).admission, UP);
        fail(200, 1);
        assert_eq!(bench.tables().backend(0).admission, OUT);
    });
}

#[test]
fn what_an_operator_said_is_never_overwritten() {
    with_setup(one_try(2), |bench| {
        bench.allows_failures(0, 1, TEN_SECONDS);
        let syns: Vec<_> = (0..8).map(|n| connect(bench, n)).filter(|syn| backend_of(syn) == 0).collect();
        bench.tables().admit(0, NONE, Instant::NEVER);
        for syn in &syns {
            assert_eq!(refused(bench, syn), Some(1), "it may go on, as from any backend that is drained");
        }
        let record = bench.tables().backend(0);
        assert_eq!((record.admission, record.retry_at, record.out_reason), (NONE, Instant::NEVER, 0));
    });
}

#[test]
fn a_silent_backend_is_out_at_the_failure_that_is_one_too_many_and_others_on_their_way_go_on() {
    let mut setup = one_try(2);
    setup.service.connect_timeout = Duration::from_millis(1);
    with_setup(setup, |bench| {
        bench.allows_failures(0, 3, TEN_SECONDS);
        let clients: Vec<_> = (0..40).filter(|n| backend_of(&connect(bench, *n)) == 0).collect();
        std::thread::sleep(STEP);
        // The client's own repetition, or the controller's in its name.
        let fates: Vec<_> = clients.iter().map(|n| connect(bench, *n)).collect();
        let refused = fates.iter().filter(|out| out.flags == RST | ACK).count();
        assert_eq!((refused, fates.iter().filter(|out| out.flags == SYN && backend_of(out) == 1).count()), (3, 17));
        let record = bench.tables().backend(0);
        assert_eq!((record.admission, record.out_reason), (OUT, Reason::ConnectTimeout as u32));
    });
}

#[test]
fn one_trial_per_fail_timeout_meets_a_backend_that_stays_dead_and_its_client_alone() {
    const PAUSE: Duration = Duration::from_millis(200);
    for silent in [false, true] {
        let mut setup = one_try(2);
        setup.service.connect_timeout = Duration::from_millis(30);
        with_setup(setup, |bench| {
            bench.allows_failures(0, 1, PAUSE);
            let begun = clock::monotonic();
            bench.tables().admit(0, OUT, begun + PAUSE);
            let (mut trials, mut n) = (Vec::new(), 0);
            while clock::monotonic() < begun + 8 * PAUSE {
                let syn = connect(bench, n);
                if backend_of(&syn) == 0 {
                    trials.push(clock::monotonic());
                    if silent {
                        std::thread::sleep(Duration::from_millis(50));
                        assert_eq!(connect(bench, n).flags, RST | ACK);
                    } else {
                        assert_eq!(refused(bench, &syn), None);
                    }
                }
                bench.send(&bench.from_client(client(n), RST).numbers(78, 0));
                n = (n + 1) % 5000;
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!((6..=7).contains(&trials.len()), "silent {silent}: {} trials", trials.len());
            for pair in trials.windows(2) {
                assert!(pair[1] - pair[0] + STEP >= PAUSE, "silent {silent}: {trials:?}");
            }
            assert_eq!(bench.tables().backend(0).admission, OUT);
        });
    }
}

#[test]
fn of_tries_that_were_on_their_way_none_puts_the_next_trial_off() {
    with_setup(one_try(2), |bench| {
        bench.allows_failures(0, 1, TEN_SECONDS);
        let syns: Vec<_> = (0..20).map(|n| connect(bench, n)).filter(|syn| backend_of(syn) == 0).collect();
        refused(bench, &syns[0]);
        let retry_at = bench.tables().backend(0).retry_at;
        std::thread::sleep(2 * STEP);
        syns[1..].iter().for_each(|syn| _ = refused(bench, syn));
        assert_eq!(bench.tables().backend(0).retry_at, retry_at);
    });
}

#[test]
fn when_all_are_out_a_client_that_is_given_one_that_refuses_is_refused() {
    with_setup(one_try(2), |bench| {
        (0..2).for_each(|n| bench.allows_failures(n, 1, TEN_SECONDS));
        (0..2).for_each(|n| bench.tables().admit(n, OUT, Instant::NEVER));
        let mut met = BTreeMap::<u16, u32>::new();
        for n in 0..20 {
            let syn = connect(bench, n);
            *met.entry(backend_of(&syn)).or_default() += 1;
            assert_eq!(refused(bench, &syn), None, "one try is one try");
        }
        assert_eq!(met.len(), 2, "fail open");
        assert_eq!(bench.tables().backend(0).retry_at, Instant::NEVER);
    });
}

#[test]
fn a_trial_waits_until_the_backend_is_below_its_limit_of_connections() {
    with_setup(Setup { backends: 2, ..Setup::default() }, |bench| {
        let held = bench.connect(client(0));
        let n = held.backend;
        bench.configure(n, 1, false, 1);
        bench.tables().admit(n, OUT, Instant(1));
        assert!((1..20).all(|other| backend_of(&connect(bench, other)) != n), "max_conns = 1");
        bench.close(&held);
        assert_eq!(backend_of(&connect(bench, 30)), n);
    });
}
