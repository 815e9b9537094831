//! ICMP errors about segments that the program has sent.

use std::{net::Ipv4Addr, time::Duration};

use evenkeel::sys::clock;
use lab::{
    icmp::{IcmpError, TIME_EXCEEDED, UNREACHABLE},
    packet::{ACK, FIN, LINUX_OPTIONS, Mac, PSH, RST, SYN, Segment, seal},
    program::{Bench, CLIENT_MAC, Connection, Setup, VIP, Verdict, backend_mac, backend_of},
};
use lb_common::{
    layout::{OUT, UP},
    time::Instant,
    verdict::Reason,
};

use super::{client, on_every_hook, with_setup};

/// Runs the program on a segment; returns what it sent, byte for byte.
fn sent(bench: &Bench, frame: &[u8]) -> Vec<u8> {
    let out = bench.dataplane.inject(bench.ifindex, frame).expect("BPF_PROG_TEST_RUN");
    assert!(out.sent, "verdict {}", out.verdict);
    out.frame
}

/// What a router says to us about a frame that we have sent by `mac`.
fn said(frame: &[u8], bytes: usize) -> IcmpError {
    IcmpError::about(frame, bytes)
}

/// The packet of a frame as a router further on quotes it: one hop older.
fn one_hop_on(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    packet[8] -= 1;
    seal(&mut packet[..20]);
    packet
}

/// One segment in each direction of a flow, and the one that the program made of it.
fn both_ways(bench: &Bench, flow: &Connection) -> [(Segment, Vec<u8>, Mac); 2] {
    let up = bench.from_client(flow.client, ACK | PSH).numbers(1001, 5001).options(&[1; 12]).payload(&[7; 1300]);
    let down = bench.from_backend(flow.backend, flow.port, ACK).numbers(5001, 1001).payload(&[9; 1400]);
    [(up, CLIENT_MAC), (down, backend_mac(flow.backend))].map(|(segment, mac)| {
        let out = sent(bench, &segment.bytes());
        (segment, out, mac)
    })
}

#[test]
fn an_error_about_a_segment_reaches_the_side_that_has_sent_it_as_if_it_were_about_its_own() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let kinds = [(UNREACHABLE, 0), (UNREACHABLE, 1), (UNREACHABLE, 13), (TIME_EXCEEDED, 0), (12, 0)];
        let segments = both_ways(bench, &flow);
        bench.moved();
        let mut count = 0;
        for (segment, out, mac) in &segments {
            let own = one_hop_on(&segment.bytes());
            for bytes in [8, 12, 16, 18, 20, 32, 100, 1400] {
                let too_large = said(out, bytes).too_large(1280);
                for error in kinds.map(|(kind, code)| said(out, bytes).says(kind, code)).iter().chain([&too_large]) {
                    // No options, a router alert, and room for forty bytes of time stamps.
                    let stamps = [&[68, 40, 5, 0][..], &[0; 36]].concat();
                    for options in [&[][..], &[148, 4, 0, 0], &stamps] {
                        let told = IcmpError::parse(&sent(bench, &error.bytes_with(options))).expect("a correct error");
                        count += 1;
                        let quote = &own[..told.quote.len()];
                        assert_eq!(told.quote[20..], quote[20..], "{bytes} bytes");
                        assert_eq!(told.quote[..20], quote[..20]);
                        let expected = IcmpError {
                            from_mac: bench.mac,
                            to_mac: *mac,
                            from: *segment.to.ip(),
                            to: *segment.from.ip(),
                            ttl: error.ttl - 1,
                            quote: quote.to_vec(),
                            ..error.clone()
                        };
                        assert_eq!(told, expected);
                    }
                }
            }
        }
        assert_eq!(bench.moved(), [(Reason::IcmpTranslated, count)]);
        assert_eq!(bench.active().iter().sum::<u32>(), 1);
    });
}

#[test]
fn a_quote_with_ip_options_is_found_as_well() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        for (segment, out, _) in both_ways(bench, &flow) {
            for options in [vec![1; 4], vec![7; 40]] {
                let mut error = said(&out, 20).too_large(1400);
                error.quote[0] += (options.len() / 4) as u8;
                error.quote.splice(20..20, options.clone());
                seal(&mut error.quote[..20 + options.len()]);
                let told = IcmpError::parse(&sent(bench, &error.bytes())).expect("a correct error");
                assert_eq!((told.to, told.mtu), (*segment.from.ip(), 1400));
                let own = segment.bytes();
                assert_eq!(told.quote[12..20], own[26..34], "addresses");
                assert_eq!(told.quote[20..20 + options.len()], options);
                assert_eq!(told.quote[20 + options.len()..][..20], own[34..54]);
            }
        }
    });
}

