//! Unconfirmed flows give way wherever a port is needed.

use lab::{
    packet::{ACK, RST, SYN, Segment},
    program::{Bench, Setup, backend, backend_of},
};
use lb_common::{slot::State, verdict::Reason};

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

/// Four ports towards each of `backends`, all with unconfirmed flows; then the SYN of client 100 with
/// the number 1001, inside the window of each of them.
fn after_others(bench: &Bench, backends: u16) -> Segment {
    (0..4 * backends).for_each(|n| unconfirmed(bench, n));
    let syn = bench.forward(&bench.from_client(client(100), SYN).numbers(1001, 0));
    assert_eq!(syn.flags, SYN);
    syn
}

#[test]
fn a_rst_for_the_attempt_before_on_a_port_is_no_refusal_and_the_syn_goes_again() {
    with_setup(Setup { backends: 1, ports: 4, ..Setup::default() }, |bench| {
        let first = after_others(bench, 1);
        bench.moved();
        let rst = bench.from_backend(0, first.from.port(), RST | ACK).numbers(0, 1002);
        let again = bench.forward(&rst);
        assert_eq!(again, first, "from the same port");
        assert_eq!((bench.tables().backend(0).connect_failures, bench.moved()), (0, vec![]));
        // A second one is the listener's.
        let out = bench.forward(&rst);
        assert_eq!((out.to, out.flags), (client(100), RST | ACK));
        assert_eq!((bench.tables().backend(0).connect_failures, bench.moved()), (1, vec![(Reason::Refused, 1)]));
    });
}

#[test]
fn a_backend_that_is_silent_because_of_the_attempt_before_on_a_port_is_not_charged() {
    let mut setup = Setup { backends: 2, ports: 4, ..Setup::default() };
    setup.service.connect_timeout = std::time::Duration::from_millis(1);
    with_setup(setup, |bench| {
        let first = after_others(bench, 2);
        std::thread::sleep(std::time::Duration::from_millis(5));
        let second = bench.forward(&bench.from_client(client(100), SYN).numbers(1001, 0));
        assert_eq!((second.flags, backend_of(&second)), (SYN, 1 - backend_of(&first)));
        let failures = [0, 1].map(|n| bench.tables().backend(n).connect_failures);
        assert_eq!(failures, [0, 0]);
    });
}

#[test]
fn an_answer_for_the_attempt_before_on_a_port_ends_that_one_and_not_this() {
    with_setup(Setup { backends: 1, ports: 4, ..Setup::default() }, |bench| {
        let first = after_others(bench, 1);
        let repeated = bench.from_backend(0, first.from.port(), SYN | ACK).numbers(5000, 1001);
        let out = bench.forward(&repeated);
        assert_eq!((out.to, out.flags, out.sequence), (backend(0), RST, 1001));
        bench.forward(&bench.from_backend(0, first.from.port(), SYN | ACK).numbers(9, 1002));
        bench.forward(&bench.from_client(client(100), ACK).numbers(1002, 10));
        assert_eq!(bench.tables().find(client(100).into())[0].ctl.state(), State::Established);
        // And its end is its own.
        bench.forward(&bench.from_backend(0, first.from.port(), RST).numbers(10, 0));
        assert!(bench.tables().find(client(100).into()).is_empty());
    });
}

#[test]
fn a_port_that_was_seized_is_not_left_for_another_such_port() {
    with_setup(Setup { backends: 1, ports: 8, ..Setup::default() }, |bench| {
        (0..8).for_each(|n| unconfirmed(bench, n));
        let syn = bench.forward(&bench.from_client(client(100), SYN).numbers(77, 0));
        assert!(free(bench) > 0, "several give way at once");
        let challenge = bench.from_backend(0, syn.from.port(), ACK).numbers(5001, 1001);
        let out = bench.forward(&challenge);
        assert_eq!((out.to, out.flags, out.acknowledgement), (client(100), ACK, 1001), "its RST ends the older one");
        let rst = bench.forward(&bench.from_client(client(100), RST).numbers(1001, 0));
        assert_eq!((rst.to, rst.flags, rst.sequence), (backend(0), RST, 1001));
        let again = bench.forward(&bench.from_client(client(100), SYN).numbers(77, 0));
        assert_eq!(again, syn);
    });
}
