use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use evenkeel::{
    sys::clock,
    vrrp::wire::{arp, nd},
};
use lab::{
    packet::Mac,
    program::{Bench, Verdict},
};
use lb_common::verdict::Reason;

use super::on_every_hook;

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
const ASKING: Mac = [2, 0, 0, 0, 0, 9];

/// "Who has `target`? Tell `sender`". With sender 0.0.0.0 it is the probe of a host that wants the
/// address. Padded as Ethernet does it.
fn request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = arp::request(ASKING, sender);
    frame[38..42].copy_from_slice(&target.octets());
    frame.resize(60, 0);
    frame
}

/// A neighbour solicitation; from `::` it is that of duplicate address detection.
fn solicitation(sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut frame = nd::advertisement(ASKING, target, false);
    frame[22..38].copy_from_slice(&sender.octets());
    frame[54] = 135;
    frame
}

fn lease(bench: &Bench, address: impl Into<IpAddr>, until: u64) -> u16 {
    let number = bench.tables().place_lease(address.into()).expect("a place");
    bench.tables().renew_lease(number, until);
    number
}

const SECOND: u64 = 1_000_000_000;

fn questions() -> [Vec<u8>; 4] {
    [
        request([10, 0, 1, 7].into(), VIP),
        request(Ipv4Addr::UNSPECIFIED, VIP),
        solicitation("fd00::7".parse().unwrap(), VIP6),
        solicitation(Ipv6Addr::UNSPECIFIED, VIP6),
    ]
}

#[test]
fn questions_for_an_address_are_passed_while_its_lease_holds_and_dropped_when_it_does_not() {
    on_every_hook(|bench| {
        for frame in questions() {
            assert_eq!(bench.run(&frame), Verdict::Passed, "no lease: the address is the operator's own");
        }
        assert_eq!(bench.moved(), [(Reason::NotOurs, 4)]);
        let now = clock::monotonic().0;
        for (until, verdict, reason) in [
            (now + 60 * SECOND, Verdict::Passed, Reason::NotOurs),
            (now - 1, Verdict::Dropped, Reason::LeaseLapsed),
            (0, Verdict::Dropped, Reason::VipNotHeld),
        ] {
            lease(bench, VIP, until);
            lease(bench, VIP6, until);
            for frame in questions() {
                assert_eq!(bench.run(&frame), verdict, "{until}: {frame:02x?}");
            }
            assert_eq!(bench.moved(), [(reason, 4)]);
        }
        for number in bench.tables().leases().into_iter().map(|(number, _)| number) {
            bench.tables().remove_lease(number);
        }
        for frame in questions() {
            assert_eq!(bench.run(&frame), Verdict::Passed, "the host that has it now answers");
        }
    });
}

#[test]
fn questions_for_other_addresses_and_other_packets_are_not_touched_by_a_lapsed_lease() {
    on_every_hook(|bench| {
        lease(bench, VIP, 1);
        lease(bench, VIP6, 1);
        let mut frames = vec![
            request(VIP, [10, 0, 1, 7].into()),
            request([10, 0, 1, 7].into(), [10, 0, 1, 101].into()),
            solicitation(VIP6, "fd00::7".parse().unwrap()),
            arp::reply(ASKING, VIP),
            nd::advertisement(ASKING, VIP6, false),
        ];
        // ARP for another kind of address, and ICMPv6 of another type.
        let mut strange = request([10, 0, 1, 7].into(), VIP);
        strange[19] = 16;
        frames.push(strange);
        let mut echo = solicitation("fd00::7".parse().unwrap(), VIP6);
        echo[54] = 128;
        frames.push(echo);
        for frame in &frames {
            assert_eq!(bench.run(frame), Verdict::Passed, "{frame:02x?}");
        }
        assert_eq!(bench.moved(), [(Reason::NotOurs, frames.len() as u64)]);
    });
}

#[test]
fn a_question_cut_short_anywhere_is_passed_on() {
    on_every_hook(|bench| {
        lease(bench, VIP, 1);
        lease(bench, VIP6, 1);
        let six = solicitation("fd00::7".parse().unwrap(), VIP6);
        let four = &request([10, 0, 1, 7].into(), VIP)[..42];
        // The kernel refuses test runs of less than Ethernet and IP headers.
        for (frame, shortest) in [(four, 34), (&six[..78], 54)] {
            for length in shortest..frame.len() {
                assert_eq!(bench.run(&frame[..length]), Verdict::Passed, "{length} bytes");
            }
            assert_eq!(bench.run(frame), Verdict::Dropped);
        }
    });
}

