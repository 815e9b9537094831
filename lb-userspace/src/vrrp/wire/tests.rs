//! Captures of keepalived 2.2.7 and of other implementations: encoded from their meaning, and
//! parsed back.

use std::net::IpAddr;

use super::{GROUP_V4, GROUP_V6, Packet, View, arp, ipv4, nd, v2, v3};
use v3::Dialect::{MessageOnly, PseudoHeader};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|char| Some(char.to_digit(16)? as u8)).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

#[test]
fn version_2_is_keepalived_s_byte_for_byte() {
    // (bytes, router, priority, password, address)
    let cases = [
        ("213364010101ddf90a0900326162636465666768", 51, 100, Some("abcdefgh"), "10.9.0.50"),
        ("213364010001708f0a0900320000000000000000", 51, 100, None, "10.9.0.50"),
        ("213300010001d48f0a0900320000000000000000", 51, 0, None, "10.9.0.50"),
        ("21331e010001b5c50a0001050000000000000000", 51, 30, None, "10.0.1.5"),
        ("21fb6401010110d4c0a801c86b756265726e6574", 251, 100, Some("kubernetes"), "192.168.1.200"),
        ("21fb5a0101011ad4c0a801c86b756265726e6574", 251, 90, Some("kubernetes"), "192.168.1.200"),
    ];
    for (bytes, router, priority, password, address) in cases {
        let bytes = hex(bytes);
        let password = password.map(v2::password);
        assert_eq!(v2::encode(router, priority, 1, password, &ips(&[address])), bytes);
        let view = View::new(&bytes).unwrap();
        assert_eq!((view.version(), view.kind(), view.router(), view.priority()), (2, 1, router, priority));
        assert_eq!((v2::authentication(view), v2::seconds(view)), (u8::from(password.is_some()), 1));
        assert_eq!(v2::trailer(view), Some(password.unwrap_or_default()));
        assert_eq!(view.addresses(true), Some(ips(&[address])));
        assert!(v2::is_intact(view));
    }
}

#[test]
fn version_3_over_ipv4_is_keepalived_s_byte_for_byte_in_both_dialects() {
    let group = IpAddr::V4(GROUP_V4);
    let (one, two) = (ip("10.9.0.1"), ip("10.9.0.2"));
    let vip = ips(&["10.9.0.50"]);
    let pair = ips(&["192.0.2.1", "192.0.2.2"]);
    let cases = [
        ("31336401006475930a090032", (51, 100, 100), &vip, (one, group), PseudoHeader),
        ("313364010064602c0a090032", (51, 100, 100), &vip, (one, group), MessageOnly),
        ("313300010064d9930a090032", (51, 0, 100), &vip, (one, group), PseudoHeader),
        ("3133640100644b9b0a090032", (51, 100, 100), &vip, (one, two), PseudoHeader),
        ("310ac8020064defbc0000201c0000202", (10, 200, 100), &pair, (ip("192.0.2.251"), group), PseudoHeader),
        ("310ac8020064828ac0000201c0000202", (10, 200, 100), &pair, (ip("192.0.2.251"), group), MessageOnly),
    ];
    for (bytes, numbers, addresses, (source, destination), dialect) in cases {
        let bytes = hex(bytes);
        assert_eq!(v3::encode(numbers, addresses, (source, destination), dialect), bytes);
        let view = View::new(&bytes).unwrap();
        assert_eq!((view.version(), view.kind(), view.router()), (3, 1, numbers.0));
        assert_eq!((view.priority(), v3::centiseconds(view)), (numbers.1, numbers.2));
        assert_eq!(view.addresses(true).as_ref(), Some(addresses));
        assert!(v3::is_intact(view, source, destination));
    }
}

#[test]
fn version_3_over_ipv6_has_one_checksum_over_the_pseudo_header() {
    let addresses = ips(&["fe80::100", "fd00::100"]);
    let ends = (ip("fe80::1"), IpAddr::V6(GROUP_V6));
    let bytes = v3::encode((51, 150, 10), &addresses, ends, MessageOnly);
    assert_eq!(bytes, v3::encode((51, 150, 10), &addresses, ends, PseudoHeader));
    assert_eq!(bytes.len(), 8 + 32);
    let view = View::new(&bytes).unwrap();
    assert_eq!(view.addresses(false), Some(addresses));
    assert!(v3::is_intact(view, ends.0, ends.1));
    assert!(!v3::is_intact(view, ip("fe80::2"), ends.1), "the source is covered");
}

