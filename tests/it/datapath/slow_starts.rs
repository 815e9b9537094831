//! A backend that comes back gets a share of new connections that grows from nothing to its full
//! share.
//!
//! The share grows with the clock, which continues while a test runs. So the expected share is
//! computed from the clock before and after each connection.

use std::{thread, time::Duration};

use evenkeel::sys::clock;
use lab::{
    packet::{ACK, SYN},
    program::{Bench, Setup, backend_of},
};
use lb_common::{
    layout::{NONE, OUT, UP},
    schedule::{LEAST_CONN, RANDOM_TWO, ROUND_ROBIN},
    time::Instant,
};

use super::{client, with_setup};

const MS: u64 = 1_000_000;
/// How long a slow start takes here.
const TIME: u64 = 800 * MS;
/// How far the coarse clock may be behind.
const STEP: u64 = 20 * MS;

fn setup(balance: u32, weights: &[u32]) -> Setup {
    let mut setup = Setup { backends: weights.len() as u16, ports: 4096, ..Setup::default() };
    setup.weights = weights.to_vec();
    setup.max_connections = 32_768;
    setup.service.balance = balance;
    // Nothing answers the SYNs of these tests.
    setup.service.half_open_cells = 8192;
    setup
}

/// Brings the last backend back, as the controller does. Returns when.
fn come_back(bench: &Bench) -> u64 {
    let last = bench.setup.backends - 1;
    bench.starts_slowly(last, (TIME / MS) as u32);
    bench.tables().admit(last, OUT, Instant::NEVER);
    let now = clock::monotonic().0;
    assert!(bench.tables().swap_admission(last, (OUT, UP), Instant::NEVER, Instant(now + TIME)));
    now
}

/// How much of a slow start that began at `since` is over at `now`: 0 to 1.
fn grown(since: u64, now: u64) -> f64 {
    (now.saturating_sub(since) as f64 / TIME as f64).min(1.0)
}

/// Opens connections of other clients while `goes_on` is true, as many as fit. Returns how many
/// there were, how many the last backend got, and the least and the most that would be right for a
/// full share of `share`.
fn given(bench: &Bench, clients: &mut u16, since: u64, share: f64, goes_on: impl Fn(u64) -> bool) -> (u32, f64, f64) {
    let (mut count, mut least, mut most) = (0, 0.0, 0.0);
    let mut before = clock::monotonic().0;
    while goes_on(before) {
        let syn = bench.forward(&bench.from_client(client(*clients), SYN).numbers(1, 0));
        *clients += 1;
        count += u32::from(backend_of(&syn) == bench.setup.backends - 1);
        let after = clock::monotonic().0;
        least += share * grown(since, before.saturating_sub(STEP));
        most += share * grown(since, after);
        before = after;
        // A few thousand connections in total, not a hundred thousand.
        thread::sleep(Duration::from_micros(300));
    }
    (count, least, most)
}

#[test]
fn under_least_conn_its_share_grows_from_nothing_though_it_is_the_least_busy_and_then_it_is_filled_up() {
    with_setup(setup(LEAST_CONN, &[1, 1, 2]), |bench| {
        let share = 0.5;
        bench.tables().admit(2, NONE, Instant::NEVER);
        let mut clients = 0;
        (0..2000).for_each(|n| _ = bench.forward(&bench.from_client(client(n), SYN).numbers(1, 0)));
        clients += 2000;
        let since = come_back(bench);
        for quarter in 1..=4 {
            let end = since + TIME * quarter / 4 - STEP;
            let (count, least, most) = given(bench, &mut clients, since, share, |now| now < end);
            let right = (least - 2.0).max(0.0)..=most + 2.0;
            assert!(right.contains(&f64::from(count)), "quarter {quarter}: {count} of {right:?}");
            assert!(most > 10.0, "the test says something: {most}");
        }
        let end = since + TIME + STEP;
        given(bench, &mut clients, since, share, |now| now < end);
        // Now it is the least busy one without any reserve.
        let before = bench.active();
        let missing = (before[0] - 1).saturating_sub(before[2]).min(50);
        assert!(missing > 10, "{before:?}");
        for _ in 0..missing {
            bench.forward(&bench.from_client(client(clients), SYN).numbers(1, 0));
            clients += 1;
        }
        assert_eq!(bench.active(), [before[0], before[1], before[2] + missing]);
    });
}

