//! SYN cookies: a client that answers one is served, and a SYN of anybody else leaves nothing.

use std::net::SocketAddrV4;

use aya::maps::{Array, Map, MapData};
use evenkeel::{dataplane::Answer, tables::way_key};
use lab::{
    packet::{ACK, LINUX_OPTIONS, RST, SYN, Segment},
    program::{Bench, Setup, Verdict},
};
use lb_common::{
    cookie::{EPOCH_BITS, KNOWN, REPEATED},
    layout::{COOKIES_OFF, COOKIES_ON, COOKIES_READY, CookieKey},
    slot::State,
    verdict::Reason,
};

use super::{client, on_every_hook, with_setup};

const KEY: CookieKey = CookieKey { key: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210], offset: 0, reserved: 0 };

/// A bench whose service sends cookies.
fn sends(bench: &Bench) {
    bench.tables().set_cookie_key(&KEY);
    bench.tables().set_cookies(0, COOKIES_ON);
}

fn syn(bench: &Bench, client: SocketAddrV4, initial: u32) -> Segment {
    bench.from_client(client, SYN).numbers(initial, 0).options(&LINUX_OPTIONS)
}

/// Sends a SYN, which is answered with a cookie; the RST that its client sends then.
fn challenged(bench: &Bench, client: SocketAddrV4, initial: u32) -> Segment {
    let cookie = bench.forward(&syn(bench, client, initial));
    assert_eq!((cookie.flags, cookie.to, cookie.window), (SYN | ACK, client, 65_535));
    assert!(initial.wrapping_sub(cookie.acknowledgement) <= 0xffff, "just below the SYN, or at it");
    bench.from_client(client, RST).numbers(cookie.acknowledgement, 0)
}

/// Makes all marks in a table older, as if so many ticks had passed.
fn pass(bench: &Bench, table: &str, ticks: u32) {
    let map = MapData::from_pin(bench.bpffs.join("maps").join(table)).expect("its pin");
    let mut marks: Array<_, u64> = Map::from_map_data(map).and_then(Array::try_from).expect("an array");
    for row in 0..marks.len() {
        let mark = marks.get(&row, 0).expect("a mark");
        if mark != 0 {
            marks.set(row, mark.wrapping_sub(u64::from(ticks) << 32), 0).expect("an older one");
        }
    }
}

fn flows(bench: &Bench) -> usize {
    let heads = |pool: &u16| bench.tables().heads(*pool, 0..u32::MAX).collect::<Vec<_>>();
    bench.pools.iter().flat_map(heads).filter(|head| head.flow.ctl.state() != State::Free).count()
}

#[test]
fn a_client_that_answers_its_cookie_is_served_and_one_that_does_not_leaves_nothing() {
    on_every_hook(|bench| {
        sends(bench);
        let answer = challenged(bench, client(1), 1000);
        challenged(bench, client(2), u32::MAX);
        assert_eq!((flows(bench), bench.moved()), (0, vec![(Reason::CookieSent, 2)]));
        assert_eq!(bench.send(&answer), Verdict::Dropped, "a RST is never answered");
        assert_eq!(bench.moved(), [(Reason::CookieAnswered, 1)]);
        bench.send(&answer);
        assert_eq!(bench.moved(), [(Reason::UnknownFlow, 1)], "it is known already");
        let flow = bench.connect(client(1));
        assert_eq!((flow.client, flows(bench), bench.moved()), (client(1), 1, vec![]));
        challenged(bench, client(2), 7);
        assert_eq!(bench.moved(), [(Reason::CookieSent, 1)]);
    });
}

#[test]
fn only_the_low_half_of_the_number_counts_and_no_other_client_can_use_it() {
    on_every_hook(|bench| {
        sends(bench);
        let answer = challenged(bench, client(1), 0x1234_5678);
        let number = answer.sequence;
        for (client, number, flags) in [
            (client(1), number ^ 1, RST),
            (client(1), number ^ 0x8000, RST),
            (client(1), number, RST | ACK),
            (client(1), number, ACK),
            (client(2), number, RST),
            (SocketAddrV4::new(*client(1).ip(), client(1).port() + 1), number, RST),
        ] {
            bench.send(&bench.from_client(client, flags).numbers(number, 0));
        }
        assert!(bench.moved().iter().all(|(reason, _)| *reason != Reason::CookieAnswered));
        challenged(bench, client(1), 5);
        bench.send(&bench.from_client(client(1), RST).numbers(number ^ 0xabcd_0000, 0));
        bench.connect(client(1));
    });
}

#[test]
fn a_cookie_is_good_in_its_epoch_and_the_next_and_not_after_a_change_of_key() {
    on_every_hook(|bench| {
        let epoch = 1_u64 << EPOCH_BITS;
        for (later, key, is_good) in [(1, KEY.key, true), (2, KEY.key, false), (0, [1, 2], false)] {
            sends(bench);
            let answer = challenged(bench, client(later as u16), 9000);
            bench.tables().set_cookie_key(&CookieKey { key, offset: later * epoch, reserved: 0 });
            bench.send(&answer);
            let answered = bench.moved().contains(&(Reason::CookieAnswered, 1));
            assert_eq!(answered, is_good, "{later} epochs later");
        }
    });
}

