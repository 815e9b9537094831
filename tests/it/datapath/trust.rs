//! What a stranger may write: nothing that it has not earned.

use evenkeel::{sys::clock, tables::Foreign};
use lab::{
    packet::{ACK, FIN, LINUX_OPTIONS, Mac, PSH, RST, SYN, Segment},
    program::{Bench, CLIENT_MAC, Connection, Setup, Verdict, backend, backend_of},
};
use lb_common::{
    flow::SlotAt,
    layout::{Hop, NONE},
    slot::{LOOSE, State},
    syn::Scales,
    time::Instant,
    verdict::Reason,
};

use super::{client, on_every_hook, with_setup};

const SOMEBODY: Mac = [2, 9, 9, 9, 9, 9];

/// A SYN that its backend answers; the client, whose address may be anybody's, has said nothing
/// else.
fn answered(bench: &Bench, n: u16) -> Connection {
    let syn = bench.forward(&bench.from_client(client(n), SYN).numbers(1000, 0).options(&LINUX_OPTIONS));
    let (backend, port) = (backend_of(&syn), syn.from.port());
    let answer = bench.from_backend(backend, port, SYN | ACK).numbers(5000, 1001).options(&LINUX_OPTIONS);
    assert_eq!(bench.forward(&answer).to, client(n));
    Connection { client: client(n), backend, port }
}

fn states(bench: &Bench, state: State) -> usize {
    let heads = |pool: &u16| bench.tables().heads(*pool, 0..u32::MAX).collect::<Vec<_>>();
    bench.pools.iter().flat_map(heads).filter(|head| head.flow.ctl.state() == state).count()
}

fn state(bench: &Bench, flow: &Connection) -> State {
    slot(bench, flow).ctl.state()
}

/// What the slot of a flow holds.
fn slot(bench: &Bench, flow: &Connection) -> evenkeel::tables::Flow {
    let at = SlotAt::new(bench.pools[usize::from(flow.backend)], flow.port - lab::program::FIRST_PORT);
    bench.tables().flow(at).expect("a flow")
}

#[test]
fn only_an_exact_acknowledgement_of_the_answer_makes_a_connection() {
    on_every_hook(|bench| {
        let flow = answered(bench, 1);
        let wrong = [(1001, 5000), (1001, 5002), (1001, 0), (1000, 5001), (0, 5001), (1001 + 64_241, 5001)];
        for (sequence, acknowledgement) in wrong {
            for flags in [ACK, ACK | PSH, ACK | FIN] {
                let forged = bench.from_client(flow.client, flags).numbers(sequence, acknowledgement);
                assert_eq!(bench.send(&forged), Verdict::Dropped, "{sequence} {acknowledgement}");
            }
        }
        assert_eq!(bench.send(&bench.from_client(flow.client, PSH).numbers(1001, 5001)), Verdict::Dropped);
        assert_eq!(bench.moved(), [(Reason::HalfOpenJunk, 19)]);
        assert_eq!(state(bench, &flow), State::Answered);
        let first = bench.from_client(flow.client, ACK | PSH).numbers(1001, 5001).payload(b"hello");
        assert_eq!(bench.forward(&first).payload, b"hello");
        assert_eq!((state(bench, &flow), slot(bench, &flow).bytes_in()), (State::Established, 5));
        assert_eq!(bench.moved(), []);
    });
}

#[test]
fn what_a_backend_sends_after_the_handshake_confirms_it_too_and_an_empty_segment_does_not() {
    on_every_hook(|bench| {
        let flow = answered(bench, 1);
        bench.forward(&bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001));
        assert_eq!(state(bench, &flow), State::Answered, "an answer to a stranger's segment looks like this");
        bench.forward(&bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001).payload(b"hello"));
        assert_eq!((state(bench, &flow), slot(bench, &flow).bytes_out()), (State::Established, 5));
    });
}

