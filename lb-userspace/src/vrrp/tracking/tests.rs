use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use super::*;
use crate::{config::model::VrrpChecksum, words::VrrpVersion};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn script(weight: i16) -> TrackScript {
    TrackScript {
        command: PathBuf::from("/check"),
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(1),
        weight,
        rise: NonZeroU32::new(2).unwrap(),
        fall: NonZeroU32::new(3).unwrap(),
    }
}

fn instance(address: &str) -> Vrrp {
    Vrrp {
        name: "VI".into(),
        interface: "eth0".into(),
        virtual_router_id: 51.try_into().unwrap(),
        priority: 150.try_into().unwrap(),
        version: VrrpVersion::V3,
        advert_interval: Duration::from_secs(1),
        preempt: true,
        preempt_delay: Duration::ZERO,
        auth_pass: None,
        unicast_source: None,
        unicast_peers: Vec::new(),
        min_ttl: 0,
        addresses: vec![address.parse().unwrap()],
        garp_repeat: 5,
        garp_delay: Duration::from_secs(5),
        garp_refresh: Duration::from_secs(60),
        checksum: VrrpChecksum::PseudoHeader,
        group: None,
        track_backends: -60,
        track_datapath: TrackDatapath::Fault,
        track_interface: vec!["eth1".into()],
        notify: None,
        track_script: vec![script(-20)],
    }
}

fn setup() -> Setup {
    Setup::of(&instance("10.0.1.100/24"))
}

fn interface(name: &str, up: bool, addresses: &[&str]) -> (String, Interface) {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let interface = Interface { name: name.into(), ifindex: 2, mac: [2; 6], up, addresses };
    (name.into(), interface)
}

/// A host on which nothing is wrong.
fn host() -> HostFacts {
    let eth0 = interface("eth0", true, &["10.0.1.100/32", "10.0.1.99/32", "10.0.1.1/24", "fe80::1/64"]);
    HostFacts { interfaces: [eth0, interface("eth1", true, &[])].into(), ..HostFacts::default() }
}

fn moving() -> BTreeSet<IpAddr> {
    [ip("10.0.1.100"), ip("10.0.1.99")].into()
}

fn own() -> InstanceFacts {
    InstanceFacts { scripts: vec![Streak::default()], ..InstanceFacts::default() }
}

#[test]
fn a_host_on_which_all_is_well_has_no_weights_and_speaks_from_the_address_that_stays() {
    let usability = usability(&setup(), &host(), &own(), &moving());
    assert_eq!((usability.weight(), usability.usable()), (0, Some(ip("10.0.1.1"))));
    assert_eq!((usability.weights, usability.faults), (vec![], vec![]));
}

#[test]
fn an_address_that_is_the_host_s_own_is_a_fault_whatever_its_prefix_and_interface() {
    for interface in ["eth0", "eth7"] {
        let mut host = host();
        host.own = [(ip("10.0.1.100"), interface.to_owned()), (ip("10.0.1.1"), "eth0".to_owned())].into();
        let usability = usability(&setup(), &host, &own(), &moving());
        assert_eq!(usability.usable(), None);
        assert_eq!(usability.faults.len(), 1);
        let fault = &usability.faults[0];
        assert!(fault.starts_with(&format!("10.0.1.100 of `addresses` is this host's own on {interface}")), "{fault}");
    }
    // The only one that it has: that is what has to be said.
    let mut owner = instance("10.0.1.1/24");
    owner.priority = 255.try_into().unwrap();
    let mut host = host();
    host.own = [(ip("10.0.1.1"), "eth0".to_owned())].into();
    let usability = usability(&Setup::of(&owner), &host, &own(), &[ip("10.0.1.1")].into());
    assert_eq!(usability.faults.len(), 1, "{:?}", usability.faults);
}

#[test]
fn ipv6_is_spoken_from_the_link_local_address_and_a_configured_source_wins() {
    let six = Setup::of(&instance("fd00::100/64"));
    assert_eq!(usability(&six, &host(), &own(), &moving()).usable(), Some(ip("fe80::1")));
    let mut host = host();
    host.interfaces.extend([interface("eth2", true, &["10.0.1.7/24"])]);
    let configured = Setup { source: Some(ip("10.0.1.7")), ..setup() };
    assert_eq!(usability(&configured, &host, &own(), &moving()).usable(), Some(ip("10.0.1.7")));
    host.interfaces.remove("eth2");
    let gone = usability(&configured, &host, &own(), &moving());
    assert_eq!(gone.usable(), None);
    assert_eq!(gone.faults, ["no interface has 10.0.1.7, which advertisements are to come from"]);
}

#[test]
fn interfaces_addresses_and_the_datapath_are_faults() {
    let faults = |change: &dyn Fn(&mut HostFacts, &mut InstanceFacts)| {
        let (mut host, mut own) = (host(), own());
        change(&mut host, &mut own);
        let usability = usability(&setup(), &host, &own, &moving());
        assert_eq!(usability.usable(), None);
        usability.faults
    };
    assert_eq!(faults(&|host, _| drop(host.interfaces.remove("eth0"))), ["there is no interface eth0"]);
    assert_eq!(faults(&|host, _| host.interfaces.get_mut("eth0").unwrap().up = false), ["interface eth0 is down"]);
    assert_eq!(faults(&|host, _| drop(host.interfaces.remove("eth1"))), ["there is no interface eth1"]);
    assert_eq!(
        faults(&|host, _| host.interfaces.get_mut("eth0").unwrap().addresses.clear()),
        ["interface eth0 has no IPv4 address of its own"]
    );
    assert_eq!(faults(&|host, _| host.datapath = Some("detached".into())), ["datapath: detached"]);
    assert_eq!(faults(&|_, own| own.addresses = Some("cannot add".into())), ["cannot add"]);
    assert_eq!(faults(&|_, own| own.mute = Some("cannot advertise".into())), ["cannot advertise"]);
}

#[test]
fn weights_add_up_and_say_what_they_are_for() {
    let mut setup = setup();
    setup.tracked.datapath = TrackDatapath::Weight(-30);
    setup.tracked.scripts.push(script(5));
    let mut own = own();
    own.scripts.push(Streak::default());
    (0..3).for_each(|_| own.scripts[0].result(false, &script(-20)));
    let host = HostFacts { datapath: Some("detached".into()), no_backend: true, ..host() };
    let usability = usability(&setup, &host, &own, &moving());
    assert_eq!(usability.weight(), -30 - 60 - 20 + 5);
    let what: Vec<_> = usability.weights.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(what, ["datapath: detached", "no backend is up", "/check fails", "/check passes"]);
    assert!(usability.usable().is_some());
}

#[test]
fn a_script_without_a_weight_makes_it_fault() {
    let mut setup = setup();
    setup.tracked.scripts = vec![script(0)];
    let failing = InstanceFacts { scripts: vec![Streak { failing: true, against: 0 }], ..InstanceFacts::default() };
    assert_eq!(usability(&setup, &host(), &failing, &moving()).faults, ["/check fails"]);
}

#[test]
fn a_script_falls_and_rises_after_as_many_results_in_a_row_as_configured() {
    let mut streak = Streak::default();
    let mut run = |results: &str| -> String {
        let result = |passed: char| {
            streak.result(passed == '+', &script(-20));
            if streak.is_failing() { '-' } else { '+' }
        };
        results.chars().map(result).collect()
    };
    assert_eq!(run("--+--+"), "++++++");
    assert_eq!(run("---"), "++-");
    assert_eq!(run("+-+-"), "----");
    assert_eq!(run("++-"), "-++");
}
