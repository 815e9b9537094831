//! A reload while connections are being made: the list of backends is another one.

use lab::{
    packet::{ACK, RST, SYN, Segment},
    program::{Bench, Setup, backend_of},
};
use lb_common::{
    layout::{NONE, UP},
    time::Instant,
};

use super::{client, with_setup};

fn setup(backends: u16) -> Setup {
    let mut setup = Setup { backends, ..Setup::default() };
    setup.service.tries = backends.into();
    setup
}

/// A SYN of a client that was sent to backend `n`.
fn waits_at(bench: &Bench, n: u16) -> Segment {
    (0..100)
        .map(|c| bench.forward(&bench.from_client(client(c), SYN).numbers(77, 0)))
        .find(|syn| backend_of(syn) == n)
        .expect("one of them")
}

fn refuse(bench: &Bench, syn: &Segment) -> Segment {
    let rst = bench.from_backend(backend_of(syn), syn.from.port(), RST | ACK);
    bench.forward(&rst.numbers(0, syn.sequence.wrapping_add(1)))
}

#[test]
fn a_client_that_waits_for_a_backend_that_is_removed_goes_to_one_that_stays_whatever_its_place() {
    for (backends, removed, stays) in
        [(2, 0, vec![1]), (2, 1, vec![0]), (3, 0, vec![2]), (4, 3, vec![1]), (5, 2, vec![4, 3]), (3, 1, vec![2, 0])]
    {
        with_setup(setup(backends), |bench| {
            let syn = waits_at(bench, removed);
            bench.lists(&stays);
            bench.tables().admit(removed, NONE, Instant::NEVER);
            let out = refuse(bench, &syn);
            assert_eq!(out.flags, SYN, "{backends} backends without {removed}: {stays:?}");
            assert!(stays.contains(&backend_of(&out)));
            let last = (1..stays.len()).fold(out, |syn, _| refuse(bench, &syn));
            assert_eq!(last.flags, SYN, "each of {stays:?} is tried");
        });
    }
}

#[test]
fn a_backend_that_is_dead_is_not_tried_twice_when_another_is_put_in_front_of_it() {
    for places in [vec![2, 0, 1], vec![1, 2, 0], vec![2, 1, 0], vec![0, 2, 1]] {
        with_setup(setup(3), |bench| {
            bench.lists(&[0, 1]);
            let syn = waits_at(bench, 0);
            bench.lists(&places);
            let second = refuse(bench, &syn);
            assert_ne!(backend_of(&second), 0, "{places:?}");
            let third = refuse(bench, &second);
            assert!(![0, backend_of(&second)].contains(&backend_of(&third)), "{places:?}");
            let last =
                bench.forward(&bench.from_backend(backend_of(&third), third.from.port(), RST | ACK).numbers(0, 78));
            assert_eq!(last.flags, RST | ACK, "all three have refused: {places:?}");
        });
    }
}

#[test]
fn a_reload_that_changes_no_backend_changes_nothing_about_what_was_tried() {
    with_setup(setup(3), |bench| {
        let first = waits_at(bench, 1);
        let second = refuse(bench, &first);
        let before = bench.tables().service(0).list;
        bench.lists(&[0, 1, 2]);
        assert_eq!(bench.tables().service(0).list, before);
        let third = refuse(bench, &second);
        let mut tried = [backend_of(&first), backend_of(&second), backend_of(&third)];
        tried.sort_unstable();
        assert_eq!(tried, [0, 1, 2]);
        assert_eq!(bench.tables().backend(0).admission, UP);
    });
}