#[test]
fn a_repeated_answer_with_another_number_is_the_one_that_counts() {
    on_every_hook(|bench| {
        let flow = answered(bench, 1);
        let again = bench.from_backend(flow.backend, flow.port, SYN | ACK).numbers(7000, 1001);
        assert_eq!(bench.forward(&again).to, flow.client, "a backend that answers with SYN cookies");
        assert_eq!(bench.send(&bench.from_client(flow.client, ACK).numbers(1001, 5001)), Verdict::Dropped);
        bench.forward(&bench.from_client(flow.client, ACK).numbers(1001, 7001));
        assert_eq!(state(bench, &flow), State::Established);
        assert_eq!(bench.tables().backend(flow.backend).connected, 1, "it is one connection");
        let forged = bench.from_backend(flow.backend, flow.port, SYN | ACK).numbers(9, 1002);
        bench.forward(&forged);
        assert_eq!(slot(bench, &flow).opening.isn_backend, 7000);
    });
}

#[test]
fn when_no_port_is_free_the_oldest_unconfirmed_flows_give_way_and_no_confirmed_one() {
    let mut setup = Setup { ports: 8, ..Setup::default() };
    setup.service.half_open_cells = 1000;
    with_setup(setup, |bench| {
        let kept: Vec<_> = (0..6).map(|n| bench.connect(client(n))).collect();
        (10..28).for_each(|n| _ = answered(bench, n));
        assert_eq!((states(bench, State::Answered), bench.moved()), (18, vec![]));
        for n in 100..200 {
            let flow = bench.connect(client(n));
            bench.close(&flow);
            answered(bench, n + 100);
        }
        assert!(kept.iter().all(|flow| state(bench, flow) == State::Established));
        let moved = bench.moved();
        assert!(matches!(moved[..], [(Reason::Closed, 100), (Reason::HalfOpenEvicted, _)]), "{moved:?}");
        let open = states(bench, State::Answered) + kept.len();
        assert_eq!(bench.active().iter().sum::<u32>() as usize, open);
    });
}

#[test]
fn with_only_confirmed_flows_there_is_no_port_left() {
    with_setup(Setup { backends: 2, ports: 4, ..Setup::default() }, |bench| {
        (0..8).for_each(|n| _ = bench.connect(client(n)));
        let out = bench.forward(&bench.from_client(client(9), SYN).numbers(77, 0));
        assert_eq!((out.flags, bench.moved()), (RST | ACK, vec![(Reason::NoSlot, 1)]));
    });
}

#[test]
fn answered_flows_stand_in_the_ring_and_the_oldest_gives_way() {
    let mut setup = Setup { ports: 200, ..Setup::default() };
    setup.service.half_open_cells = 50;
    with_setup(setup, |bench| {
        let flows: Vec<_> = (0..120).map(|n| answered(bench, n)).collect();
        assert_eq!((states(bench, State::Answered), bench.moved()), (50, vec![(Reason::HalfOpenEvicted, 70)]));
        // A client that was too late is told, and so is a backend that repeats its answer.
        let out = bench.forward(&bench.from_client(flows[3].client, ACK).numbers(1001, 5001));
        assert_eq!((out.to, out.flags, out.sequence), (flows[3].client, RST, 5001));
        let again = bench.from_backend(flows[4].backend, flows[4].port, SYN | ACK).numbers(5000, 1001);
        let out = bench.forward(&again);
        assert_eq!((out.to, out.flags, out.sequence), (backend(flows[4].backend), RST, 1001));
        assert_eq!(bench.moved(), [(Reason::LateSynAck, 1), (Reason::AfterClose, 1)]);
    });
}

/// Every word of a flow that a segment can change.
fn words(bench: &Bench, flow: &Connection) -> (lb_common::layout::Slot, lb_common::layout::Opening) {
    let flow = slot(bench, flow);
    (flow.record, flow.opening)
}

