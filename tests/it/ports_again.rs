//! SNAT ports that come round within seconds, to backends that closed first: their kernels hold each
//! port in TIME_WAIT, and their firewalls remember its last connection.

use std::time::Duration;

use lab::{
    Plan,
    client::storm,
    peers::{self, NGINX_PORT},
    topology::{PORT, Topology, VIP as ADDRESS},
};

use crate::cluster::{Cluster, full, use_all_ports};

/// What firewalld, kube-proxy and every guide to hardening have: what connection tracking calls
/// invalid is dropped.
const STATEFUL: [&str; 4] = [
    "ct state invalid counter drop",
    "ct state established,related accept",
    "tcp dport 6443 ct state new accept",
    "tcp dport 6443 drop",
];

/// Short connections, of which the server closes each first.
struct Load {
    snat_ports: &'static str,
    /// Connections per second.
    rate: u32,
    seconds: u32,
    /// Whether the backends have a firewall that tracks connections.
    stateful: bool,
}

#[test]
fn forty_ports_that_come_round_neither_fail_nor_wait_nor_charge_a_backend() {
    for hook in ["tc", "xdp"] {
        for stateful in [true, false] {
            let seconds = if full() { 60 } else { 8 };
            comes_round(hook, &Load { snat_ports: "20000-20039", rate: 100, seconds, stateful });
        }
    }
}

/// At full size the default range, as long as it takes to come round three times.
#[test]
fn four_hundred_connections_a_second_and_backend_on_ports_that_come_round_neither_fail_nor_wait() {
    let load = if full() {
        Load { snat_ports: "10240-32767", rate: 1200, seconds: 180, stateful: true }
    } else {
        Load { snat_ports: "10240-11263", rate: 1200, seconds: 10, stateful: true }
    };
    comes_round("tc", &load);
}

fn comes_round(hook: &str, load: &Load) {
    let cluster = Cluster::of(Plan::new(Topology::Segment), hook, |service| {
        service.line(&format!("snat_ports = \"{}\"", load.snat_ports))
    });
    if load.stateful {
        cluster.lab.backends.iter().for_each(|host| host.firewall(&STATEFUL, &[]).expect("nft"));
    }
    use_all_ports(cluster.lab.client());
    let what = format!("{hook}, ports {}, {} a second, stateful: {}", load.snat_ports, load.rate, load.stateful);
    let report = storm(&cluster, PORT, load);
    println!("{what}: {report:?}");
    let told = cluster.evenkeel.done(&["counters"]).unwrap_or_default();
    assert!(report.done >= u64::from(load.rate * load.seconds) * 9 / 10, "{what}: {report:?}");
    assert_eq!((report.failures(), report.slow), (0, 0), "{what}: {report:?}\n{told}\n{}", cluster.evenkeel.log());
    for backend in cluster.evenkeel.backends().expect("backends") {
        assert_eq!((backend.state.as_str(), backend.connect_failures, backend.resets), ("up", 0, 0), "{what}");
    }
    assert!(!cluster.evenkeel.log().contains("is out"), "{what}: {}", cluster.evenkeel.log());
    let again = cluster.evenkeel.counter("time_wait").expect("a counter");
    assert!(again > u64::from(load.rate), "{what}: only {again} met an older connection");
}

fn storm(cluster: &Cluster, port: u16, load: &Load) -> storm::Report {
    let (target, rate, seconds) = (format!("{ADDRESS}:{port}"), load.rate.to_string(), load.seconds.to_string());
    let options = [&target[..], "--rate", &rate, "--seconds", &seconds, "--close", "server-fin"];
    let running = storm::start(cluster.lab.client(), &options).expect("storm");
    running.finish(Duration::from_secs(u64::from(load.seconds) + 30)).expect("its report")
}

/// What is asked of evenkeel above: nginx's own kernel begins every connection on a port with a
/// higher number than the one before.
#[test]
fn nginx_with_forty_ports_loses_none_either() {
    let cluster = Cluster::new("tc", |service| service);
    let _nginx = peers::nginx(&cluster.lab).expect("nginx");
    cluster.lab.backends.iter().for_each(|host| host.firewall(&STATEFUL, &[]).expect("nft"));
    cluster.lab.balancer.sysctl("net.ipv4.ip_local_port_range", "20100 20139").expect("sysctl");
    let report = storm(&cluster, NGINX_PORT, &Load { snat_ports: "", rate: 100, seconds: 8, stateful: true });
    println!("nginx: {report:?}");
    assert_eq!((report.failures(), report.slow), (0, 0), "{report:?}");
}
