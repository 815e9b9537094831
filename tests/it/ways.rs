//! Clients that are reached otherwise than their frames come.

use std::{
    thread,
    time::{Duration, Instant},
};

use evenkeel::sys::{netdev, packet_socket::PacketSocket};
use lab::{Host, Plan, arp, topology::Topology, wait};

use crate::cluster::{Cluster, SOON, all_served, both};

/// Lets every TCP packet of a host leave with another sender than the one that answers ARP.
fn send_as_another(host: &Host) {
    let rules = "add table netdev other; add chain netdev other out \
                 { type filter hook egress device \"eth0\" priority 0; }; \
                 add rule netdev other out ip protocol tcp ether saddr set 02:aa:aa:aa:aa:aa";
    host.run("nft", &[rules]).expect("nft");
}

/// A client with a connection.
fn a_client(cluster: &Cluster) -> String {
    let conns = cluster.evenkeel.json(&["conns"]).expect("conns");
    conns[0]["client"].as_str().expect("a client").to_owned()
}

#[test]
fn a_client_that_sends_from_another_mac_than_it_listens_at_is_served() {
    both(|hook| {
        let cluster = Cluster::new(hook, |service| service);
        send_as_another(cluster.lab.client());
        // The client asks for our address just before, so its first SYN may have to come twice.
        let mut held = cluster.hold(&[]);
        all_served(&held.open(1).expect("open"), 1, hook);
        let opened = held.open(20).expect("open");
        all_served(&opened, 20, hook);
        assert!(opened.slowest_ms < 900.0, "{hook}: none has to be sent twice: {opened:?}");
        assert_eq!(held.ask().expect("ask").answered, 21, "{hook}");
        let trace = cluster.evenkeel.json(&["trace", &a_client(&cluster)]).expect("trace");
        assert_eq!(trace["connections"][0]["client_side"]["way"], "neighbour", "{hook}: {trace}");
    });
}

/// Lets a host forward packets, without a word about better ways.
pub fn forward(host: &Host) {
    for (name, value) in [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.all.send_redirects", "0"),
        ("net.ipv4.conf.eth0.send_redirects", "0"),
    ] {
        host.sysctl(name, value).expect("sysctl");
    }
}

/// Puts a client into a network of its own, behind a router.
pub fn move_behind_router(client: &Host, balancer: &Host) {
    client.ip(&["addr", "flush", "dev", "eth0"]).expect("flush");
    client.ip(&["addr", "add", "10.9.0.5/24", "dev", "eth0"]).expect("an address");
    client.ip(&["route", "add", "default", "via", "10.9.0.254"]).expect("a route");
    balancer.ip(&["route", "add", "10.9.0.0/24", "via", "10.0.1.254"]).expect("a route");
}

/// Makes a host the router between the segment and the client's network.
pub fn become_router(host: &Host) {
    host.link("eth0", false).expect("down");
    for address in ["10.0.1.254/24", "10.9.0.254/24"] {
        host.ip(&["addr", "add", address, "dev", "eth0"]).expect("an address");
    }
    host.link("eth0", true).expect("up");
}

/// Tells everybody where the routers' addresses are now, as routers do again and again: the first
/// time, the switch may not let it through yet.
fn announce(host: &Host) {
    let mac = arp::mac(host, "eth0").expect("its MAC");
    let told = host.inside(|| {
        let (socket, ifindex) = (PacketSocket::open()?, netdev::index_of("eth0")?);
        let claims = [[10, 0, 1, 254], [10, 9, 0, 254]].map(|address| claim(mac, address));
        claims.iter().try_for_each(|frame| Ok(socket.send(ifindex, frame)?))
    });
    told.expect("it tells everybody");
}

/// A gratuitous ARP request.
fn claim(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let kind = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1];
    [&[0xff; 6][..], &mac, &kind, &mac, &address, &[0; 6], &address].concat()
}

