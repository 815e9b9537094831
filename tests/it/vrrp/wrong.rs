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

/// Both hosts would be MASTER for ever, each with its own number.
#[test]
fn our_address_under_another_number_is_told_and_a_file_is_compared_with_the_wire_before_it_joins() {
    let lab = lab();
    let keys = ["advert_interval = \"100ms\"", "version = 3"];
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &keys));
    becomes(&one, "MASTER");
    let with = |text: String| Evenkeel::on(&lab, second(&lab), &(service(&lab) + "\n" + &text)).expect("files");
    let compared = |evenkeel: &Evenkeel| {
        let file = evenkeel.config().display().to_string();
        evenkeel.command(&["check", "--listen", "700ms", "-c", &file]).expect("check")
    };
    let same = compared(&with(instance(100, &keys)));
    assert_eq!(same.code, 0, "{same:?}");
    assert!(same.out.contains("VI_1 hears 10.0.1.1, which agrees with it: version 3"), "{same:?}");
    for (wrong, words) in [
        (instance(100, &["advert_interval = \"1s\"", "version = 2"]), "`version` on both hosts"),
        (instance(100, &keys).replace("= 51", "= 52"), "10.0.1.1 advertises 10.0.1.100 under another one"),
        (
            instance(100, &keys).replace("[\"10.0.1.100/24\"]", "[\"10.0.1.100/24\", \"10.0.1.78/24\"]"),
            "other `addresses`",
        ),
    ] {
        let answer = compared(&with(wrong));
        assert!(answer.code == 1 && answer.err.contains(words), "{words}: {answer:?}");
        assert!(answer.err.contains("virtual_router_id 51, priority 150"), "what was heard: {answer:?}");
    }
    let mut two = with(instance(100, &keys).replace("= 51", "= 52"));
    two.run().expect("evenkeel");
    is_told(&one, "has virtual_router_id 51, but 10.0.1.2 advertises 10.0.1.100 under another one");
    is_told(&two, "has virtual_router_id 52, but 10.0.1.1 advertises 10.0.1.100 under another one");
}

/// `.101` for `.100`, in a reload: nobody has the address any more.
#[test]
fn a_listener_that_no_instance_carries_is_told_and_not_ready() {
    let lab = lab();
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &["advert_interval = \"100ms\""]));
    becomes(&one, "MASTER");
    let wrong = instance(150, &["advert_interval = \"100ms\""]).replace(VIP, "10.0.1.101");
    one.write(&(service(&lab) + "\n" + &wrong)).expect("a configuration");
    one.done(&["reload"]).expect("reload");
    is_told(&one, "listens on 10.0.1.100:6443, whose address no [[vrrp]] carries and no interface of this host has");
    is_told(&one, "those of [[vrrp]] are 10.0.1.101");
    let ready = || {
        let mut curl = lab.balancer.command(std::path::Path::new("curl"));
        curl.args(["--silent", "--unix-socket"]).arg(one.socket()).arg("http://evenkeel/readyz");
        String::from_utf8_lossy(&curl.output().expect("curl").stdout).into_owned()
    };
    assert!(ready().contains("a service listens on 10.0.1.100:6443"), "{}", ready());
    one.write(&(service(&lab) + "\n" + &instance(150, &["advert_interval = \"100ms\""]))).expect("a configuration");
    one.done(&["reload"]).expect("reload");
    wait::until("ready", SOON, || (ready() == "ready\n").then_some(())).unwrap_or_else(|_| panic!("{}", ready()));
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
