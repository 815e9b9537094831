//! Backends that fail and come back: which clients meet them in the meantime, and when they are
//! used again.

use std::time::{Duration, Instant};

use lab::{
    Capture, Plan, StandIn, capture,
    topology::{PORT, Topology},
    wait,
};
use nix::sys::signal::Signal;

use crate::cluster::{Cluster, SOON, all_served, both, both_at_once};

const FAIL_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// The program reads the coarse clock, and tcpdump another one.
const CLOCKS: Duration = Duration::from_millis(50);

/// Short times, so that a test sees several trials; shorter than the second after which a client
/// repeats its SYN.
fn quick(hook: &str) -> Cluster {
    Cluster::new(hook, |service| {
        let service = service.line("connect_timeout = \"500ms\"");
        (0..3).fold(service, |service, backend| service.backend_line(backend, "fail_timeout = \"2s\""))
    })
}

#[test]
fn a_silent_backend_that_is_out_meets_one_client_per_fail_timeout() {
    both_at_once(|hook| {
        let cluster = quick(hook);
        let silent = &cluster.lab.backends[1];
        let syns = Capture::of_syns(silent, PORT).expect("tcpdump");
        silent.drop_syns(PORT).expect("nft");
        let storm = cluster.storm(&["--rate", "100", "--seconds", "12", "--slow-ms", "400"]);
        cluster.wait_state("cp02", "down", SOON);
        let out = capture::now();
        assert_eq!(cluster.backend("cp02").reason.as_deref(), Some("timeout"), "{hook}");
        let report = storm.finish(Duration::from_secs(30)).expect("its report");
        let until = capture::now();

        let seen = syns.seen();
        let (before, trials): (Vec<_>, Vec<_>) = seen.iter().partition(|at| **at < out);
        let trials: Vec<Duration> = trials.into_iter().copied().collect();
        let slow = report.slow;
        println!("{hook}: {} SYNs until it was out, then {} trials; {slow} clients waited", before.len(), trials.len());
        // Each trial costs its client connect_timeout, and no other client anything.
        assert_eq!((report.failures(), slow), (0, seen.len() as u64), "{hook}: {report:?}");
        assert!(report.max_ms < 800.0, "{hook}: {report:?}");
        for pair in trials.windows(2) {
            assert!(pair[1] - pair[0] + CLOCKS >= FAIL_TIMEOUT, "{hook}: two trials at once: {trials:?}");
        }
        // And it is tried: the next client after fail_timeout is the trial.
        let most = until - out;
        let least = (most.as_secs_f64() / (FAIL_TIMEOUT + CLOCKS * 2).as_secs_f64()).floor() as usize;
        assert!(trials.len() >= least && least >= 3, "{hook}: {} trials in {most:?}", trials.len());
    });
}

#[test]
fn with_all_refusing_the_client_is_refused_within_100_ms() {
    both(|hook| {
        let mut cluster = Cluster::new(hook, |service| service);
        cluster.standins[..2].iter_mut().for_each(StandIn::kill);
        cluster.lab.backends[2].reject_syns(PORT).expect("nft");
        let opened = cluster.hold(&["--parallel", "1"]).open(30).expect("open");
        assert_eq!(opened.failed, [("refused".to_owned(), 30)].into(), "{hook}: {opened:?}");
        assert!(opened.slowest_failed_ms < 100.0, "{hook}: {opened:?}");
    });
}

/// How long after `come_back` the backend cp02 serves a client again, with 100 new connections per
/// second.
fn time_until_used(cluster: &Cluster, come_back: impl FnOnce()) -> Duration {
    let storm = cluster.storm(&["--rate", "100", "--seconds", "60", "--every", "0.02"]);
    cluster.wait_state("cp02", "down", SOON);
    let served = || storm.latest().map(|report| report.by.get("cp02").copied().unwrap_or(0)).unwrap_or(0);
    let before = served();
    come_back();
    let back = Instant::now();
    wait::until("cp02 serves again", SOON, || (served() > before).then_some(()))
        .unwrap_or_else(|error| panic!("{error:#}\n{:?}", cluster.backend("cp02")));
    let took = back.elapsed();
    assert_eq!(storm.latest().expect("a report").failures(), 0);
    took
}

#[test]
fn a_backend_that_comes_back_is_used_within_fail_timeout_and_a_second() {
    let limit = FAIL_TIMEOUT + Duration::from_secs(1);
    both_at_once(|hook| {
        let mut cluster = quick(hook);
        cluster.standins[1].kill();
        let mut refusing = cluster.standins.remove(1);
        let took = time_until_used(&cluster, || refusing.revive().expect("the stand-in"));
        println!("{hook}: after a restart used again after {took:.1?}");
        assert!(took < limit, "{hook}: {took:?}");
        cluster.lab.backends[1].drop_syns(PORT).expect("nft");
        let took = time_until_used(&cluster, || cluster.lab.backends[1].open_firewall().expect("nft"));
        println!("{hook}: after silence used again after {took:.1?}");
        assert!(took < limit, "{hook}: {took:?}");
    });
}

