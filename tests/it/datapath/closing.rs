use lab::{
    packet::{ACK, FIN, LINUX_OPTIONS, RST, SYN},
    program::{CLIENT_MAC, FIRST_PORT, VIP, Verdict, backend, backend_of},
};
use lb_common::{
    layout::{NONE, OUT, UP},
    slot::State,
    time::Instant,
    verdict::Reason,
};

use super::{client, on_every_hook, taken_over};

/// Where the TCP checksum is, in a frame with an IPv4 header without options.
const TCP_CHECKSUM: usize = 14 + 20 + 16;

#[test]
fn a_connection_is_over_after_a_fin_from_both_sides_and_late_segments_still_find_their_way() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        bench.forward(&bench.from_client(flow.client, FIN | ACK).numbers(1001, 5001));
        assert_eq!(bench.active().iter().sum::<u32>(), 1, "half-closed");
        let data = bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1002).payload(&[1; 100]);
        assert_eq!(bench.forward(&data).to, flow.client, "data goes on after a half-close");
        let fin = bench.from_backend(flow.backend, flow.port, FIN | ACK).numbers(5101, 1002);
        bench.forward(&fin);
        assert_eq!(bench.active().iter().sum::<u32>(), 0);
        assert_eq!(bench.moved(), [(Reason::Closed, 1)]);
        assert_eq!(bench.forward(&fin).to, flow.client, "a last FIN sent again");
        assert_eq!(bench.forward(&bench.from_client(flow.client, ACK).numbers(1002, 5102)).to, backend(flow.backend));
        let record = bench.tables().backend(flow.backend);
        assert_eq!((record.bytes_in, record.bytes_out, record.resets), (0, 100, 0));
        assert_eq!(bench.moved(), []);
    });
}

#[test]
fn the_backend_may_close_first() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        bench.forward(&bench.from_backend(flow.backend, flow.port, FIN | ACK).numbers(5001, 1001));
        bench.forward(&bench.from_client(flow.client, FIN | ACK).numbers(1001, 5002));
        assert_eq!(bench.moved(), [(Reason::Closed, 1)]);
        assert_eq!(bench.active(), [0, 0, 0]);
    });
}

#[test]
fn a_rst_inside_the_window_ends_a_connection_from_either_side() {
    on_every_hook(|bench| {
        let first = bench.connect(client(0));
        assert_eq!(bench.forward(&bench.from_client(first.client, RST).numbers(1001, 0)).flags, RST);
        assert_eq!(bench.moved(), [(Reason::ClientReset, 1)]);
        let second = bench.connect(client(1));
        let rst = bench.from_backend(second.backend, second.port, RST | ACK).numbers(5001, 1001);
        assert_eq!(bench.forward(&rst).to, second.client);
        assert_eq!(bench.moved(), [(Reason::BackendReset, 1)]);
        assert_eq!(bench.active(), [0, 0, 0]);
        assert_eq!((0..3).map(|n| bench.tables().backend(n).resets).sum::<u64>(), 2);
    });
}

#[test]
fn nothing_is_forwarded_after_a_rst_that_counted_even_if_its_receiver_did_not_take_it() {
    on_every_hook(|bench| {
        for (n, by_client) in [(0, true), (1, false)] {
            let flow = bench.connect(client(n));
            let rst = match by_client {
                true => bench.from_client(flow.client, RST).numbers(1001, 0),
                false => bench.from_backend(flow.backend, flow.port, RST).numbers(5001, 0),
            };
            let mut damaged = rst.bytes();
            damaged[TCP_CHECKSUM] ^= 0x40;
            // Whoever gets it sees the checksum.
            assert!(bench.dataplane.inject(bench.ifindex, &damaged).expect("BPF_PROG_TEST_RUN").sent);
            assert_eq!(bench.active().iter().sum::<u32>(), 0, "it is no longer counted");
            bench.moved();
            let out = bench.forward(&bench.from_client(flow.client, ACK).numbers(1001, 5001).payload(b"on"));
            assert_eq!((out.to, out.flags, out.sequence), (client(n), RST, 5001));
            let out = bench.forward(&bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001));
            assert_eq!((out.to, out.flags, out.sequence), (backend(flow.backend), RST, 1001));
            assert_eq!(bench.moved(), [(Reason::AfterClose, 2)]);
        }
    });
}

#[test]
fn a_rst_outside_the_window_ends_nothing() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        for sequence in [1000, 1002, 0, 0x8000_0000] {
            bench.forward(&bench.from_client(flow.client, RST).numbers(sequence, 0));
        }
        for sequence in [5000, 5002, 1 << 30] {
            bench.forward(&bench.from_backend(flow.backend, flow.port, RST).numbers(sequence, 0));
        }
        assert_eq!(bench.moved(), [(Reason::RstOutOfWindow, 7)]);
        assert_eq!(bench.active().iter().sum::<u32>(), 1);
    });
}

#[test]
fn a_rst_counts_at_both_ends_of_data_under_way_and_is_left_to_its_receiver_in_between() {
    on_every_hook(|bench| {
        for (n, sequence, ends) in [(0, 1001, true), (1, 1501, false), (2, 2001, true)] {
            let flow = bench.connect(client(n));
            bench.forward(&bench.from_client(flow.client, ACK).numbers(1001, 5001).payload(&[0; 1000]));
            bench.forward(&bench.from_client(flow.client, RST).numbers(sequence, 0));
            assert_eq!(bench.moved(), [(if ends { Reason::ClientReset } else { Reason::RstOutOfWindow }, 1)]);
        }
    });
}

