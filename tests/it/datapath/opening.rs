use lab::{
    packet::{ACK, LINUX_OPTIONS, PSH, SYN, Segment},
    program::{CLIENT_MAC, FIRST_PORT, Setup, VIP, Verdict, backend, backend_mac, backend_of},
};
use lb_common::{
    layout::{CLOSING, Listener, NONE, connect_time_bucket},
    slot::State,
    time::Instant,
    verdict::Reason,
};

use super::{client, on_every_hook, with_setup};

#[test]
fn a_syn_goes_to_a_backend_from_a_port_of_the_vip_with_all_that_every_tcp_understands() {
    on_every_hook(|bench| {
        let mut syn = bench.from_client(client(1), SYN).numbers(77, 0).options(&LINUX_OPTIONS);
        (syn.window, syn.tos) = (1234, 0x28);
        let out = bench.forward(&syn);
        let n = backend_of(&out);
        let expected = Segment {
            from_mac: bench.mac,
            to_mac: backend_mac(n),
            from: std::net::SocketAddrV4::new(*VIP.ip(), FIRST_PORT),
            to: backend(n),
            ttl: 64,
            ..syn
        };
        assert_eq!(out, expected);
        assert_eq!(bench.moved(), []);
        assert_eq!(bench.active().iter().sum::<u32>(), 1);
    });
}

#[test]
fn a_connection_is_translated_both_ways_and_its_bytes_are_counted() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(1));
        let request = bench.from_client(flow.client, ACK | PSH).numbers(1001, 5001).payload(b"GET / HTTP/1.1\r\n\r\n");
        let out = bench.forward(&request);
        assert_eq!(
            (out.from.port(), out.to, out.payload.as_slice()),
            (flow.port, backend(flow.backend), &request.payload[..])
        );
        assert_eq!((out.sequence, out.acknowledgement, out.ttl), (1001, 5001, 63));
        let odd = vec![0xab; 1001];
        let answer = bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1019).payload(&odd);
        let back = bench.forward(&answer);
        assert_eq!((back.from, back.to, back.from_mac, back.to_mac), (VIP, flow.client, bench.mac, CLIENT_MAC));
        assert_eq!(back.payload, odd);
        bench.forward(&answer);
        bench.forward(&request);
        let found = bench.tables().find(flow.client.into());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].bytes_in(), found[0].bytes_out()), (18, 1001), "retransmissions do not count");
        assert_eq!(found[0].ctl.state(), State::Established);
        assert_eq!(bench.moved(), []);
    });
}

#[test]
fn the_time_of_a_connect_stands_in_the_histogram_of_its_backend_and_in_the_sum() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(1));
        let took = bench.tables().find(flow.client.into())[0].connect_us();
        assert_eq!(bench.tables().backend(flow.backend).connect_us, u64::from(took));
        let times = bench.tables().connect_times(flow.backend);
        assert_eq!((times[connect_time_bucket(took) as usize], times.iter().sum::<u32>()), (1, 1));
    });
}

#[test]
fn a_syn_sent_again_goes_the_same_way() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(1), SYN).numbers(77, 0);
        let first = bench.forward(&syn);
        assert_eq!(bench.forward(&syn), first);
        assert_eq!(bench.active().iter().sum::<u32>(), 1);
        let answer = bench.from_backend(backend_of(&first), first.from.port(), SYN | ACK).numbers(5000, 78);
        bench.forward(&answer);
        assert_eq!(bench.forward(&syn), first, "also when only the SYN-ACK was lost");
        assert_eq!(bench.moved(), []);
    });
}

#[test]
fn with_no_backend_the_client_is_refused_at_once() {
    on_every_hook(|bench| {
        for n in 0..3 {
            bench.tables().admit(n, NONE, Instant::ZERO);
        }
        let syn = bench.from_client(client(1), SYN).numbers(77, 0).options(&LINUX_OPTIONS);
        let out = bench.forward(&syn);
        assert_eq!((out.from, out.to, out.flags), (VIP, client(1), lab::packet::RST | ACK));
        assert_eq!((out.sequence, out.acknowledgement), (0, 78));
        assert_eq!((out.from_mac, out.to_mac), (bench.mac, CLIENT_MAC));
        assert!(out.options.is_empty());
        assert_eq!(bench.moved(), [(Reason::NoBackend, 1)]);
    });
}

