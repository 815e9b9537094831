//! The priority follows usefulness: something that an instance depends on fails on one host or on
//! both, and comes back.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use lab::{StandIn, xdp_pass};

use super::*;

const FAST: &str = "advert_interval = \"100ms\"";

/// A program for the instances to run.
fn script(host: &Host, name: &str, text: &str) -> PathBuf {
    let path = host.folder().join(format!("{}-{name}", host.name));
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    path
}

fn priority(evenkeel: &Evenkeel) -> u64 {
    report(evenkeel).ok().and_then(|report| report["priority"].as_u64()).unwrap_or_default()
}

#[track_caller]
fn priority_becomes(evenkeel: &Evenkeel, wanted: u64) {
    let late = wait::until(&format!("priority {wanted}"), SOON, || (priority(evenkeel) == wanted).then_some(()));
    late.unwrap_or_else(|late| panic!("{late:#}, but {:?}\n{}", report(evenkeel), evenkeel.log()));
}

/// What changes the priority and what makes it FAULT, in words.
fn because(evenkeel: &Evenkeel) -> String {
    let report = report(evenkeel).expect("a report");
    format!("{} {}", report["weights"], report["faults"])
}

#[test]
fn an_interface_that_is_tracked_takes_the_address_with_it_and_notify_is_called_at_every_change() {
    let lab = lab();
    lab.second_cable(&lab.balancer, "eth1").expect("a cable");
    let calls = lab.balancer.folder().join("calls");
    let notify = script(&lab.balancer, "notify", &format!("echo \"$@\" >> {}", calls.display()));
    let keys = [FAST, "track_interface = [\"eth1\"]", &format!("notify = \"{}\"", notify.display())];
    let mut one = evenkeel(&lab, &lab.balancer, &instance(150, &keys));
    becomes(&one, "MASTER");
    let two = evenkeel(&lab, second(&lab), &instance(100, &[FAST]));
    becomes(&two, "BACKUP");
    lab.balancer.link("eth1", false).expect("eth1");
    becomes(&one, "FAULT");
    becomes(&two, "MASTER");
    assert!(because(&one).contains("interface eth1 is down"), "{}", because(&one));
    vip_goes(&lab.balancer, false);
    assert_eq!(resolve(lab.client(), VIP), Some(mac(second(&lab))));
    // An unplugged cable counts like an interface that is down or gone.
    lab.balancer.link("eth1", true).expect("eth1");
    becomes(&one, "MASTER");
    lab.switch.link("lb-eth1", false).expect("the switch's port");
    becomes(&one, "FAULT");
    lab.switch.link("lb-eth1", true).expect("the switch's port");
    becomes(&one, "MASTER");
    lab.balancer.ip(&["link", "del", "eth1"]).expect("ip");
    becomes(&one, "FAULT");
    assert!(because(&one).contains("there is no interface eth1"), "{}", because(&one));
    is_told(&one, "is FAULT with priority 150 (was MASTER): there is no interface eth1");
    one.terminate().expect("an end in order");
    let told = fs::read_to_string(&calls).expect("calls");
    let back = ["FAULT", "BACKUP", "MASTER"];
    let states = ["BACKUP", "MASTER"].iter().chain(&back).chain(&back).chain(&["FAULT", "INIT"]);
    assert_eq!(told, states.map(|state| format!("VI_1 {state} 150\n")).collect::<String>());
}

#[test]
fn a_source_that_the_host_has_lost_is_a_fault_until_it_is_back() {
    let lab = lab();
    let keys = [FAST, "unicast_source = \"10.0.1.1\"", "unicast_peers = [\"10.0.1.2\"]"];
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &keys));
    becomes(&one, "MASTER");
    let seen = Capture::start(second(&lab), "eth0", "ip proto 112 and src 10.0.1.1 and ip[22] = 0").expect("tcpdump");
    lab.balancer.ip(&["address", "del", "10.0.1.1/24", "dev", "eth0"]).expect("ip");
    becomes(&one, "FAULT");
    assert!(because(&one).contains("no interface has 10.0.1.1"), "{}", because(&one));
    vip_goes(&lab.balancer, false);
    wait::until("a resignation", SOON, || (!seen.seen().is_empty()).then_some(())).expect("priority 0");
    lab.balancer.ip(&["address", "add", "10.0.1.1/24", "dev", "eth0"]).expect("ip");
    becomes(&one, "MASTER");
}

