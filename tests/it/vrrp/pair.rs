//! Two instances of evenkeel.

use super::*;

const FAST: &str = "advert_interval = \"100ms\"";

#[test]
fn the_better_of_two_has_the_address_and_gives_it_back_in_order() {
    let lab = lab();
    let mut one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    let two = evenkeel(&lab, second(&lab), &instance(100, &[FAST]));
    becomes(&two, "BACKUP");
    assert!(!has_vip(second(&lab)));
    let heard = || report(&two).ok().filter(|report| report["master"].as_str() == Some("10.0.1.1"));
    let heard = wait::until("the master is heard", SOON, heard).expect("a master");
    assert_eq!(heard["priority"], 100, "{heard}");
    let elsewhere = |of: &Evenkeel| of.json(&["trace", "10.0.1.101:7"]).expect("trace")["new"][0]["elsewhere"].clone();
    assert_eq!((&elsewhere(&two)["state"], &elsewhere(&two)["master"]), (&"BACKUP".into(), &"10.0.1.1".into()));
    assert_eq!(elsewhere(&one), Value::Null, "clients' SYNs come here");

    one.terminate().expect("an end in order");
    assert!(!has_vip(&lab.balancer), "it is gone before the process is");
    becomes(&two, "MASTER");
    vip_goes(second(&lab), true);
    // Back again.
    one.run().expect("a second start");
    becomes(&one, "MASTER");
    becomes(&two, "BACKUP");
    vip_goes(second(&lab), false);
}

#[test]
fn failover_gives_the_address_away_until_the_other_host_gives_it_back() {
    let lab = lab();
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    becomes(&one, "MASTER");
    let refused = one.command(&["vrrp", "failover", "VI_1"]).expect("a command");
    assert_eq!(refused.code, 1, "there is nobody to take it: {refused:?}");
    assert!(refused.err.contains("nobody has taken VI_1 over"), "{refused:?}");
    becomes(&one, "MASTER");

    let two = evenkeel(&lab, second(&lab), &instance(100, &[FAST]));
    let refused = two.command(&["vrrp", "failover", "VI_1"]).expect("a command");
    assert!(refused.code == 1 && refused.err.contains("is BACKUP here"), "{refused:?}");
    let told = one.done(&["vrrp", "failover", "VI_1"]).expect("failover");
    assert!(told.starts_with("VI_1: 10.0.1.2 is master, after "), "{told}");
    // For ten intervals it is not preempted, though its priority is lower.
    let changes = report(&one).expect("a report")["transitions"].clone();
    let adverts = || report(&two).ok().filter(|report| report["adverts"]["sent"].as_u64() > Some(36)).map(drop);
    wait::until("time goes by", SOON, adverts).expect("adverts");
    assert_eq!(report(&one).expect("a report")["transitions"], changes);
    two.done(&["vrrp", "failover", "VI_1"]).expect("failover back");
    becomes(&one, "MASTER");
    assert_eq!(one.command(&["vrrp", "failover", "VI_2"]).expect("a command").code, 1);
}

#[test]
fn a_reload_keeps_the_master_and_moves_its_addresses() {
    let lab = lab();
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    let more = instance(150, &[FAST]).replace("[\"10.0.1.100/24\"]", "[\"10.0.1.100/24\", \"10.0.1.99/32\"]");
    one.write(&(service(&lab) + "\n" + &more)).expect("a file");
    one.done(&["reload"]).expect("reload");
    let addresses = || lab.balancer.ip(&["address", "show", "dev", "eth0"]).expect("ip");
    wait::until("the new address", SOON, || addresses().contains("10.0.1.99/").then_some(())).expect("it");
    assert_eq!(resolve(lab.client(), "10.0.1.99"), Some(mac(&lab.balancer)));
    assert_eq!((state(&one).as_str(), report(&one).expect("a report")["transitions"].as_u64()), ("MASTER", Some(1)));
    // Under another name it is the same instance.
    one.write(&(service(&lab) + "\n" + &more.replace("VI_1", "api"))).expect("a file");
    one.done(&["reload"]).expect("reload");
    let known = one.json(&["vrrp"]).expect("vrrp");
    assert_eq!((&known[0]["name"], &known[0]["state"]), (&"api".into(), &"MASTER".into()), "{known}");
    assert_eq!((&known[0]["transitions"], known.as_array().map(Vec::len)), (&1.into(), Some(1)), "{known}");
    one.write(&service(&lab)).expect("a file");
    one.done(&["reload"]).expect("reload");
    wait::until("no address is left", SOON, || (!addresses().contains("10.0.1.100/")).then_some(())).expect("gone");
    assert_eq!(one.json(&["vrrp"]).expect("vrrp"), serde_json::json!([]));
    // What was configured is visible to the next command.
    for number in 1..20 {
        let names: Vec<_> = (0..=number % 2).map(|it| format!("VI_{it}")).collect();
        let all = names.iter().enumerate().map(|(place, name)| {
            let other = instance(150, &[FAST]).replace("VI_1", name).replace("= 51", &format!("= {}", 51 + place));
            other.replace(VIP, &format!("10.0.1.{}", 100 + place)) + "\n"
        });
        one.write(&(service(&lab) + "\n" + &all.collect::<String>())).expect("a file");
        one.done(&["reload"]).expect("reload");
        let known = one.json(&["vrrp"]).expect("vrrp");
        let known = known.as_array().expect("a list").iter().map(|it| it["name"].as_str().expect("a name").to_owned());
        assert_eq!(known.collect::<Vec<_>>(), names);
    }
}

