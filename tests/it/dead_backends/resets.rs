//! RSTs that count, and RSTs that do not: between hosts with Linux's own settings, on connections
//! that have been idle for a while.

use std::{
    net::{SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use evenkeel::{
    sys::packet_socket::PacketSocket,
    tables::{Flow, Tables},
};
use lab::{
    Host, Plan,
    packet::{ACK, Mac, RST, Segment},
    topology::{PORT, Topology, VIP},
    wait,
};
use nix::net::if_::if_nametoindex;

use super::report;
use crate::cluster::{Cluster, SOON, all_served, both_at_once, full};

/// Numbers that are not the next of a connection: close to it, and far from it.
const OFF: [u32; 5] = [1, u32::MAX, 1000, 1 << 29, 1 << 31];

/// How long connections are idle, in seconds.
fn idle_times() -> Vec<u64> {
    if let Ok(one) = std::env::var("EVENKEEL_IDLE") {
        return vec![one.parse().expect("EVENKEEL_IDLE: seconds")];
    }
    if full() { vec![0, 30, 60] } else { vec![0, 5] }
}

/// The default settings of Linux.
fn has_the_defaults(host: &Host) {
    for name in ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"] {
        assert_eq!(host.run("sysctl", &["-n", &format!("net.ipv4.{name}")]).expect("sysctl").trim(), "1", "{name}");
    }
    assert_eq!(host.run("sysctl", &["-n", "net.ipv4.tcp_rfc1337"]).expect("sysctl").trim(), "0");
}

/// Connections to `port` that have negotiated timestamps, SACK and window scaling.
fn with_all_options(host: &Host) -> u64 {
    let sockets = host.run("ss", &["-Htino", "state", "established", &format!("( dport = {PORT} or sport = {PORT} )")]);
    let all = |line: &&str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.contains(&"ts") && words.contains(&"sack") && words.iter().any(|word| word.starts_with("wscale:"))
    };
    sockets.expect("ss").lines().filter(all).count() as u64
}

/// The MAC address of a host's eth0.
fn mac(host: &Host) -> Mac {
    let shown = host.ip(&["-br", "link", "show", "eth0"]).expect("ip");
    let text = shown.split_whitespace().nth(2).expect("a MAC address");
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    address
}

/// The connections in the tables, and the address:port that their backends see.
fn flows(tables: &Tables) -> Vec<(Flow, SocketAddrV4, SocketAddrV4)> {
    let mut flows = Vec::new();
    for (number, pool) in tables.pools() {
        let backend = v4(SocketAddr::new(lb_common::address::from_mapped(pool.backend), PORT));
        for head in tables.heads(number, 0..u32::MAX).filter(|head| head.flow.ctl.state().is_active()) {
            let Some(flow) = tables.flow(head.flow.at) else { continue };
            flows.push((flow, SocketAddrV4::new(VIP, pool.first_port + head.flow.at.slot()), backend));
        }
    }
    flows
}

/// A stranger on the segment sends RSTs in the name of both sides, with every wrong number; returns
/// how many.
fn forge(cluster: &Cluster, stranger: &Host) -> u64 {
    let tables = evenkeel::dataplane::tables_beside(cluster.evenkeel.bpffs()).expect("the tables");
    let macs = (mac(stranger), mac(&cluster.lab.balancer));
    let mut frames = Vec::new();
    for (flow, snat, backend) in flows(&tables) {
        let (to_backend, to_client) = (flow.record.end_client as u32, flow.record.end_backend as u32);
        let sides = [
            (v4(flow.client()), SocketAddrV4::new(VIP, PORT), to_backend, to_client),
            (backend, snat, to_client, to_backend),
        ];
        for ((from, to, next, acknowledged), off) in sides.iter().flat_map(|side| OFF.map(|off| (*side, off))) {
            let flags = if off == 1000 { RST } else { RST | ACK };
            let forged = Segment::new(from, to, flags).macs(macs.0, macs.1);
            frames.push(forged.numbers(next.wrapping_add(off), acknowledged.wrapping_add(off)).bytes());
        }
    }
    let send = || {
        let (socket, eth0) = (PacketSocket::open()?, if_nametoindex("eth0")?);
        for (number, frame) in frames.iter().enumerate() {
            socket.send(eth0, frame)?;
            // veth's ring for native XDP holds 256.
            if number % 64 == 63 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(frames.len() as u64)
    };
    stranger.inside(send).expect("forged RSTs")
}

#[test]
fn every_socket_of_both_sides_reports_a_reset_however_long_it_was_idle_and_forged_rsts_reset_none() {
    let count: u64 = if full() { 999 } else { 300 };
    both_at_once(|hook| {
        let mut cluster = Cluster::of(Plan::new(Topology::Segment).clients(2), hook, |service| service);
        has_the_defaults(cluster.lab.client());
        has_the_defaults(&cluster.lab.backends[0]);
        let (mut rounds, mut forged) = (0, 0);
        for idle in idle_times() {
            let what = format!("{hook}, idle {idle} s");
            let mut held = cluster.hold(&["--timeout-ms", "5000"]);
            all_served(&held.open(count).expect("open"), count, &what);
            cluster.active([count / 3; 3]);
            assert_eq!(with_all_options(cluster.lab.client()), count, "{what}: timestamps, SACK, window scaling");
            let since = Instant::now();
            wait::until("idle", Duration::from_secs(idle + 1), || (since.elapsed().as_secs() >= idle).then_some(()))
                .expect("time");

            forged += forge(&cluster, &cluster.lab.clients[1]);
            let refused = || cluster.evenkeel.counter("rst_out_of_window").ok().filter(|refused| *refused == forged);
            wait::until("every forged RST was seen for what it is", SOON, refused).expect("the counter");
            cluster.active([count / 3; 3]);
            if idle == 0 {
                // Checks that they survived it; asking the others would end their idleness.
                assert_eq!(held.ask().expect("ask").answered, count, "{what}");
            }
            assert_eq!(held.status().expect("status").open, count, "{what}: forged RSTs reset none");

            let address = cluster.lab.client().address().to_string();
            cluster.evenkeel.done(&["kill", "--client", &address]).expect("kill");
            rounds += 1;
            let clients = || held.status().ok().filter(|status| status.open == 0);
            let ended = wait::until("all clients' ends", SOON, clients).map(|status| status.ended);
            let ended = ended.unwrap_or_else(|late| panic!("{what}: {late:#}: {:?}", held.status()));
            assert_eq!(ended, [("reset".to_owned(), count)].into(), "{what}: clients");
            for standin in &mut cluster.standins {
                let all = [("reset".to_owned(), count / 3 * rounds)].into();
                let ended = || standin.ended().ok().filter(|ended| ended.values().sum::<u64>() == count / 3 * rounds);
                let ended = wait::until("all ends at the API server", SOON, ended).expect("every socket has ended");
                assert_eq!(ended, all, "{what}: {}", standin.name);
            }
            report(&format!("{what}: {count} of {count} clients and as many API servers' sockets report ECONNRESET"));
        }
    });
}