#[test]
fn who_knows_the_addresses_and_no_number_changes_nothing() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(1));
        bench.forward(&bench.from_client(flow.client, ACK).numbers(1001, 5001).payload(&[1; 100]));
        bench.forward(&bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1101).payload(&[1; 100]));
        let before = words(bench, &flow);
        let heard = bench.tables().heard(bench.pools[usize::from(flow.backend)]);
        std::thread::sleep(std::time::Duration::from_millis(60));
        let quarters = [1 << 30, 1 << 31, 3 << 30, 300_000, 0u32.wrapping_sub(300_000)];
        for (ahead, beyond) in quarters.into_iter().flat_map(|a| [0, 1 << 30, 1 << 31].map(|b| (a, b))) {
            for flags in [ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, FIN, PSH] {
                let numbers = (1101_u32.wrapping_add(ahead), 5101_u32.wrapping_add(beyond));
                let forged = bench.from_client(flow.client, flags).numbers(numbers.0, numbers.1);
                let forged = forged.macs(SOMEBODY, bench.mac).payload(&[7; 33]);
                bench.send(&forged);
                let numbers = (5101_u32.wrapping_add(ahead), 1101_u32.wrapping_add(beyond));
                bench.send(&bench.from_backend(flow.backend, flow.port, flags).numbers(numbers.0, numbers.1));
            }
        }
        assert_eq!(words(bench, &flow), before);
        assert_eq!(bench.tables().heard(bench.pools[usize::from(flow.backend)]), heard);
        let moved: Vec<_> = bench.moved().into_iter().map(|(reason, _)| reason).collect();
        assert_eq!(moved, [Reason::RstOutOfWindow, Reason::OutOfWindow]);
        // The two ends go on.
        bench.forward(&bench.from_client(flow.client, FIN | ACK).numbers(1101, 5101));
        bench.forward(&bench.from_backend(flow.backend, flow.port, FIN | ACK).numbers(5101, 1102));
        assert_eq!(bench.moved(), [(Reason::Closed, 1)]);
    });
}

#[test]
fn a_window_that_was_scaled_is_believed_to_its_edge() {
    on_every_hook(|bench| {
        let flow = answered(bench, 1);
        let mut segment = bench.from_client(flow.client, ACK).numbers(1001, 5001);
        segment.window = 0xffff;
        bench.forward(&segment);
        // 65,535 << 7 from the client: the backend may send that much, and not twice as much.
        let edge = 5001 + (0xffff << 7);
        for (sequence, end) in [(edge - 1, edge - 1 + 100), (edge + (1 << 22), edge - 1 + 100)] {
            bench.forward(&bench.from_backend(flow.backend, flow.port, ACK).numbers(sequence, 1001).payload(&[1; 100]));
            assert_eq!(slot(bench, &flow).record.end_backend as u32, end, "{sequence}");
        }
        // What the client acknowledges was sent, noted or not.
        let mut segment = bench.from_client(flow.client, ACK).numbers(1001, edge + 2000);
        segment.window = 0xffff;
        bench.forward(&segment);
        assert_eq!(slot(bench, &flow).record.end_backend as u32, edge + 2000);
    });
}

#[test]
fn what_no_tcp_sends_opens_nothing_also_where_a_connection_was() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(1));
        bench.close(&flow);
        bench.moved();
        for flags in [SYN | ACK, SYN | FIN, SYN | FIN | ACK] {
            let out = bench.forward(&bench.from_client(client(1), flags).numbers(70_000, 80_000));
            assert_eq!((out.to, out.flags & RST), (client(1), RST), "{flags:#x}");
        }
        assert_eq!(bench.moved(), [(Reason::UnknownFlow, 3)]);
        let open = bench.connect(client(2));
        for flags in [SYN | ACK, SYN | FIN] {
            assert_eq!(bench.send(&bench.from_client(client(2), flags).numbers(1001, 5001)), Verdict::Dropped);
        }
        assert_eq!((state(bench, &open), bench.active().iter().sum::<u32>()), (State::Established, 1));
    });
}