#[test]
fn with_all_silent_the_client_is_refused_after_every_connect_timeout() {
    let cluster = quick("tc");
    cluster.lab.backends.iter().for_each(|host| host.drop_syns(PORT).expect("nft"));
    let opened = cluster.hold(&[]).open(10).expect("open");
    assert_eq!(opened.failed, [("refused".to_owned(), 10)].into(), "{opened:?}");
    assert!(opened.slowest_failed_ms < 3.0 * CONNECT_TIMEOUT.as_secs_f64() * 1e3 + 300.0, "{opened:?}");
    cluster.active([0, 0, 0]);
    // All are out by now, which is no reason to refuse the next client.
    cluster.lab.backends[0].open_firewall().expect("nft");
    all_served(&cluster.hold(&[]).open(10).expect("open"), 10, "one is back");
}

/// What becomes of the daemon before clients connect.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Controller {
    Runs,
    Stopped,
    Dead,
}

#[test]
fn exactly_max_fails_clients_meet_a_backend_that_refuses_at_once_or_one_after_another_whoever_controls() {
    let cases = [Controller::Runs, Controller::Stopped, Controller::Dead];
    for (controller, parallel) in cases.into_iter().flat_map(|controller| [(controller, "200"), (controller, "1")]) {
        both(|hook| {
            let what = format!("{hook}, the controller {controller:?}, {parallel} at once");
            let plan = Plan::new(Topology::Segment).backends(2);
            let mut cluster = Cluster::of(plan, hook, |service| {
                let service = service.line("next_upstream = false");
                (0..2).fold(service, |service, backend| service.backend_line(backend, "fail_timeout = \"1m\""))
            });
            let mut held = cluster.hold(&["--parallel", parallel]);
            cluster.standins[0].kill();
            match controller {
                Controller::Runs => {}
                Controller::Stopped => cluster.evenkeel.signal(Signal::SIGSTOP).expect("SIGSTOP"),
                Controller::Dead => cluster.evenkeel.kill(),
            }
            let opened = held.open(200).expect("open");
            assert_eq!(
                (opened.opened, &opened.failed),
                (197, &[("refused".to_owned(), 3)].into()),
                "{what}: {opened:?}"
            );
            assert_eq!(opened.by, [("cp02".to_owned(), 197)].into(), "{what}");
            match controller {
                Controller::Runs => {}
                Controller::Stopped => cluster.evenkeel.signal(Signal::SIGCONT).expect("SIGCONT"),
                Controller::Dead => cluster.evenkeel.run().expect("a start"),
            }
            // Whenever it hears of it, it says the same.
            cluster.wait_state("cp01", "down", SOON);
            assert_eq!(cluster.backend("cp01").reason.as_deref(), Some("refused"), "{what}");
            let opened = held.open(50).expect("open");
            assert_eq!((opened.opened, opened.by.get("cp02")), (50, Some(&50)), "{what}: {opened:?}");
        });
    }
}

#[test]
fn exactly_max_fails_syns_and_then_one_per_fail_timeout_meet_a_silent_backend_without_a_controller() {
    both_at_once(|hook| {
        let plan = Plan::new(Topology::Segment).backends(2);
        let mut cluster = Cluster::of(plan, hook, |service| {
            let service = service.line("connect_timeout = \"500ms\"");
            (0..2).fold(service, |service, backend| service.backend_line(backend, "fail_timeout = \"5s\""))
        });
        let silent = cluster.lab.backends[0].clone();
        let syns = Capture::of_syns(&silent, PORT).expect("tcpdump");
        silent.drop_syns(PORT).expect("nft");
        cluster.evenkeel.kill();
        // One after another: a client is moved on when it repeats its SYN, after a second.
        let mut held = cluster.hold(&["--parallel", "1", "--timeout-ms", "5000"]);
        let begun = Instant::now();
        let mut opened = 0;
        while begun.elapsed() < Duration::from_secs(16) {
            opened += held.open(10).expect("open").opened;
            std::thread::sleep(Duration::from_millis(20));
        }
        let seen = syns.seen();
        println!("{hook}: {opened} clients, SYNs to the silent one at {seen:?}");
        assert!(opened >= 200, "{hook}: {opened}");
        let trials = &seen[3.min(seen.len())..];
        assert!((2..=3).contains(&trials.len()), "{hook}: {seen:?}");
        assert!(trials[0] - seen[2] + CLOCKS >= Duration::from_secs(5), "{hook}: {seen:?}");
        for pair in trials.windows(2) {
            let apart = pair[1] - pair[0] + CLOCKS;
            assert!((Duration::from_secs(5)..Duration::from_secs(7)).contains(&apart), "{hook}: {seen:?}");
        }
    });
}
