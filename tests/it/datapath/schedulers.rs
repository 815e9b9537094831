use lab::{
    packet::SYN,
    program::{Bench, Setup, backend_of},
};
use lb_common::{
    layout::{Hop, NONE},
    schedule::{self, MAGLEV_PLACES, RANDOM_TWO, ROUND_ROBIN},
    time::Instant,
    verdict::Reason,
};

use super::{client, with_setup};

fn setup(balance: u32, weights: &[u32]) -> Setup {
    let mut setup = Setup { backends: weights.len() as u16, weights: weights.to_vec(), ..Setup::default() };
    setup.service.balance = balance;
    setup
}

/// The backends that the clients `from..from + count` get.
fn given(bench: &Bench, from: u16, count: u16) -> Vec<u16> {
    (from..from + count).map(|n| bench.connect(client(n)).backend).collect()
}

#[test]
fn least_conn_spreads_evenly() {
    with_setup(setup(schedule::LEAST_CONN, &[1, 1, 1]), |bench| {
        given(bench, 0, 30);
        assert_eq!(bench.active(), [10, 10, 10]);
    });
}

#[test]
fn least_conn_spreads_by_weight_as_nginx_does() {
    with_setup(setup(schedule::LEAST_CONN, &[3, 1, 1]), |bench| {
        given(bench, 0, 50);
        assert_eq!(bench.active(), [30, 10, 10]);
    });
}

#[test]
fn least_conn_fills_up_what_was_closed() {
    with_setup(setup(schedule::LEAST_CONN, &[1, 1, 1]), |bench| {
        let flows: Vec<_> = (0..30).map(|n| bench.connect(client(n))).collect();
        for flow in flows.iter().filter(|flow| flow.backend == 1) {
            bench.close(flow);
        }
        assert_eq!(bench.active(), [10, 0, 10]);
        assert_eq!(given(bench, 100, 10), [1; 10]);
    });
}

#[test]
fn round_robin_is_smooth_by_weight() {
    with_setup(setup(ROUND_ROBIN, &[5, 1, 1]), |bench| {
        assert_eq!(given(bench, 0, 14), [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
    });
}

#[test]
fn random_two_prefers_the_less_loaded_one() {
    with_setup(setup(RANDOM_TWO, &[1, 1, 1, 1]), |bench| {
        given(bench, 0, 120);
        for active in bench.active() {
            assert!((22..=38).contains(&active), "{:?}", bench.active());
        }
    });
}

#[test]
fn hash_gives_a_client_always_the_same_backend_and_only_moves_clients_of_one_that_is_out() {
    with_setup(setup(schedule::HASH, &[1, 1, 1]), |bench| {
        let mut table = [0; MAGLEV_PLACES as usize];
        schedule::maglev(&[(1, 1), (2, 1), (3, 1)], &mut table);
        bench.tables().set_maglev(0, &table).expect("a Maglev table");
        let address = |n: u8, port| std::net::SocketAddrV4::new([192, 0, 2, n].into(), port);
        let home = |n| backend_of(&bench.forward(&bench.from_client(address(n, 1000), SYN).numbers(1, 0)));
        let homes: Vec<u16> = (1..=40).map(home).collect();
        assert!((0..3).all(|n| homes.contains(&n)));
        for (n, expected) in (1..=40).zip(&homes) {
            let out = bench.forward(&bench.from_client(address(n, 2000), SYN).numbers(1, 0));
            assert_eq!(backend_of(&out), *expected);
        }
        bench.tables().admit(1, NONE, Instant::ZERO);
        for (n, expected) in (1..=40).zip(&homes) {
            let out = backend_of(&bench.forward(&bench.from_client(address(n, 3000), SYN).numbers(1, 0)));
            assert!(if *expected == 1 { out != 1 } else { out == *expected });
        }
    });
}

#[test]
fn max_conns_is_never_exceeded() {
    with_setup(setup(schedule::LEAST_CONN, &[1, 1]), |bench| {
        bench.configure(0, 1, false, 3);
        bench.configure(1, 1, false, 2);
        given(bench, 0, 5);
        assert_eq!(bench.active(), [3, 2]);
        let refused = bench.forward(&bench.from_client(client(9), SYN).numbers(1, 0));
        assert_eq!(refused.flags, lab::packet::RST | lab::packet::ACK);
        assert_eq!(bench.moved(), [(Reason::NoBackend, 1)]);
    });
}

#[test]
fn a_backup_is_used_only_when_no_other_is_up() {
    with_setup(setup(schedule::LEAST_CONN, &[1, 1, 1]), |bench| {
        bench.configure(2, 1, true, 0);
        given(bench, 0, 10);
        assert_eq!(bench.active(), [5, 5, 0]);
        bench.tables().admit(0, NONE, Instant::ZERO);
        bench.tables().admit(1, NONE, Instant::ZERO);
        given(bench, 10, 4);
        assert_eq!(bench.active(), [5, 5, 4]);
        assert_eq!(bench.moved(), []);
    });
}

#[test]
fn a_backend_whose_next_hop_is_unknown_is_passed_over() {
    with_setup(setup(schedule::LEAST_CONN, &[1, 1]), |bench| {
        bench.tables().set_pool_hop(bench.pools[0], Hop(0));
        assert_eq!(given(bench, 0, 4), [1; 4]);
    });
}

#[test]
fn sixty_four_backends_are_all_used() {
    with_setup(setup(schedule::LEAST_CONN, &[1; 64]), |bench| {
        given(bench, 0, 128);
        assert_eq!(bench.active(), [2; 64]);
    });
}
