use lab::{
    packet::{ACK, FIN, RST, SYN, Segment},
    program::{Bench, Connection, backend_of},
};
use lb_common::flow::SlotAt;

use super::{client, on_every_hook};

/// The largest window scale (RFC 7323 section 2.3), for steps of up to a gibibyte.
const SCALE: [u8; 4] = [1, 3, 3, 14];
/// Nearly all that such a window takes, minus the payload of a segment.
const STEP: u32 = (1 << 30) - (1 << 20) - 100;

/// A connection with the largest windows both ways.
fn wide(bench: &Bench) -> Connection {
    let syn = bench.forward(&bench.from_client(client(0), SYN).numbers(1000, 0).options(&SCALE));
    let (n, port) = (backend_of(&syn), syn.from.port());
    bench.forward(&bench.from_backend(n, port, SYN | ACK).numbers(5000, 1001).options(&SCALE));
    let flow = Connection { client: client(0), backend: n, port };
    bench.forward(&full(bench.from_client(flow.client, ACK).numbers(1001, 5001)));
    bench.forward(&full(bench.from_backend(n, port, ACK).numbers(5001, 1001)));
    flow
}

/// The same with the largest window.
fn full(segment: Segment) -> Segment {
    Segment { window: u16::MAX, ..segment }
}

#[test]
fn payload_beyond_four_gibibytes_is_counted_and_what_is_sent_again_is_not() {
    on_every_hook(|bench| {
        let flow = wide(bench);
        let (mut up, mut down) = (0_u64, 0_u64);
        // Eleven times around, with a hundred bytes at the end of each step.
        for step in 0..44 {
            up += u64::from(STEP) + 100;
            let (at, acknowledged) = (1001_u32.wrapping_add(up as u32), 5001_u32.wrapping_add(down as u32));
            let from_client = |sequence: u32| full(bench.from_client(flow.client, ACK).numbers(sequence, acknowledged));
            let data = from_client(at.wrapping_sub(100)).payload(&[1; 100]);
            bench.forward(&data);
            // The same again, older ones, a keepalive, and a window probe.
            bench.forward(&data);
            bench.forward(&from_client(at.wrapping_sub(5000)).payload(&[1; 100]));
            bench.forward(&from_client(at.wrapping_sub(1)));
            bench.forward(&from_client(at.wrapping_sub(1)).payload(&[0]));
            let mut back = full(bench.from_backend(flow.backend, flow.port, ACK).numbers(acknowledged, at));
            if step % 4 == 0 {
                down += u64::from(STEP) + 100;
                back = back.numbers(5001_u32.wrapping_add(down as u32).wrapping_sub(100), at).payload(&[2; 100]);
            }
            bench.forward(&back);
            bench.forward(&back);
        }
        let open = bench
            .tables()
            .flow(SlotAt::new(bench.pools[usize::from(flow.backend)], flow.port - lab::program::FIRST_PORT));
        let open = open.expect("it is open");
        assert_eq!((open.bytes_in(), open.bytes_out()), (up, down), "while it is open");
        let (client_next, backend_next) = (1001_u32.wrapping_add(up as u32), 5001_u32.wrapping_add(down as u32));
        let fin = bench.from_client(flow.client, FIN | ACK).numbers(client_next, backend_next);
        bench.forward(&fin);
        bench.forward(&fin);
        bench.forward(&bench.from_backend(flow.backend, flow.port, FIN | ACK).numbers(backend_next, client_next + 1));
        let record = bench.tables().backend(flow.backend);
        assert_eq!((record.bytes_in, record.bytes_out), (44 * (u64::from(STEP) + 100), 11 * (u64::from(STEP) + 100)));
    });
}

#[test]
fn data_in_the_segment_of_the_fin_counts_and_a_connection_without_any_has_none() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let last = bench.from_client(flow.client, FIN | ACK).numbers(1001, 5001).payload(&[1; 7]);
        bench.forward(&last);
        bench.forward(&bench.from_backend(flow.backend, flow.port, FIN | ACK).numbers(5001, 1009).payload(&[2; 9]));
        let record = bench.tables().backend(flow.backend);
        assert_eq!((record.bytes_in, record.bytes_out), (7, 9));
        // By FINs, and by a RST.
        let silent = bench.connect(client(1));
        bench.close(&silent);
        let reset = bench.connect(client(2));
        bench.forward(&bench.from_client(reset.client, RST).numbers(1001, 0));
        let sum =
            |of: fn(&lb_common::layout::Backend) -> u64| (0..3).map(|n| of(&bench.tables().backend(n))).sum::<u64>();
        assert_eq!((sum(|record| record.bytes_in), sum(|record| record.bytes_out)), (7, 9));
    });
}