#[test]
fn every_flipped_bit_breaks_the_checksum_and_every_cut_is_noticed() {
    let (source, destination) = (ip("10.9.0.1"), IpAddr::V4(GROUP_V4));
    let two = v2::encode(51, 100, 1, Some(v2::password("secret")), &ips(&["10.9.0.50"]));
    let three = v3::encode((51, 100, 100), &ips(&["10.9.0.50"]), (source, destination), PseudoHeader);
    let intact = |bytes: &[u8]| {
        View::new(bytes).is_some_and(|view| match view.version() {
            2 => v2::is_intact(view),
            _ => v3::is_intact(view, source, destination),
        })
    };
    for message in [two, three] {
        assert!(intact(&message));
        // After the version, because another version is another format.
        for bit in 8..message.len() * 8 {
            let mut broken = message.clone();
            broken[bit / 8] ^= 0x80 >> (bit % 8);
            assert!(!intact(&broken), "bit {bit} of {message:02x?}");
        }
        for length in 0..message.len() {
            assert!(!intact(&message[..length]), "{length} bytes of {message:02x?}");
        }
        let padded = [&message[..], &[0xee; 20]].concat();
        assert!(intact(&padded), "what follows the message does not count");
    }
}

#[test]
fn a_packet_is_parsed_as_it_was_built() {
    let (source, destination) = ([10, 9, 0, 1].into(), GROUP_V4);
    let payload = hex("31336401006475930a090032");
    let bytes = ipv4::packet(source, destination, &payload);
    assert_eq!(bytes[..12], hex("45c0 0020 0000 0000 ff70 0000")[..]);
    let whole = Packet { source: source.into(), destination: destination.into(), hop_limit: 255, payload: &payload };
    assert_eq!(ipv4::parse(&bytes), Some(whole));
    let padded = [&bytes[..], &[0; 14]].concat();
    assert_eq!(ipv4::parse(&padded), Some(whole), "Ethernet pads to 60 bytes");
    let mut with_options = bytes.clone();
    with_options[0] = 0x46;
    with_options[3] = 0x24;
    with_options.splice(20..20, [0x94, 4, 0, 0]);
    assert_eq!(ipv4::parse(&with_options), Some(whole));
    for length in 0..bytes.len() {
        assert_eq!(ipv4::parse(&bytes[..length]), None, "{length} bytes");
    }
    for (at, value) in [(0, 0x44), (0, 0x65), (3, 19)] {
        let mut wrong = bytes.clone();
        wrong[at] = value;
        assert_eq!(ipv4::parse(&wrong), None);
    }
}

#[test]
fn gratuitous_arp_names_the_address_twice() {
    let mac = [2, 0, 0, 0, 0, 7];
    let address = [10, 0, 1, 100].into();
    assert_eq!(
        arp::request(mac, address),
        hex("ffffffffffff 020000000007 0806 0001 0800 06 04 0001 020000000007 0a000164 000000000000 0a000164")
    );
    assert_eq!(
        arp::reply(mac, address),
        hex("ffffffffffff 020000000007 0806 0001 0800 06 04 0002 020000000007 0a000164 020000000007 0a000164")
    );
}

#[test]
fn a_neighbour_advertisement_overrides_and_its_checksum_adds_up() {
    let mac = [2, 0, 0, 0, 0, 7];
    let address = "fd00::100".parse().unwrap();
    for (router, flags) in [(false, 0x20), (true, 0xa0)] {
        let frame = nd::advertisement(mac, address, router);
        assert_eq!(frame[..14], hex("333300000001 020000000007 86dd")[..]);
        assert_eq!(frame[14..22], hex("6000000000203aff")[..]);
        assert_eq!((frame.len(), frame[54], frame[58]), (14 + 40 + 32, 136, flags));
        assert_eq!((&frame[62..78], &frame[78..]), (&address.octets()[..], &hex("0201020000000007")[..]));
        let beside = super::pseudo_header(address.into(), ip("ff02::1"), 58, 32);
        assert!(super::adds_up(&frame[54..], beside));
    }
}
