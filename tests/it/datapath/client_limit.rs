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
        let answered: Vec<_> = (4..7).map(|n| answer(bench, port(n))).collect();
        assert_eq!((count(bench), bench.moved()), (2, vec![]), "one has made room, and nobody has taken it yet");
        let confirm = |flow: &Connection| bench.from_client(flow.client, ACK).numbers(1001, 5001);
        assert_eq!(bench.forward(&confirm(&answered[1])).flags, ACK, "who confirms first is counted");
        assert_eq!(count(bench), 3);
        let out = bench.forward(&confirm(&answered[0]));
        assert_eq!(
            (out.from, out.to, out.flags, out.sequence),
            (VIP, port(4), RST, 5001),
            "the others are one too many"
        );
        assert_eq!(bench.moved(), [(Reason::ClientLimit, 1), (Reason::AfterClose, 1)]);
        let repeated = bench.from_backend(answered[0].backend, answered[0].port, SYN | ACK).numbers(5000, 1001);
        assert_eq!(bench.forward(&repeated).flags, RST, "its backend hears of it when it repeats its answer");
        assert_eq!(bench.moved(), [(Reason::LateSynAck, 1)]);
        bench.forward(&bench.from_client(answered[2].client, RST).numbers(1001, 0));
        assert_eq!((count(bench), bench.active().iter().sum::<u32>()), (3, 4), "the other client's is the fourth");
    });
}

/// Opens a connection as far as the backend's answer.
fn answer(bench: &Bench, client: SocketAddrV4) -> Connection {
    let syn = bench.forward(&bench.from_client(client, SYN).numbers(1000, 0));
    let (backend, port) = (backend_of(&syn), syn.from.port());
    bench.forward(&bench.from_backend(backend, port, SYN | ACK).numbers(5000, 1001));
    Connection { client, backend, port }
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
        _ => {
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
        bench.close(&kept);
        assert_eq!(counts(bench), [], "nobody is left in the table");
    });
}

#[test]
fn whoever_writes_a_clients_address_into_syns_does_not_lock_it_out() {
    let mut setup = limited(1);
    (setup.service.half_open_cells, setup.ports) = (1000, 200);
    with_setup(setup, |bench| {
        (0..100).for_each(|n| _ = answer(bench, port(n)));
        (100..200).for_each(|n| drop(bench.forward(&bench.from_client(port(n), SYN).numbers(77, 0))));
        assert_eq!((counts(bench), bench.moved()), (vec![], vec![]));
        let flow = bench.connect(port(500));
        assert_eq!(count(bench), 1, "the client itself gets its connection");
        assert!(is_over_limit(bench, port(501)));
        bench.close(&flow);
        assert_eq!(counts(bench), []);
    });
}

#[test]
fn attempts_that_come_to_nothing_are_never_counted() {
    let mut setup = limited(8);
    (setup.service.half_open_cells, setup.backends, setup.ports) = (4, 1, 6);
    with_setup(setup, |bench| {
        (0..8).for_each(|n| _ = answer(bench, port(n)));
        assert_eq!(bench.moved(), [(Reason::HalfOpenEvicted, 4)]);
        bench.forward(&bench.from_client(port(4), RST).numbers(1001, 0));
        assert_eq!(bench.moved(), [(Reason::ClientAborted, 1)]);
        let refused = bench.forward(&bench.from_client(port(9), SYN).numbers(77, 0));
        // The port was another one's a moment ago: its first RST may be about that one.
        let refusal = bench.from_backend(0, refused.from.port(), RST | ACK).numbers(0, 78);
        assert_eq!((bench.forward(&refusal).flags, bench.moved()), (SYN, vec![]));
        assert_eq!(bench.forward(&refusal).flags, RST | ACK);
        assert_eq!(bench.moved(), [(Reason::Refused, 1)]);
        bench.tables().admit(0, NONE, Instant::ZERO);
        bench.forward(&bench.from_client(port(20), SYN).numbers(77, 0));
        assert_eq!((bench.moved(), counts(bench)), (vec![(Reason::NoBackend, 1)], vec![]));
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
fn connections_of_one_client_confirmed_on_two_cpus_never_get_past_the_limit_and_leave_nothing_behind() {
    let mut setup = many_ports();
    setup.service.client_limit = 40;
    with_setup(setup, |bench| {
        let flows: Vec<_> = (0..2000).map(|n| answer(bench, port(n))).collect();
        let turns = AtomicU32::new(0);
        race(bench, 1000, |_| {
            let n = turns.fetch_add(1, Ordering::AcqRel) as usize;
            let out = bench.forward(&bench.from_client(flows[n].client, ACK).numbers(1001, 5001));
            // Now and then one is removed, also under the other CPU's number.
            if out.flags == ACK && n.is_multiple_of(3) {
                bench.forward(&bench.from_client(flows[n].client, RST).numbers(1001, 0));
            }
        });
        let open: Vec<_> = flows
            .iter()
            .flat_map(|flow| bench.tables().find(flow.client.into()))
            .filter(|flow| flow.ctl.state() == State::Established)
            .collect();
        assert_eq!((open.len(), count(bench)), (40, 40));
        for flow in open {
            assert!(bench.tables().close(flow.seen(), Reason::Killed).is_some());
        }
        assert_eq!(counts(bench), []);
        assert_eq!(bench.active(), [0, 0, 0]);
    });
}