#[test]
fn with_no_free_port_the_client_is_refused_and_a_freed_port_is_used_again() {
    with_setup(Setup { backends: 1, ports: 4, ..Setup::default() }, |bench| {
        let flows: Vec<_> = (0..4).map(|n| bench.connect(client(n))).collect();
        assert_eq!(flows.iter().map(|flow| flow.port).collect::<Vec<_>>(), [20_000, 20_001, 20_002, 20_003]);
        let syn = bench.from_client(client(9), SYN).numbers(77, 0);
        assert_eq!(bench.forward(&syn).flags, lab::packet::RST | ACK);
        assert_eq!(bench.moved(), [(Reason::NoSlot, 1)]);
        assert_eq!(bench.active(), [4], "the refused one is not counted");
        bench.close(&flows[2]);
        assert_eq!(bench.connect(client(9)).port, 20_002);
    });
}

#[test]
fn ports_are_used_again_in_the_order_in_which_they_were_released() {
    with_setup(Setup { backends: 1, ports: 8, ..Setup::default() }, |bench| {
        let flows: Vec<_> = (0..8).map(|n| bench.connect(client(n))).collect();
        for n in [5, 1, 7] {
            bench.close(&flows[n]);
        }
        let ports: Vec<_> = (20..23).map(|n| bench.connect(client(n)).port).collect();
        assert_eq!(ports, [20_005, 20_001, 20_007]);
    });
}

#[test]
fn over_max_half_open_the_oldest_half_open_connection_gives_way() {
    let mut setup = Setup::default();
    setup.service.half_open_cells = 4;
    with_setup(setup, |bench| {
        let first = bench.forward(&bench.from_client(client(0), SYN).numbers(77, 0));
        for n in 1..4 {
            bench.forward(&bench.from_client(client(n), SYN).numbers(77, 0));
        }
        assert_eq!(bench.active().iter().sum::<u32>(), 4);
        bench.forward(&bench.from_client(client(4), SYN).numbers(77, 0));
        assert_eq!(bench.active().iter().sum::<u32>(), 4);
        assert_eq!(bench.moved(), [(Reason::HalfOpenEvicted, 1)]);
        let late = bench.from_backend(backend_of(&first), first.from.port(), SYN | ACK).numbers(5000, 78);
        let reset = bench.forward(&late);
        assert_eq!((reset.to, reset.flags, reset.sequence), (backend(backend_of(&first)), lab::packet::RST, 78));
        assert_eq!(bench.moved(), [(Reason::LateSynAck, 1)]);
        let again = bench.forward(&bench.from_client(client(0), SYN).numbers(77, 0));
        assert_eq!(again.flags, SYN, "its client's next SYN starts from scratch");
    });
}

#[test]
fn established_connections_are_never_evicted_by_half_open_ones() {
    let mut setup = Setup::default();
    setup.service.half_open_cells = 2;
    with_setup(setup, |bench| {
        let flow = bench.connect(client(0));
        for n in 1..20 {
            bench.forward(&bench.from_client(client(n), SYN).numbers(77, 0));
        }
        let data = bench.from_client(flow.client, ACK).numbers(1001, 5001).payload(b"x");
        assert_eq!(bench.forward(&data).to, backend(flow.backend));
        assert_eq!(bench.active().iter().sum::<u32>(), 3);
    });
}

#[test]
fn when_both_buckets_of_the_index_are_full_the_client_is_refused_and_nothing_leaks() {
    with_setup(Setup { backends: 1, ports: 200, max_connections: 8, ..Setup::default() }, |bench| {
        let mut opened = 0;
        for n in 0..60 {
            let out = bench.forward(&bench.from_client(client(n), SYN).numbers(77, 0));
            opened += u32::from(out.flags == SYN);
        }
        let moved = bench.moved();
        assert_eq!(moved.len(), 1, "{moved:?}");
        assert_eq!(moved[0], (Reason::IndexFull, u64::from(60 - opened)));
        assert!(opened >= 8, "{opened}");
        assert_eq!(bench.active(), [opened]);
        assert_eq!(bench.tables().free_slots(bench.pools[0]), 200 - opened);
    });
}

#[test]
fn a_closed_listener_takes_nothing_new_and_keeps_what_it_has() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let number = bench.tables().listeners()[0].0;
        let closing = Listener { state: CLOSING, ..bench.tables().listener(number) };
        bench.tables().put_listener(number, &closing).expect("it is there");
        let data = bench.from_client(flow.client, ACK).numbers(1001, 5001).payload(b"x");
        assert_eq!(bench.forward(&data).to, backend(flow.backend));
        let refused = bench.forward(&bench.from_client(client(1), SYN).numbers(77, 0));
        assert_eq!(refused.flags, lab::packet::RST | ACK);
        bench.tables().delete_listener(number).expect("a listener");
        assert_eq!(bench.send(&bench.from_client(client(1), SYN)), Verdict::Passed);
    });
}