#[test]
fn a_path_is_never_said_to_take_less_than_552_bytes_or_1280_towards_clients() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        for ((_, out, _), least) in both_ways(bench, &flow).into_iter().zip([552, 1280]) {
            for said_to_take in [0, 68, 551, 552, 553, 1279, 1280, 1281, 65_535] {
                let error = said(&out, 8).too_large(said_to_take);
                let told = IcmpError::parse(&sent(bench, &error.bytes())).expect("a correct error");
                assert_eq!(told.mtu, said_to_take.max(least));
            }
        }
    });
}

/// Runs the program on an error that must change nothing.
fn refused(bench: &mut Bench, error: &IcmpError) {
    bench.moved();
    assert_eq!(bench.run(&error.bytes()), Verdict::Dropped, "{error:?}");
    assert_eq!(bench.moved(), [(Reason::IcmpRefused, 1)], "{error:?}");
}

fn with_sequence(error: &IcmpError, sequence: u32) -> IcmpError {
    let mut error = error.clone();
    error.quote[24..28].copy_from_slice(&sequence.to_be_bytes());
    error
}

#[test]
fn an_error_about_nothing_that_is_under_way_is_dropped_and_counted() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let [(up, to_backend, _), (_, to_client, _)] = both_ways(bench, &flow);
        for (out, first, end) in [(&to_backend, 1001, 2301), (&to_client, 5001, 6401_u32)] {
            for error in [said(out, 8), said(out, 64).too_large(600)] {
                for sequence in [first - 1, end + 1, first.wrapping_add(1 << 31), 0] {
                    refused(bench, &with_sequence(&error, sequence));
                }
                for sequence in [first, end] {
                    sent(bench, &with_sequence(&error, sequence).bytes());
                }
            }
        }
        // Of a connection that there is not, and of one that is over.
        let (mut stranger, mut free) = (said(&to_client, 8), said(&to_backend, 8));
        stranger.quote[23] ^= 1;
        refused(bench, &stranger);
        free.quote[21] ^= 1;
        refused(bench, &free);
        bench.forward(&bench.from_client(flow.client, RST).numbers(up.sequence + 1300, 0));
        refused(bench, &said(&to_backend, 8));
        refused(bench, &said(&to_client, 8));
    });
}

#[test]
fn whatever_else_is_of_icmp_is_the_hosts_as_it_is() {
    on_every_hook(|bench| {
        let flow = bench.connect(client(0));
        let [(_, to_backend, _), (_, to_client, _)] = both_ways(bench, &flow);
        bench.moved();
        let error = said(&to_client, 8);
        let echo = IcmpError { kind: 8, code: 0, ..error.clone() };
        let redirect = IcmpError { kind: 5, code: 1, ..error.clone() };
        let mut of_ssh = error.clone();
        of_ssh.quote[20..22].copy_from_slice(&22_u16.to_be_bytes());
        let mut udp = error.clone();
        udp.quote[9] = 17;
        let mut later_fragment = error.clone();
        later_fragment.quote[7] = 1;
        let short = IcmpError { quote: error.quote[..27].to_vec(), ..error.clone() };
        let mut elsewhere = error.clone();
        elsewhere.to = Ipv4Addr::new(10, 0, 0, 7);
        let mut of_another = error.clone();
        of_another.quote[12..16].copy_from_slice(&[10, 0, 0, 7]);
        let mut port = said(&to_backend, 8);
        port.quote[20..22].copy_from_slice(&19_999_u16.to_be_bytes());
        for other in [echo, redirect, of_ssh, udp, later_fragment, short, elsewhere, of_another, port] {
            assert_eq!(bench.run(&other.bytes()), Verdict::Passed, "{other:?}");
            assert_eq!(bench.moved(), [(Reason::NotOurs, 1)], "{other:?}");
        }
        let mut fragment = error.bytes();
        fragment[20] = 0x20;
        seal(&mut fragment[14..34]);
        assert_eq!(bench.run(&fragment), Verdict::Passed);
        bench.moved();
        if bench.dataplane.attached().iter().any(|attached| attached.mode.name() == "xdp") {
            let flooded = IcmpError { to_mac: [2, 9, 9, 9, 9, 9], ..error };
            assert_eq!(bench.run(&flooded.bytes()), Verdict::Passed);
            assert_eq!(bench.moved(), [(Reason::OtherHost, 1)]);
        }
    });
}

const TEN_SECONDS: Duration = Duration::from_secs(10);

