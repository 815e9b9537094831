//! A host is as it was before, once evenkeel is detached: by the daemon at its end, or without one.

use std::path::PathBuf;

use super::*;

const FAST: &str = "advert_interval = \"100ms\"";

/// What evenkeel changes on a host, as text.
fn host_state(host: &Host, evenkeel: &Evenkeel) -> String {
    let network = [&["-oneline", "address"][..], &["route", "show", "table", "all"], &["rule"]]
        .map(|args| host.ip(args).expect("ip"))
        .concat();
    let sysctls = host.run("sh", &["-c", "sysctl -a --pattern '^net.ipv[46].(conf|neigh)' 2>/dev/null"]);
    let filters = host.run("sh", &["-c", "tc qdisc show; tc filter show dev eth0 ingress; bpftool net show"]);
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(evenkeel.state_dir()).expect("a folder").flatten().map(|entry| entry.path()).collect();
    files.sort();
    let pins = evenkeel.bpffs().exists();
    format!("{network}{}{}{files:#?}\npins {pins}\n", sysctls.expect("sysctl"), filters.expect("tc"))
}

#[test]
fn stop_detach_leaves_addresses_settings_pins_and_files_as_they_were() {
    let lab = lab();
    // An address of somebody else, which must not fall silent.
    let other = "10.0.1.77";
    lab.balancer.ip(&["address", "add", &format!("{other}/32"), "dev", "lo"]).expect("ip");
    let is_answered = || resolve(lab.client(), other) == Some(mac(&lab.balancer));
    assert!(is_answered());
    let file = service(&lab) + "\n" + &instance(150, &[FAST]);
    let mut one = Evenkeel::on(&lab, &lab.balancer, &file).expect("files");
    let before = host_state(&lab.balancer, &one);
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    one.done(&["drain", &lab.backends[0].name, "--force"]).expect("a drain");
    assert!(is_answered());
    one.stop_detach().expect("its end");
    assert!(is_answered());
    let after = host_state(&lab.balancer, &one);
    assert_eq!(after.lines().collect::<Vec<_>>(), before.lines().collect::<Vec<_>>());
}

#[test]
fn what_a_killed_daemon_left_is_told_by_stop_and_removed_by_detach() {
    let lab = lab();
    let file = service(&lab) + "\n" + &instance(150, &[FAST]);
    let mut one = Evenkeel::on(&lab, &lab.balancer, &file).expect("files");
    let before = host_state(&lab.balancer, &one);
    let config = one.config().display().to_string();
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    let refused = one.command(&["detach", "-c", &config]).expect("a command");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("the daemon runs: `evenkeel stop --detach"), "{refused:?}");
    one.kill();
    let answer = one.command(&["stop", "--detach"]).expect("a command");
    assert_eq!(answer.code, 2, "{answer:?}");
    let told = format!("its program is still on eth0: evenkeel detach -c {config} takes it off");
    assert!(answer.err.contains(&told), "{answer:?}");
    let done = one.done(&["detach", "-c", &config]).expect("detach");
    assert!(done.contains("detached from eth0\n") && done.contains(&format!("removed {VIP}\n")), "{done}");
    let after = host_state(&lab.balancer, &one);
    assert_eq!(after.lines().collect::<Vec<_>>(), before.lines().collect::<Vec<_>>());
    assert_eq!(one.done(&["detach", "-c", &config]).expect("detach"), "nothing was left\n");

    // In order, but not detached: `stop` says what goes on.
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    let said = one.done(&["stop"]).expect("stop");
    let told = format!("stopped; the program on eth0 goes on balancing. To take it off: evenkeel detach -c {config}\n");
    assert_eq!(said, told);
    one.done(&["detach", "-c", &config]).expect("detach");
    assert_eq!(host_state(&lab.balancer, &one), before);
}
