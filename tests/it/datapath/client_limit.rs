use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicU32, Ordering},
};

use evenkeel::tables::{FlowAt, ServiceRow};
use lab::{
    packet::{ACK, FIN, RST, SYN},
    program::{Bench, Connection, Setup, VIP, backend_of},
};
use lb_common::{
    layout::NONE,
    slot::{COUNTED, State},
    time::Instant,
    verdict::Reason,
};

use super::{
    on_every_hook,
    races::{many_ports, race},
    with_setup,
};

/// The `n`th port of one client, and one port of another.
fn port(n: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 40_000 + n)
}
const OTHER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 40_000);

fn limited(limit: u32) -> Setup {
    let mut setup = Setup::default();
    setup.service.client_limit = limit;
    setup
}

fn set_limit(bench: &Bench, limit: u32) {
    let backends = (0..bench.setup.backends).collect();
    let service = ServiceRow { client_limit: limit, backends, ..bench.setup.service.clone() };
    bench.tables().configure_service(0, &service).expect("a limit");
}

/// The counted clients, each with its connections.
fn counts(bench: &Bench) -> Vec<(u32, u32)> {
    let mut counts: Vec<_> = bench.tables().clients(0).iter().map(|word| (word.client(), word.count())).collect();
    counts.sort_unstable();
    counts
}

/// How many connections are counted for the one client.
fn count(bench: &Bench) -> u32 {
    let client = u32::from_ne_bytes(port(0).ip().octets());
    counts(bench).iter().filter(|(of, _)| *of == client).map(|(_, count)| count).sum()
}

fn is_over_limit(bench: &mut Bench, client: SocketAddrV4) -> bool {
    let out = bench.forward(&bench.from_client(client, SYN).numbers(77, 0));
    if out.flags == SYN {
        return false;
    }
    assert_eq!((out.from, out.to, out.flags, out.acknowledgement), (VIP, client, RST | ACK, 78));
    assert_eq!(bench.moved(), [(Reason::ClientLimit, 1)]);
    true
}

#[test]
fn over_the_limit_a_client_is_refused_and_others_are_not() {
    with_setup(limited(3), |bench| {
        let flows: Vec<_> = (0..3).map(|n| bench.connect(port(n))).collect();
        assert_eq!(bench.moved(), []);
        let free: u32 = bench.pools.iter().map(|pool| bench.tables().free_slots(*pool)).sum();
        assert!(is_over_limit(bench, port(3)));
        assert_eq!(bench.active().iter().sum::<u32>(), 3);
        assert_eq!(bench.pools.iter().map(|pool| bench.tables().free_slots(*pool)).sum::<u32>(), free);
        bench.connect(OTHER);
        let data = bench.from_client(flows[0].client, ACK).numbers(1001, 5001).payload(b"x");
        assert_eq!(bench.forward(&data).payload, b"x", "open connections go on");
        assert_eq!((count(bench), counts(bench).len()), (3, 2));
        bench.close(&flows[1]);
        assert_eq!(bench.moved(), [(Reason::Closed, 1)]);
        assert!(!is_over_limit(bench, port(4)), "one has made room");
        assert!(is_over_limit(bench, port(5)), "half-open ones count");
    });
}

