//! `evenkeel run --kernel-log`: what the kernel program says to a developer.

use std::time::Duration;

use lab::{StandIn, wait};

use crate::cluster::{Cluster, SOON, all_served, both};

/// Lines of the kernel program in the daemon's log.
fn lines(cluster: &Cluster) -> Vec<String> {
    cluster.evenkeel.log().lines().filter(|line| line.contains(" kernel] ")).map(str::to_owned).collect()
}

/// Starts the daemon again, with a log of the kernel program.
fn start_again(cluster: &mut Cluster, level: &str) {
    cluster.evenkeel.kill();
    cluster.evenkeel.run_options(&[&format!("--kernel-log={level}")]);
    cluster.evenkeel.run().expect("evenkeel");
}

/// Waits for a line that has all of these in it.
fn wait_for(cluster: &Cluster, hook: &str, words: &[&str]) {
    let is_there = || lines(cluster).iter().any(|line| words.iter().all(|word| line.contains(word)));
    wait::until(&format!("a line with {words:?}"), SOON, || is_there().then_some(()))
        .unwrap_or_else(|error| panic!("{hook}: {error:#}\n{}", cluster.evenkeel.log()));
}

#[test]
fn refusals_failed_tries_moves_and_state_changes_are_logged_with_their_connection() {
    both(|hook| {
        let mut cluster = Cluster::new(hook, |service| service);
        all_served(&cluster.hold(&["--parallel", "1"]).open(3).expect("open"), 3, hook);
        assert_eq!(lines(&cluster), [""; 0], "{hook}: nothing is logged unless it is asked for");

        start_again(&mut cluster, "trace");
        cluster.standins.iter_mut().take(1).for_each(StandIn::kill);
        let mut held = cluster.hold(&["--parallel", "1"]);
        all_served(&held.open(3).expect("open"), 3, hook);
        wait_for(&cluster, hook, &["try failed: 10.0.1.", "backend 10.0.1.10:6443", "refused"]);
        wait_for(&cluster, hook, &["moved: 10.0.1.", "to backend 10.0.1.1"]);
        wait_for(&cluster, hook, &["state: 10.0.1.", "half_open to established"]);

        let before = lines(&cluster);
        assert_eq!(held.ask().expect("ask").answered, 3, "{hook}");
        assert_eq!(lines(&cluster), before, "{hook}: nothing is logged per packet");

        let denied = cluster.service.clone().line("rules = \"deny all\"");
        cluster.reload(&denied);
        let opened = cluster.hold(&["--parallel", "1"]).open(1).expect("open");
        assert_eq!(opened.opened, 0, "{hook}: {opened:?}");
        wait_for(&cluster, hook, &["reset: 10.0.1.", "to 10.0.1.100:6443", "denied"]);
        cluster.evenkeel.stop_detach().expect("nothing of the log is left behind");
    });
}

#[test]
fn a_flood_is_logged_up_to_the_limit_and_the_rest_is_counted() {
    let mut cluster = Cluster::new("tc", |service| service.line("rules = \"deny all\""));
    start_again(&mut cluster, "debug");
    let report = cluster.storm(&["--connections", "6000"]).finish(Duration::from_secs(30)).expect("its report");
    assert_eq!(report.failures(), report.done.max(report.failures()), "all are refused: {report:?}");
    // The first line of the next stretch of time says how many were left out.
    wait::until("a line that counts", SOON, || {
        cluster.hold(&["--parallel", "1"]).open(1).expect("open");
        lines(&cluster).iter().any(|line| line.contains(" lines left out")).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{report:?}\n{} lines", lines(&cluster).len()));
    let resets = lines(&cluster).iter().filter(|line| line.contains("reset: ")).count();
    assert!(resets >= 1000, "{resets} lines");
}
