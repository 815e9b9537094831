//! API servers that die, hang, restart, or report that they are not ready: how soon that is
//! noticed, and what happens to their connections.

mod resets;

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{
    Plan,
    client::hold::{Holding, Status},
    daemon::Service,
    peers::{self, NGINX_PORT},
    topology::{PORT, Topology, VIP as ADDRESS},
    wait,
};

use crate::cluster::{Cluster, SOON, all_served, both_at_once, full};

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_millis(500);

/// `[service.health]` with this `fall`; everything except the times at its default.
fn probed(service: Service, fall: u32) -> Service {
    service.probe("interval = \"1s\"").probe("timeout = \"500ms\"").probe(&format!("fall = {fall}"))
}

/// How soon a backend that does not answer must be out.
fn detection(fall: u32) -> Duration {
    INTERVAL * fall + TIMEOUT
}

/// A client that holds `count` TLS connections, a third on each of three backends.
fn hold(cluster: &Cluster, count: u64, what: &str) -> Holding {
    let folder = cluster.lab.folder().display().to_string();
    let mut held = cluster.hold(&["--tls", &folder, "--timeout-ms", "5000"]);
    all_served(&held.open(count).expect("open"), count, what);
    cluster.active([count / 3; 3]);
    held
}

/// Waits until no connection that `name` served is open; returns how long that took from `since`
/// on.
fn gone(held: &mut Holding, name: &str, since: Instant, what: &str) -> Duration {
    let none = || held.status().ok().filter(|status| !status.by.contains_key(name)).map(|_| since.elapsed());
    wait::until(&format!("{what}: the connections of {name} have ended"), Duration::from_secs(20), none)
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", held.status()))
}

/// Checks that exactly these were reset, nothing else has ended, and all others answer.
fn only_reset(held: &mut Holding, reset: u64, others: u64, what: &str) {
    let Status { open, ended, .. } = held.status().expect("status");
    let expected = [("reset".to_owned(), reset)].into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!((open, &ended), (others, &expected), "{what}");
    assert_eq!(held.ask().expect("ask").answered, others, "{what}");
}

/// Waits until `name` is in `state` for `reason`; returns how long that took from `since` on.
fn becomes(cluster: &Cluster, name: &str, state: &str, reason: Option<&str>, since: Instant) -> Duration {
    cluster.wait_state(name, state, SOON);
    assert_eq!(cluster.backend(name).reason.as_deref(), reason, "{name} is {state}");
    since.elapsed()
}

/// Opens connections and ends them at once; returns which backends served them.
fn served_by(cluster: &Cluster, count: u64, what: &str) -> Vec<String> {
    let mut held = cluster.hold(&[]);
    let opened = held.open(count).expect("open");
    all_served(&opened, count, what);
    held.close(count, "-", "fin").expect("close");
    opened.by.into_keys().collect()
}

/// Prints figures where they are asked for.
fn report(text: &str) {
    if full() {
        println!("{text}");
    }
}

#[test]
fn a_cut_cable_under_idle_connections_is_seen_by_the_probe_and_its_clients_alone_are_reset() {
    let count = if full() { 3000 } else { 600 };
    both_at_once(|hook| {
        let cluster = Cluster::new(hook, |service| probed(service, 2));
        let _nginx = peers::nginx(&cluster.lab).expect("nginx");
        let mut through_nginx =
            Holding::start(cluster.lab.client(), &[&format!("{ADDRESS}:{NGINX_PORT}"), "--timeout-ms", "2000"])
                .expect("hold");
        all_served(&through_nginx.open(30).expect("open"), 30, "nginx");
        let mut held = hold(&cluster, count, hook);
        let cut = Instant::now();
        cluster.lab.backends[0].link("eth0", false).expect("a cut");
        let took = gone(&mut held, "cp01", cut, hook);
        assert!(took < Duration::from_millis(3500), "{hook}: {took:?}");
        report(&format!("{hook}: cut, {} idle connections of cp01 reset within {took:?} by the probe", count / 3));
        only_reset(&mut held, count / 3, count / 3 * 2, hook);
        assert_eq!(cluster.backend("cp01").reason.as_deref(), Some("probe_timeout"));
        assert_eq!(cluster.evenkeel.counter("probe_timeout").expect("counter"), count / 3);
        cluster.active([0, count / 3, count / 3]);
        if full() {
            let minute = || (cut.elapsed() > Duration::from_secs(60)).then_some(());
            wait::until("a minute", Duration::from_secs(61), minute).expect("a minute");
        }
        let of_nginx = through_nginx.status().expect("status");
        report(&format!("{hook}: nginx after {:?}: {of_nginx:?}", cut.elapsed()));
        assert_eq!((of_nginx.open, of_nginx.by.get("cp01")), (30, Some(&10)), "pinned to a host that is not there");
        let asked = through_nginx.ask().expect("ask");
        assert_eq!((asked.answered, asked.failed), (20, [("timeout".to_owned(), 10)].into()));
    });
}

