use super::*;
use v3::Dialect;

const SECOND: Duration = Duration::from_secs(1);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

/// Version 2 with a password, version 3 without; multicast.
fn expectation(version: VrrpVersion) -> Expectation {
    Expectation {
        version,
        ipv4: true,
        password: (version == VrrpVersion::V2).then(|| v2::password("secret")),
        interval: SECOND,
        peers: BTreeSet::new(),
        min_ttl: 0,
        addresses: set(&["10.0.1.100"]),
        own: Some(ip("10.0.1.1")),
    }
}

fn voice(version: VrrpVersion) -> Voice {
    Voice {
        version,
        router: 51,
        interval: SECOND,
        password: (version == VrrpVersion::V2).then(|| v2::password("secret")),
        dialect: Dialect::PseudoHeader,
        addresses: vec![ip("10.0.1.100")],
        peers: Vec::new(),
    }
}

/// Judges what a peer at 10.0.1.2 sends, after a change to its bytes.
fn judge(
    expectation: &Expectation,
    voice: &Voice,
    change: impl Fn(&mut Vec<u8>),
    hop_limit: u8,
) -> Result<Heard, RefusedAdvert> {
    let source = ip("10.0.1.2");
    let destination = voice.destinations(source)[0];
    let mut bytes = voice.advertisement(100, source, destination);
    change(&mut bytes);
    let packet = Packet { hop_limit, ..wire::ipv4::parse(&bytes).unwrap() };
    expectation.judge(&packet)
}

const HEADER: usize = 20;

#[test]
fn an_advertisement_of_a_peer_with_the_same_configuration_is_accepted() {
    for version in [VrrpVersion::V2, VrrpVersion::V3] {
        let heard = judge(&expectation(version), &voice(version), |_| {}, 255);
        let expected = Heard { source: ip("10.0.1.2"), priority: 100, interval: SECOND, agreement: Agreement::Same };
        assert_eq!(heard, Ok(expected));
        let rfc9568 = Voice { dialect: Dialect::MessageOnly, ..voice(version) };
        assert_eq!(judge(&expectation(version), &rfc9568, |_| {}, 255), Ok(expected));
    }
}

#[test]
fn every_rung_of_the_ladder_refuses_for_its_own_reason() {
    let (two, three) = (VrrpVersion::V2, VrrpVersion::V3);
    type Change = Box<dyn Fn(&mut Vec<u8>)>;
    let set = |at: usize, value: u8| -> Change { Box::new(move |bytes| bytes[HEADER + at] = value) };
    let cut = |to: usize| -> Change {
        Box::new(move |bytes| {
            bytes.truncate(HEADER + to);
            bytes[3] = (HEADER + to) as u8;
        })
    };
    let cases: Vec<(VrrpVersion, Change, u8, AdvertRefusal)> = vec![
        (two, cut(7), 255, AdvertRefusal::Truncated),
        (three, cut(7), 255, AdvertRefusal::Truncated),
        (three, set(0, 0x31), 254, AdvertRefusal::HopLimit),
        (three, set(0, 0x21), 255, AdvertRefusal::Version),
        (two, set(0, 0x31), 255, AdvertRefusal::Version),
        (two, set(4, 0), 255, AdvertRefusal::AuthenticationType),
        (two, set(12, b'S'), 255, AdvertRefusal::Password),
        (two, set(5, 2), 255, AdvertRefusal::Interval),
        (three, Box::new(|bytes| bytes[HEADER + 4..HEADER + 6].fill(0)), 255, AdvertRefusal::Interval),
        (three, set(0, 0x32), 255, AdvertRefusal::Type),
        (three, set(3, 0), 255, AdvertRefusal::NoAddress),
        (three, set(3, 2), 255, AdvertRefusal::Length),
        (two, set(3, 2), 255, AdvertRefusal::Length),
        (two, cut(12), 255, AdvertRefusal::Length),
        (three, set(2, 99), 255, AdvertRefusal::Checksum),
        (two, set(2, 99), 255, AdvertRefusal::Checksum),
    ];
    for (version, change, hop_limit, why) in cases {
        let judged = judge(&expectation(version), &voice(version), change, hop_limit);
        assert_eq!(judged.map_err(|refused| refused.why), Err(why), "{version:?}");
    }
}