/// Every way in which a connection can end, and the reason that it is counted for.
fn end(bench: &Bench, way: u32, flow: &Connection) -> Reason {
    let Connection { client, backend, port } = *flow;
    match way {
        0 => {
            bench.close(flow);
            // The last FIN again changes nothing.
            bench.forward(&bench.from_backend(backend, port, FIN | ACK).numbers(5001, 1002));
            Reason::Closed
        }
        1 => {
            bench.forward(&bench.from_client(client, RST).numbers(1001, 0));
            Reason::ClientReset
        }
        2 => {
            bench.forward(&bench.from_backend(backend, port, RST).numbers(5001, 0));
            Reason::BackendReset
        }
        3 | 4 => {
            let found = bench.tables().find(client.into());
            let mut ctl = found[0].ctl;
            if way == 4 {
                assert!(bench.tables().suspect(FlowAt { ctl, ..found[0].seen() }));
                ctl = ctl.suspected();
            }
            let reason = if way == 3 { Reason::Killed } else { Reason::IdleTimeout };
            assert!(bench.tables().close(FlowAt { ctl, ..found[0].seen() }, reason).is_some());
            assert!(bench.tables().close(FlowAt { ctl, ..found[0].seen() }, reason).is_none());
            reason
        }
        _ => {
            bench.tables().admit(backend, NONE, Instant::ZERO);
            bench.forward(&bench.from_client(client, SYN).numbers(9000, 0));
            Reason::Replaced
        }
    }
}

#[test]
fn a_connection_is_taken_back_once_however_it_ends() {
    with_setup(limited(2), |bench| {
        let kept = bench.connect(port(0));
        for way in 0..5 {
            let flow = bench.connect(port(20 + way as u16));
            assert_eq!(count(bench), 2, "{way}");
            assert!(is_over_limit(bench, port(2)), "{way}");
            let reason = end(bench, way, &flow);
            assert_eq!(bench.moved(), [(reason, 1)]);
            assert_eq!(count(bench), 1, "{way}");
        }
        let flow = bench.connect(port(1));
        assert_eq!(end(bench, 5, &flow), Reason::Replaced);
        assert_eq!(bench.moved(), [(Reason::Replaced, 1)]);
        assert_eq!(count(bench), 2, "one ended, one began");
        bench.forward(&bench.from_client(flow.client, RST).numbers(9001, 0));
        bench.close(&kept);
        assert_eq!(counts(bench), [], "nobody is left in the table");
    });
}

#[test]
fn a_connection_that_tries_several_backends_counts_as_one_and_not_at_all_when_it_is_refused() {
    with_setup(limited(1), |bench| {
        let mut out = bench.forward(&bench.from_client(port(0), SYN).numbers(77, 0));
        for tried in 1..=3 {
            assert_eq!(count(bench), 1, "try {tried}");
            assert!(is_over_limit(bench, port(1)), "try {tried}");
            let refusal = bench.from_backend(backend_of(&out), out.from.port(), RST | ACK).numbers(0, 78);
            out = bench.forward(&refusal);
            assert_eq!(bench.moved(), [(Reason::Refused, 1)]);
        }
        assert_eq!((out.to, out.flags), (port(0), RST | ACK));
        assert_eq!(counts(bench), []);
        assert!(!is_over_limit(bench, port(1)));
    });
}

#[test]
fn attempts_that_come_to_nothing_leave_no_count() {
    let mut setup = limited(8);
    (setup.service.half_open_cells, setup.backends, setup.ports) = (4, 1, 6);
    with_setup(setup, |bench| {
        for n in 0..8 {
            bench.forward(&bench.from_client(port(n), SYN).numbers(77, 0));
        }
        assert_eq!(bench.moved(), [(Reason::HalfOpenEvicted, 4)]);
        assert_eq!(count(bench), 4, "those that gave way do not count");
        bench.forward(&bench.from_client(port(4), RST).numbers(78, 0));
        assert_eq!(bench.moved(), [(Reason::ClientAborted, 1)]);
        assert_eq!(count(bench), 3);
        bench.tables().admit(0, NONE, Instant::ZERO);
        bench.forward(&bench.from_client(port(20), SYN).numbers(77, 0));
        assert_eq!((bench.moved(), count(bench)), (vec![(Reason::NoBackend, 1)], 3));
    });
    with_setup(Setup { backends: 1, ports: 200, max_connections: 8, ..limited(100) }, |bench| {
        let sent = |n| bench.forward(&bench.from_client(port(n), SYN).numbers(77, 0)).flags == SYN;
        let opened = (0..60).filter(|n| sent(*n)).count();
        assert_eq!(bench.moved(), [(Reason::IndexFull, 60 - opened as u64)]);
        assert_eq!(count(bench), opened as u32, "those that found no place in the index do not count");
    });
}