#[test]
fn nothing_that_a_stranger_writes_into_a_syn_reaches_a_backend() {
    on_every_hook(|bench| {
        // MD5, TCP-AO, a join of MPTCP, fast open with its data.
        for (n, (kind, size)) in [(19, 18), (29, 16), (30, 12), (34, 10)].into_iter().enumerate() {
            let mut options = vec![kind, size];
            options.resize(usize::from(size), 0xee);
            options.extend(LINUX_OPTIONS);
            options.resize(40, 0);
            let syn = bench.from_client(client(n as u16), SYN | PSH).numbers(77, 99).options(&options);
            let out = bench.forward(&syn.payload(b"early data"));
            assert_eq!((&out.options[..], out.payload.len()), (&LINUX_OPTIONS[..], 0), "{kind}");
            assert_eq!((out.flags, out.acknowledgement, out.ttl), (SYN, 0, 64));
            let answer = bench.from_backend(backend_of(&out), out.from.port(), SYN | ACK).numbers(9, 78);
            assert_eq!(bench.forward(&answer).flags, SYN | ACK, "only the SYN is acknowledged");
        }
        let mut dying = bench.from_client(client(20), SYN).numbers(77, 0);
        dying.ttl = 2;
        assert_eq!(bench.forward(&dying).ttl, 64);
        assert_eq!(bench.moved(), []);
    });
}

#[test]
fn frames_for_another_mac_are_passed_and_change_nothing() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(1));
        let before = words(bench, &flow);
        for flags in [ACK, ACK | PSH, FIN | ACK, RST, SYN] {
            let stray = bench.from_client(flow.client, flags).numbers(1001, 5001).macs(SOMEBODY, SOMEBODY);
            assert_eq!(bench.send(&stray), Verdict::Passed);
        }
        for (port, flags) in [(flow.port, ACK | PSH), (flow.port, RST), (20_060, SYN | ACK), (20_061, ACK)] {
            let stray = bench.from_backend(flow.backend, port, flags).numbers(5001, 1001).macs(SOMEBODY, SOMEBODY);
            assert_eq!(bench.send(&stray), Verdict::Passed);
        }
        assert_eq!(bench.moved(), [(Reason::OtherHost, 9)]);
        assert_eq!(words(bench, &flow), before);
    });
}

#[test]
fn the_way_back_follows_what_goes_on_and_no_copy() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(1));
        let hop = |bench: &Bench| slot(bench, &flow).record.hop;
        let data = bench.from_client(flow.client, ACK).numbers(1001, 5001).payload(b"hello");
        bench.forward(&data);
        let own = hop(bench);
        assert_eq!(own.mac(), CLIENT_MAC);
        // The same segment again from elsewhere, a keepalive, and forged numbers.
        for copy in
            [data.clone(), data.clone().numbers(1005, 5001).payload(b"?"), data.clone().numbers(1 << 30, 1 << 29)]
        {
            bench.forward(&copy.macs(SOMEBODY, bench.mac));
            assert_eq!(hop(bench), own);
        }
        bench.forward(&data.numbers(1006, 5001).macs(SOMEBODY, bench.mac));
        assert_eq!(hop(bench).mac(), SOMEBODY, "what goes on does move it");
    });
}

#[test]
fn the_way_back_follows_the_interface_too() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(1));
        let found = slot(bench, &flow);
        let elsewhere = Hop::new(CLIENT_MAC, found.record.hop.interface() + 1);
        assert_eq!(bench.tables().interface(elsewhere.interface()).ifindex, 0, "no interface of ours");
        bench.tables().set_client_hop(found.at, elsewhere);
        bench.forward(&bench.from_client(flow.client, ACK).numbers(1001, 5001).payload(b"hello"));
        assert_eq!(slot(bench, &flow).record.hop, found.record.hop);
    });
}