#[test]
fn a_syn_that_a_router_answers_with_an_error_goes_to_the_next_backend_at_once() {
    on_every_hook(|bench| {
        (0..3).for_each(|n| bench.allows_failures(n, 2, TEN_SECONDS));
        let syn = bench.from_client(client(0), SYN).numbers(1000, 0).options(&LINUX_OPTIONS);
        let first = sent(bench, &syn.bytes());
        bench.moved();
        let failed = backend_of(&Segment::parse(&first).expect("a SYN"));
        let second = sent(bench, &said(&first, 8).says(UNREACHABLE, 1).bytes());
        let next = Segment::parse(&second).expect("a SYN");
        assert_eq!((next.flags, next.sequence, next.to_mac), (SYN, 1000, backend_mac(backend_of(&next))));
        assert_ne!(backend_of(&next), failed);
        assert_eq!(bench.moved(), [(Reason::Unreachable, 1)]);
        // The second one, and the third: no backend is left.
        let third = sent(bench, &said(&second, 20).says(UNREACHABLE, 13).bytes());
        let last = sent(bench, &said(&third, 8).says(TIME_EXCEEDED, 0).bytes());
        let refused = Segment::parse(&last).expect("a RST");
        assert_eq!((refused.flags, refused.from, refused.to, refused.to_mac), (RST | ACK, VIP, client(0), CLIENT_MAC));
        assert_eq!(bench.moved(), [(Reason::Unreachable, 2)]);
        assert_eq!(bench.active(), [0, 0, 0]);
        for n in 0..3 {
            assert_eq!((bench.tables().backend(n).connect_failures, bench.tables().backend(n).admission), (1, UP));
        }
        // A late SYN-ACK of the first one after all.
        let late = Segment::parse(&first).expect("a SYN");
        let answer = bench.from_backend(failed, late.from.port(), SYN | ACK).numbers(5000, 1001);
        assert_eq!(bench.forward(&answer).flags, RST);
    });
}

#[test]
fn errors_take_a_backend_out_only_if_they_quote_what_a_stranger_cannot_know() {
    on_every_hook(|bench| {
        (0..3).for_each(|n| bench.allows_failures(n, 1, TEN_SECONDS));
        for n in 0..20 {
            let syn = bench.from_client(client(n), SYN).numbers(77_000, 0);
            let out = sent(bench, &syn.bytes());
            let mut forged = said(&out, 8).says(UNREACHABLE, 1);
            let identification = u16::from_be_bytes([forged.quote[4], forged.quote[5]]);
            assert_ne!(identification, 0);
            forged.quote[4..6].copy_from_slice(&identification.wrapping_add(n + 1).to_be_bytes());
            let moved = Segment::parse(&sent(bench, &forged.bytes())).expect("a SYN");
            assert_eq!((moved.flags, moved.sequence), (SYN, 77_000), "its own connection goes on elsewhere");
        }
        assert_eq!((0..3).map(|n| bench.tables().backend(n).connect_failures).sum::<u64>(), 0);
        let out = sent(bench, &bench.from_client(client(99), SYN).numbers(1, 0).bytes());
        let n = backend_of(&Segment::parse(&out).expect("a SYN"));
        sent(bench, &said(&out, 8).bytes());
        assert_eq!((bench.tables().backend(n).admission, bench.tables().backend(n).connect_failures), (OUT, 1));
        assert_eq!(bench.tables().backend(n).out_reason, u32::from(Reason::Unreachable as u8));
    });
}

#[test]
fn a_trial_that_a_router_refuses_is_followed_by_the_next_one_after_fail_timeout() {
    let mut setup = Setup::default();
    setup.service.connect_timeout = Duration::from_secs(30);
    with_setup(setup, |bench| {
        bench.allows_failures(1, 1, Duration::from_millis(100));
        bench.tables().admit(1, OUT, Instant(1));
        let out = sent(bench, &bench.from_client(client(0), SYN).numbers(77, 0).bytes());
        assert_eq!(backend_of(&Segment::parse(&out).expect("a SYN")), 1, "the trial");
        let now = clock::monotonic();
        assert!(bench.tables().backend(1).retry_at > now + Duration::from_secs(20));
        sent(bench, &said(&out, 8).bytes());
        assert!(bench.tables().backend(1).retry_at < now + Duration::from_secs(10));
    });
}

#[test]
fn an_error_about_a_syn_fits_only_the_attempt_that_it_quotes() {
    on_every_hook(|bench| {
        let syn = bench.from_client(client(0), SYN).numbers(1000, 0).options(&LINUX_OPTIONS);
        let out = sent(bench, &syn.bytes());
        let n = backend_of(&Segment::parse(&out).expect("a SYN"));
        for sequence in [999, 1001, 0] {
            refused(bench, &with_sequence(&said(&out, 8), sequence));
        }
        refused(bench, &said(&out, 8).too_large(600));
        // Answered, but not confirmed: the SYN has arrived, and so has the answer, or it comes
        // again.
        let port = Segment::parse(&out).expect("a SYN").from.port();
        let answer = sent(bench, &bench.from_backend(n, port, SYN | ACK).numbers(5000, 1001).bytes());
        refused(bench, &said(&out, 8));
        refused(bench, &said(&answer, 8));
        bench.forward(&bench.from_client(client(0), ACK).numbers(1001, 5001));
        refused(bench, &said(&out, 8));
        assert_eq!(bench.active()[usize::from(n)], 1);
        bench.forward(&bench.from_client(client(0), FIN | ACK).numbers(1001, 5001));
        assert_eq!(bench.active()[usize::from(n)], 1);
    });
}