#[test]
fn when_a_router_takes_over_anothers_address_streams_go_on_without_a_word_from_their_clients() {
    for hook in ["tc", "clsact"] {
        let cluster = Cluster::of(Plan::new(Topology::Segment).clients(3), hook, |service| service);
        let [client, first, second] = [0, 1, 2].map(|number| cluster.lab.clients[number].clone());
        [&first, &second].into_iter().for_each(forward);
        become_router(&first);
        move_behind_router(&client, &cluster.lab.balancer);
        // Routes are listed once a second at most.
        thread::sleep(Duration::from_millis(1500));
        let pki = cluster.lab.folder().display().to_string();
        let mut held = cluster.hold(&["--tls", &pki, "--watch"]);
        all_served(&held.open(5).expect("open"), 5, hook);
        let bytes = |held: &mut lab::client::hold::Holding| held.status().expect("status").bytes;
        let before = bytes(&mut held);
        wait::until("the streams run", SOON, || (bytes(&mut held) > before).then_some(())).expect(hook);

        first.link("eth0", false).expect("down");
        become_router(&second);
        let (since, before) = (Instant::now(), bytes(&mut held));
        let new = arp::text(arp::mac(&second, "eth0").expect("its MAC"));
        let follows = || {
            announce(&second);
            let trace = cluster.evenkeel.json(&["trace", &a_client(&cluster)]).expect("trace");
            (trace["connections"][0]["client_side"]["mac"] == new.as_str()).then_some(())
        };
        wait::until("the connections lead to the other router", SOON, follows).unwrap_or_else(|error| {
            let neighbours = cluster.lab.balancer.ip(&["neigh"]).expect("ip neigh");
            let trace = cluster.evenkeel.json(&["trace", &a_client(&cluster)]).expect("trace");
            panic!("{hook}: {error:#}\nnot {new}: {neighbours}\n{trace}")
        });
        assert!(since.elapsed() < Duration::from_secs(1), "{hook}: {:?}", since.elapsed());
        // There is an event every five seconds.
        wait::until("the streams go on", SOON, || (bytes(&mut held) > before).then_some(())).expect(hook);
        assert!(since.elapsed() < Duration::from_millis(6500), "{hook}: {:?}", since.elapsed());
        assert_eq!(held.status().expect("status").open, 5, "{hook}");
    }
}

/// The second router is reached by another interface, and only the route says so.
#[test]
fn when_the_route_to_idle_clients_moves_to_another_interface_their_streams_go_on() {
    const STREAMS: u64 = 100;
    for hook in ["tc", "clsact"] {
        let cluster = Cluster::of(Plan::new(Topology::Segment).clients(3), hook, |service| service);
        let [client, first, second] = [0, 1, 2].map(|number| cluster.lab.clients[number].clone());
        let balancer = &cluster.lab.balancer;
        balancer.sysctl("net.ipv4.conf.all.arp_ignore", "1").expect("sysctl");
        balancer.sysctl("net.ipv4.conf.all.rp_filter", "0").expect("sysctl");
        cluster.lab.second_cable(balancer, "eth1").expect("a cable");
        balancer.ip(&["addr", "add", "10.0.7.1/24", "dev", "eth1"]).expect("an address");
        balancer.link("eth1", true).expect("up");
        cluster.reload(&cluster.service.clone().line("interface = [\"eth0\", \"eth1\"]"));
        [&first, &second].into_iter().for_each(forward);
        become_router(&first);
        second.ip(&["addr", "flush", "dev", "eth0"]).expect("flush");
        for address in ["10.0.7.254/24", "10.9.0.253/24"] {
            second.ip(&["addr", "add", address, "dev", "eth0"]).expect("an address");
        }
        move_behind_router(&client, balancer);
        thread::sleep(Duration::from_millis(1500));
        let pki = cluster.lab.folder().display().to_string();
        let mut held = cluster.hold(&["--tls", &pki, "--watch"]);
        all_served(&held.open(STREAMS).expect("open"), STREAMS, hook);

        first.link("eth0", false).expect("down");
        balancer.ip(&["route", "replace", "10.9.0.0/24", "via", "10.0.7.254", "dev", "eth1"]).expect("a route");
        let bytes = |held: &mut lab::client::hold::Holding| held.status().expect("status").bytes;
        let before = bytes(&mut held);
        let new = arp::text(arp::mac(&second, "eth0").expect("its MAC"));
        let follows = || {
            let trace = cluster.evenkeel.json(&["trace", &a_client(&cluster)]).expect("trace");
            let side = &trace["connections"][0]["client_side"];
            (side["mac"] == new.as_str() && side["interface"] == "eth1").then_some(())
        };
        wait::until("the connections lead to the other router", SOON, follows)
            .unwrap_or_else(|late| panic!("{hook}: {late:#}\n{}", cluster.evenkeel.log()));
        // There is an event every five seconds.
        wait::until("the streams go on", SOON, || (bytes(&mut held) > before).then_some(())).expect(hook);
        assert_eq!(held.status().expect("status").open, STREAMS, "{hook}");
    }
}
