//! Which clients are let in: `rules` and `per_client_connections`, with the shipped binary, real
//! clients, reloads and the access log.

use std::time::Duration;

use lab::{Evenkeel, Plan, client::hold::Holding, daemon::Service, topology::Topology, wait};

use crate::cluster::{Cluster, SOON, VIP, all_served, both};

/// Two addresses of the one client: the first is let in, the second is not.
const IN: &str = "10.0.1.101";
const OUT: &str = "10.0.1.102";
const RULES: &str = "rules = [\"deny 10.0.1.102\", \"allow 10.0.1.0/24\", \"deny all\"]";

/// A cluster whose client has both addresses, and an access log.
fn two_addresses(hook: &str, lines: &[&str]) -> Cluster {
    Cluster::of(Plan::new(Topology::Segment).addresses(2), hook, |service| {
        lines.iter().fold(logged(service), |service, line| service.line(line))
    })
}

fn logged(service: Service) -> Service {
    service.line(
        "access_log = { path = \"stdout\", format = \"log $remote_addr $status $reason $upstream_addr $bytes_sent\" }",
    )
}

fn reload(cluster: &Cluster, lines: &[&str]) {
    let service = lines.iter().fold(logged(Service::new(&cluster.lab, "tc")), |service, line| service.line(line));
    cluster.evenkeel.write(&service.toml()).expect("a configuration");
    cluster.evenkeel.done(&["reload"]).expect("reload");
}

/// The lines of the access log so far that begin with this prefix.
fn log_lines(evenkeel: &Evenkeel, begin: &str) -> usize {
    evenkeel.log().lines().filter(|line| line.starts_with(&format!("log {begin}"))).count()
}

#[test]
fn denied_clients_and_nobody_else_are_refused_counted_and_logged() {
    both(|hook| {
        let cluster = two_addresses(hook, &[RULES]);
        let denied = cluster.hold(&["--from", OUT]).open(5).expect("open");
        assert_eq!((denied.opened, denied.failed), (0, [("refused".to_owned(), 5)].into()), "{hook}");
        all_served(&cluster.hold(&["--from", IN]).open(9).expect("open"), 9, hook);
        assert_eq!(cluster.evenkeel.counter("denied").expect("counters"), 5);
        let lines = || (log_lines(&cluster.evenkeel, "10.0.1.102 403 denied - 0") == 5).then_some(());
        wait::until("five lines of the access log", SOON, lines)
            .unwrap_or_else(|e| panic!("{e:#}\n{}", cluster.evenkeel.log()));
        assert_eq!(cluster.backend("cp01").total, 3, "{hook}: who is denied is given to no backend");
    });
}

#[test]
fn rules_change_with_a_reload_for_new_connections_only_and_outlive_the_controller() {
    let mut cluster = two_addresses("tc", &[]);
    let mut held = cluster.hold(&["--from", OUT]);
    all_served(&held.open(6).expect("open"), 6, "without rules");
    reload(&cluster, &[RULES]);
    assert_eq!(held.open(3).expect("open").failed, [("refused".to_owned(), 3)].into());
    assert_eq!(held.ask().expect("ask").answered, 6, "open connections are not looked at");

    cluster.evenkeel.kill();
    assert_eq!(held.open(3).expect("open").failed, [("refused".to_owned(), 3)].into(), "without a controller");
    cluster.evenkeel.run().expect("a second start");
    assert_eq!(held.open(3).expect("open").failed, [("refused".to_owned(), 3)].into());
    let again = cluster.evenkeel.done(&["reload"]).expect("reload");
    assert_eq!(again.lines().count(), 1, "nothing has changed: {again}");

    reload(&cluster, &["rules = \"allow all\""]);
    all_served(&held.open(3).expect("open"), 3, "allowed");
    reload(&cluster, &["rules = \"deny all\""]);
    assert_eq!(held.open(1).expect("open").opened, 0);
    reload(&cluster, &[]);
    all_served(&held.open(3).expect("open"), 3, "without rules again");
    assert_eq!(held.ask().expect("ask").answered, 12);
}

#[test]
fn a_flood_of_denied_clients_is_counted_and_leaves_a_hundred_lines_a_second() {
    let cluster = two_addresses("tc", &[RULES]);
    let storm = cluster.storm(&["--from", OUT, "--seconds", "3", "--rate", "1000"]);
    let report = storm.finish(Duration::from_secs(30)).expect("its report");
    let denied = cluster.evenkeel.counter("denied").expect("counters");
    assert!(denied >= 1500 && denied == report.failures(), "{denied}: {report:?}");
    let suppressed = || cluster.evenkeel.counter("access_log_suppressed").expect("counters");
    let lines = || log_lines(&cluster.evenkeel, OUT) as u64;
    let told = || (lines() + suppressed() == denied).then(lines);
    let told = wait::until("every connection is logged or counted", SOON, told)
        .unwrap_or_else(|error| panic!("{error:#}: {denied} denied, {} lines, {} suppressed", lines(), suppressed()));
    // The limit applies for three seconds, and the first and last second are cut short.
    assert!((200..=500).contains(&told), "{told} lines");
    assert_eq!(cluster.evenkeel.counter("event_lost").expect("counters"), 0);
    all_served(&cluster.hold(&["--from", IN]).open(3).expect("open"), 3, VIP);
}