#[test]
fn a_syn_for_an_attempt_under_way_ends_it_no_more_than_an_open_connection() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(1), SYN).numbers(1000, 0);
        let out = bench.forward(&syn);
        let flow = Connection { client: client(1), backend: backend_of(&out), port: out.from.port() };
        bench.tables().admit(flow.backend, NONE, Instant::ZERO);
        let other = bench.from_client(client(1), SYN).numbers(2000, 0);
        assert_eq!(bench.send(&other), Verdict::Dropped);
        assert_eq!(state(bench, &flow), State::HalfOpen);
        bench.forward(&bench.from_backend(flow.backend, flow.port, SYN | ACK).numbers(5000, 1001));
        let told = bench.forward(&other);
        assert_eq!((told.to, told.flags, told.sequence, told.acknowledgement), (client(1), ACK, 5001, 1001));
        let again = bench.forward(&syn);
        assert_eq!((again.flags, backend_of(&again), again.from.port()), (SYN, flow.backend, flow.port));
        assert_eq!(state(bench, &flow), State::Answered);
        assert_eq!(bench.moved(), [(Reason::HalfOpenJunk, 1), (Reason::Challenged, 1)]);
        let _: Segment = bench.forward(&bench.from_client(client(1), ACK).numbers(1001, 5001));
        assert_eq!(state(bench, &flow), State::Established);
    });
}

/// Takes over flow `n` from another host, which has reported it as it was `seconds` ago.
fn take_over(bench: &Bench, n: u16, seconds: u64) -> Connection {
    let port = lab::program::FIRST_PORT + 63 - n;
    let flow = Foreign {
        scales: Scales::new(7, 7),
        last_seen: Instant(clock::coarse().0 - seconds * 1_000_000_000).ticks(),
        ..super::taken_over(bench, client(n), 0, port)
    };
    bench.tables().adopt(&flow).expect("a free slot");
    Connection { client: client(n), backend: 0, port }
}

#[test]
fn a_flow_taken_over_goes_on_where_both_sides_say_that_it_is_however_far_and_old() {
    on_every_hook(|bench| {
        for (n, (ahead, seconds)) in [(200_000, 0), (30 << 20, 25), (3 << 30, 60)].into_iter().enumerate() {
            let flow = take_over(bench, n as u16, seconds);
            let (client, backend) = (8001_u32.wrapping_add(ahead / 2), 9001_u32.wrapping_add(ahead));
            let end = |bench: &Bench| slot(bench, &flow).record.end_backend as u32;
            let from_backend = bench.from_backend(0, flow.port, ACK).numbers(backend, client).payload(&[1; 100]);
            bench.forward(&from_backend);
            assert_eq!(end(bench), 9001, "one side alone may be anybody");
            bench.forward(&from_backend);
            assert_eq!(end(bench), 9001, "twice as well");
            bench.forward(&bench.from_client(flow.client, ACK).numbers(client, backend));
            assert_eq!(end(bench), backend, "{ahead} ahead, {seconds} s old");
            bench.forward(&from_backend);
            let found = slot(bench, &flow);
            assert_eq!((found.record.end_backend as u32, found.ctl.flags() & LOOSE), (backend.wrapping_add(100), 0));
            // A RST, and a FIN, are exact again.
            bench.forward(&bench.from_client(flow.client, FIN | ACK).numbers(client, backend.wrapping_add(100)));
            assert_eq!(state(bench, &flow), State::ClosingClient);
            bench.moved();
            let rst = bench.from_backend(0, flow.port, RST).numbers(backend.wrapping_add(100), 0);
            bench.forward(&rst);
            assert_eq!(bench.moved(), [(Reason::BackendReset, 1)]);
        }
    });
}

#[test]
fn a_flow_taken_over_is_settled_by_the_first_segment_that_fits() {
    on_every_hook(|bench| {
        let flow = take_over(bench, 1, 0);
        bench.forward(&bench.from_client(flow.client, ACK).numbers(8000, 9001));
        assert_eq!(slot(bench, &flow).ctl.flags() & LOOSE, 0, "a keepalive");
        let before = words(bench, &flow);
        // Now even both sides' addresses change nothing any more.
        bench.forward(&bench.from_backend(0, flow.port, ACK).numbers(9001 + (30 << 20), 8001 + (20 << 20)));
        bench.forward(&bench.from_client(flow.client, ACK).numbers(8001 + (20 << 20), 9001 + (30 << 20)));
        assert_eq!(words(bench, &flow), before);
    });
}

