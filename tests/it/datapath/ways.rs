//! Which next hop leads back to a client: the one that this host knows, or the sender of its frames.

use std::net::Ipv4Addr;

use lab::{
    packet::{ACK, Mac, PSH, SYN},
    program::{Bench, CLIENT_MAC, backend_of},
};
use lb_common::layout::Hop;

use super::{client, on_every_hook};

const NEIGHBOUR: Mac = [2, 0, 0, 0, 7, 7];
const OTHER: Mac = [2, 0, 0, 0, 8, 8];

/// Enters a way by an interface of ours.
fn set_way(bench: &Bench, prefix: &str, mac: Mac, ifindex: u32) {
    let number = bench.tables().place_interface(ifindex, [2, 0, 0, 0, 9, 9]).expect("a number");
    if ifindex == bench.ifindex {
        bench.tables().place_interface(ifindex, bench.mac).expect("its own MAC address");
    }
    bench.tables().set_way(prefix.parse().expect("a prefix"), Some(Hop::new(mac, number))).expect("WAYS");
}

/// Opens a connection; returns the MAC address that its SYN-ACK was sent to, and the next one.
fn answered_to(bench: &Bench, n: u16) -> (Mac, Mac) {
    let syn = bench.forward(&bench.from_client(client(n), SYN).numbers(1000, 0));
    let answer = bench.from_backend(backend_of(&syn), syn.from.port(), SYN | ACK).numbers(5000, 1001);
    let first = bench.forward(&answer).to_mac;
    bench.forward(&bench.from_client(client(n), ACK).numbers(1001, 5001));
    let data = bench.from_client(client(n), ACK | PSH).numbers(1001, 5001).payload(b"GET");
    bench.forward(&data.macs(OTHER, bench.mac));
    let data = bench.from_backend(backend_of(&syn), syn.from.port(), ACK).numbers(5001, 1004).payload(b"200");
    (first, bench.forward(&data).to_mac)
}

#[test]
fn a_client_is_reached_as_this_host_reaches_it_and_otherwise_as_its_frames_come() {
    on_every_hook(|bench| {
        assert_eq!(answered_to(bench, 0), (CLIENT_MAC, OTHER), "nothing is known");
        set_way(bench, "0.0.0.0/0", NEIGHBOUR, bench.ifindex);
        assert_eq!(answered_to(bench, 1), (NEIGHBOUR, NEIGHBOUR), "by a route");
        let address: Ipv4Addr = *client(1).ip();
        bench.tables().set_way(format!("{address}/32").parse().expect("a prefix"), Some(Hop::default())).expect("WAYS");
        assert_eq!(answered_to(bench, 2), (CLIENT_MAC, OTHER), "on the link, and not known there");
        set_way(bench, &format!("{address}/32"), OTHER, bench.ifindex);
        assert_eq!(answered_to(bench, 3), (OTHER, OTHER), "a neighbour");
        set_way(bench, &format!("{address}/32"), NEIGHBOUR, 4711);
        assert_eq!(answered_to(bench, 4), (CLIENT_MAC, OTHER), "a neighbour on another interface than it came by");
    });
}

#[test]
fn a_neighbour_that_becomes_known_later_is_used_when_the_client_says_that_it_got_no_answer_or_moves() {
    on_every_hook(|bench| {
        let first = bench.connect(client(0));
        let syn = bench.from_client(client(1), SYN).numbers(1000, 0);
        let out = bench.forward(&syn);
        let address: Ipv4Addr = *client(1).ip();
        set_way(bench, &format!("{address}/32"), NEIGHBOUR, bench.ifindex);
        let answer = bench.from_backend(backend_of(&out), out.from.port(), SYN | ACK).numbers(5000, 1001);
        assert_eq!(bench.forward(&syn).to, out.to, "sent again");
        assert_eq!(bench.forward(&answer).to_mac, NEIGHBOUR);
        // A connection that is answered where its frames come from stays, until they come from
        // elsewhere.
        let data = bench.from_client(first.client, ACK).numbers(1001, 5001).payload(b"GET");
        let back = bench.from_backend(first.backend, first.port, ACK).numbers(5001, 1004);
        bench.forward(&data);
        assert_eq!(bench.forward(&back).to_mac, CLIENT_MAC);
        bench.forward(&data.numbers(1004, 5001).macs(OTHER, bench.mac));
        assert_eq!(bench.forward(&back).to_mac, NEIGHBOUR);
    });
}
