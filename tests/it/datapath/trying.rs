use lab::{
    packet::{ACK, FIN, LINUX_OPTIONS, PSH, RST, SYN, Segment},
    program::{Setup, VIP, Verdict, backend, backend_mac, backend_of},
};
use lb_common::{
    layout::{OUT, UP},
    slot::State,
    time::Instant,
    verdict::Reason,
};

use super::{client, on_every_hook, with_setup};

/// The RST with which a host refuses `syn`.
fn refusal(bench: &lab::program::Bench, syn: &Segment) -> Segment {
    bench.from_backend(backend_of(syn), syn.from.port(), RST | ACK).numbers(0, syn.sequence.wrapping_add(1))
}

#[test]
fn a_refusal_becomes_the_clients_syn_to_the_next_backend() {
    on_every_hook(|bench| {
        let mut syn = bench.from_client(client(1), SYN).numbers(u32::MAX, 0).options(&LINUX_OPTIONS);
        (syn.window, syn.tos) = (29_200, 0x10);
        let first = bench.forward(&syn);
        let second = bench.forward(&refusal(bench, &first));
        assert_ne!(backend_of(&second), backend_of(&first));
        let expected = Segment {
            to_mac: backend_mac(backend_of(&second)),
            to: backend(backend_of(&second)),
            from: second.from,
            ttl: 64,
            ..first.clone()
        };
        assert_eq!(second, expected, "the same SYN, options and all");
        assert_eq!(bench.moved(), [(Reason::Refused, 1)]);
        assert_eq!(bench.active()[usize::from(backend_of(&first))], 0);
        let answer = bench.from_backend(backend_of(&second), second.from.port(), SYN | ACK).numbers(9, 0);
        let answer = bench.forward(&answer);
        assert_eq!((answer.from, answer.to, answer.sequence), (VIP, client(1), 9), "the client sees only this");
        let found = bench.tables().find(client(1).into());
        assert_eq!(found.iter().filter(|flow| flow.ctl.state() == State::Answered).count(), 1);
        assert_eq!(bench.tables().backend(backend_of(&first)).connect_failures, 1);
    });
}

#[test]
fn no_length_of_options_is_in_the_way_of_a_refusal() {
    on_every_hook(|bench| {
        for words in 0..=10 {
            let options: Vec<u8> = (0..words * 4).map(|_| 1).collect();
            let syn = bench.from_client(client(words), SYN).numbers(7, 0).options(&options);
            let first = bench.forward(&syn);
            // A refusing host's RST may carry padding: the frame is not longer than the one that
            // replaces it.
            let mut frame = refusal(bench, &first).bytes();
            frame.resize(frame.len().max(60), 0);
            let Verdict::Sent(second) = bench.run(&frame) else { panic!("not sent") };
            assert_eq!((second.options, second.flags), (vec![2, 4, 2, 24], SYN), "the default MSS of 536 (RFC 9293)");
        }
    });
}

#[test]
fn when_every_backend_refuses_the_client_is_refused() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(1), SYN).numbers(77, 0);
        let first = bench.forward(&syn);
        let second = bench.forward(&refusal(bench, &first));
        let third = bench.forward(&refusal(bench, &second));
        let mut tried = [backend_of(&first), backend_of(&second), backend_of(&third)];
        tried.sort_unstable();
        assert_eq!(tried, [0, 1, 2]);
        let out = bench.forward(&refusal(bench, &third));
        assert_eq!((out.from, out.to, out.flags), (VIP, client(1), RST | ACK));
        assert_eq!((out.sequence, out.acknowledgement), (0, 78));
        assert_eq!(out.to_mac, lab::program::CLIENT_MAC);
        assert_eq!(bench.moved(), [(Reason::Refused, 3)]);
        assert_eq!(bench.active(), [0, 0, 0]);
        for pool in bench.pools.clone() {
            assert_eq!(bench.tables().free_slots(pool), 64);
        }
    });
}

#[test]
fn tries_are_limited_as_configured() {
    let mut setup = Setup::default();
    setup.service.tries = 1;
    with_setup(setup, |bench| {
        let first = bench.forward(&bench.from_client(client(1), SYN).numbers(77, 0));
        let out = bench.forward(&refusal(bench, &first));
        assert_eq!((out.to, out.flags), (client(1), RST | ACK));
    });
}

#[test]
fn a_rst_that_does_not_acknowledge_our_syn_refuses_nothing() {
    on_every_hook(|bench| {
        let first = bench.forward(&bench.from_client(client(1), SYN).numbers(77, 0));
        for (flags, acknowledgement) in [(RST | ACK, 77), (RST | ACK, 79), (RST, 78), (RST, 0)] {
            let forged = refusal(bench, &first);
            let forged = Segment { flags, acknowledgement, ..forged };
            assert_eq!(bench.send(&forged), Verdict::Dropped);
        }
        assert_eq!(bench.moved(), [(Reason::HalfOpenJunk, 4)]);
        assert_eq!(bench.active().iter().sum::<u32>(), 1);
    });
}