/// How often a script has run.
fn runs(count: &PathBuf) -> usize {
    fs::read_to_string(count).map_or(0, |text| text.lines().count())
}

#[test]
fn a_script_counts_when_it_has_failed_and_passed_often_enough_and_one_that_hangs_is_ended_and_delays_nothing() {
    let lab = lab();
    let folder = lab.balancer.folder().to_owned();
    let [fails, hangs, count, child] = ["fails", "hangs", "count", "child"].map(|name| folder.join(name));
    let text = format!(
        "echo >> {}\n[ ! -e {} ] || {{ sleep 300 & echo $! >> {}; wait; }}\n[ ! -e {} ]",
        count.display(),
        hangs.display(),
        child.display(),
        fails.display()
    );
    let check = script(&lab.balancer, "check", &text);
    let tracked = format!(
        "track_script = [{{ command = \"{}\", interval = \"200ms\", timeout = \"200ms\", weight = -60, rise = 4, fall = 3 }}]",
        check.display()
    );
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST, &tracked]));
    becomes(&one, "MASTER");
    let two = evenkeel(&lab, second(&lab), &instance(100, &[FAST]));
    becomes(&two, "BACKUP");

    let before = runs(&count);
    fs::write(&fails, "").expect("a file");
    priority_becomes(&one, 90);
    assert!(runs(&count) - before >= 3, "three in a row, not fewer");
    becomes(&two, "MASTER");
    becomes(&one, "BACKUP");
    assert!(because(&one).contains("check fails"), "{}", because(&one));
    let before = runs(&count);
    fs::remove_file(&fails).expect("a file");
    priority_becomes(&one, 150);
    assert!(runs(&count) - before >= 4, "four in a row, not fewer");
    becomes(&one, "MASTER");

    // One that hangs is killed with everything that it has started, and counts as failed; in the
    // meantime no advertisement is late.
    let seen = Capture::start(lab.client(), "eth0", "ip proto 112 and src 10.0.1.1").expect("tcpdump");
    fs::write(&hangs, "").expect("a file");
    priority_becomes(&one, 90);
    becomes(&two, "MASTER");
    is_told(&one, "did not end within 200ms and was killed: it fails");
    let gone = || {
        let children = fs::read_to_string(&child).ok()?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", children.lines().next()?)).unwrap_or_default();
        // A dead one may wait to be reaped.
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    };
    wait::until("what the script had started is gone", SOON, gone).expect("its end");
    let adverts = seen.seen();
    let longest = adverts.windows(2).map(|pair| pair[1] - pair[0]).max().expect("adverts");
    assert!(adverts.len() >= 4 && longest < Duration::from_millis(250), "{longest:?} between two of {adverts:?}");
}