/// Opens 20 more and returns how many were let in. The others must have been refused.
fn let_in(held: &mut Holding) -> u64 {
    let opened = held.open(20).expect("open");
    // Those that come at once with the last ones that are let in are reset when they say that they
    // have got the answer.
    let failed = |how: &str| opened.failed.get(how).copied().unwrap_or(0);
    assert_eq!(opened.opened + failed("refused") + failed("reset"), 20, "{opened:?}");
    opened.opened
}

#[test]
fn a_client_has_as_many_connections_as_the_limit_and_another_client_as_many_again() {
    both(|hook| {
        let mut cluster = two_addresses(hook, &["per_client_connections = 5"]);
        let (mut one, mut other) = (cluster.hold(&["--from", IN]), cluster.hold(&["--from", OUT]));
        assert_eq!((let_in(&mut one), let_in(&mut other)), (5, 5), "{hook}");
        assert_eq!(cluster.evenkeel.counter("client_limit").expect("counters"), 30);
        let lines = || (log_lines(&cluster.evenkeel, "10.0.1.101 503 client_limit ") == 15).then_some(());
        wait::until("fifteen lines of the access log", SOON, lines)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.evenkeel.log()));
        for how in ["fin", "rst"] {
            one.close(2, "-", how).expect("close");
            wait::until("room for two", SOON, || (open_of(&cluster, IN) == 3).then_some(())).expect(how);
            assert_eq!(let_in(&mut one), 2, "{hook}, {how}");
        }
        cluster.evenkeel.kill();
        assert_eq!(let_in(&mut one), 0, "{hook}: without a controller");
        one.close(1, "-", "fin").expect("close");
        let again = || (let_in(&mut one) == 1).then_some(());
        wait::until("room for one", SOON, again).expect("without a controller");
        cluster.evenkeel.run().expect("a second start");
        assert_eq!((let_in(&mut one), let_in(&mut other)), (0, 0), "{hook}");
        assert_eq!((one.ask().expect("ask").answered, other.ask().expect("ask").answered), (5, 5), "{hook}");
    });
}

/// A client's open connections, as `conns` lists them.
fn open_of(cluster: &Cluster, client: &str) -> usize {
    let conns = cluster.evenkeel.json(&["conns", "--client", client]).expect("conns");
    conns.as_array().expect("rows").len()
}

#[test]
fn connections_that_are_older_than_the_limit_count_too_and_their_end_makes_room() {
    let cluster = two_addresses("tc", &[]);
    let mut held = cluster.hold(&["--from", IN]);
    all_served(&held.open(6).expect("open"), 6, "without a limit");
    reload(&cluster, &["per_client_connections = 4"]);
    // The controller counts them at its next look.
    let full = || (held.open(1).expect("open").opened == 0).then_some(());
    wait::until("the older ones are counted", SOON, full).expect("counted");
    let open = held.status().expect("status").open;
    held.close(open - 3, "-", "fin").expect("close");
    wait::until("three are left", SOON, || (open_of(&cluster, IN) == 3).then_some(())).expect("closed");
    assert_eq!(let_in(&mut held), 1);
    reload(&cluster, &[]);
    assert_eq!(let_in(&mut held), 20, "no limit any longer");
    assert_eq!(cluster.evenkeel.counter("client_count_drift").expect("counters"), 0);
}

#[test]
fn thousands_of_short_connections_and_idle_timeouts_leave_the_counts_exact() {
    let cluster = two_addresses("tc", &["per_client_connections = 60", "idle_timeout = \"3s\""]);
    let mut idle = cluster.hold(&["--from", IN]);
    all_served(&idle.open(30).expect("open"), 30, "beside the storm");
    let storm = cluster.storm(&["--from", IN, "--connections", "4000", "--parallel", "20", "--close", "mixed"]);
    let report = storm.finish(Duration::from_secs(60)).expect("its report");
    assert_eq!((report.done, report.failures()), (4000, 0), "{report:?}");
    cluster.active([0, 0, 0]);
    let mut held = cluster.hold(&["--from", IN]);
    assert_eq!([let_in(&mut held), let_in(&mut held), let_in(&mut held), let_in(&mut held)], [20, 20, 20, 0]);
    assert_eq!(cluster.evenkeel.counter("client_count_drift").expect("counters"), 0);
    assert_eq!(cluster.evenkeel.counter("client_uncounted").expect("counters"), 0);
}