#[test]
fn a_limit_that_comes_and_goes_counts_what_began_under_it_and_the_rest_when_told() {
    on_every_hook(|bench| {
        let before: Vec<_> = (0..3).map(|n| bench.connect(port(n))).collect();
        assert_eq!(counts(bench), [], "nothing is counted without a limit");
        set_limit(bench, 2);
        let under = bench.connect(port(3));
        bench.close(&before[0]);
        assert_eq!(count(bench), 1, "one that was never counted takes nothing away");
        for flow in &before[1..] {
            let found = bench.tables().find(flow.client.into())[0];
            assert!(bench.tables().count_flow(found.seen()));
            assert!(!bench.tables().count_flow(FlowAt { ctl: found.ctl.with_flags(COUNTED), ..found.seen() }), "once");
        }
        assert_eq!(count(bench), 3);
        bench.moved();
        assert!(is_over_limit(bench, port(9)));
        let data = bench.from_client(before[1].client, ACK).numbers(1001, 5001).payload(b"x");
        assert_eq!(bench.forward(&data).payload, b"x", "open connections over the limit go on");

        set_limit(bench, 0);
        let without = bench.connect(port(5));
        assert_eq!(count(bench), 3);
        bench.close(&under);
        assert_eq!(count(bench), 2, "what was counted is taken back without a limit too");
        bench.close(&without);
        set_limit(bench, 2);
        assert_eq!(count(bench), 2);
        bench.moved();
        assert!(is_over_limit(bench, port(9)));
        bench.close(&before[1]);
        bench.close(&before[2]);
        assert_eq!(counts(bench), []);
    });
}

#[test]
fn when_the_table_is_full_new_clients_are_let_in_and_counted_as_not_counted() {
    with_setup(limited(1), |bench| {
        for stranger in 0..150_000 {
            bench.tables().move_client_count(0, stranger, 1);
        }
        assert_eq!(bench.tables().clients(0).len(), 8 * lb_common::clients::CLIENT_BUCKETS as usize);
        let flows: Vec<_> = (0..2).map(|n| bench.connect(port(n))).collect();
        assert_eq!(bench.moved(), [(Reason::ClientUncounted, 2)]);
        bench.close(&flows[0]);
        assert_eq!(bench.tables().find(flows[1].client.into())[0].ctl.flags() & COUNTED, 0);
        assert_eq!(bench.tables().clients(0).len(), 8 * lb_common::clients::CLIENT_BUCKETS as usize);
    });
}

#[test]
fn syns_of_one_client_on_two_cpus_never_get_past_the_limit_and_leave_nothing_behind() {
    let mut setup = many_ports();
    setup.service.client_limit = 40;
    with_setup(setup, |bench| {
        let turns = AtomicU32::new(0);
        let ports: Vec<_> = (0..4000).map(port).collect();
        race(bench, 2000, |_| {
            let n = turns.fetch_add(1, Ordering::AcqRel) as usize;
            let out = bench.forward(&bench.from_client(ports[n], SYN).numbers(77, 0));
            // Now and then one is removed, also under the other CPU's number.
            if out.flags == SYN && n.is_multiple_of(3) {
                bench.forward(&bench.from_client(ports[n], RST).numbers(78, 0));
            }
        });
        let open: Vec<_> = ports
            .iter()
            .flat_map(|client| bench.tables().find((*client).into()))
            .filter(|flow| flow.ctl.state() == State::HalfOpen)
            .collect();
        assert_eq!((open.len(), count(bench)), (40, 40));
        for flow in open {
            assert!(bench.tables().close(flow.seen(), Reason::Killed).is_some());
        }
        assert_eq!(counts(bench), []);
        assert_eq!(bench.active(), [0, 0, 0]);
    });
}