#[test]
fn a_cut_cable_is_seen_without_a_probe_when_a_few_connections_are_not_answered() {
    let count = if full() { 3000 } else { 300 };
    both_at_once(|hook| {
        let cluster = Cluster::new(hook, |service| service.line("connect_timeout = \"1s\""));
        let mut held = hold(&cluster, count, hook);
        let mut little_traffic = cluster.hold(&["--timeout-ms", "8000"]);
        all_served(&little_traffic.open(6).expect("open"), 6, hook);
        let cut = Instant::now();
        cluster.lab.backends[0].link("eth0", false).expect("a cut");
        thread::scope(|scope| {
            scope.spawn(|| little_traffic.ask().expect("ask"));
            let took = gone(&mut held, "cp01", cut, hook);
            assert!(took < Duration::from_secs(4), "2 x connect_timeout + 2 s, {hook}: {took:?}");
            report(&format!("{hook}: cut, {} idle connections reset within {took:?} without a probe", count / 3));
        });
        only_reset(&mut held, count / 3, count / 3 * 2, hook);
        only_reset(&mut little_traffic, 2, 4, hook);
        assert_eq!(cluster.backend("cp01").reason.as_deref(), Some("silent"));
    });
}

#[test]
fn not_ready_is_drained_and_401_is_up_and_a_listener_that_hangs_is_down() {
    both_at_once(|hook| {
        let mut cluster = Cluster::new(hook, |service| probed(service, 3));
        let mut held = hold(&cluster, 30, hook);
        let said = Instant::now();
        cluster.standins[0].readyz(500).expect("a command");
        let took = becomes(&cluster, "cp01", "draining", Some("probe_status"), said);
        assert!(took < 2 * INTERVAL, "{hook}: draining after {took:?}");
        report(&format!("{hook}: readyz 500: draining after {took:?}"));
        assert_eq!(served_by(&cluster, 20, hook), ["cp02", "cp03"]);
        assert_eq!(held.ask().expect("ask").answered, 30, "{hook}: nobody was reset");

        let said = Instant::now();
        cluster.standins[0].readyz(401).expect("a command");
        let took = becomes(&cluster, "cp01", "up", None, said);
        assert!(took < 2 * INTERVAL, "{hook}: up after {took:?}");
        assert_eq!(served_by(&cluster, 20, hook), ["cp01", "cp02", "cp03"]);

        let said = Instant::now();
        cluster.standins[0].hang(true).expect("a command");
        let took = becomes(&cluster, "cp01", "down", Some("probe_timeout"), said);
        assert!(took < detection(3), "{hook}: down after {took:?}");
        report(&format!("{hook}: TLS hangs: down after {took:?}"));
        gone(&mut held, "cp01", said, hook);
        only_reset(&mut held, 10, 20, hook);
        cluster.standins[0].hang(false).expect("a command");
        becomes(&cluster, "cp01", "up", None, said);
        let events = cluster.evenkeel.done(&["events"]).expect("events");
        for text in [
            "is not ready and gets no new connections: probe_status (status 500)",
            "is up",
            "(TLS handshake: no answer within 500 ms)",
        ] {
            assert!(events.contains(text), "{text}\n{events}");
        }
    });
}

