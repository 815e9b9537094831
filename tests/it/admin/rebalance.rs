//! Watches that stay on the other servers after one has returned.

use std::time::Duration;

use lab::{client::hold::Holding, wait};
use nix::sys::signal::Signal;

use super::{cluster, reset};
use crate::cluster::{Cluster, SOON, all_served};

/// cp03 has just returned: each of the others has half of the `count` connections.
fn after_a_restart(count: u64) -> (Cluster, Holding) {
    let mut cluster = Cluster::new("tc", |service| service.backend_line(2, "max_fails = 0"));
    cluster.standins[2].kill();
    let mut held = cluster.hold(&[]);
    all_served(&held.open(count).expect("open"), count, "held");
    cluster.active([count / 2, count / 2, 0]);
    cluster.standins[2].revive().expect("cp03 again");
    (cluster, held)
}

/// Lets the clients that were reset come back while `goes_on` is true; returns how many did.
fn come_back(held: &mut Holding, mut goes_on: impl FnMut() -> bool) -> u64 {
    let mut back = 0;
    loop {
        let is_last = !goes_on();
        let gone = reset(held);
        all_served(&held.open(gone - back).expect("open"), gone - back, "those that come back");
        back = gone;
        if is_last {
            return back;
        }
    }
}

#[test]
fn three_thousand_connections_are_evened_out_with_the_fewest_resets_and_clients_that_come_back_are_served() {
    let (cluster, mut held) = after_a_restart(3000);
    let (mut process, mut said) = cluster.evenkeel.begin(&["rebalance", "--rate", "500"]).expect("rebalance");
    let resets = come_back(&mut held, || process.is_running());
    process.succeed(SOON).expect("exit 0");
    assert!(resets < 1001, "{resets}");
    wait::until("the last RSTs", SOON, || (reset(&mut held) == 1000).then_some(())).expect("resets");
    assert_eq!(resets + come_back_rest(&mut held, resets), 1000);
    cluster.active([1000, 1000, 1000]);
    assert_eq!(cluster.evenkeel.counter("rebalanced").expect("counter"), 1000);
    assert_eq!(held.ask().expect("ask").answered, 3000);

    let mut lines = Vec::new();
    while let Ok(line) = said.hear() {
        lines.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    assert_eq!(lines[0], "SERVICE BACKEND WEIGHT ACTIVE RESETS AFTER", "{lines:?}");
    assert_eq!(lines[1], "kube-apiserver cp01 1 1500 500 1000");
    assert_eq!(lines[3], "kube-apiserver cp03 1 0 0 1000");
    assert!(lines.contains(&"1000 connections are reset at 500/s, in 2s".into()), "{lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some("1000 connections reset"));
    assert_eq!(cluster.done(&["rebalance"]).lines().last(), Some("already even within 1: nothing to do"));
}

/// Those whose RST came after the command had ended.
fn come_back_rest(held: &mut Holding, before: u64) -> u64 {
    let gone = reset(held) - before;
    all_served(&held.open(gone).expect("open"), gone, "the last ones");
    gone
}

#[test]
fn a_dry_run_says_the_same_and_does_nothing() {
    let (cluster, mut held) = after_a_restart(60);
    let out = cluster.done(&["rebalance", "--dry-run", "--rate", "2", "--tolerance", "4"]);
    assert!(out.contains("kube-apiserver: spread 30, 3 afterwards"), "{out}");
    assert!(out.ends_with("18 connections would be reset at 2/s, in 9s\n"), "{out}");
    let json = cluster.evenkeel.json(&["rebalance", "--dry-run"]).expect("JSON");
    let service = &json["services"][0];
    assert_eq!((&service["spread"], &service["spread_after"]), (&30.into(), &0.into()));
    assert_eq!((&json["resets"], &json["seconds"], &json["tasks"]), (&20.into(), &3.8.into(), &serde_json::json!([])));
    cluster.active([30, 30, 0]);
    assert_eq!(reset(&mut held), 0);
}

#[test]
fn weights_count_and_the_idle_ones_go_first() {
    let (cluster, mut held) = after_a_restart(60);
    cluster.done(&["set", "cp03", "weight=2"]);
    // All of these send data; another sixty that never do are opened in addition.
    let mut others = cluster.hold(&[]);
    cluster.done(&["drain", "cp03"]);
    all_served(&others.open(60).expect("open"), 60, "the others");
    cluster.done(&["ready", "cp03"]);
    cluster.active([60, 60, 0]);
    wait::until("a while", SOON, super::wait_for(Duration::from_millis(300))).expect("a while");
    assert_eq!(held.ask().expect("ask").answered, 60);
    // 120 connections by weights 1, 1, 2.
    let out = cluster.done(&["rebalance", "--rate", "100"]);
    assert!(out.ends_with("60 connections reset\n"), "{out}");
    wait::until("those that were idle saw it", SOON, || (reset(&mut others) == 60).then_some(())).expect("resets");
    assert_eq!((reset(&mut held), held.ask().expect("ask").answered), (0, 60));
}

#[test]
fn ctrl_c_stops_it_and_another_one_at_the_same_time_is_refused() {
    let (cluster, mut held) = after_a_restart(300);
    let (mut process, mut said) = cluster.evenkeel.begin(&["rebalance", "--rate", "10"]).expect("rebalance");
    let mut heard = String::new();
    while !heard.contains("of 100 reset") {
        heard = said.hear().expect("a line");
    }
    let other = cluster.command(&["rebalance"]);
    assert_eq!(other.code, 1);
    assert!(other.err.contains("a rebalancing is already running"), "{}", other.err);
    process.signal(Signal::SIGINT).expect("Ctrl-C");
    assert_eq!(process.wait(SOON).expect("its end").code(), Some(1));
    assert!(process.log().contains("stopped before the backends were even"), "{}", process.log());
    let last = std::iter::from_fn(|| said.hear().ok()).last().expect("a line");
    assert!(last.contains(" reset; ") && last.ends_with(" left open\n"), "{last}");
    let stopped = reset(&mut held);
    assert!((5..90).contains(&stopped), "{stopped}");
    wait::until("a while", SOON, super::wait_for(Duration::from_millis(1500))).expect("a while");
    assert_eq!(reset(&mut held), stopped, "and no more");
}

#[test]
fn a_service_that_hashes_is_left_alone_with_the_reason() {
    let cluster = Cluster::new("tc", |service| service.line("balance = \"hash\""));
    cluster.hold(&[]).open(9).expect("open");
    let answer = cluster.command(&["rebalance"]);
    assert_eq!(answer.code, 1);
    assert!(
        answer.err.contains("kube-apiserver: balance = \"hash\": a client returns to the backend"),
        "{}",
        answer.err
    );
}

#[test]
fn with_nobody_connected_there_is_nothing_to_do() {
    assert_eq!(cluster().done(&["rebalance"]).lines().last(), Some("already even within 1: nothing to do"));
}
