//! The controller is killed with -9 under load: nothing is lost, and it comes back to what it left.

use std::{collections::BTreeSet, time::Duration};

use lab::{
    client::storm::{Report, Running},
    topology::PORT,
};
use serde_json::Value;

use crate::cluster::{Cluster, all_served, both_at_once, full, use_all_ports};

/// Client, SNAT address and port, and backend of every connection.
fn connections(cluster: &Cluster) -> BTreeSet<String> {
    let conns = cluster.evenkeel.json(&["conns", "--limit", "100000"]).expect("conns");
    let line = |conn: &Value| format!("{} {} {}", conn["client"], conn["snat"], conn["backend"]);
    conns.as_array().expect("a list").iter().map(line).collect()
}

fn totals(cluster: &Cluster) -> (u64, u64) {
    let total = cluster.evenkeel.backends().expect("backends").iter().map(|backend| backend.total).sum();
    (total, cluster.evenkeel.counter("closed").expect("a counter"))
}

#[test]
fn new_connections_are_balanced_while_it_is_dead_and_it_finds_the_same_connections_and_totals() {
    both_at_once(|hook| {
        let mut cluster = Cluster::new(hook, |service| service);
        // A minute of connections that the client closes first: more than its default ports can
        // hold in TIME_WAIT.
        use_all_ports(cluster.lab.client());
        let mut held = cluster.hold(&[]);
        all_served(&held.open(300).expect("open"), 300, hook);
        let (before, (total, closed)) = (connections(&cluster), totals(&cluster));
        assert_eq!(before.len(), 300, "{hook}");
        // There is load when it dies and when it comes back.
        let storm = cluster.storm(&["--rate", "500", "--every", "0.1"]);
        served(&storm, 200);
        cluster.evenkeel.kill();
        let at_death = storm.latest().expect("a report").done;
        served(&storm, if full() { 33_000 } else { 2_500 });
        cluster.evenkeel.run().expect("a second start");
        let dead = storm.latest().expect("a report").done - at_death;
        served(&storm, 500);
        let report = storm.stop(Duration::from_secs(30)).expect("its report");
        println!("{hook}: {} new connections, about {dead} of them without a controller: {:?}", report.done, report.by);
        assert_eq!((report.failures(), report.slow), (0, 0), "{hook}: {report:?}");
        is_even(&report, hook);
        assert_eq!(held.ask().expect("ask").answered, 300, "{hook}");
        cluster.active([100, 100, 100]);
        assert_eq!(connections(&cluster), before, "{hook}");
        assert_eq!(totals(&cluster), (total + report.done, closed + report.done), "{hook}");
        assert_eq!(cluster.evenkeel.counter("least_conn_drift").expect("a counter"), 0, "{hook}");
    });
}

/// Waits until a storm has completed this many more connections.
fn served(storm: &Running, more: u64) {
    let done = || storm.latest().map_or(0, |report| report.done);
    let wanted = done() + more;
    lab::wait::until("the storm goes on", Duration::from_secs(120), || (done() >= wanted).then_some(()))
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", storm.latest()));
}

/// least_conn gives more connections to backends that answer sooner, and on a busy machine some do.
fn is_even(report: &Report, what: &str) {
    assert!(report.by.len() == 3 && report.by.values().all(|count| *count > report.done / 6), "{what}: {report:?}");
}

#[test]
fn without_it_refusing_and_silent_backends_still_fail_no_client() {
    both_at_once(|hook| {
        let mut cluster = Cluster::new(hook, |service| service.line("connect_timeout = \"500ms\""));
        cluster.evenkeel.kill();
        cluster.standins[0].kill();
        let opened = cluster.hold(&[]).open(30).expect("open");
        all_served(&opened, 30, hook);
        assert!(opened.slowest_ms < 300.0, "{hook}: {opened:?}");
        cluster.lab.backends[1].drop_syns(PORT).expect("nft");
        // Only the client itself keeps time here: it repeats its SYN after a second.
        let opened = cluster.hold(&[]).open(30).expect("open");
        all_served(&opened, 30, hook);
        assert_eq!(opened.by, [("cp03".to_owned(), 30)].into(), "{hook}");
        assert!(opened.slowest_ms < 1500.0, "{hook}: {opened:?}");
    });
}