#[test]
fn a_flow_taken_over_whose_numbers_are_old_on_one_side_shows_that_it_lives() {
    on_every_hook(|bench| {
        let flow = take_over(bench, 1, 60);
        let before = slot(bench, &flow).record;
        // Its client only listens: what the backend answers when it is asked acknowledges what is known.
        bench.forward(&bench.from_backend(0, flow.port, ACK).numbers(9001 + (30 << 20), 8001));
        let after = slot(bench, &flow).record;
        assert_ne!(after.last_seen, before.last_seen);
        assert_eq!((after.end_backend, after.ack_backend), (before.end_backend, before.ack_backend));
    });
}

#[test]
fn a_challenge_goes_to_the_client_whoever_has_sent_the_syn() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(1));
        let forged = bench.from_client(flow.client, SYN).numbers(77, 0).macs(SOMEBODY, bench.mac);
        let out = bench.forward(&forged);
        assert_eq!((out.to, out.to_mac, out.flags), (flow.client, CLIENT_MAC, ACK));
    });
}

#[test]
fn unconfirmed_flows_do_not_use_up_the_connections_that_a_backend_may_have() {
    let mut setup = Setup { backends: 2, ..Setup::default() };
    setup.service.half_open_cells = 1000;
    with_setup(setup, |bench| {
        (0..2).for_each(|n| bench.configure(n, 1, false, 5));
        let kept: Vec<_> = (0..4).map(|n| bench.connect(client(n))).collect();
        (10..16).for_each(|n| _ = answered(bench, n));
        assert_eq!(bench.moved(), []);
        let flow = bench.connect(client(100));
        assert!(kept.iter().chain([&flow]).all(|flow| state(bench, flow) == State::Established));
        assert!(matches!(bench.moved()[..], [(Reason::HalfOpenEvicted, 1..)]));
        (101..106).for_each(|n| _ = bench.connect(client(n)));
        let out = bench.forward(&bench.from_client(client(200), SYN).numbers(77, 0));
        assert_eq!(out.flags, RST | ACK, "ten that are confirmed are ten");
    });
}

#[test]
fn a_repeated_answer_gives_the_client_no_more_time() {
    on_every_hook(|bench| {
        let flow = answered(bench, 1);
        let since = slot(bench, &flow).record.last_seen;
        // Longer than a tick of a millisecond.
        std::thread::sleep(std::time::Duration::from_millis(20));
        bench.forward(&bench.from_client(flow.client, SYN).numbers(1000, 0));
        bench.forward(&bench.from_backend(flow.backend, flow.port, SYN | ACK).numbers(5000, 1001));
        assert_eq!(slot(bench, &flow).record.last_seen, since);
    });
}

#[test]
fn room_is_found_behind_many_confirmed_flows() {
    let mut setup = Setup { backends: 1, ports: 300, ..Setup::default() };
    setup.service.half_open_cells = 1000;
    with_setup(setup, |bench| {
        (0..200).for_each(|n| _ = bench.connect(client(n)));
        (200..300).for_each(|n| _ = answered(bench, n));
        let flow = bench.connect(client(400));
        assert_eq!(state(bench, &flow), State::Established);
    });
}

#[test]
fn an_unknown_way_to_the_client_is_learnt_from_a_keepalive() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(1));
        let found = slot(bench, &flow);
        bench.tables().set_client_hop(found.at, Hop::default());
        bench.forward(&bench.from_client(flow.client, ACK).numbers(1000, 5001));
        assert_eq!(slot(bench, &flow).record.hop, found.record.hop);
    });
}

#[test]
fn what_was_not_sent_is_not_acknowledged() {
    on_every_hook(|bench| {
        let flow = answered(bench, 1);
        let wide = |segment: Segment| Segment { window: 0xffff, ..segment };
        bench.forward(&wide(bench.from_client(flow.client, ACK).numbers(1001, 5001)));
        let before = words(bench, &flow);
        // The window is eight megabytes, and nothing is under way.
        bench.forward(&wide(bench.from_client(flow.client, ACK).numbers(1001, 5001 + (4 << 20))));
        assert_eq!(words(bench, &flow), before);
        assert_eq!(bench.moved(), [(Reason::OutOfWindow, 1)]);
    });
}