#[test]
fn another_host_s_claim_to_an_address_we_hold_is_noted_with_its_mac_and_passed_on() {
    on_every_hook(|bench| {
        let until = clock::monotonic().0 + 60 * SECOND;
        let (four, six) = (lease(bench, VIP, until), lease(bench, VIP6, until));
        let other = [2, 0, 0, 0, 0, 0x77];
        for frame in [arp::request(other, VIP), arp::reply(other, VIP), nd::advertisement(other, VIP6, true)] {
            assert_eq!(bench.run(&frame), Verdict::Passed);
        }
        assert_eq!(bench.moved(), [(Reason::VipClaimed, 3)]);
        let claims = |number| bench.tables().claims(number);
        assert_eq!(
            ((claims(four).count, claims(four).by), (claims(six).count, claims(six).by)),
            ((2, other), (1, other))
        );

        // Frames of our own card, and what is announced while we do not hold the address, are no
        // claims.
        for frame in [arp::request(bench.mac, VIP), nd::advertisement(bench.mac, VIP6, true)] {
            assert_eq!(bench.run(&frame), Verdict::Passed);
        }
        bench.tables().renew_lease(four, 1);
        assert_eq!(bench.run(&arp::reply(other, VIP)), Verdict::Passed);
        assert_eq!(claims(four).count, 2);
    });
}

#[test]
fn forwarding_does_not_depend_on_the_lease() {
    on_every_hook(|bench| {
        lease(bench, *lab::program::VIP.ip(), 1);
        let flow = bench.connect(super::client(0));
        bench.close(&flow);
    });
}

/// What a host sends in the name of an address: its own questions for others, answers, and
/// unsolicited announcements.
fn said_by(four: Ipv4Addr, six: Ipv6Addr) -> [Vec<u8>; 5] {
    let mut padded = request(four, [10, 0, 1, 7].into());
    padded.truncate(42);
    [
        request(four, [10, 0, 1, 7].into()),
        padded,
        arp::reply(ASKING, four),
        solicitation(six, "fd00::7".parse().unwrap()),
        nd::advertisement(ASKING, six, true),
    ]
}

#[test]
fn the_host_speaks_in_the_name_of_an_address_only_while_its_lease_holds() {
    on_every_hook(|bench| {
        let said = said_by(VIP, VIP6);
        for frame in &said {
            assert_eq!(bench.send_out(frame), Verdict::Passed, "no lease: the address is the operator's own");
        }
        let now = clock::monotonic().0;
        for (until, verdict, reason) in [
            (now + 60 * SECOND, Verdict::Passed, None),
            (now - 1, Verdict::Dropped, Some(Reason::LeaseLapsed)),
            (0, Verdict::Dropped, Some(Reason::VipNotHeld)),
        ] {
            lease(bench, VIP, until);
            lease(bench, VIP6, until);
            for frame in &said {
                assert_eq!(bench.send_out(frame), verdict, "{until}: {frame:02x?}");
            }
            // What leaves and is let through is not counted.
            assert_eq!(bench.moved(), reason.map(|reason| (reason, 5)).into_iter().collect::<Vec<_>>());
            // Its own address, questions for the virtual one, and everything that is neither ARP
            // nor ND.
            let mut others = said_by([10, 0, 1, 1].into(), "fd00::1".parse().unwrap()).to_vec();
            others.push(request([10, 0, 1, 1].into(), VIP));
            others.push(solicitation("fd00::1".parse().unwrap(), VIP6));
            let mut echo = solicitation(VIP6, "fd00::7".parse().unwrap());
            echo[54] = 128;
            others.push(echo);
            others.push(bench.from_client(super::client(0), lb_common::tcp::SYN).bytes());
            for frame in &others {
                assert_eq!(bench.send_out(frame), Verdict::Passed, "{until}: {frame:02x?}");
            }
            assert_eq!(bench.moved(), []);
        }
    });
}