#[test]
fn a_new_connection_from_the_same_port_selects_again_once_the_old_one_is_closed() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        bench.close(&flow);
        let again = bench.forward(&bench.from_client(client(0), SYN).numbers(900_000, 0));
        assert_eq!(again.flags, SYN);
        assert_ne!((again.from.port(), backend_of(&again)), (flow.port, flow.backend));
        assert_eq!(bench.active().iter().sum::<u32>(), 1);
        bench.forward(&bench.from_backend(backend_of(&again), again.from.port(), SYN | ACK).numbers(1, 900_001));
        let flows = bench.tables().find(client(0).into());
        assert_eq!(flows.iter().filter(|flow| flow.ctl.state() == State::Answered).count(), 1);
    });
}

#[test]
fn a_syn_on_an_open_connection_is_challenged_and_closes_nothing_whatever_its_backend() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        bench.forward(&bench.from_client(flow.client, ACK).numbers(1001, 5001).payload(&[1; 50]));
        let answer = bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1051).payload(&[2; 70]);
        bench.forward(&answer);
        for admission in [UP, OUT, NONE] {
            bench.tables().admit(flow.backend, admission, Instant::NEVER);
            for sequence in [1000, 1001, 900_000] {
                let syn = bench.from_client(client(0), SYN).numbers(sequence, 0).options(&LINUX_OPTIONS);
                let out = bench.forward(&syn);
                assert_eq!((out.from, out.to, out.to_mac, out.flags), (VIP, client(0), CLIENT_MAC, ACK));
                assert_eq!((out.sequence, out.acknowledgement, out.window), (5071, 1051, answer.window), "{sequence}");
            }
        }
        assert_eq!(bench.moved(), [(Reason::Challenged, 9)]);
        assert_eq!(bench.active().iter().sum::<u32>(), 1);
        // A client that has forgotten its connection says so.
        bench.forward(&bench.from_client(client(0), RST).numbers(1051, 0));
        assert_eq!(bench.moved(), [(Reason::ClientReset, 1)]);
        let again = bench.forward(&bench.from_client(client(0), SYN).numbers(900_000, 0));
        assert_eq!((again.flags, bench.active().iter().sum::<u32>()), (SYN, 1));
    });
}

#[test]
fn a_segment_of_no_connection_is_answered_with_a_rst_that_its_sender_accepts() {
    on_every_hook(|bench| {
        let data = bench.from_client(client(0), ACK).numbers(100, 200).payload(&[5; 300]);
        let out = bench.forward(&data);
        assert_eq!((out.from, out.to, out.flags, out.sequence), (VIP, client(0), RST, 200));
        let bare = bench.from_client(client(0), FIN).numbers(100, 0);
        let out = bench.forward(&bare);
        assert_eq!((out.flags, out.sequence, out.acknowledgement), (RST | ACK, 0, 101));
        let stray = bench.from_backend(1, 20_005, SYN | ACK).numbers(7, 1234);
        let out = bench.forward(&stray);
        assert_eq!((out.from, out.to, out.flags, out.sequence), (stray.to, stray.from, RST, 1234));
        assert_eq!(bench.moved(), [(Reason::UnknownFlow, 3)]);
        assert_eq!(bench.send(&bench.from_client(client(0), RST)), Verdict::Dropped, "a RST is never answered");
        assert_eq!(bench.send(&bench.from_backend(1, 20_005, RST)), Verdict::Dropped);
    });
}

#[test]
fn a_connection_that_we_closed_answers_every_further_segment_with_a_rst() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let found = bench.tables().find(client(0).into())[0];
        assert!(bench.tables().close(found.seen(), Reason::IdleTimeout).is_some());
        let out = bench.forward(&bench.from_client(client(0), ACK).numbers(1001, 5001).payload(b"late"));
        assert_eq!((out.to, out.flags, out.sequence), (client(0), RST, 5001));
        let out = bench.forward(&bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001));
        assert_eq!((out.to, out.flags, out.sequence), (backend(flow.backend), RST, 1001));
        assert_eq!(bench.moved(), [(Reason::AfterClose, 2), (Reason::IdleTimeout, 1)]);
        assert_eq!(bench.active(), [0, 0, 0]);
        let again = bench.forward(&bench.from_client(client(0), SYN).numbers(900_000, 0));
        assert_eq!(again.flags, SYN, "a new connection is welcome");
    });
}

#[test]
fn suspicion_is_lifted_by_any_packet_of_the_connection() {
    on_every_hook(|bench| {
        for from_client in [true, false] {
            let flow = bench.connect(client(u16::from(from_client)));
            let found = bench.tables().find(flow.client.into())[0];
            assert!(bench.tables().suspect(found.seen()));
            let keepalive = if from_client {
                bench.from_client(flow.client, ACK).numbers(1000, 5001)
            } else {
                bench.from_backend(flow.backend, flow.port, ACK).numbers(5000, 1001)
            };
            bench.forward(&keepalive);
            assert_eq!(bench.tables().find(flow.client.into())[0].ctl.state(), State::Established);
        }
        assert_eq!(bench.moved(), []);
    });
}

#[test]
fn a_flow_taken_over_is_found_and_not_the_closed_one_of_the_same_client() {
    on_every_hook(|bench| {
        for n in 0..40 {
            let flow = bench.connect(client(n));
            bench.close(&flow);
            let other = (flow.backend + 1) % 3;
            let slot = 63 - (flow.port - FIRST_PORT);
            let taken_over = taken_over(bench, flow.client, other, FIRST_PORT + slot);
            bench.tables().adopt(&taken_over).expect("a free slot");
            let out = bench.forward(&bench.from_client(flow.client, ACK).numbers(8001, 9001).payload(b"GET"));
            assert_eq!((out.to, out.from.port()), (backend(other), FIRST_PORT + slot), "client {n}");
        }
    });
}