#[test]
fn under_the_other_methods_it_grows_too() {
    with_setup(setup(ROUND_ROBIN, &[1, 1, 1]), |bench| {
        let mut clients = 0;
        for balance in [ROUND_ROBIN, RANDOM_TWO] {
            bench.setup.service.balance = balance;
            bench.tables().configure_service(0, &bench.setup.service).expect("a service");
            bench.tables().admit(2, NONE, Instant::NEVER);
            (clients..clients + 600).for_each(|n| _ = bench.forward(&bench.from_client(client(n), SYN).numbers(1, 0)));
            clients += 600;
            let since = come_back(bench);
            let half = since + TIME / 2;
            let begun = clients;
            let (first, _, most) = given(bench, &mut clients, since, 1.0 / 3.0, |now| now < half);
            // A third of these moments, in turn or at random.
            assert!(f64::from(first) < most * 1.5 + 10.0, "{first} of {most}");
            let (end, halfway) = (since + TIME, clients);
            let (second, least, _) = given(bench, &mut clients, since, 1.0 / 3.0, |now| now < end);
            assert!(f64::from(second) > least * 0.5 - 10.0, "{second} of {least}");
            // A busy machine opens fewer connections in one half than in the other.
            let rate = |count: u32, all| f64::from(count) / f64::from(all);
            let (early, late) = (rate(first, halfway - begun), rate(second, clients - halfway));
            assert!(late > early, "{early} and then {late} of the connections");
        }
    });
}

#[test]
fn with_nobody_else_it_gets_everything_at_once() {
    with_setup(setup(LEAST_CONN, &[1, 1, 1]), |bench| {
        come_back(bench);
        bench.tables().admit(0, NONE, Instant::NEVER);
        bench.tables().admit(1, OUT, Instant::NEVER);
        for n in 0..20 {
            assert_eq!(backend_of(&bench.forward(&bench.from_client(client(n), SYN).numbers(1, 0))), 2);
        }
        assert_eq!(bench.moved(), [], "and that is no emergency");
    });
}

#[test]
fn one_that_a_trial_brings_back_starts_slowly_without_the_controller() {
    with_setup(setup(LEAST_CONN, &[1, 1, 1]), |bench| {
        bench.tables().admit(2, NONE, Instant::NEVER);
        (0..300).for_each(|n| _ = bench.forward(&bench.from_client(client(n), SYN).numbers(1, 0)));
        bench.starts_slowly(2, (TIME / MS) as u32);
        bench.tables().admit(2, OUT, Instant(1));
        let trial = bench.forward(&bench.from_client(client(300), SYN).numbers(1, 0));
        assert_eq!(backend_of(&trial), 2, "a trial is due");
        let before = clock::monotonic().0;
        bench.forward(&bench.from_backend(2, trial.from.port(), SYN | ACK).numbers(9, 2));
        assert_eq!(bench.tables().backend(2).admission, UP);
        let until = bench.tables().slow_start(2).until.0;
        let right = before + TIME - STEP..=clock::monotonic().0 + TIME;
        assert!(right.contains(&until) && bench.tables().service(0).slow_until.0 == until, "{until} of {right:?}");
        let (mut clients, since) = (301, until - TIME);
        let half = since + TIME / 2;
        let (count, least, most) = given(bench, &mut clients, since, 1.0 / 3.0, |now| now < half);
        assert!((least - 2.0..=most + 2.0).contains(&f64::from(count)), "{count} of {least} to {most}");
    });
}