#[test]
fn a_stopped_api_server_is_out_though_its_kernel_answers_and_back_only_with_a_listed_status() {
    both_at_once(|hook| {
        let mut cluster = Cluster::new(hook, |service| probed(service, 2));
        let mut held = hold(&cluster, 30, hook);
        let stopped = Instant::now();
        cluster.standins[0].pause().expect("SIGSTOP");
        let took = becomes(&cluster, "cp01", "down", Some("probe_timeout"), stopped);
        assert!(took < detection(2), "{hook}: down after {took:?}");
        let all = gone(&mut held, "cp01", stopped, hook);
        report(&format!("{hook}: SIGSTOP: down after {took:?}, its connections reset after {all:?}"));
        only_reset(&mut held, 10, 20, hook);
        // Its kernel would complete every handshake.
        let storm = cluster.storm(&["--seconds", "3", "--rate", "100"]).finish(SOON).expect("a storm");
        assert_eq!(storm.failures(), 0, "{hook}: {storm:?}");
        assert!(!storm.by.contains_key("cp01"), "{hook}: {storm:?}");

        cluster.standins[0].resume_with(500).expect("SIGCONT");
        becomes(&cluster, "cp01", "draining", Some("probe_status"), stopped);
        let storm = cluster.storm(&["--seconds", "3", "--rate", "100"]).finish(SOON).expect("a storm");
        assert_eq!((storm.failures(), storm.by.get("cp01")), (0, None), "{hook}: up, but not ready: {storm:?}");
        assert_eq!(cluster.backend("cp01").active, 0);
        cluster.standins[0].readyz(200).expect("a command");
        becomes(&cluster, "cp01", "up", None, stopped);
        assert_eq!(served_by(&cluster, 20, hook), ["cp01", "cp02", "cp03"]);
    });
}

/// A server is killed on cp01, and nothing ends its old connections: after a reboot its kernel knows
/// none of them. `input` are rules of its firewall.
fn reboot(cluster: &mut Cluster, input: &[&str]) {
    let host = &cluster.lab.backends[0];
    // A socket without a process gives up after one FIN that is not acknowledged.
    host.sysctl("net.ipv4.tcp_orphan_retries", "1").expect("sysctl");
    host.firewall(input, &[&format!("tcp sport {PORT} tcp flags & fin == fin drop")]).expect("nft");
    cluster.standins[0].kill();
    becomes(cluster, "cp01", "down", Some("refused"), Instant::now());
}

#[test]
fn connections_that_a_rebooted_host_does_not_know_are_ended_by_its_kernel_when_it_is_asked() {
    both_at_once(|hook| {
        let mut cluster = Cluster::new(hook, |service| probed(service, 3));
        let mut held = hold(&cluster, 30, hook);
        reboot(&mut cluster, &[]);
        let out = Instant::now();
        let took = gone(&mut held, "cp01", out, hook);
        report(&format!("{hook}: refused after a reboot: its connections ended {took:?} after it was out"));
        assert!(took < Duration::from_secs(2), "{hook}: {took:?} after it was out");
        only_reset(&mut held, 10, 20, hook);
        let counter = |reason| cluster.evenkeel.counter(reason).expect("counter");
        assert_eq!((counter("backend_reset"), counter("backend_restarted")), (10, 0), "{hook}");
    });
}

#[test]
fn connections_that_a_rebooted_host_drops_in_silence_are_reset_when_they_were_asked_twice() {
    both_at_once(|hook| {
        let mut cluster = Cluster::new(hook, |service| probed(service, 2));
        let mut held = hold(&cluster, 30, hook);
        // As conntrack's `invalid drop` after a reboot: only SYNs are known.
        reboot(&mut cluster, &[&format!("tcp dport {PORT} tcp flags & syn != syn drop")]);
        let out = Instant::now();
        let took = gone(&mut held, "cp01", out, hook);
        report(&format!("{hook}: refused, and silent on old connections: reset {took:?} after it was out"));
        assert!((1700..3500).contains(&took.as_millis()), "{hook}: {took:?} after it was out");
        only_reset(&mut held, 10, 20, hook);
        assert_eq!(cluster.evenkeel.counter("backend_restarted").expect("counter"), 10);
        cluster.lab.backends[0].open_firewall().expect("nft");
        cluster.standins[0].revive().expect("a start");
        becomes(&cluster, "cp01", "up", None, out);
    });
}

