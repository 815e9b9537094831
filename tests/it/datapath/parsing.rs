use std::net::Ipv4Addr;

use evenkeel::tables::rows::pool_record;
use lab::{
    packet::{ACK, PSH, RST, SYN},
    program::{Bench, Verdict, backend, backend_of, put_pool},
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
        passes(bench, &change(12, &[0x88, 0xcc]), Reason::NotOurs);
        passes(bench, &change(14, &[0x65]), Reason::NotOurs);
        passes(bench, &bench.from_backend(0, 19_999, ACK).bytes(), Reason::NotOurs);
        passes(bench, &bench.from_backend(0, 20_064, ACK).bytes(), Reason::NotOurs);
        passes(bench, &change(0, &[2, 9, 9, 9, 9, 9]), Reason::OtherHost);
        assert_eq!(bench.active(), [0, 0, 0]);
    });
}

/// The services' side of a frame that names a service: dropped for this reason, and no other moved.
fn drops(bench: &mut Bench, frame: &[u8], reason: Reason) {
    assert_eq!(bench.run(frame), Verdict::Dropped, "{frame:02x?}");
    assert_eq!(bench.moved(), [(reason, 1)], "{frame:02x?}");
}

/// The frame with these bytes behind its MAC addresses.
fn tagged(frame: &[u8], tag: &[u8]) -> Vec<u8> {
    [&frame[..12], tag, &frame[12..]].concat()
}

/// The frame with these IPv4 options.
fn with_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let mut frame = [&frame[..34], options, &frame[34..]].concat();
    frame[14] += (options.len() / 4) as u8;
    let length = u16::from_be_bytes([frame[16], frame[17]]) + options.len() as u16;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    sealed(frame)
}

/// The frame with the right checksum of its IPv4 header.
fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let end = 14 + usize::from(frame[14] & 15) * 4;
    let sum = lab::packet::checksum(&frame[14..end], 0);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The frame as a fragment with these flags and this offset, in its 16 bits.
fn fragment(frame: &[u8], bits: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[20..22].copy_from_slice(&bits.to_be_bytes());
    sealed(frame)
}

/// Options of every length, of those that a packet may carry to its destination.
fn harmless_options() -> Vec<Vec<u8>> {
    let record = |kind: u8, length: usize| {
        let mut option = vec![0x83; length];
        option[..3].copy_from_slice(&[kind, length as u8, 4]);
        option
    };
    let mut all = vec![vec![148, 4, 0, 0], vec![1; 4], vec![0, 131, 131, 131], vec![1, 1, 1, 0, 137, 7, 4, 0]];
    all.extend((1..=9).map(|addresses| [&[1][..], &record(7, 3 + 4 * addresses)].concat()));
    all.push(record(68, 40));
    all
}

#[test]
fn a_packet_with_ip_options_or_the_tag_of_vlan_0_is_served_like_one_without() {
    on_every_hook(|bench| {
        for (n, options) in harmless_options().into_iter().enumerate() {
            let flow = bench.connect(client(n as u16));
            bench.moved();
            let data = |bytes: &[u8]| bench.from_client(flow.client, ACK | PSH).numbers(1001, 5001).payload(bytes);
            let answer = |bytes: &[u8]| {
                bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001).options(&[1; 12]).payload(bytes)
            };
            for plain in [data(b""), data(&[7; 1200]), answer(b"x"), answer(&[9; 333])] {
                let expected = bench.forward(&plain);
                let optioned = with_options(&plain.bytes(), &options);
                let tags = [&[0x81, 0, 0, 0][..], &[0x81, 0, 0xe0, 0], &[0x88, 0xa8, 0x10, 0]];
                let tagged = tags.map(|tag| [tagged(&plain.bytes(), tag), tagged(&optioned, tag)]);
                for frame in tagged.as_flattened().iter().chain([&optioned]) {
                    assert_eq!(bench.run(frame), Verdict::Sent(expected.clone()), "{frame:02x?}");
                }
            }
            assert_eq!(bench.moved(), []);
        }
        let syn = with_options(&bench.from_client(client(99), SYN).numbers(1000, 0).bytes(), &[148, 4, 0, 0]);
        let Verdict::Sent(out) = bench.run(&tagged(&syn, &[0x81, 0, 0, 0])) else { panic!("no connection") };
        assert_eq!((out.flags, out.to), (SYN, backend(backend_of(&out))));
        assert_eq!(bench.moved(), []);
    });
}