#[test]
fn with_all_backends_gone_on_both_hosts_one_still_holds_the_address_and_on_one_host_only_the_other_takes_it() {
    let lab = lab();
    let mut standin = StandIn::start(&lab.backends[0]).expect("a stand-in");
    let probe = ["probe = \"tcp\"", "interval = \"200ms\"", "timeout = \"150ms\"", "fall = 2", "rise = 1"];
    let probed = probe.iter().fold(Service::new(&lab, "tc"), |service, line| service.probe(line)).toml();
    let (one, two) = master_and_backup(&lab, &probed, &[FAST]);
    let transitions = |evenkeel: &Evenkeel| report(evenkeel).expect("a report")["transitions"].clone();

    // All of them fail on both hosts: the distance stays.
    standin.kill();
    priority_becomes(&one, 90);
    priority_becomes(&two, 40);
    assert!(because(&one).contains("no backend is up"), "{}", because(&one));
    // One host may notice before the other, and lose the address for that time.
    becomes(&one, "MASTER");
    becomes(&two, "BACKUP");
    let before = [&one, &two].map(transitions);
    let sent = || report(&one).expect("a report")["adverts"]["sent"].as_u64();
    let enough = sent().map(|sent| sent + 20);
    wait::until("time goes by", SOON, || (sent() >= enough).then_some(())).expect("adverts");
    assert_eq!([&one, &two].map(transitions), before);
    assert_eq!((has_vip(&lab.balancer), has_vip(second(&lab))), (true, false), "exactly one holds it");
    assert_eq!(resolve(lab.client(), VIP), Some(mac(&lab.balancer)));
    standin.revive().expect("the stand-in");
    priority_becomes(&one, 150);
    priority_becomes(&two, 100);

    // For the first host only: the other one is better.
    let backend = lab.backends[0].address();
    lab.balancer.firewall(&[], &[&format!("ip daddr {backend} drop")]).expect("nft");
    priority_becomes(&one, 90);
    becomes(&two, "MASTER");
    becomes(&one, "BACKUP");
    // Then for the other one too, which then is the worse one.
    second(&lab).firewall(&[], &[&format!("ip daddr {backend} drop")]).expect("nft");
    priority_becomes(&two, 40);
    becomes(&one, "MASTER");
    becomes(&two, "BACKUP");
    [&lab.balancer, second(&lab)].iter().for_each(|host| host.open_firewall().expect("nft"));
    priority_becomes(&one, 150);
    priority_becomes(&two, 100);
    becomes(&one, "MASTER");
    becomes(&two, "BACKUP");
}

/// Takes the program off and puts another one there before ours is back.
fn occupy(lab: &Lab, one: &Evenkeel) {
    let links = std::fs::read_dir(one.bpffs().join("links")).expect("links").flatten();
    let link = links.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with("-generic"));
    let link = link.expect("a link").display().to_string();
    let taken = || {
        lab::process::output(std::process::Command::new("bpftool").args(["link", "detach", "pinned", &link])).ok()?;
        lab::foreign::generic_xdp(&lab.balancer, "eth0", "stranger").ok()
    };
    wait::until("the hook is taken", SOON, taken).expect("the hook");
}

#[test]
fn a_program_that_cannot_be_put_back_costs_the_priority_or_everything_as_configured_until_it_can() {
    let lab = lab();
    let two = evenkeel(&lab, second(&lab), &instance(100, &[FAST]));
    becomes(&two, "MASTER");
    for (key, then, priority) in [("track_datapath = -60", "BACKUP", 90), ("track_datapath = \"fault\"", "FAULT", 150)]
    {
        let file = Service::new(&lab, "xdp-generic").toml() + "\n" + &instance(150, &[FAST, key]);
        let mut one = Evenkeel::on(&lab, &lab.balancer, &file).expect("files");
        one.run().expect("evenkeel");
        becomes(&one, "MASTER");
        becomes(&two, "BACKUP");
        occupy(&lab, &one);
        becomes(&one, then);
        becomes(&two, "MASTER");
        assert_eq!(self::priority(&one), priority, "{}", because(&one));
        assert!(
            because(&one).contains("datapath: the program was taken from eth0 and cannot be put back"),
            "{}",
            because(&one)
        );
        vip_goes(&lab.balancer, false);
        lab.balancer.ip(&["link", "set", "dev", "eth0", "xdpgeneric", "off"]).expect("ip");
        becomes(&one, "MASTER");
        one.stop_detach().expect("its end");
        becomes(&two, "MASTER");
    }
}