#[test]
fn a_server_that_closes_its_listener_first_loses_nobody_with_and_without_a_probe() {
    for with_probe in [true, false] {
        both_at_once(|hook| {
            let mut cluster = Cluster::new(hook, |service| if with_probe { probed(service, 2) } else { service });
            let mut held = hold(&cluster, 30, hook);
            cluster.standins[0].stop_listening().expect("a command");
            let closed = Instant::now();
            // Clients come, so that it is seen without a probe too.
            let storm = cluster.storm(&["--rate", "50", "--seconds", "8"]);
            becomes(&cluster, "cp01", "down", Some("refused"), closed);
            // One that waited in the listener's own queue at that moment is reset by its kernel.
            let failures = storm.finish(Duration::from_secs(30)).expect("a storm").failures();
            assert!(failures <= 1, "{hook}: {failures}");
            only_reset(&mut held, 0, 30, hook);
            assert_eq!(cluster.evenkeel.counter("backend_restarted").expect("counter"), 0, "{hook}");
            // It has finished, and the next one is started: nobody is cut by that either.
            held.close(10, "cp01", "fin").expect("close");
            cluster.standins[0].revive().expect("a start");
            // Without a probe it takes a client to see that.
            let storm = cluster.storm(&["--rate", "50", "--seconds", "12"]);
            cluster.wait_state("cp01", "up", Duration::from_secs(20));
            assert_eq!(storm.finish(Duration::from_secs(30)).expect("a storm").failures(), 0, "{hook}");
            assert_eq!(held.ask().expect("ask").answered, 20, "{hook}");
        });
    }
}

#[test]
fn half_of_them_failing_together_are_drained_and_nobody_is_reset() {
    let cluster = Cluster::of(Plan::new(Topology::Segment).backends(4), "tc", |service| probed(service, 2));
    let mut held = cluster.hold(&[]);
    all_served(&held.open(40).expect("open"), 40, "40");
    cluster.standins[..2].iter().for_each(|standin| standin.pause().expect("SIGSTOP"));
    for name in ["cp01", "cp02"] {
        cluster.wait_state(name, "draining", SOON);
        assert_eq!(cluster.backend(name).reason.as_deref(), Some("probe_timeout"));
    }
    let seen = Instant::now();
    wait::until("three looks at it", SOON, || (seen.elapsed() > 3 * INTERVAL).then_some(())).expect("time");
    assert_eq!(served_by(&cluster, 20, "the others"), ["cp03", "cp04"]);
    let events = cluster.evenkeel.done(&["events"]).expect("events");
    assert!(events.contains("keeps its connections: half or more of the service's backends fail together"), "{events}");
    cluster.standins[..2].iter().for_each(|standin| standin.resume().expect("SIGCONT"));
    ["cp01", "cp02"].iter().for_each(|name| cluster.wait_state(name, "up", SOON));
    assert_eq!(held.ask().expect("ask").answered, 40, "they were never reset");
}

#[test]
fn a_second_one_that_leaves_probes_unanswered_keeps_its_connections_until_the_first_is_back() {
    let cluster = Cluster::of(Plan::new(Topology::Segment).backends(5), "tc", |service| probed(service, 2));
    let mut held = cluster.hold(&[]);
    all_served(&held.open(50).expect("open"), 50, "50");
    cluster.standins[0].pause().expect("SIGSTOP");
    gone(&mut held, "cp01", Instant::now(), "the first");
    cluster.standins[1].pause().expect("SIGSTOP");
    cluster.wait_state("cp02", "draining", SOON);
    let events = cluster.evenkeel.done(&["events"]).expect("events");
    assert!(events.contains("probes alone reset the connections of one backend at a time"), "{events}");
    assert_eq!(held.status().expect("status").by.get("cp02"), Some(&10));
    cluster.standins[0].resume().expect("SIGCONT");
    gone(&mut held, "cp02", Instant::now(), "the first is back");
    cluster.standins[1].resume().expect("SIGCONT");
    cluster.wait_state("cp02", "up", SOON);
    only_reset(&mut held, 20, 30, "two of five");
}

#[test]
fn one_that_comes_back_starts_slowly_though_it_has_the_fewest_connections() {
    let mut cluster = Cluster::new("tc", |service| probed(service, 2).backend_line(2, "slow_start = \"5s\""));
    let mut held = hold(&cluster, 300, "held");
    cluster.standins[2].kill();
    cluster.wait_state("cp03", "down", SOON);
    cluster.standins[2].revive().expect("a start");
    cluster.wait_state("cp03", "slow_start", SOON);
    let refused = cluster.evenkeel.command(&["rebalance"]).expect("rebalance");
    assert!(refused.code == 1 && refused.err.contains("one of its backends is in slow start"), "{refused:?}");
    // A third of all is its full share, of which it gets nothing at first; without slow_start it
    // would get all of them.
    let mut shares = Vec::new();
    for _ in 0..3 {
        let storm = cluster.storm(&["--rate", "200", "--seconds", "0.8"]);
        let report = storm.finish(SOON).expect("a storm");
        assert_eq!(report.failures(), 0, "{report:?}");
        shares.push(report.by.get("cp03").copied().unwrap_or(0) as f64 / report.done.max(1) as f64);
    }
    assert!(shares[0] < 0.15 && shares.is_sorted() && shares[2] < 0.34, "{shares:?}");
    cluster.wait_state("cp03", "up", SOON);
    assert_eq!(served_by(&cluster, 20, "it is the least busy one"), ["cp03"]);
    assert_eq!(held.status().expect("status").open, 200);
}

