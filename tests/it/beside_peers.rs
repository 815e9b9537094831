//! nginx and HAProxy next to us, in front of the same backends at the same time: what a client sees
//! of each.

use lab::{
    client::hold::{Holding, Opened},
    peers::{self, HAPROXY_PORT, NGINX_PORT},
    topology::{PORT, VIP},
};

use crate::cluster::{Cluster, all_served};

/// Thirty new clients, one after the other, at a port of the VIP.
fn thirty(cluster: &Cluster, port: u16) -> Opened {
    let target = format!("{VIP}:{port}");
    let mut held = Holding::start(cluster.lab.client(), &[&target, "--parallel", "1"]).expect("hold");
    let opened = held.open(30).expect("open");
    held.close(30, "-", "fin").expect("close");
    opened
}

#[test]
fn with_two_of_three_refusing_none_of_thirty_fails_here_and_some_at_nginx_and_haproxy() {
    let mut cluster = Cluster::new("tc", |service| service);
    let _nginx = peers::nginx(&cluster.lab).expect("nginx");
    let _haproxy = peers::haproxy(&cluster.lab).expect("haproxy");
    // First check that all three serve, so that a later failure is not one of the setup.
    for port in [PORT, NGINX_PORT, HAPROXY_PORT] {
        all_served(&thirty(&cluster, port), 30, &format!("port {port}"));
    }
    cluster.active([0, 0, 0]);
    // A closed port, and a firewall that rejects with a RST.
    cluster.standins[0].kill();
    cluster.lab.backends[1].reject_syns(PORT).expect("nft");
    let [ours, nginx, haproxy] = [PORT, NGINX_PORT, HAPROXY_PORT].map(|port| thirty(&cluster, port));
    for (name, opened) in [("evenkeel", &ours), ("nginx", &nginx), ("HAProxy", &haproxy)] {
        let failed: u64 = opened.failed.values().sum();
        println!("two of three refusing, 30 new clients: {name}: {failed} failed, slowest {:.1} ms", opened.slowest_ms);
    }
    all_served(&ours, 30, "two of three refusing");
    assert_eq!(ours.by, [("cp03".to_owned(), 30)].into());
}