/// Native XDP loses every frame without a sign where the far end of the cable takes none.
#[test]
fn native_xdp_whose_frames_are_lost_gives_the_address_away_until_they_are_not() {
    let lab = Lab::build(&Plan::new(Topology::Segment).backends(1).pair().for_xdp()).expect("the lab");
    let on = |host: &Host, datapath, priority| {
        let file = Service::new(&lab, datapath).toml() + "\n" + &instance(priority, &[FAST]);
        let mut evenkeel = Evenkeel::on(&lab, host, &file).expect("files");
        evenkeel.run().expect("evenkeel");
        evenkeel
    };
    let one = on(&lab.balancer, "xdp", 150);
    becomes(&one, "MASTER");
    let two = on(second(&lab), "tc", 100);
    becomes(&two, "BACKUP");
    let far_end = &*lab.balancer.name;
    lab.switch.ip(&["link", "set", "dev", far_end, "xdpdrv", "off"]).expect("ip");
    becomes(&one, "FAULT");
    becomes(&two, "MASTER");
    let why = "frames are lost: eth0 (veth) takes no XDP frames: its other end has no XDP program";
    assert!(because(&one).contains(why), "{}", because(&one));
    xdp_pass::attach(&lab.switch, far_end).expect("ip");
    becomes(&one, "MASTER");
    becomes(&two, "BACKUP");
}

#[test]
fn an_ipv4_and_an_ipv6_instance_of_one_group_are_master_together_or_not_at_all() {
    let lab = lab();
    for host in [&lab.balancer, second(&lab)] {
        host.sysctl("net.ipv6.conf.eth0.accept_dad", "0").expect("sysctl");
        host.sysctl("net.ipv6.conf.eth0.disable_ipv6", "0").expect("sysctl");
    }
    lab.second_cable(&lab.balancer, "eth1").expect("a cable");
    let group = |priority, keys: &[&str]| {
        let four = instance(priority, &[FAST, "group = \"G1\""]);
        let six = instance(priority, &[&[FAST, "group = \"G1\""], keys].concat());
        four + "\n" + &six.replace("VI_1", "VI_6").replace("10.0.1.100/24", "fd00:1::100/64")
    };
    let states = |evenkeel: &Evenkeel| {
        ["VI_1", "VI_6"]
            .map(|name| report_of(evenkeel, name).expect("a report")["state"].as_str().expect("a state").to_owned())
    };
    let become_both = |evenkeel: &Evenkeel, wanted: &str| {
        let late = wait::until(wanted, SOON, || (states(evenkeel) == [wanted; 2]).then_some(()));
        late.unwrap_or_else(|late| panic!("{late:#}, but {:?}\n{}", states(evenkeel), evenkeel.log()));
    };
    let one = evenkeel(&lab, &lab.balancer, &group(150, &["track_interface = [\"eth1\"]"]));
    become_both(&one, "MASTER");
    let two = evenkeel(&lab, second(&lab), &group(100, &[]));
    become_both(&two, "BACKUP");

    // One of them is no longer heard: it waits for the other one, which hears its master.
    second(&lab).firewall(&["meta l4proto 112 ip6 hoplimit 255 drop"], &[]).expect("nft");
    let heard =
        |name: &str| report_of(&two, name).expect("a report")["adverts"]["received"].as_u64().expect("a number");
    let (four, six) = (heard("VI_1") + 12, heard("VI_6"));
    wait::until("time goes by", SOON, || (heard("VI_1") >= four).then_some(())).expect("adverts");
    assert!(heard("VI_6") <= six + 2, "the firewall lets nothing through");
    assert_eq!(
        (states(&one), states(&two)),
        (["MASTER".to_owned(), "MASTER".into()], ["BACKUP".to_owned(), "BACKUP".into()])
    );
    second(&lab).open_firewall().expect("nft");

    // What only the IPv6 instance depends on takes both away, and brings both back.
    lab.balancer.link("eth1", false).expect("eth1");
    become_both(&one, "FAULT");
    become_both(&two, "MASTER");
    lab.balancer.link("eth1", true).expect("eth1");
    become_both(&one, "MASTER");
    become_both(&two, "BACKUP");
    one.done(&["vrrp", "failover", "VI_6"]).expect("failover");
    become_both(&two, "MASTER");
    become_both(&one, "BACKUP");
}
