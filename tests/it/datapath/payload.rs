//! `mss_clamp`: both sides are told of no more payload than the service lets through.

use lab::{
    packet::{ACK, LINUX_OPTIONS, SYN},
    program::{Bench, backend_of},
};

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