#[test]
fn what_a_crash_has_left_is_taken_up_while_the_lease_holds_and_taken_away_after_it() {
    let lab = lab();
    let mut one = evenkeel(&lab, &lab.balancer, &instance(150, &["advert_interval = \"2s\""]));
    becomes(&one, "MASTER");
    vip_goes(&lab.balancer, true);
    one.kill();
    assert!(has_vip(&lab.balancer));
    one.run().expect("a second start");
    becomes(&one, "MASTER");
    let resumed = report(&one).expect("a report");
    assert_eq!((resumed["state"].as_str(), has_vip(&lab.balancer)), (Some("MASTER"), true), "{resumed}");
    assert!(resumed["reason"].as_str().is_some_and(|reason| reason.contains("earlier run")), "{resumed}");

    // With short intervals the lease is over before it can be renewed.
    one.write(&(service(&lab) + "\n" + &instance(150, &[FAST]))).expect("a file");
    one.done(&["reload"]).expect("reload");
    let is_short = || report(&one).ok().filter(|report| report["lease_ms"].as_u64() < Some(301)).map(drop);
    wait::until("a short lease", SOON, is_short).expect("it");
    assert_eq!(resolve(lab.client(), VIP), Some(mac(&lab.balancer)));
    one.kill();
    assert!(has_vip(&lab.balancer), "the kernel keeps it");
    let nobody = || resolve(lab.client(), VIP).is_none().then_some(());
    wait::until("nobody answers for what a crash has left", SOON, nobody).expect("the lease is over");
    one.write(&(service(&lab) + "\n" + &instance(1, &["advert_interval = \"2s\""]))).expect("a file");
    one.run().expect("a third start");
    vip_goes(&lab.balancer, false);
}

/// What an upgrade must not change: state, transitions and reason, and the time of the last change,
/// in seconds of the day.
#[derive(Debug)]
struct Standing([Value; 3], f64);

impl PartialEq for Standing {
    /// Each process computes the time of day from its own clock.
    fn eq(&self, other: &Standing) -> bool {
        self.0 == other.0 && (self.1 - other.1).abs() < 0.5
    }
}

fn standing(evenkeel: &Evenkeel, name: &str) -> Standing {
    let report = report_of(evenkeel, name).expect("a report");
    let time = report["since"].as_str().and_then(|time| time.get(11..)).expect("a time").trim_end_matches('Z');
    let since = time.split(':').fold(0.0, |seconds, part| seconds * 60.0 + part.parse::<f64>().expect("a number"));
    Standing(["state", "transitions", "reason"].map(|key| report[key].clone()), since)
}

#[test]
fn an_upgrade_of_the_master_and_of_the_backup_is_no_failover_and_keeps_what_is_known_about_the_instance() {
    let lab = lab();
    let calls = lab.balancer.folder().join("calls");
    let notify = lab.balancer.folder().join("notify");
    std::fs::write(&notify, format!("#!/bin/sh\necho \"$@\" >> {}\n", calls.display())).expect("a script");
    std::fs::set_permissions(&notify, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
    let mut one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST, &format!("notify = \"{}\"", notify.display())]));
    becomes(&one, "MASTER");
    let mut two = evenkeel(&lab, second(&lab), &instance(100, &[FAST]));
    becomes(&two, "BACKUP");
    let both = |one: &Evenkeel, two: &Evenkeel| [standing(one, "VI_1"), standing(two, "VI_1")];
    let before = both(&one, &two);
    one.upgrade().expect("an upgrade of the master");
    becomes(&one, "MASTER");
    assert_eq!(resolve(lab.client(), VIP), Some(mac(&lab.balancer)));
    two.upgrade().expect("an upgrade of the backup");
    becomes(&two, "BACKUP");
    assert_eq!(both(&one, &two), before, "{}\n{}", one.log(), two.log());
    assert!(!has_vip(second(&lab)));
    assert_eq!(std::fs::read_to_string(&calls).expect("calls"), "VI_1 BACKUP 150\nVI_1 MASTER 150\n");

    // What was handed over stays with the other host.
    one.done(&["vrrp", "failover", "VI_1"]).expect("failover");
    let before = both(&one, &two);
    one.upgrade().expect("an upgrade of the host that gave it away");
    let adverts = || report(&two).ok().filter(|report| report["adverts"]["sent"].as_u64() > Some(36)).map(drop);
    wait::until("time goes by", SOON, adverts).expect("adverts");
    assert_eq!(both(&one, &two), before, "{}", one.log());
    two.done(&["vrrp", "failover", "VI_1"]).expect("failover back");
    becomes(&one, "MASTER");
}

#[test]
fn an_upgrade_of_a_group_is_no_failover() {
    let lab = lab();
    let other = instance(150, &[FAST, "group = \"G1\""])
        .replace("VI_1", "VI_2")
        .replace("= 51", "= 52")
        .replace(VIP, "10.0.1.99");
    let mut one = evenkeel(&lab, &lab.balancer, &(instance(150, &[FAST, "group = \"G1\""]) + "\n" + &other));
    let both = |one: &Evenkeel| ["VI_1", "VI_2"].map(|name| standing(one, name));
    wait::until("MASTER", SOON, || both(&one).iter().all(|it| it.0[0] == "MASTER").then_some(())).expect("both");
    let two = evenkeel(&lab, second(&lab), &instance(100, &[FAST]));
    becomes(&two, "BACKUP");
    let before = (both(&one), standing(&two, "VI_1"));
    one.upgrade().expect("an upgrade");
    wait::until("MASTER", SOON, || both(&one).iter().all(|it| it.0[0] == "MASTER").then_some(())).expect("both");
    assert_eq!((both(&one), standing(&two, "VI_1")), before, "{}", one.log());
}