#[test]
fn a_syn_ack_that_does_not_acknowledge_our_syn_is_reset() {
    on_every_hook(|bench| {
        let first = bench.forward(&bench.from_client(client(1), SYN).numbers(77, 0));
        let answer = bench.from_backend(backend_of(&first), first.from.port(), SYN | ACK).numbers(5000, 99);
        let out = bench.forward(&answer);
        assert_eq!((out.to, out.flags, out.sequence), (backend(backend_of(&first)), RST, 99));
        assert_eq!(bench.moved(), [(Reason::HalfOpenJunk, 1)]);
    });
}

#[test]
fn a_silent_backend_is_left_after_connect_timeout_and_its_late_answer_never_reaches_the_client() {
    let mut setup = Setup::default();
    setup.service.connect_timeout = std::time::Duration::from_nanos(1000);
    with_setup(setup, |bench| {
        let syn = bench.from_client(client(1), SYN).numbers(77, 0).options(&LINUX_OPTIONS);
        let first = bench.forward(&syn);
        std::thread::sleep(std::time::Duration::from_millis(1));
        let second = bench.forward(&syn);
        assert_ne!(backend_of(&second), backend_of(&first));
        assert_eq!((second.flags, &second.options[..]), (SYN, &LINUX_OPTIONS[..]));
        assert_eq!(bench.moved(), [(Reason::ConnectTimeout, 1)]);
        let late = bench.from_backend(backend_of(&first), first.from.port(), SYN | ACK).numbers(5000, 78);
        let out = bench.forward(&late);
        assert_eq!((out.to, out.flags, out.sequence), (backend(backend_of(&first)), RST, 78));
        assert_eq!(bench.moved(), [(Reason::LateSynAck, 1)]);
        let answer = bench.from_backend(backend_of(&second), second.from.port(), SYN | ACK).numbers(9, 78);
        assert_eq!(bench.forward(&answer).to, client(1));
        assert_eq!(bench.active()[usize::from(backend_of(&first))], 0);
    });
}

#[test]
fn when_every_backend_is_silent_the_client_is_refused_at_the_end() {
    let mut setup = Setup::default();
    setup.service.connect_timeout = std::time::Duration::from_nanos(1000);
    with_setup(setup, |bench| {
        let syn = bench.from_client(client(1), SYN).numbers(77, 0);
        for _ in 0..3 {
            assert_eq!(bench.forward(&syn).flags, SYN);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let out = bench.forward(&syn);
        assert_eq!((out.from, out.to, out.flags, out.acknowledgement), (VIP, client(1), RST | ACK, 78));
        assert_eq!(bench.moved(), [(Reason::ConnectTimeout, 3)]);
        assert_eq!(bench.active(), [0, 0, 0]);
    });
}

#[test]
fn a_backend_that_still_holds_an_older_connection_gets_the_syn_from_a_fresh_port() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(1), SYN).numbers(77, 0).options(&LINUX_OPTIONS);
        let first = bench.forward(&syn);
        let n = backend_of(&first);
        let mut port = first.from.port();
        for heal in 1..=7 {
            let stale = challenge(bench, n, port);
            let out = bench.forward(&stale);
            assert_eq!((backend_of(&out), out.flags, &out.options[..]), (n, SYN, &LINUX_OPTIONS[..]), "heal {heal}");
            assert_ne!(out.from.port(), port);
            assert_eq!(bench.send(&stale), Verdict::Dropped, "a repetition does nothing");
            port = out.from.port();
        }
        assert_eq!(bench.moved(), [(Reason::HalfOpenJunk, 7), (Reason::TimeWait, 7)]);
        assert_eq!(bench.active()[usize::from(n)], 1);
        assert_eq!(bench.tables().backend(n).connect_failures, 0, "no failure of the backend");
        assert_eq!(bench.tables().free_slots(bench.pools[usize::from(n)]), 63, "the ports are at the end of the ring");
    });
}

/// The answer of a socket in TIME_WAIT, or of an open one, to a SYN that matches none of its
/// numbers (RFC 5961 section 4).
fn challenge(bench: &lab::program::Bench, n: u16, port: u16) -> Segment {
    let timestamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    bench.from_backend(n, port, ACK).numbers(123_456, 654_321).options(&timestamps)
}