#[test]
fn multicast_and_unicast_do_not_mix_and_strangers_are_not_peers() {
    let unicast = Expectation { peers: set(&["10.0.1.2"]), ..expectation(VrrpVersion::V3) };
    let near = Expectation { min_ttl: 254, ..unicast.clone() };
    let stranger = Expectation { peers: set(&["10.0.1.3"]), ..expectation(VrrpVersion::V3) };
    let multicast = expectation(VrrpVersion::V3);
    let by_group = voice(VrrpVersion::V3);
    let direct = Voice { peers: vec![ip("10.0.1.1")], ..by_group.clone() };
    let why = |expectation, voice, hop_limit| {
        judge(expectation, voice, |_| {}, hop_limit).map(|heard| heard.priority).map_err(|refused| refused.why)
    };
    assert_eq!(why(&unicast, &direct, 255), Ok(100));
    assert_eq!(why(&unicast, &direct, 64), Ok(100), "a unicast peer may be behind a router");
    assert_eq!([why(&near, &direct, 254), why(&near, &direct, 253)], [Ok(100), Err(AdvertRefusal::HopLimit)]);
    assert_eq!(why(&unicast, &by_group, 255), Err(AdvertRefusal::Destination));
    assert_eq!(why(&multicast, &direct, 255), Err(AdvertRefusal::Destination));
    assert_eq!(why(&stranger, &direct, 255), Err(AdvertRefusal::Peer));
    let looped = Expectation { own: Some(ip("10.0.1.2")), ..multicast.clone() };
    assert_eq!(why(&looped, &by_group, 255), Err(AdvertRefusal::OwnAddress));
}

#[test]
fn who_shares_an_address_is_a_peer_and_who_shares_none_is_refused_with_any_priority() {
    let with = |addresses: &[&str]| Voice {
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ..voice(VrrpVersion::V2)
    };
    let expectation = Expectation { addresses: set(&["10.0.1.100", "10.0.1.101"]), ..expectation(VrrpVersion::V2) };
    for (addresses, agreement) in [
        (&["10.0.1.101", "10.0.1.100"][..], Agreement::Same),
        (&["10.0.1.100"], Agreement::Partly),
        (&["10.0.1.100", "10.0.1.101", "10.0.1.102"], Agreement::Partly),
        (&["10.0.9.9"], Agreement::Strange),
    ] {
        for priority in [1, 100, 255] {
            let source = ip("10.0.1.2");
            let bytes = with(addresses).advertisement(priority, source, wire::GROUP_V4.into());
            let heard = expectation.judge(&wire::ipv4::parse(&bytes).unwrap());
            let wanted = match agreement {
                Agreement::Strange => {
                    Err(RefusedAdvert { why: AdvertRefusal::Addresses, agreement: Some(Agreement::Strange) })
                }
                _ => Ok(agreement),
            };
            assert_eq!(heard.map(|heard| heard.agreement), wanted, "{priority}");
        }
        let other_password = Voice { password: Some(v2::password("other")), ..with(addresses) };
        let refused = judge(&expectation, &other_password, |_| {}, 255);
        assert_eq!(refused, Err(RefusedAdvert { why: AdvertRefusal::Password, agreement: Some(agreement) }));
    }
}

#[test]
fn random_bytes_are_never_accepted_and_never_panic() {
    let mut state = 1_u64;
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..state % 64)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            })
            .collect();
        state = state.wrapping_add(1);
        for version in [VrrpVersion::V2, VrrpVersion::V3] {
            let packet =
                Packet { source: ip("10.0.1.2"), destination: wire::GROUP_V4.into(), hop_limit: 255, payload: &bytes };
            assert!(expectation(version).judge(&packet).is_err());
        }
    }
}

#[test]
fn names_of_refusals_are_unique() {
    let names: BTreeSet<_> = AdvertRefusal::ALL.iter().map(|refusal| refusal.name()).collect();
    assert_eq!(names.len(), AdvertRefusal::ALL.len());
}

#[test]
fn advertisements_that_have_piled_up_tell_how_long_the_host_stood_still() {
    let heard =
        |source: &str, priority| Heard { source: ip(source), priority, interval: SECOND, agreement: Agreement::Same };
    let (two, three) = (heard("10.0.1.2", 90), heard("10.0.1.3", 80));
    assert_eq!(backlog(&[(0, two), (0, three), (0, two), (0, three), (0, two), (0, three)]), [].into());
    assert_eq!(backlog(&[(0, two), (1, two), (0, two), (1, two), (0, two), (0, two)]), [(0, 3 * SECOND)].into());
    assert_eq!(backlog(&[(7, three); 31]), [(7, 30 * SECOND)].into());
    assert_eq!(backlog(&[(0, heard("10.0.1.2", 0)); 9]), [].into(), "resignations come when they come");
}
