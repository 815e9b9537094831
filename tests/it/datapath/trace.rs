//! What the program answers when it is asked what would happen to a SYN, and that a question leaves
//! no trace.

use std::net::Ipv4Addr;

use evenkeel::{dataplane::Answer, sys::clock};
use lab::{
    packet::{ACK, FIN, RST, SYN, Segment},
    program::{Bench, FIRST_PORT, Setup, VIP, backend, backend_mac, backend_of},
};
use lb_common::{
    layout::{self, NONE, OUT, Rule, UP},
    rules::{ALLOW, DENY},
    schedule::{CHOSEN_BACKUP, CHOSEN_FAIL_OPEN, CHOSEN_TRIAL, CHOSEN_UP, HASH, LEAST_CONN, RANDOM_TWO, ROUND_ROBIN},
    slot::{Ctl, State},
    time::Instant,
    verdict::Reason,
};

use super::{client, on_every_hook, with_setup};

/// Everything that a question must not change: records of the backends and of the service, free
/// slots, words of all slots, counts of clients.
type Everything = (Vec<(layout::Backend, layout::SlowStart)>, layout::Service, Vec<u32>, Vec<(u16, Ctl)>, usize);

fn everything(bench: &Bench) -> Everything {
    let tables = bench.tables();
    let backends = (0..bench.setup.backends).map(|n| (tables.backend(n), tables.slow_start(n))).collect();
    let free = bench.pools.iter().map(|pool| tables.free_slots(*pool)).collect();
    let heads = bench
        .pools
        .iter()
        .flat_map(|pool| tables.heads(*pool, 0..u32::MAX))
        .map(|head| (head.flow.at.slot(), head.flow.ctl));
    (backends, tables.service(0), free, heads.collect(), tables.clients(0).len())
}

/// Asks about a client, and checks that nothing has changed.
fn ask(bench: &mut Bench, n: u16) -> Answer {
    bench.moved();
    let before = everything(bench);
    let listener = bench.tables().listeners()[0].0;
    let answer = bench.dataplane.foretell(bench.ifindex, client(n).into(), listener).expect("an answer");
    assert_eq!(everything(bench), before, "{answer:?}");
    assert_eq!(bench.moved(), [], "{answer:?}");
    answer
}

fn turned_away(reason: Reason) -> Answer {
    Answer::TurnedAway { reason, rule: None }
}

/// How the backend was chosen.
fn how(answer: &Answer) -> u32 {
    let Answer::Opens { how, .. } = answer else { panic!("{answer:?}") };
    *how
}

#[test]
fn what_is_foretold_is_what_happens_to_the_next_syn_with_every_method() {
    for balance in [LEAST_CONN, ROUND_ROBIN, HASH] {
        let mut setup = Setup { weights: vec![3, 1, 2], ..Setup::default() };
        setup.service.balance = balance;
        with_setup(setup, |bench| {
            let places: Vec<u16> = (0..lb_common::schedule::MAGLEV_PLACES as u16).map(|place| place % 3).collect();
            bench.tables().set_maglev(0, &places).expect("a table");
            for n in 0..20 {
                let foretell = |bench: &mut Bench| match ask(bench, n) {
                    Answer::Opens { at, position, how: CHOSEN_UP, rule: None, frame } => (at.slot(), position, frame),
                    other => panic!("{other:?}"),
                };
                let (slot, position, frame) = foretell(bench);
                let again = foretell(bench);
                assert_eq!((again.0, again.1), (slot, position), "asked again, the same");
                let foretold = Segment::parse(&frame).expect("a segment");
                assert_eq!((foretold.from.port(), u32::from(backend_of(&foretold))), (FIRST_PORT + slot, position));
                assert_eq!((foretold.from_mac, foretold.to_mac), (bench.mac, backend_mac(position as u16)));
                let syn = bench.forward(&bench.from_client(client(n), SYN).numbers(77, 0));
                assert_eq!((syn.from, syn.to, syn.to_mac), (foretold.from, foretold.to, foretold.to_mac), "{n}");
            }
        });
    }
}

#[test]
fn a_backend_that_starts_slowly_gets_its_share_of_connections_and_none_of_questions() {
    with_setup(Setup { backends: 2, ..Setup::default() }, |bench| {
        // 58 % of an hour are over, which makes 29 % of all connections. No such sum is so close to
        // a whole number that the time between a question and its SYN could matter.
        bench.starts_slowly(1, 3_600_000);
        bench.tables().admit(1, OUT, Instant::NEVER);
        let until = clock::monotonic().0 + 1_512_000_000_000;
        assert!(bench.tables().swap_admission(1, (OUT, UP), Instant::NEVER, Instant(until)));
        let mut given = [0; 2];
        for n in 0..16 {
            let Answer::Opens { position, .. } = ask(bench, n) else { panic!("{n}") };
            let syn = bench.forward(&bench.from_client(client(n), SYN).numbers(77, 0));
            assert_eq!(u32::from(backend_of(&syn)), position, "{n}");
            given[position as usize] += 1;
        }
        assert_eq!(given, [12, 4], "the 4th, 7th, 11th and 14th");
    });
}

#[test]
fn a_random_choice_is_foretold_as_one_that_can_be() {
    let mut setup = Setup::default();
    setup.service.balance = RANDOM_TWO;
    with_setup(setup, |bench| {
        for n in 0..20 {
            assert_eq!(how(&ask(bench, n)), CHOSEN_UP);
        }
    });
}