#[test]
fn a_reload_or_a_restart_forgets_nothing_and_a_ca_that_cannot_be_used_changes_nothing() {
    let mut cluster = Cluster::new("tc", |service| probed(service, 2));
    let ca = |file: &str| format!("ca = \"{}\"", cluster.lab.folder().join(file).display());
    let verified = cluster.service.clone().probe(&ca("ca.crt"));
    let missing = cluster.service.clone().probe(&ca("no.crt"));
    let no_certificate = cluster.service.clone().probe(&ca("admin.key"));
    let foreign = cluster.service.clone().probe(&ca("foreign.crt"));
    std::fs::create_dir(cluster.lab.folder().join("other")).expect("a folder");
    lab::pki::create(&cluster.lab.folder().join("other"), &[]).expect("certificates");
    std::fs::copy(cluster.lab.folder().join("other/ca.crt"), cluster.lab.folder().join("foreign.crt")).expect("a copy");

    cluster.standins[0].readyz(500).expect("a command");
    cluster.wait_state("cp01", "draining", SOON);
    for (wrong, why) in
        [(&missing, "no.crt: I/O error: No such file"), (&no_certificate, "admin.key: there is no certificate in it")]
    {
        cluster.evenkeel.write(&wrong.toml()).expect("a configuration");
        let answer = cluster.evenkeel.command(&["reload"]).expect("reload");
        assert!(answer.code == 1 && answer.err.contains(why), "{answer:?}");
    }
    let status = cluster.evenkeel.status().expect("status");
    assert_eq!(status["config"]["generation"], 1, "the old configuration is in force");

    cluster.reload(&verified);
    let other_times = verified.clone().probe("rise = 3");
    cluster.reload(&other_times);
    assert_eq!(cluster.backend("cp01").state, "draining", "a reload");
    let events = cluster.evenkeel.done(&["events"]).expect("events");
    assert_eq!((events.matches("is not ready").count(), events.matches("is up").count()), (1, 0), "{events}");
    cluster.evenkeel.kill();
    cluster.evenkeel.run().expect("a start");
    let after = cluster.backend("cp01");
    assert_eq!((&*after.state, after.reason.as_deref()), ("draining", Some("probe_status")), "a restart");
    assert_eq!(served_by(&cluster, 20, "restarted"), ["cp02", "cp03"]);
    cluster.standins[0].readyz(200).expect("a command");
    cluster.wait_state("cp01", "up", SOON);

    // Another authority: all of them fail, so no client is reset and every client is served.
    let mut held = cluster.hold(&[]);
    all_served(&held.open(30).expect("open"), 30, "30");
    cluster.reload(&foreign);
    ["cp01", "cp02", "cp03"].iter().for_each(|name| cluster.wait_state(name, "draining", SOON));
    all_served(&held.open(30).expect("open"), 30, "fail open");
    assert_eq!(held.ask().expect("ask").answered, 60);
    // The file is replaced, as when certificates are renewed, and a reload reads it again.
    std::fs::copy(cluster.lab.folder().join("ca.crt"), cluster.lab.folder().join("foreign.crt")).expect("a copy");
    cluster.reload(&foreign);
    ["cp01", "cp02", "cp03"].iter().for_each(|name| cluster.wait_state(name, "up", SOON));

    cluster.evenkeel.terminate().expect("SIGTERM");
    cluster.evenkeel.write(&missing.toml()).expect("a configuration");
    let refused = format!("{:#}", cluster.evenkeel.run().expect_err("no start without the authority"));
    assert!(
        refused.contains("service kube-apiserver") && refused.contains("no.crt: I/O error: No such file"),
        "{refused}"
    );
}
