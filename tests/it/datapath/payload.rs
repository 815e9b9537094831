//! `mss_clamp`: both sides are told of no more payload than the service lets through.

use lab::{
    packet::{ACK, LINUX_OPTIONS, RST, SYN},
    program::{Bench, backend_mac, backend_of},
};
use lb_common::layout::{CLAMP_TO_WAYS, Hop};

use super::{client, on_every_hook};

/// The options of a SYN as they come to a backend, and those of its answer as they come to the
/// client.
fn handshake(bench: &Bench, n: u16, syn: &[u8], answer: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let syn = bench.forward(&bench.from_client(client(n), SYN).numbers(1000, 0).options(syn));
    let (backend, port) = (backend_of(&syn), syn.from.port());
    let answer = bench.from_backend(backend, port, SYN | ACK).numbers(5000, 1001).options(answer);
    let answer = bench.forward(&answer);
    assert_eq!((answer.to, answer.flags), (client(n), SYN | ACK));
    (syn.options, answer.options)
}

/// Linux' options with another maximum segment size.
fn linux(mss: u16) -> Vec<u8> {
    [&[2, 4], &mss.to_be_bytes()[..], &LINUX_OPTIONS[4..]].concat()
}

#[test]
fn what_either_side_takes_is_lowered_to_the_clamp_and_never_raised() {
    on_every_hook(|bench| {
        assert_eq!(handshake(bench, 0, &linux(8960), &linux(65_495)), (linux(8960), linux(65_495)), "off");
        bench.tables().set_mss_clamp(0, 1360);
        assert_eq!(handshake(bench, 1, &linux(1460), &linux(8960)), (linux(1360), linux(1360)));
        assert_eq!(handshake(bench, 2, &linux(1360), &linux(1361)), (linux(1360), linux(1360)));
        assert_eq!(handshake(bench, 3, &linux(1200), &linux(536)), (linux(1200), linux(536)));
        bench.tables().set_mss_clamp(0, 0);
        assert_eq!(handshake(bench, 4, &linux(1460), &linux(1460)), (linux(1460), linux(1460)));
    });
}

#[test]
fn who_states_no_size_takes_what_every_host_takes() {
    on_every_hook(|bench| {
        bench.tables().set_mss_clamp(0, 1360);
        let (syn, answer) = handshake(bench, 1, &[], &[]);
        assert_eq!((&syn[..], &answer[..]), (&[2, 4, 2, 24][..], &[][..]), "536 (RFC 9293 section 3.7.1)");
    });
}

#[test]
fn the_size_is_found_wherever_it_stands_in_an_answer_and_everything_else_stays() {
    on_every_hook(|bench| {
        bench.tables().set_mss_clamp(0, 1024);
        for before in [&[1][..], &[1, 1], &[4, 2], &[3, 3, 7], &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8], &[1; 31]] {
            let options = |mss: u16| {
                let mut all = [before, &[2, 4], &mss.to_be_bytes()].concat();
                all.resize(all.len().next_multiple_of(4), 0);
                all
            };
            for (n, mss) in [1025_u16, 1460, 8960, u16::MAX].into_iter().enumerate() {
                let n = before.len() as u16 * 10 + n as u16;
                assert_eq!(handshake(bench, n, &linux(1460), &options(mss)).1, options(1024), "{before:?} {mss}");
            }
        }
    });
}

#[test]
fn options_that_are_cut_off_are_left_as_they_are() {
    on_every_hook(|bench| {
        bench.tables().set_mss_clamp(0, 1024);
        for (n, options) in [[1, 1, 2, 4], [2, 3, 5, 180], [2, 4, 4, 0], [1, 2, 4, 5]].into_iter().enumerate() {
            assert_eq!(handshake(bench, n as u16, &linux(1460), &options).1, options);
        }
    });
}

/// Leads a backend by another interface than the clients', which takes packets of so many bytes.
fn leads_by(bench: &Bench, backend: u16, ifindex: u32, mtu: u32) {
    let tables = bench.tables();
    let number = tables.place_interface(ifindex, [2, 0, 0, 0, 9, 9]).expect("a number");
    tables.set_mtu(number, mtu);
    tables.set_pool_hop(bench.pools[usize::from(backend)], Hop::new(backend_mac(backend), number));
}

#[test]
fn each_side_is_told_of_no_more_than_the_ways_to_both_take() {
    on_every_hook(|bench| {
        let clients = bench.tables().interface_number(bench.ifindex).expect("the bench's interface");
        bench.tables().set_mss_clamp(0, CLAMP_TO_WAYS);
        let ways = [
            ((1500, 1400), 1360),
            ((1400, 1500), 1360),
            ((9000, 1500), 1460),
            ((1500, 9000), 1460),
            ((1500, 1500), 1460),
            ((576, 9000), 536),
            ((1500, 296), 536),
            ((0, 1400), 1360),
            ((1400, 0), 1360),
        ];
        for (n, ((inside, outside), most)) in ways.into_iter().enumerate() {
            bench.tables().set_mtu(clients, inside);
            (0..3).for_each(|backend| leads_by(bench, backend, 70, outside));
            let n = n as u16 * 2;
            assert_eq!(
                handshake(bench, n, &linux(9000), &linux(8960)),
                (linux(most), linux(most)),
                "{inside} {outside}"
            );
            assert_eq!(handshake(bench, n + 1, &linux(most), &linux(536)), (linux(most), linux(536)), "not raised");
        }
        for (n, (inside, outside)) in [(0, 0), (65_536, 0), (0, 70_000)].into_iter().enumerate() {
            bench.tables().set_mtu(clients, inside);
            (0..3).for_each(|backend| leads_by(bench, backend, 70, outside));
            assert_eq!(handshake(bench, 50 + n as u16, &linux(8960), &linux(65_495)), (linux(8960), linux(65_495)));
        }
    });
}

#[test]
fn a_connection_that_moves_on_is_told_of_what_the_way_to_its_new_backend_takes() {
    on_every_hook(|bench| {
        bench.tables().set_mss_clamp(0, CLAMP_TO_WAYS);
        for (backend, mtu) in [(0, 1500), (1, 1400), (2, 1300)] {
            leads_by(bench, backend, 70 + u32::from(backend), mtu);
        }
        let mut syn = bench.forward(&bench.from_client(client(0), SYN).numbers(1000, 0).options(&linux(1460)));
        for _ in 0..3 {
            let backend = backend_of(&syn);
            assert_eq!(syn.options, linux([1460, 1360, 1260][usize::from(backend)]), "{backend}");
            let refused = bench.from_backend(backend, syn.from.port(), RST | ACK).numbers(0, 1001);
            syn = bench.forward(&refused);
        }
        assert_eq!(syn.flags & RST, RST, "no backend is left");
    });
}