#[test]
fn a_packet_for_a_service_that_says_its_way_is_dropped_and_any_other_is_the_hosts() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        bench.moved();
        let ours = [
            bench.from_client(client(1), SYN).bytes(),
            bench.from_client(flow.client, ACK).numbers(1001, 5001).bytes(),
            bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001).bytes(),
        ];
        let mut elsewhere = bench.from_client(client(0), SYN);
        elsewhere.to.set_port(22);
        let unreadable = [[7, 0, 4, 0], [7, 1, 4, 0]];
        let ways = [&[131, 7, 4, 10, 0, 0, 1, 0][..], &[1, 137, 7, 4, 10, 0, 0, 1], &[148, 4, 0, 0, 137, 3, 4, 0]];
        for options in ways.into_iter().chain(unreadable.iter().map(|options| &options[..])) {
            for frame in &ours {
                drops(bench, &with_options(frame, options), Reason::IpOptions);
            }
            passes(bench, &with_options(&elsewhere.bytes(), options), Reason::NotOurs);
        }
        passes(bench, &with_options(&elsewhere.bytes(), &[148, 4, 0, 0]), Reason::NotOurs);
    });
}

#[test]
fn a_frame_of_another_vlan_is_not_ours() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(0), SYN).bytes();
        for tag in [[0x81, 0, 0, 7], [0x81, 0, 0xef, 0xff], [0x88, 0xa8, 0, 1]] {
            passes(bench, &tagged(&syn, &tag), Reason::Vlan);
        }
        passes(bench, &tagged(&tagged(&syn, &[0x81, 0, 0, 7]), &[0x81, 0, 0, 0]), Reason::NotOurs);
        let mut elsewhere = bench.from_client(client(0), SYN);
        elsewhere.to.set_port(22);
        passes(bench, &tagged(&elsewhere.bytes(), &[0x81, 0, 0, 0]), Reason::NotOurs);
        assert_eq!(bench.active(), [0, 0, 0]);
    });
}

#[test]
fn a_fragment_of_a_services_packet_is_dropped_and_any_other_is_the_hosts() {
    const MORE: u16 = 0x2000;
    on_every_hook(|bench| {
        let snat = Ipv4Addr::new(10, 0, 0, 1);
        let pool = pool_record(backend(0), snat, 20_000, 16);
        put_pool(bench.tables(), &pool, &[]).expect("a row");
        let flow = bench.connect(client(0));
        bench.moved();
        let from_client = bench.from_client(flow.client, ACK).numbers(1001, 5001).payload(&[1; 80]).bytes();
        let from_backend = bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001).payload(&[1; 80]);
        let mut to_snat = bench.from_backend(0, 20_003, ACK);
        to_snat.to.set_ip(snat);
        for frame in [&from_client, &from_backend.bytes(), &to_snat.bytes()] {
            for bits in [MORE, MORE | 0x8000, MORE | 3, 3, 1, 0x1fff] {
                drops(bench, &fragment(frame, bits), Reason::Fragment);
                drops(
                    bench,
                    &tagged(&fragment(&with_options(frame, &[1; 4]), bits), &[0x81, 0, 0, 0]),
                    Reason::Fragment,
                );
            }
            // The least that a fragment carries.
            drops(bench, &fragment(&frame[..42], MORE), Reason::Fragment);
            drops(bench, &fragment(&frame[..35], 1), Reason::Fragment);
        }
        let change = |at: usize, bytes: &[u8]| {
            let mut frame = from_client.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        passes(bench, &fragment(&change(36, &[0, 22]), MORE), Reason::NotOurs);
        passes(bench, &fragment(&change(33, &[99]), 3), Reason::NotOurs);
        passes(bench, &fragment(&change(23, &[17]), 3), Reason::NotOurs);
        let mut stranger = to_snat.clone();
        stranger.from = client(5);
        passes(bench, &fragment(&stranger.bytes(), 3), Reason::NotOurs);
        passes(bench, &fragment(&change(0, &[2, 9, 9, 9, 9, 9]), 3), Reason::OtherHost);
        passes(bench, &fragment(&change(0, &[2, 9, 9, 9, 9, 9]), MORE), Reason::OtherHost);
    });
}

#[test]
fn headers_that_contradict_themselves_are_dropped_if_they_name_a_service() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(0), SYN).bytes();
        for (at, bytes) in [(46, &[0x40][..]), (46, &[0xf0]), (16, &[0, 30]), (16, &[5, 0])] {
            let mut frame = syn.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            drops(bench, &frame, Reason::Malformed);
            drops(bench, &tagged(&frame, &[0x81, 0, 0, 0]), Reason::Malformed);
            frame[36..38].copy_from_slice(&22_u16.to_be_bytes());
            passes(bench, &frame, Reason::Malformed);
        }
        let answer = bench.from_backend(0, 20_003, ACK).bytes();
        drops(bench, &[&answer[..46], &[0x40], &answer[47..]].concat(), Reason::Malformed);
        assert_eq!(bench.active(), [0, 0, 0]);
    });
}

#[test]
fn a_frame_cut_short_anywhere_is_passed_on_or_dropped_once_it_names_a_service() {
    on_every_hook(|bench| {
        let frame = bench.from_client(client(0), SYN).bytes();
        // The kernel refuses test runs of less than Ethernet and IPv4 headers.
        for length in 34..frame.len() {
            let expected = if length < 38 { Verdict::Passed } else { Verdict::Dropped };
            assert_eq!(bench.run(&frame[..length]), expected, "{length} bytes");
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
