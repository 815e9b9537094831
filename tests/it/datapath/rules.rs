use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, Ordering},
};

use lab::{
    packet::{ACK, FIN, RST, SYN},
    program::{Bench, CLIENT_MAC, Setup, VIP, backend, backend_of},
};
use lb_common::{
    layout::{MAX_RULES, Rule, TURNED_AWAY_EVENTS},
    rules::{ALLOW, DENY},
    verdict::Reason,
};

use super::{client, on_every_hook, with_setup};

fn network(verdict: u8, address: [u8; 4], prefix: u8) -> Rule {
    Rule::v4(verdict, Ipv4Addr::from(address).to_ipv6_mapped().octets(), prefix)
}

fn set_rules(bench: &Bench, rules: &[Rule]) {
    let setup = &bench.setup;
    let service = evenkeel::tables::ServiceRow {
        rules: rules.to_vec(),
        backends: (0..setup.backends).collect(),
        ..setup.service.clone()
    };
    bench.tables().configure_service(0, &service).expect("rules");
}

/// Whether a new connection of this client is let in; its slot is released.
fn is_let_in(bench: &mut Bench, n: u16) -> bool {
    let syn = bench.from_client(client(n), SYN).numbers(77, 0);
    let out = bench.forward(&syn);
    if out.flags != SYN {
        assert_eq!((out.to, out.flags), (client(n), RST | ACK));
        assert_eq!(bench.moved(), [(Reason::Denied, 1)]);
        return false;
    }
    bench.forward(&bench.from_client(client(n), RST).numbers(78, 0));
    assert_eq!(bench.moved(), [(Reason::ClientAborted, 1)]);
    true
}

#[test]
fn the_first_rule_that_matches_decides_and_a_denied_client_gets_a_rst_and_no_slot() {
    let mut setup = Setup::default();
    setup.service.rules =
        vec![network(DENY, [192, 0, 2, 1], 32), network(ALLOW, [192, 0, 2, 0], 24), network(DENY, [192, 0, 0, 0], 8)];
    with_setup(setup, |bench| {
        let free: u32 = bench.pools.iter().map(|pool| bench.tables().free_slots(*pool)).sum();
        let syn = bench.from_client(client(0), SYN).numbers(77, 0).options(&lab::packet::LINUX_OPTIONS);
        let out = bench.forward(&syn);
        assert_eq!((out.from, out.to, out.flags), (VIP, client(0), RST | ACK));
        assert_eq!((out.sequence, out.acknowledgement), (0, 78));
        assert_eq!((out.from_mac, out.to_mac), (bench.mac, CLIENT_MAC));
        assert_eq!(bench.moved(), [(Reason::Denied, 1)]);
        assert_eq!(bench.active(), [0, 0, 0]);
        assert_eq!(bench.pools.iter().map(|pool| bench.tables().free_slots(*pool)).sum::<u32>(), free);
        assert!(is_let_in(bench, 200), "192.0.2.2 is allowed by the second rule");
        let elsewhere = |address| std::net::SocketAddrV4::new(Ipv4Addr::from(address), 40_000);
        let near = bench.forward(&bench.from_client(elsewhere([192, 9, 9, 9]), SYN));
        assert_eq!(near.flags, RST | ACK, "denied by the third");
        let far = bench.forward(&bench.from_client(elsewhere([198, 51, 100, 1]), SYN));
        assert_eq!(far.flags, SYN, "whom no rule matches is let in");
        assert_eq!(bench.moved(), [(Reason::Denied, 1)]);
    });
}

#[test]
fn a_rule_counts_wherever_it_stands_in_the_longest_list() {
    on_every_hook(|bench| {
        for place in [0, 1, 7, 8, 100, MAX_RULES as usize - 1] {
            // All other addresses: the third network for documentation.
            let mut rules = vec![network(ALLOW, [203, 0, 113, 0], 24); MAX_RULES as usize];
            rules[place] = network(DENY, [192, 0, 2, 1], 32);
            set_rules(bench, &rules);
            assert_eq!(bench.tables().rules(0), rules);
            assert!(!is_let_in(bench, 0), "rule {place}");
            assert!(is_let_in(bench, 200), "rule {place} is not about this client");
        }
        set_rules(bench, &[]);
        assert!(is_let_in(bench, 0), "no rules: everybody");
    });
}

