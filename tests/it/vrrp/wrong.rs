//! Another router that is configured differently, or is somebody else's: it is counted, reported
//! with what to do, and shown by `evenkeel vrrp`. And how the address is announced to the segment,
//! again and again.

use super::*;

/// Waits until a counter of the instance's advertisements moves.
#[track_caller]
fn counts(evenkeel: &Evenkeel, instance: &str, counter: &str) {
    let counted = || {
        let adverts = &report_of(evenkeel, instance).ok()?["adverts"];
        let count = adverts[counter].as_u64().or_else(|| adverts["refused"][counter].as_u64())?;
        (count > 0).then_some(())
    };
    wait::until(counter, SOON, counted).unwrap_or_else(|late| panic!("{late:#}\n{}", evenkeel.log()));
}

/// An instance of version 2 with its own number.
fn second_version(name: &str, number: u8, priority: u8, keys: &[&str]) -> String {
    instance(priority, &[&["version = 2"], keys].concat())
        .replace("VI_1", name)
        .replace("= 51", &format!("= {number}"))
        .replace(VIP, &format!("10.0.1.{number}"))
}

#[test]
fn another_password_or_interval_leaves_two_masters_that_report_it_and_what_to_do() {
    let lab = lab();
    let both = |priority, password: &str, interval: &str| {
        second_version("VI_P", 61, priority, &[&format!("auth_pass = \"{password}\"")])
            + "\n"
            + &second_version("VI_I", 62, priority, &[&format!("advert_interval = \"{interval}\"")])
    };
    let one = evenkeel(&lab, &lab.balancer, &both(150, "sesame", "1s"));
    let two = evenkeel(&lab, second(&lab), &both(100, "simsim", "2s"));
    for (evenkeel, other) in [(&one, "10.0.1.2"), (&two, "10.0.1.1")] {
        counts(evenkeel, "VI_P", "password");
        counts(evenkeel, "VI_I", "interval");
        is_told(evenkeel, &format!("ignores {other}, which sends another password: write the same `auth_pass`"));
        is_told(evenkeel, &format!("ignores {other}, which sends another interval, which version 2 does not permit"));
        let shown = evenkeel.done(&["vrrp"]).expect("vrrp");
        assert!(
            shown.contains("(password): another password: write the same `auth_pass` (its first 8 bytes"),
            "{shown}"
        );
        assert!(shown.contains("(interval): another interval, which version 2"), "{shown}");
    }
    // Each takes itself for the only one, and sees that the other does the same.
    let masters = || ["VI_P", "VI_I"].iter().all(|name| report_of(&two, name).is_ok_and(|it| it["state"] == "MASTER"));
    wait::until("two masters", SOON, || masters().then_some(())).expect("split brain");
    counts(&one, "VI_P", "claims");
    let shown = one.done(&["vrrp"]).expect("vrrp");
    assert!(shown.contains("claims to its addresses by ARP or ND: a master that this host does not hear"), "{shown}");
}

#[test]
fn somebody_else_s_virtual_router_with_our_number_is_distinguished_from_a_peer_with_other_addresses() {
    let lab = lab();
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &["advert_interval = \"100ms\""]));
    becomes(&one, "MASTER");
    // keepalived, with our number for an address that only it has.
    let strange = keepalived("MASTER", 200, &["version 3", "advert_int 0.1"]).replace(VIP, "10.0.1.77");
    let mut theirs = Keepalived::start(second(&lab), &strange).expect("keepalived");
    // It is the better one, for its own address only.
    counts(&one, "VI_1", "addresses");
    is_told(
        &one,
        "ignores 10.0.1.2, which uses virtual_router_id 51 for other addresses: somebody else's virtual router",
    );
    let shown = one.done(&["vrrp"]).expect("vrrp");
    assert!(shown.contains("(addresses): none of our addresses: somebody else's virtual router"), "{shown}");
    assert_eq!(report_of(&one, "VI_1").expect("a report")["state"], "MASTER");
    theirs.terminate().expect("its end");

    // A peer with one more address.
    let more = keepalived("MASTER", 200, &["version 3", "advert_int 0.1"]);
    let more = more.replace("    10.0.1.100/24\n", "    10.0.1.100/24\n    10.0.1.78/24\n");
    let _theirs = Keepalived::start(second(&lab), &more).expect("keepalived");
    becomes(&one, "BACKUP");
    is_told(&one, "hears 10.0.1.2 with other `addresses`: write the same on both hosts");
}

#[test]
fn the_address_is_announced_at_once_after_a_while_and_every_garp_refresh() {
    let lab = lab();
    let filter = format!(
        "arp and arp[14:4] = {} and ether broadcast",
        u32::from(VIP.parse::<std::net::Ipv4Addr>().expect("it"))
    );
    let seen = Capture::start(lab.client(), "eth0", &filter).expect("tcpdump");
    let keys = ["advert_interval = \"100ms\"", "garp_repeat = 3", "garp_delay = \"1s\"", "garp_refresh = \"2s\""];
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &keys));
    becomes(&one, "MASTER");
    // A request and an answer each time, three times.
    let all = || (seen.seen().len() >= 4 * 6).then(|| seen.seen());
    let times = wait::until("four rounds", SOON, all).expect("gratuitous ARP");
    let after: Vec<_> = times.iter().step_by(6).map(|at| (*at - times[0]).as_secs_f64()).collect();
    for (round, due) in after.iter().zip([0.0, 1.0, 2.0, 4.0]) {
        assert!((round - due).abs() < 0.3, "{after:?}");
    }
    for round in times.chunks_exact(6) {
        assert!(round[5] - round[0] < Duration::from_millis(100), "all at once: {round:?}");
    }
}
