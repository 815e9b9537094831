//! A backend that no longer gets new connections: drained, in maintenance, or removed.

use lab::{
    packet::{ACK, LINUX_OPTIONS, RST, SYN},
    program::{Setup, VIP, Verdict, backend, backend_of},
};
use lb_common::{layout::NONE, slot::State, time::Instant, verdict::Reason};

use super::{client, on_every_hook, with_setup};

#[test]
fn what_is_established_stays_and_nothing_new_comes() {
    on_every_hook(|bench| {
        let held = bench.connect(client(0));
        bench.tables().admit(held.backend, NONE, Instant::NEVER);
        for n in 1..40 {
            assert_ne!(bench.connect(client(n)).backend, held.backend);
        }
        let data = bench.from_client(held.client, ACK).numbers(1001, 5001).payload(b"still here");
        assert_eq!(bench.forward(&data).to, backend(held.backend));
        bench.close(&held);
        assert_eq!(bench.moved(), [(Reason::Closed, 1)]);
    });
}

#[test]
fn a_syn_that_is_sent_again_goes_to_another_backend_at_once() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(0), SYN).numbers(77, 0).options(&LINUX_OPTIONS);
        let first = bench.forward(&syn);
        assert_eq!(bench.forward(&syn), first, "as long as it is up, to the same one");
        bench.tables().admit(backend_of(&first), NONE, Instant::NEVER);
        let second = bench.forward(&syn);
        assert_ne!(backend_of(&second), backend_of(&first));
        assert_eq!((second.flags, &second.options[..]), (SYN, &LINUX_OPTIONS[..]));
        assert_eq!(bench.moved(), [(Reason::MovedOn, 1)]);
        assert_eq!(bench.tables().backend(backend_of(&first)).connect_failures, 0, "no failure of the backend");
        assert_eq!(bench.active()[usize::from(backend_of(&first))], 0);

        let late = bench.from_backend(backend_of(&first), first.from.port(), SYN | ACK).numbers(1, 78);
        let answer = bench.forward(&late);
        assert_eq!((answer.to, answer.flags), (backend(backend_of(&first)), RST), "the client never sees it");
        let answer = bench.from_backend(backend_of(&second), second.from.port(), SYN | ACK).numbers(9, 78);
        assert_eq!(bench.forward(&answer).to, client(0), "and the connection is made");
        let found = bench.tables().find(client(0).into());
        assert_eq!(found.iter().map(|flow| flow.ctl.state()).collect::<Vec<_>>(), [State::Answered]);
    });
}

#[test]
fn an_answer_that_is_on_its_way_still_counts() {
    on_every_hook(|bench| {
        let first = bench.forward(&bench.from_client(client(0), SYN).numbers(77, 0));
        bench.tables().admit(backend_of(&first), NONE, Instant::NEVER);
        let answer = bench.from_backend(backend_of(&first), first.from.port(), SYN | ACK).numbers(9, 78);
        assert_eq!(bench.forward(&answer).to, client(0));
        assert_eq!(bench.active()[usize::from(backend_of(&first))], 1);
    });
}

#[test]
fn the_limit_of_tries_does_not_count_for_leaving_it() {
    let mut setup = Setup::default();
    setup.service.tries = 1;
    with_setup(setup, |bench| {
        let syn = bench.from_client(client(0), SYN).numbers(77, 0);
        let first = bench.forward(&syn);
        bench.tables().admit(backend_of(&first), NONE, Instant::NEVER);
        let second = bench.forward(&syn);
        assert_ne!(backend_of(&second), backend_of(&first));
        // The same if it has stopped listening by now and refuses a SYN that was under way.
        let refusal = bench.from_backend(backend_of(&second), second.from.port(), RST | ACK).numbers(0, 78);
        bench.tables().admit(backend_of(&second), NONE, Instant::NEVER);
        let third = bench.forward(&refusal);
        assert_eq!((third.flags, backend_of(&first) + backend_of(&second) + backend_of(&third)), (SYN, 3));
    });
}

#[test]
fn an_older_connection_on_the_port_gets_no_fresh_port_of_it() {
    on_every_hook(|bench| {
        let first = bench.forward(&bench.from_client(client(0), SYN).numbers(77, 0));
        bench.tables().admit(backend_of(&first), NONE, Instant::NEVER);
        let stale = bench.from_backend(backend_of(&first), first.from.port(), ACK).numbers(123, 456);
        assert_ne!(backend_of(&bench.forward(&stale)), backend_of(&first));
        assert_eq!(bench.moved(), [(Reason::TimeWait, 1)]);
        assert_eq!(bench.tables().backend(backend_of(&first)).connect_failures, 0);
    });
}

#[test]
fn with_every_backend_drained_clients_are_refused() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(0), SYN).numbers(77, 0);
        bench.forward(&syn);
        (0..3).for_each(|n| bench.tables().admit(n, NONE, Instant::NEVER));
        let refused = [syn, bench.from_client(client(1), SYN).numbers(77, 0)];
        for syn in &refused {
            let Verdict::Sent(out) = bench.send(syn) else { panic!("silence") };
            assert_eq!((out.from, out.to, out.flags, out.acknowledgement), (VIP, syn.from, RST | ACK, 78));
        }
        assert_eq!(bench.moved(), [(Reason::NoBackend, 1), (Reason::MovedOn, 1)]);
        assert_eq!(bench.active(), [0, 0, 0]);
    });
}
