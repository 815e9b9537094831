use lab::{
    packet::{ACK, RST, SYN},
    program::{Bench, Verdict, backend},
};
use lb_common::verdict::Reason;

use super::{client, on_every_hook};

/// Packets that are not ours are passed on unchanged (the bench checks the bytes), for this reason
/// and no other.
fn passes(bench: &mut Bench, frame: &[u8], reason: Reason) {
    assert_eq!(bench.run(frame), Verdict::Passed, "{frame:02x?}");
    assert_eq!(bench.moved(), [(reason, 1)]);
}

#[test]
fn frames_that_are_not_ours_are_passed_on_untouched() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(0), SYN).bytes();
        let change = |at: usize, bytes: &[u8]| {
            let mut frame = syn.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        passes(bench, &change(12, &[0x08, 0x06]), Reason::NotOurs);
        passes(bench, &change(12, &[0x86, 0xdd]), Reason::NotOurs);
        passes(bench, &change(23, &[17]), Reason::NotOurs);
        passes(bench, &change(23, &[112]), Reason::NotOurs);
        passes(bench, &change(36, &22_u16.to_be_bytes()), Reason::NotOurs);
        passes(bench, &change(33, &[99]), Reason::NotOurs);
        passes(bench, &change(12, &[0x81, 0x00]), Reason::Vlan);
        passes(bench, &change(12, &[0x88, 0xa8]), Reason::Vlan);
        passes(bench, &change(14, &[0x46]), Reason::IpOptions);
        passes(bench, &change(20, &[0x20, 0x00]), Reason::Fragment);
        passes(bench, &change(20, &[0x00, 0x10]), Reason::Fragment);
        passes(bench, &change(46, &[0x40]), Reason::Malformed);
        passes(bench, &change(46, &[0xf0]), Reason::Malformed);
        passes(bench, &change(16, &[0, 30]), Reason::Malformed);
        passes(bench, &change(16, &[5, 0]), Reason::Malformed);
        passes(bench, &bench.from_backend(0, 19_999, ACK).bytes(), Reason::NotOurs);
        passes(bench, &bench.from_backend(0, 20_064, ACK).bytes(), Reason::NotOurs);
        passes(bench, &change(0, &[2, 9, 9, 9, 9, 9]), Reason::OtherHost);
        assert_eq!(bench.active(), [0, 0, 0]);
    });
}

#[test]
fn a_frame_cut_short_anywhere_is_passed_on() {
    on_every_hook(|bench| {
        let frame = bench.from_client(client(0), SYN).bytes();
        // The kernel refuses test runs of less than Ethernet and IPv4 headers.
        for length in 34..frame.len() {
            assert_eq!(bench.run(&frame[..length]), Verdict::Passed, "{length} bytes");
        }
    });
}

#[test]
fn padding_behind_the_packet_is_neither_counted_nor_in_the_way() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let mut frame = bench.from_client(flow.client, ACK).numbers(1001, 5001).bytes();
        frame.resize(60, 0xee);
        let Verdict::Sent(out) = bench.run(&frame) else { panic!("not sent") };
        assert_eq!((out.to, out.payload.len()), (backend(flow.backend), 0));
        assert_eq!(bench.tables().find(flow.client.into())[0].bytes_in(), 0);
    });
}

#[test]
fn a_flooded_packet_of_a_flow_we_know_is_ours_whatever_its_mac() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let data = bench.from_client(flow.client, ACK).numbers(1001, 5001).macs([2, 0, 0, 0, 0, 1], [2, 9, 9, 9, 9, 9]);
        assert_eq!(bench.forward(&data).to, backend(flow.backend));
        assert_eq!(bench.moved(), []);
    });
}

#[test]
fn the_way_back_follows_the_clients_next_hop() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let moved = bench.from_client(flow.client, ACK).numbers(1001, 5001).macs([2, 7, 7, 7, 7, 7], bench.mac);
        bench.forward(&moved);
        let back = bench.forward(&bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001));
        assert_eq!(back.to_mac, [2, 7, 7, 7, 7, 7]);
    });
}

#[test]
fn a_packet_whose_time_to_live_runs_out_is_dropped() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let mut data = bench.from_client(flow.client, ACK).numbers(1001, 5001);
        data.ttl = 1;
        assert_eq!(bench.send(&data), Verdict::Dropped);
        assert_eq!(bench.moved(), [(Reason::TtlExpired, 1)]);
    });
}

#[test]
fn every_combination_of_flags_from_strangers_is_answered_or_dropped_and_opens_nothing_but_a_syn() {
    on_every_hook(|bench| {
        for flags in 0..64_u8 {
            let opens = flags & (SYN | RST | ACK | lab::packet::FIN) == SYN;
            for segment in [bench.from_client(client(u16::from(flags)), flags), bench.from_backend(0, 20_060, flags)] {
                match bench.send(&segment.numbers(1, 2)) {
                    Verdict::Sent(out) => assert!(out.flags & RST != 0 || opens, "{flags:#x}: {out:?}"),
                    Verdict::Dropped => assert!(flags & RST != 0, "{flags:#x}"),
                    Verdict::Passed => panic!("{flags:#x} was passed on"),
                }
            }
        }
        assert_eq!(bench.active().iter().sum::<u32>(), 4, "SYN with and without PSH and URG");
    });
}