#[test]
fn many_clients_that_answer_at_the_same_time_are_all_known() {
    on_every_hook(|bench| {
        sends(bench);
        let answers: Vec<_> = (0..400).map(|n| challenged(bench, client(n), 1000)).collect();
        answers.iter().for_each(|answer| _ = bench.send(answer));
        assert_eq!(bench.moved(), [(Reason::CookieSent, 400), (Reason::CookieAnswered, 400)]);
        (0..400).for_each(|n| _ = bench.forward(&syn(bench, client(n), 1000)));
        assert!(bench.moved().iter().all(|(reason, _)| *reason != Reason::CookieSent), "one was asked again");
    });
}

#[test]
fn a_client_is_known_for_a_while_by_its_port_as_well() {
    on_every_hook(|bench| {
        sends(bench);
        bench.send(&challenged(bench, client(1), 1000));
        let other = SocketAddrV4::new(*client(1).ip(), 1);
        challenged(bench, other, 1000);
        assert_eq!(flows(bench), 0);
        pass(bench, "VERIFIED", KNOWN);
        challenged(bench, client(1), 1000);
        bench.moved();
    });
}

#[test]
fn a_syn_that_comes_again_after_a_second_without_an_answer_is_counted() {
    on_every_hook(|bench| {
        sends(bench);
        challenged(bench, client(1), 1000);
        challenged(bench, client(1), 1000);
        challenged(bench, client(2), 1000);
        assert_eq!(bench.moved(), [(Reason::CookieSent, 3)], "not for a second");
        pass(bench, "CHALLENGED", REPEATED);
        challenged(bench, client(1), 1000);
        challenged(bench, client(3), 1000);
        assert_eq!(bench.moved(), [(Reason::CookieSent, 2), (Reason::CookieUnanswered, 1)]);
    });
}

#[test]
fn an_open_connection_and_one_that_is_opening_get_no_cookie() {
    on_every_hook(|bench| {
        let open = bench.connect(client(1));
        let opening = bench.forward(&syn(bench, client(2), 1000));
        sends(bench);
        assert_eq!(bench.forward(&syn(bench, client(2), 1000)).from, opening.from, "its SYN again");
        bench.forward(&bench.from_client(open.client, ACK).numbers(1001, 5001).payload(b"x"));
        bench.forward(&syn(bench, client(1), 77));
        assert_eq!(bench.moved(), [(Reason::Challenged, 1)], "that is not a cookie");
        bench.close(&open);
        let again = challenged(bench, client(1), 5000);
        bench.send(&again);
        bench.forward(&syn(bench, client(1), 5000));
    });
}

#[test]
fn a_service_begins_by_itself_when_its_ring_overflows_and_only_if_it_may() {
    for (word, after) in [(COOKIES_OFF, COOKIES_OFF), (COOKIES_READY, COOKIES_ON)] {
        with_setup(Setup::default(), |bench| {
            bench.tables().set_cookies(0, word);
            let cells = bench.setup.service.half_open_cells as u16;
            (0..cells).for_each(|n| _ = bench.forward(&syn(bench, client(n), 1)));
            assert_eq!(bench.tables().cookies(0), word, "there is room");
            bench.forward(&syn(bench, client(cells), 1));
            assert_eq!(bench.tables().cookies(0), after);
        });
    }
}

#[test]
fn a_service_begins_by_itself_when_flows_that_nobody_confirmed_use_up_its_ports() {
    let mut setup = Setup { ports: 8, ..Setup::default() };
    setup.service.half_open_cells = 1000;
    with_setup(setup, |bench| {
        bench.tables().set_cookies(0, COOKIES_READY);
        (0..24).for_each(|n| _ = bench.forward(&syn(bench, client(n), 1)));
        assert_eq!(bench.tables().cookies(0), COOKIES_READY);
        bench.forward(&syn(bench, client(24), 1));
        assert_eq!(bench.tables().cookies(0), COOKIES_ON);
    });
}

#[test]
fn who_is_exempt_gets_none_by_prefix_and_service() {
    let mut setup = Setup::default();
    setup.service.exempt =
        ["192.0.2.1/32", "198.51.100.0/24", "fd00::/8"].map(|text| way_key(text.parse().unwrap())).into();
    with_setup(setup, |bench| {
        sends(bench);
        let at = |address: [u8; 4]| SocketAddrV4::new(address.into(), 41_000);
        for exempt in [[192, 0, 2, 1], [198, 51, 100, 0], [198, 51, 100, 255]] {
            bench.connect(at(exempt));
        }
        assert_eq!(bench.moved(), []);
        for other in [[192, 0, 2, 2], [198, 51, 99, 255], [198, 51, 101, 0]] {
            challenged(bench, at(other), 7);
        }
        let row = evenkeel::tables::ServiceRow { exempt: Default::default(), ..bench.tables().service_row(0) };
        bench.tables().configure_service(0, &row).expect("a row");
        challenged(bench, at([198, 51, 100, 7]), 7);
        assert_eq!(bench.moved(), [(Reason::CookieSent, 4)]);
    });
}

#[test]
fn a_question_of_trace_gets_no_cookie() {
    on_every_hook(|bench| {
        sends(bench);
        let listener = bench.tables().listeners()[0].0;
        let answer = bench.dataplane.foretell(bench.ifindex, client(1).into(), listener).expect("an answer");
        assert!(matches!(answer, Answer::Opens { .. }), "{answer:?}");
        assert_eq!(bench.moved(), []);
    });
}
