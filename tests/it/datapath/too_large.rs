//! What this host itself answers with an ICMP error: segments that are too large for their way out,
//! and those whose time to live has run out.

use aya::{
    TestRunOptions,
    programs::{SchedClassifier, TestRun},
};
use lab::{
    bench::packets::pin,
    icmp::{FRAGMENTATION_NEEDED, IcmpError, TIME_EXCEEDED, UNREACHABLE},
    packet::{ACK, PSH, Segment, seal},
    program::{Bench, Connection, Verdict},
};
use lb_common::verdict::Reason;

use super::{client, on_every_hook};

/// Lets the bench's interface send no more than this.
fn takes(bench: &Bench, mtu: u32) {
    let number = bench.tables().interface_number(bench.ifindex).expect("the bench's interface");
    bench.tables().set_mtu(number, mtu);
}

/// A segment of each side of a flow, in a packet of so many bytes.
fn of_length(bench: &Bench, flow: &Connection, bytes: usize) -> [Segment; 2] {
    let payload = vec![7; bytes - 52];
    [
        bench.from_client(flow.client, ACK | PSH).numbers(1001, 5001),
        bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001),
    ]
    .map(|segment| segment.options(&[1; 12]).payload(&payload))
}

/// The error that a frame is answered with.
#[track_caller]
fn answer(bench: &Bench, frame: &[u8]) -> IcmpError {
    let out = bench.dataplane.inject(bench.ifindex, frame).expect("BPF_PROG_TEST_RUN");
    assert!(out.sent, "verdict {}", out.verdict);
    IcmpError::parse(&out.frame).expect("a correct error")
}

/// What a frame has to be answered with: an error to its sender that quotes its headers.
fn expected(segment: &Segment, frame: &[u8], (kind, code, mtu): (u8, u8, u16)) -> IcmpError {
    IcmpError {
        from_mac: segment.to_mac,
        to_mac: segment.from_mac,
        from: *segment.to.ip(),
        to: *segment.from.ip(),
        ttl: 64,
        kind,
        code,
        mtu,
        quote: frame[14..54].to_vec(),
    }
}

#[test]
fn a_packet_larger_than_its_way_out_is_answered_with_what_the_way_takes() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        for mtu in [576, 1280, 1400, 1499] {
            takes(bench, mtu.into());
            for segment in of_length(bench, &flow, mtu.into()) {
                bench.forward(&segment);
            }
            for bytes in [mtu + 1, 1500] {
                for segment in of_length(bench, &flow, bytes.into()) {
                    bench.moved();
                    let frame = segment.bytes();
                    let answer = answer(bench, &frame);
                    assert_eq!(answer, expected(&segment, &frame, (UNREACHABLE, FRAGMENTATION_NEEDED, mtu)));
                    assert_eq!(bench.moved(), [(Reason::TooLarge, 1)]);
                }
            }
        }
        // An MTU that is not known, or larger than any packet.
        for mtu in [0, 65_535, 65_536, 1_000_000] {
            takes(bench, mtu);
            for segment in of_length(bench, &flow, 1500) {
                bench.forward(&segment);
            }
        }
    });
}

#[test]
fn a_packet_that_is_too_large_and_may_be_cut_is_dropped_and_counted() {
    on_every_hook(|bench| {
        takes(bench, 1400);
        let flow = bench.connect(client(0));
        for segment in of_length(bench, &flow, 1401) {
            bench.moved();
            let mut frame = segment.bytes();
            frame[20] = 0;
            seal(&mut frame[14..34]);
            assert_eq!(bench.run(&frame), Verdict::Dropped);
            assert_eq!(bench.moved(), [(Reason::TooLargeNoDf, 1)]);
        }
    });
}

/// What the program on TC does with a super-packet with segments of so many bytes of payload.
fn run_super_packet(bench: &Bench, frame: &[u8], payload: u32) -> (i32, Vec<u8>) {
    let program = SchedClassifier::from_pin(bench.bpffs.join("programs/evenkeel_tc")).expect("the program");
    let mut context = [0_u8; 192];
    context[40..44].copy_from_slice(&bench.ifindex.to_ne_bytes());
    context[176..180].copy_from_slice(&payload.to_ne_bytes());
    let mut output = vec![0; 4096];
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.ctx_in = Some(&context);
    options.data_out = Some(&mut output);
    let result = program.test_run(options).expect("BPF_PROG_TEST_RUN");
    output.truncate(result.data_size_out as usize);
    (result.return_value as i32, output)
}

#[test]
fn a_super_packet_is_as_large_as_its_segments() {
    /// TC_ACT_REDIRECT.
    const SENT: i32 = 7;
    on_every_hook(|bench| {
        if bench.dataplane.attached().iter().any(|attached| attached.mode.name() == "xdp") {
            return;
        }
        takes(bench, 1400);
        let flow = bench.connect(client(0));
        for (payload, fits) in [(536, true), (1348, true), (1349, false), (1448, false)] {
            for segment in of_length(bench, &flow, 3000) {
                bench.moved();
                let frame = segment.bytes();
                let (verdict, out) = run_super_packet(bench, &frame, payload);
                assert_eq!(verdict, SENT, "{payload}");
                if fits {
                    assert_eq!(Segment::parse(&out).expect("a correct segment").payload, segment.payload);
                    assert_eq!(bench.moved(), []);
                } else {
                    let answer = IcmpError::parse(&out).expect("a correct error");
                    assert_eq!(answer, expected(&segment, &frame, (UNREACHABLE, FRAGMENTATION_NEEDED, 1400)));
                    assert_eq!(bench.moved(), [(Reason::TooLarge, 1)]);
                }
            }
        }
    });
}

#[test]
fn a_packet_whose_time_to_live_runs_out_is_answered() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        for ttl in [0, 1] {
            for bytes in [52, 1500] {
                for mut segment in of_length(bench, &flow, bytes) {
                    bench.moved();
                    segment.ttl = ttl;
                    let frame = segment.bytes();
                    assert_eq!(answer(bench, &frame), expected(&segment, &frame, (TIME_EXCEEDED, 0, 0)));
                    assert_eq!(bench.moved(), [(Reason::TtlExpired, 1)]);
                    segment.ttl = 2;
                    assert_eq!(bench.forward(&segment).ttl, 1);
                }
            }
        }
    });
}

#[test]
fn a_flood_of_them_is_answered_at_a_limited_rate_and_silences_no_other_error() {
    on_every_hook(|bench| {
        // The limit is a processor's.
        pin().expect("a processor");
        takes(bench, 1400);
        let flow = bench.connect(client(0));
        let [up, down] = of_length(bench, &flow, 1500);
        let small = bench.forward(&Segment { payload: vec![7; 100], ..down.clone() });
        bench.moved();
        let frame = up.bytes();
        let is_answered = |_: &u32| bench.dataplane.inject(bench.ifindex, &frame).expect("BPF_PROG_TEST_RUN").sent;
        let answered = (0..200_000).take_while(is_answered).count();
        assert!(answered < 200_000, "no limit");
        assert!(bench.moved().contains(&(Reason::RstRateLimited, 1)));
        let late = Segment { payload: vec![7; 100], ttl: 1, ..up.clone() };
        answer(bench, &late.bytes());
        assert_eq!(bench.moved(), [(Reason::TtlExpired, 1)]);
        let told = IcmpError::about(&small.bytes(), 8).too_large(1300);
        answer(bench, &told.bytes());
        assert_eq!(bench.moved(), [(Reason::IcmpTranslated, 1)]);
    });
}