#[test]
fn all_is_everybody_and_rules_for_ipv6_are_no_business_of_ipv4_clients() {
    on_every_hook(|bench| {
        set_rules(bench, &[Rule::v6(DENY, [0; 16], 0)]);
        assert!(is_let_in(bench, 0));
        set_rules(bench, &[Rule::v6(ALLOW, [0; 16], 0), Rule::all(DENY)]);
        assert!(!is_let_in(bench, 0));
        set_rules(bench, &[Rule::all(ALLOW), Rule::all(DENY)]);
        assert!(is_let_in(bench, 0));
    });
}

#[test]
fn connections_that_are_open_are_not_looked_at_and_new_ones_from_their_ports_are() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let syn = bench.from_client(client(1), SYN).numbers(77, 0);
        let half_open = bench.forward(&syn);
        set_rules(bench, &[Rule::all(DENY)]);
        let data = bench.from_client(flow.client, ACK).numbers(1001, 5001).payload(b"x");
        assert_eq!(bench.forward(&data).to, backend(flow.backend));
        assert_eq!(bench.forward(&syn), half_open, "the same SYN again");
        let answer = bench.from_backend(backend_of(&half_open), half_open.from.port(), SYN | ACK).numbers(5000, 78);
        assert_eq!(bench.forward(&answer).to, client(1));
        assert_eq!(bench.moved(), []);
        bench.forward(&bench.from_client(flow.client, FIN | ACK).numbers(1002, 5001));
        bench.forward(&bench.from_backend(flow.backend, flow.port, FIN | ACK).numbers(5001, 1003));
        assert_eq!(bench.moved(), [(Reason::Closed, 1)]);
        let again = bench.forward(&bench.from_client(flow.client, SYN).numbers(9000, 0));
        assert_eq!(again.flags, RST | ACK);
        assert_eq!(bench.moved(), [(Reason::Denied, 1)]);
    });
}

#[test]
fn while_lists_are_replaced_nobody_is_let_in_or_kept_out_that_both_agree_on() {
    on_every_hook(|bench| {
        let one = [network(DENY, [192, 0, 2, 1], 32), Rule::all(ALLOW)];
        let mut other = vec![network(ALLOW, [203, 0, 113, 0], 24); 40];
        other.extend([network(ALLOW, [192, 0, 2, 2], 32), Rule::all(DENY)]);
        set_rules(bench, &one);
        let over = AtomicBool::new(false);
        let tables = bench.dataplane.tables().clone();
        let setup = |rules: &[Rule]| {
            let backends = (0..bench.setup.backends).collect();
            evenkeel::tables::ServiceRow { rules: rules.to_vec(), backends, ..bench.setup.service.clone() }
        };
        let setups = [setup(&other), setup(&one)];
        // Fewer rounds than RSTs that a CPU may send in a burst: after that a denied client gets no
        // answer.
        const RST_BURST: u32 = 9_000;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let swapped = (0..20).try_for_each(|swap| tables.configure_service(0, &setups[swap % 2]));
                over.store(true, Ordering::Relaxed);
                swapped.expect("rules");
            });
            for round in (0..RST_BURST).take_while(|_| !over.load(Ordering::Relaxed)) {
                let denied = bench.forward(&bench.from_client(client(0), SYN).numbers(round, 0));
                assert_eq!(denied.flags, RST | ACK, "round {round}");
                let allowed = bench.forward(&bench.from_client(client(200), SYN).numbers(round, 0));
                assert_eq!(allowed.flags, SYN, "round {round}");
                bench.forward(&bench.from_client(client(200), RST).numbers(round + 1, 0));
            }
        });
    });
}

#[test]
fn a_flood_of_denied_clients_makes_a_bounded_number_of_events() {
    let mut setup = Setup::default();
    setup.service.rules = vec![Rule::all(DENY)];
    with_setup(setup, |bench| {
        for n in 0..1000 {
            bench.forward(&bench.from_client(client(n), SYN));
        }
        let moved = bench.moved();
        assert_eq!(moved.len(), 2, "{moved:?}");
        assert_eq!(moved[0], (Reason::Denied, 1000));
        let (reason, left_out) = moved[1];
        assert_eq!(reason, Reason::AccessLogSuppressed);
        // A second ends during the flood, or two on a busy machine.
        let told = 1000 - left_out;
        assert!((1..=3 * u64::from(TURNED_AWAY_EVENTS)).contains(&told), "{told}");
    });
}
