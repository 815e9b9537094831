//! Paths that take less than Ethernet does, of which only a router's ICMP errors tell: path MTU
//! discovery works through the balancer, as it does with a proxy.

use std::time::Instant;

use lab::{Host, Plan, client::bulk, topology::Topology, wait};

use crate::{
    cluster::{Cluster, SOON, VIP, all_served, full},
    ways::{become_router, forward, move_behind_router},
};

/// Moves a megabyte each way.
fn a_megabyte_passes(cluster: &Cluster, hook: &str) {
    for direction in ["upload", "download"] {
        let begun = Instant::now();
        bulk::transfer(cluster.lab.client(), VIP, direction, 1 << 20)
            .unwrap_or_else(|error| panic!("{hook}: {direction}: {error:#}\n{}", cluster.evenkeel.log()));
        assert!(begun.elapsed() < SOON, "{hook}: {direction} took {:?}", begun.elapsed());
    }
}

/// The same over a narrow path: errors are taken into account that the balancer has translated.
fn a_megabyte_passes_by_translated_errors(cluster: &Cluster, hook: &str) {
    a_megabyte_passes(cluster, hook);
    assert!(cluster.evenkeel.counter("icmp_translated").expect("counters") > 0, "{hook}: the path was not narrow");
    assert_eq!(cluster.evenkeel.counter("icmp_refused").expect("counters"), 0, "{hook}");
}

#[test]
fn a_narrow_path_to_the_backends_is_found_out_by_the_clients() {
    for hook in ["tc", "clsact", "xdp"] {
        let cluster = Cluster::of(Plan::new(Topology::Routed), hook, |service| service);
        let router = cluster.lab.router.as_ref().expect("a router");
        router.ip(&["route", "replace", "10.0.3.0/24", "dev", "eth1", "mtu", "lock", "1280"]).expect("a route");
        a_megabyte_passes_by_translated_errors(&cluster, hook);
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
        a_megabyte_passes_by_translated_errors(&cluster, hook);
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

/// Two sides of which the balancer's interfaces take different lengths. The hosts there send what
/// their own side takes, and say that they take more than the balancer sends them, as hosts behind
/// routers do.
fn unequal_sides(hook: &str, [clients, backends]: [u32; 2], clamp: &str) -> Cluster {
    let cluster = Cluster::of(Plan::new(Topology::TwoSides), hook, |service| service.line(clamp));
    let lab = &cluster.lab;
    let all = clients.max(backends);
    let set = |host: &Host, device: &str, mtu: u32| {
        host.ip(&["link", "set", device, "mtu", &mtu.to_string()]).expect("an MTU");
    };
    let sides = [(Some(&lab.switch), &lab.clients), (lab.back_switch.as_ref(), &lab.backends)];
    for (switch, hosts) in sides {
        let switch = switch.expect("a switch");
        hosts.iter().for_each(|host| set(host, "eth0", all));
        hosts.iter().chain([&lab.balancer]).for_each(|host| set(switch, &host.name, all));
    }
    for (device, mtu) in [("eth0", clients), ("eth1", backends)] {
        set(&lab.balancer, device, mtu);
    }
    let (most, sends) = ((all - 40).to_string(), [clients, backends].map(|mtu| mtu.to_string()));
    let route = |host: &Host, to: &[&str], mtu: &str| {
        host.ip(&[&["route", "replace"], to, &["mtu", mtu, "advmss", &most]].concat()).expect("a route");
    };
    lab.clients.iter().for_each(|host| route(host, &["10.0.1.0/24", "dev", "eth0"], &sends[0]));
    lab.backends.iter().for_each(|host| route(host, &["default", "via", "10.0.2.1"], &sends[1]));
    let known = || {
        let status = cluster.evenkeel.status().expect("status");
        let of = |n: usize| status["services"][0]["datapath"][n]["mtu"].as_u64().map(|mtu| mtu as u32);
        ([of(0), of(1)] == [Some(clients), Some(backends)]).then_some(())
    };
    wait::until("the new MTUs are known", SOON, known).expect(hook);
    cluster
}

/// The MTUs towards clients and towards backends. On native XDP a frame has to fit into a page.
fn sides() -> &'static [[u32; 2]] {
    let all = &[[1500, 1400], [1400, 1500], [3000, 1500], [1500, 3000]];
    if full() { all } else { &all[..2] }
}

#[test]
fn what_is_too_large_for_the_other_interface_of_the_balancer_is_answered_by_it() {
    for hook in ["tc", "clsact", "xdp"] {
        for sides in sides().iter().copied() {
            for offloads in ["all", "of the hosts", "none"] {
                let cluster = unequal_sides(hook, sides, "mss_clamp = \"off\"");
                let lab = &cluster.lab;
                let hosts = lab.clients.iter().chain(&lab.backends).map(|host| (host, "eth0"));
                let balancer = [(&lab.balancer, "eth0"), (&lab.balancer, "eth1")];
                let without: Vec<_> = match offloads {
                    "all" => Vec::new(),
                    // The balancer itself has to finish the checksums that hosts leave to it.
                    "of the hosts" => balancer.into(),
                    _ => hosts.chain(balancer).collect(),
                };
                for (host, device) in without {
                    for kind in ["tx", "tso", "gso"] {
                        host.offload(device, kind, false).expect("ethtool");
                    }
                }
                let what = format!("{hook}, {sides:?}, offloads {offloads}");
                a_megabyte_passes(&cluster, &what);
                assert!(cluster.evenkeel.counter("too_large").expect("counters") > 0, "{what}: it was not too large");
                assert_eq!(cluster.evenkeel.counter("too_large_no_df").expect("counters"), 0, "{what}");
            }
        }
    }
}

#[test]
fn hosts_are_told_of_what_both_interfaces_take_and_send_nothing_larger() {
    for hook in ["tc", "clsact", "xdp"] {
        for sides in sides().iter().copied() {
            // Hosts that let their packets be cut are served too.
            for discovery in [true, false] {
                let cluster = unequal_sides(hook, sides, "mss_clamp = \"auto\"");
                let all = cluster.lab.clients.iter().chain(&cluster.lab.backends);
                if !discovery {
                    all.for_each(|host| host.sysctl("net.ipv4.ip_no_pmtu_disc", "1").expect("sysctl"));
                }
                let what = format!("{hook}, {sides:?}, discovery {discovery}");
                a_megabyte_passes(&cluster, &what);
                for counter in ["too_large", "too_large_no_df"] {
                    assert_eq!(cluster.evenkeel.counter(counter).expect("counters"), 0, "{what}: {counter}");
                }
                let shown = cluster.evenkeel.done(&["status"]).expect("status");
                let [clients, backends] = sides;
                let line = format!("\nMTU {clients} on eth0, {backends} on eth1\n");
                assert!(shown.contains(&line), "{what}: {shown}");
            }
        }
    }
}
