//! Paths that take less than Ethernet does, of which only a router's ICMP errors tell: path MTU
//! discovery works through the balancer, as it does with a proxy.

use std::time::Instant;

use lab::{Plan, client::bulk, topology::Topology};

use crate::{
    cluster::{Cluster, SOON, VIP, all_served},
    ways::{become_router, forward, move_behind_router},
};

/// Moves a megabyte each way; both take errors into account that the balancer has translated.
fn a_megabyte_passes(cluster: &Cluster, hook: &str) {
    for direction in ["upload", "download"] {
        let begun = Instant::now();
        bulk::transfer(cluster.lab.client(), VIP, direction, 1 << 20)
            .unwrap_or_else(|error| panic!("{hook}: {direction}: {error:#}\n{}", cluster.evenkeel.log()));
        assert!(begun.elapsed() < SOON, "{hook}: {direction} took {:?}", begun.elapsed());
    }
    assert!(cluster.evenkeel.counter("icmp_translated").expect("counters") > 0, "{hook}: the path was not narrow");
    assert_eq!(cluster.evenkeel.counter("icmp_refused").expect("counters"), 0, "{hook}");
}

#[test]
fn a_narrow_path_to_the_backends_is_found_out_by_the_clients() {
    for hook in ["tc", "clsact", "xdp"] {
        let cluster = Cluster::of(Plan::new(Topology::Routed), hook, |service| service);
        let router = cluster.lab.router.as_ref().expect("a router");
        router.ip(&["route", "replace", "10.0.3.0/24", "dev", "eth1", "mtu", "lock", "1280"]).expect("a route");
        a_megabyte_passes(&cluster, hook);
    }
}

#[test]
fn a_narrow_path_to_the_clients_is_found_out_by_the_backends() {
    for hook in ["tc", "clsact", "xdp"] {
        let cluster = Cluster::of(Plan::new(Topology::Segment).clients(2), hook, |service| service);
        let [client, router] = [0, 1].map(|number| cluster.lab.clients[number].clone());
        forward(&router);
        become_router(&router);
        router.ip(&["route", "replace", "10.9.0.0/24", "dev", "eth0", "mtu", "lock", "1280"]).expect("a route");
        move_behind_router(&client, &cluster.lab.balancer);
        a_megabyte_passes(&cluster, hook);
    }
}

#[test]
fn a_backend_that_a_router_or_a_firewall_says_cannot_be_reached_costs_nobody_any_time() {
    for hook in ["tc", "clsact", "xdp"] {
        let cluster = Cluster::of(Plan::new(Topology::Routed), hook, |service| service);
        let router = cluster.lab.router.as_ref().expect("a router");
        // One host is not there, as its router says, and one is behind a firewall that says so.
        let rules = "add table ip paths; add chain ip paths way { type filter hook forward priority 0; }; \
                     add rule ip paths way ip daddr 10.0.3.10 reject with icmp type host-unreachable; \
                     add rule ip paths way ip daddr 10.0.3.11 reject with icmp type admin-prohibited";
        router.run("nft", &[rules]).expect("nft");
        // Linux says so six times at once and then once a second, to one address; and fifty times
        // at once to all of them.
        router.sysctl("net.ipv4.icmp_ratelimit", "0").expect("sysctl");
        let mut held = cluster.hold(&[]);
        let opened = held.open(10).expect("open");
        all_served(&opened, 10, hook);
        assert!(opened.slowest_ms < 900.0, "{hook}: none waits for its SYN to be sent again: {opened:?}");
        for name in ["cp01", "cp02"] {
            cluster.wait_state(name, "down", SOON);
            assert_eq!(cluster.backend(name).reason.as_deref(), Some("unreachable"), "{hook}: {name}");
        }
        cluster.active([0, 0, 10]);
        assert!(cluster.evenkeel.counter("unreachable").expect("counters") >= 6, "{hook}");
        router.run("nft", &["delete table ip paths"]).expect("nft");
    }
}
