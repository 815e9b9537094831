//! The configuration changes under load: backends that are added, removed and get another weight,
//! and changes that fail half-way.

mod snat_ports;

use std::{fs, process::Command, time::Duration};

use lab::{
    Plan,
    client::hold::Holding,
    daemon::Service,
    topology::{PORT, Topology},
    wait,
};

use crate::cluster::{Cluster, SOON, Slots, VIP, all_served, both_at_once, full};

/// The service without the backends whose bit is set; cp01 gets a weight.
fn variant(all: &Service, round: usize) -> Service {
    let without = [0b0100, 0b1000, 0b0010, 0b1100, 0b0000, 0b0110][round % 6];
    let mut service = all.clone().backend_line(0, &format!("weight = {}", round % 5 + 1));
    let mut number = 0;
    service.backends.retain(|_| {
        number += 1;
        without >> (number - 1) & 1 == 0
    });
    service
}

#[test]
fn a_hundred_reloads_under_load_fail_no_connection_and_end_none_that_is_held() {
    let rounds = if full() { 100 } else { 40 };
    let cluster = Cluster::of(Plan::new(Topology::Segment).backends(4), "tc", |service| service);
    let mut held = cluster.hold(&[]);
    all_served(&held.open(400).expect("open"), 400, "held");
    let storm = cluster.storm(&["--rate", "500", "--every", "0.1"]);
    for round in 0..rounds {
        cluster.reload(&variant(&cluster.service, round));
        // Each of them meets some traffic.
        let done = storm.latest().map_or(0, |report| report.done);
        wait::until("traffic goes on", SOON, || (storm.latest().ok()?.done >= done + 20).then_some(()))
            .expect("traffic");
    }
    cluster.reload(&cluster.service);
    let report = storm.stop(Duration::from_secs(30)).expect("its report");
    println!(
        "{rounds} reloads beside {} new connections: {} failed, {} slow",
        report.done,
        report.failures(),
        report.slow
    );
    assert_eq!((report.failures(), report.slow), (0, 0), "{report:?}\n{}", cluster.evenkeel.log());
    assert!(report.by.len() == 4, "all were used: {report:?}");
    assert_eq!(held.ask().expect("ask").answered, 400);
    cluster.active([100, 100, 100]);
    assert!(Slots::of(&cluster.evenkeel).are_whole());
    assert_eq!(cluster.evenkeel.counter("least_conn_drift").expect("a counter"), 0);
}

/// Limits how much more memory the daemon may map; `None`: unlimited.
fn limit_memory(cluster: &Cluster, more: Option<u64>) {
    let id = cluster.evenkeel.id().expect("it runs").to_string();
    let pages = fs::read_to_string(format!("/proc/{id}/statm")).expect("its memory");
    let pages: u64 = pages.split(' ').next().and_then(|pages| pages.parse().ok()).expect("a number");
    let limit = more.map_or("unlimited".to_owned(), |more| (pages * 4096 + more).to_string());
    let done = Command::new("prlimit").args(["--pid", &id, &format!("--as={limit}:")]).status().expect("prlimit");
    assert!(done.success());
}

/// What the daemon logs about a SIGHUP.
fn hang_up(cluster: &Cluster) -> String {
    let told = cluster.evenkeel.log().len();
    cluster.evenkeel.hang_up().expect("SIGHUP");
    let since = || cluster.evenkeel.log()[told..].to_owned();
    let done = || Some(since()).filter(|log| log.contains("was not reloaded") || log.contains("applied"));
    wait::until("an answer to SIGHUP", SOON, done).expect("an answer")
}