#[test]
fn when_every_port_meets_an_older_connection_the_client_may_end_it() {
    on_every_hook(|bench| {
        let client = client(1);
        let mut out = bench.forward(&bench.from_client(client, SYN).numbers(77, 0));
        let n = backend_of(&out);
        for _ in 0..7 {
            out = bench.forward(&challenge(bench, n, out.from.port()));
        }
        bench.moved();
        let port = out.from.port();
        let data = bench.from_backend(n, port, ACK | PSH).numbers(1, 2).payload(&[7; 100]);
        assert_eq!(bench.send(&data), Verdict::Dropped, "what was meant for another client stays secret");
        let told = bench.forward(&challenge(bench, n, port));
        assert_eq!((told.to, told.flags, told.acknowledgement), (client, ACK, 654_321));
        let rst = bench.forward(&bench.from_client(client, RST).numbers(654_321, 0));
        assert_eq!((backend_of(&rst), rst.from.port(), rst.flags, rst.sequence), (n, port, RST, 654_321));
        let syn = bench.forward(&bench.from_client(client, SYN).numbers(77, 0));
        assert_eq!((backend_of(&syn), syn.from.port(), syn.flags), (n, port, SYN));
        let answer = bench.forward(&bench.from_backend(n, port, SYN | ACK).numbers(900, 78));
        assert_eq!((answer.to, answer.flags), (client, SYN | ACK));
        assert_eq!(bench.moved(), [(Reason::HalfOpenJunk, 1), (Reason::TimeWait, 1)]);
        assert_eq!(bench.active()[usize::from(n)], 1);
    });
}

#[test]
fn segments_of_an_older_connection_with_data_or_fin_are_healed_too() {
    on_every_hook(|bench| {
        for (number, flags) in [FIN | ACK, ACK | PSH].into_iter().enumerate() {
            let syn = bench.forward(&bench.from_client(client(number as u16), SYN).numbers(77, 0));
            let stale = bench.from_backend(backend_of(&syn), syn.from.port(), flags).numbers(1, 2).payload(&[7; 700]);
            let out = bench.forward(&stale);
            assert_eq!((backend_of(&out), out.flags, out.payload.len()), (backend_of(&syn), SYN, 0));
        }
    });
}

#[test]
fn a_backend_that_is_out_gets_one_trial_when_it_is_due_and_is_up_again_if_it_answers() {
    on_every_hook(|bench| {
        bench.tables().admit(1, OUT, Instant(evenkeel::sys::clock::monotonic().0));
        std::thread::sleep(std::time::Duration::from_millis(20));
        let trial = bench.forward(&bench.from_client(client(0), SYN).numbers(77, 0));
        assert_eq!(backend_of(&trial), 1, "a trial that is due goes first");
        for n in 1..20 {
            let other = bench.forward(&bench.from_client(client(n), SYN).numbers(77, 0));
            assert_ne!(backend_of(&other), 1, "one at a time");
        }
        bench.forward(&bench.from_backend(1, trial.from.port(), SYN | ACK).numbers(1, 78));
        assert_eq!(bench.tables().backend(1).admission, UP);
        assert_eq!(backend_of(&bench.forward(&bench.from_client(client(30), SYN).numbers(77, 0))), 1);
    });
}

#[test]
fn a_trial_that_fails_keeps_the_backend_out_for_fail_timeout() {
    on_every_hook(|bench| {
        let due = evenkeel::sys::clock::monotonic().0;
        bench.tables().admit(1, OUT, Instant(due));
        std::thread::sleep(std::time::Duration::from_millis(20));
        let trial = bench.forward(&bench.from_client(client(0), SYN).numbers(77, 0));
        assert_eq!(backend_of(&trial), 1);
        let next = bench.forward(&refusal(bench, &trial));
        assert_ne!(backend_of(&next), 1);
        let record = bench.tables().backend(1);
        assert_eq!(record.admission, OUT);
        let wait = record.retry_at.0 - due;
        assert!((9_900_000_000..11_000_000_000).contains(&wait), "{wait}");
    });
}

#[test]
fn a_segment_whose_records_contradict_each_other_is_dropped_and_counted() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(0), SYN).numbers(77, 0);
        let n = backend_of(&bench.forward(&syn));
        bench.moved();
        bench.damage(n);
        assert_eq!(bench.send(&syn), Verdict::Dropped);
        assert_eq!(bench.moved(), [(Reason::Damaged, 1)]);
    });
}

#[test]
fn when_all_are_out_all_are_tried() {
    on_every_hook(|bench| {
        for n in 0..3 {
            bench.tables().admit(n, OUT, Instant::NEVER);
        }
        let syn = bench.forward(&bench.from_client(client(0), SYN).numbers(77, 0));
        assert_eq!(syn.flags, SYN);
        assert_eq!(bench.moved(), [(Reason::FailOpen, 1)]);
    });
}

#[test]
fn a_client_that_gives_up_frees_its_port() {
    on_every_hook(|bench| {
        let syn = bench.forward(&bench.from_client(client(0), SYN).numbers(77, 0));
        let out = bench.forward(&bench.from_client(client(0), RST).numbers(78, 0));
        assert_eq!((out.to, out.flags), (syn.to, RST), "the backend hears of it");
        assert_eq!(bench.moved(), [(Reason::ClientAborted, 1)]);
        assert_eq!(bench.active(), [0, 0, 0]);
    });
}