#[test]
fn an_open_flow_is_found_whatever_its_state_and_a_closed_one_is_none() {
    on_every_hook(|bench| {
        let syn = bench.forward(&bench.from_client(client(0), SYN).numbers(77, 0));
        let found = |bench: &Bench| bench.tables().find(client(0).into())[0];
        let known = |bench: &mut Bench| {
            let flow = found(bench);
            let expected = Answer::Known { at: flow.at, generation: flow.ctl.generation() };
            assert_eq!(ask(bench, 0), expected, "{:?}", flow.ctl.state());
        };
        known(bench);
        bench.forward(&bench.from_backend(backend_of(&syn), syn.from.port(), SYN | ACK).numbers(5000, 78));
        known(bench);
        bench.forward(&bench.from_client(client(0), ACK).numbers(78, 5001));
        let flow = found(bench);
        assert!(bench.tables().suspect(flow.seen()));
        known(bench);
        assert_eq!(found(bench).ctl.state(), State::Suspect, "the question is no sign of life");
        bench.forward(&bench.from_client(client(0), FIN | ACK).numbers(78, 5001));
        known(bench);
        bench.forward(&bench.from_backend(backend_of(&syn), syn.from.port(), FIN | ACK).numbers(5001, 79));
        assert!(matches!(ask(bench, 0), Answer::Opens { .. }));
        let late = bench.from_client(client(0), ACK).numbers(79, 5002);
        assert_eq!(bench.forward(&late).to, backend(backend_of(&syn)), "the last ACK still finds its way");
    });
}

#[test]
fn the_forecast_for_a_client_that_would_be_refused_says_why_and_by_which_rule() {
    on_every_hook(|bench| {
        let listed = |bench: &Bench, rules: &[Rule], client_limit| {
            let backends = (0..bench.setup.backends).collect();
            let rules = rules.to_vec();
            let setup = bench.setup.service.clone();
            let service = evenkeel::tables::ServiceRow { rules, client_limit, backends, ..setup };
            bench.tables().configure_service(0, &service).expect("a service");
        };
        let one = |verdict| Rule::v4(verdict, Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets(), 32);
        listed(bench, &[one(ALLOW), Rule::all(DENY)], 0);
        let Answer::Opens { rule, .. } = ask(bench, 0) else { panic!("allowed") };
        assert_eq!(rule, Some(0));
        assert_eq!(ask(bench, 200), Answer::TurnedAway { reason: Reason::Denied, rule: Some(1) });
        listed(bench, &[], 1);
        assert_eq!(how(&ask(bench, 0)), CHOSEN_UP);
        bench.connect(client(1));
        assert_eq!(ask(bench, 0), turned_away(Reason::ClientLimit), "the same address has one already");
        assert_eq!(how(&ask(bench, 200)), CHOSEN_UP, "another address has none");
        listed(bench, &[], 0);
        (0..3).for_each(|n| bench.tables().admit(n, NONE, Instant::ZERO));
        assert_eq!(ask(bench, 0), turned_away(Reason::NoBackend));
    });
}

#[test]
fn trials_backups_and_the_last_resort_are_named() {
    with_setup(Setup { backends: 2, ..Setup::default() }, |bench| {
        bench.tables().admit(0, OUT, Instant(1));
        assert_eq!(how(&ask(bench, 0)), CHOSEN_TRIAL);
        assert_eq!(how(&ask(bench, 1)), CHOSEN_TRIAL, "the one trial is still to be had");
        bench.tables().admit(0, OUT, Instant::NEVER);
        assert_eq!(how(&ask(bench, 0)), CHOSEN_UP);
        bench.configure(1, 1, true, 0);
        assert_eq!(how(&ask(bench, 0)), CHOSEN_BACKUP);
        bench.tables().admit(1, OUT, Instant::NEVER);
        assert_eq!(how(&ask(bench, 0)), CHOSEN_FAIL_OPEN);
    });
}

#[test]
fn a_full_pool_and_a_full_index_are_foretold() {
    with_setup(Setup { backends: 1, ports: 4, ..Setup::default() }, |bench| {
        for n in 0..4 {
            bench.connect(client(n));
        }
        assert_eq!(ask(bench, 9), turned_away(Reason::NoSlot));
    });
    with_setup(Setup { backends: 1, ports: 200, max_connections: 8, ..Setup::default() }, |bench| {
        for n in 0..60 {
            let foretold = ask(bench, n);
            let out = bench.forward(&bench.from_client(client(n), SYN).numbers(77, 0));
            match foretold {
                Answer::Opens { .. } => assert_eq!(out.flags, SYN, "{n}"),
                other => assert_eq!((other, out.flags), (turned_away(Reason::IndexFull), RST | ACK), "{n}"),
            }
        }
    });
}

#[test]
fn a_syn_that_nobody_asks_about_is_never_taken_for_a_question() {
    on_every_hook(|bench| {
        ask(bench, 0);
        for initial in [0, 1, u32::MAX] {
            let out = bench.forward(&bench.from_client(client(0), SYN).numbers(initial, 0));
            assert_eq!((out.flags, out.to.port()), (SYN, VIP.port()));
            assert_eq!(bench.active().iter().sum::<u32>(), 1);
            bench.forward(&bench.from_client(client(0), RST).numbers(initial.wrapping_add(1), 0));
        }
    });
}