#[test]
fn a_reload_that_fails_half_way_leaves_what_was_there() {
    let cluster = Cluster::of(Plan::new(Topology::Segment).backends(4), "tc", |mut service| {
        service.lines.retain(|line| !line.starts_with("listen"));
        service.backends.remove(3);
        service.line("listen = [\"10.0.1.100:6443\", \"10.0.1.100:6444\"]")
    });
    let mut held = cluster.hold(&[]);
    all_served(&held.open(30).expect("open"), 30, "held");
    // A listener and a backend go, and another backend comes, which needs 2.75 MiB of slots.
    let mut other = Service::new(&cluster.lab, "tc").backend_line(0, "weight = 100");
    other.backends.remove(2);
    cluster.evenkeel.write(&other.toml()).expect("a configuration");
    limit_memory(&cluster, Some(2 << 20));
    let told = hang_up(&cluster);
    limit_memory(&cluster, None);
    assert!(told.contains("slots for backend 10.0.1.13:6443"), "{told}");
    as_before(&cluster, &told);
    let told = hang_up(&cluster);
    assert!(told.contains("applied"), "{told}");
    assert_eq!(held.ask().expect("ask").answered, 30);
    let opened = cluster.hold(&[]).open(12).expect("open");
    all_served(&opened, 12, "with the new configuration");
    assert!(!opened.by.contains_key("cp03") && opened.by.contains_key("cp01"), "{opened:?}");
}

/// Checks that both listeners serve, with the three backends of the old configuration.
fn as_before(cluster: &Cluster, told: &str) {
    for port in [PORT, 6444] {
        // A closed listener lets no client in.
        let vip = VIP.replace("6443", &port.to_string());
        let mut held = Holding::start(cluster.lab.client(), &[&vip]).expect("hold");
        let opened = held.open(6).expect("open");
        all_served(&opened, 6, &format!("port {port} after\n{told}"));
        assert!(!opened.by.contains_key("cp04") && opened.by.len() == 3, "port {port}: {opened:?} after\n{told}");
    }
    let backends = cluster.evenkeel.backends().expect("backends");
    assert_eq!(backends.len(), 3, "{backends:?} after\n{told}");
    assert!(backends.iter().all(|backend| backend.state == "up"), "{backends:?} after\n{told}");
}

#[test]
fn connections_from_before_a_change_of_snat_are_counted_killed_and_drained() {
    let cluster = Cluster::of(Plan::new(Topology::Segment), "tc", |service| service);
    let mut held = cluster.hold(&[]);
    all_served(&held.open(30).expect("open"), 30, "held");
    let own = cluster.lab.balancer.address();
    cluster.reload(&cluster.service.clone().line(&format!("snat = [\"{own}\"]")));
    all_served(&held.open(6).expect("open"), 6, "with the new SNAT address");
    // Several rounds of the count that corrects what has drifted.
    std::thread::sleep(Duration::from_secs(8));
    cluster.active([12, 12, 12]);
    assert_eq!(cluster.evenkeel.counter("least_conn_drift").expect("a counter"), 0, "{}", cluster.evenkeel.log());
    let open = |held: &mut Holding, count: u64| {
        let is_so = || (held.status().ok()?.open == count).then_some(());
        wait::until(&format!("{count} are open"), SOON, is_so).expect("the others are reset");
    };
    cluster.evenkeel.done(&["kill", "--backend", "cp01"]).expect("kill");
    open(&mut held, 24);
    cluster.evenkeel.done(&["drain", "cp02", "--deadline", "1s", "--wait"]).expect("drain");
    open(&mut held, 12);
    assert_eq!(held.ask().expect("ask").answered, 12);
}

#[test]
fn a_reload_that_removes_a_silent_backend_while_clients_wait_for_it_refuses_none_of_them() {
    both_at_once(|hook| {
        let cluster = Cluster::of(Plan::new(Topology::Segment).backends(2), hook, |service| {
            service.line("connect_timeout = \"2s\"")
        });
        cluster.lab.backends[0].drop_syns(PORT).expect("nft");
        let mut held = cluster.hold(&["--parallel", "12", "--timeout-ms", "8000"]);
        let opened = std::thread::scope(|scope| {
            let opening = scope.spawn(|| held.open(12).expect("open"));
            let waiting = || cluster.evenkeel.backend("cp01").ok().filter(|backend| backend.active >= 4);
            lab::wait::until("clients wait for cp01", SOON, waiting).expect("they wait");
            let mut without = cluster.service.clone();
            without.backends.remove(0);
            cluster.reload(&without);
            opening.join().expect("clients")
        });
        assert_eq!((opened.opened, opened.failed.len()), (12, 0), "{hook}: {opened:?}");
        assert_eq!(opened.by, [("cp02".to_owned(), 12)].into(), "{hook}");
    });
}
