//! Unconfirmed flows give way wherever a port is needed.

use lab::{
    packet::{ACK, RST, SYN},
    program::{Bench, Setup, backend_of},
};
use lb_common::slot::State;

use super::{client, with_setup};

/// A stranger's SYN, which its backend answers and no client acknowledges.
fn unconfirmed(bench: &Bench, n: u16) {
    let syn = bench.forward(&bench.from_client(client(n), SYN).numbers(1000, 0));
    bench.forward(&bench.from_backend(backend_of(&syn), syn.from.port(), SYN | ACK).numbers(5000, 1001));
}

fn free(bench: &Bench) -> u32 {
    bench.pools.iter().map(|pool| bench.tables().free_slots(*pool)).sum()
}

#[test]
fn a_connection_that_moves_on_gets_the_port_of_an_unconfirmed_one() {
    with_setup(Setup { backends: 2, ports: 8, ..Setup::default() }, |bench| {
        (0..8).for_each(|n| unconfirmed(bench, n));
        let honest = bench.from_client(client(100), SYN).numbers(77, 0);
        let first = bench.forward(&honest);
        // Not one more than there are ports, so that none gives way yet.
        (8..).take_while(|_| free(bench) > 0).for_each(|n| unconfirmed(bench, n));
        let refusal = bench.from_backend(backend_of(&first), first.from.port(), RST | ACK).numbers(0, 78);
        let second = bench.forward(&refusal);
        assert_eq!((second.flags, backend_of(&second)), (SYN, 1 - backend_of(&first)), "{second:?}");
        bench.forward(&bench.from_backend(backend_of(&second), second.from.port(), SYN | ACK).numbers(9, 78));
        bench.forward(&bench.from_client(client(100), ACK).numbers(78, 10));
        assert_eq!(bench.tables().find(client(100).into())[0].ctl.state(), State::Established);
    });
}
