//! Two evenkeels.

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
    // Ten waits long it is not preempted, though its priority is lower.
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
    one.write(&service(&lab)).expect("a file");
    one.done(&["reload"]).expect("reload");
    wait::until("no address is left", SOON, || (!addresses().contains("10.0.1.100/")).then_some(())).expect("gone");
    assert_eq!(one.json(&["vrrp"]).expect("vrrp"), serde_json::json!([]));
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
    let resumed = report(&one).expect("a report");
    assert_eq!((resumed["state"].as_str(), has_vip(&lab.balancer)), (Some("MASTER"), true), "{resumed}");
    assert!(resumed["reason"].as_str().is_some_and(|reason| reason.contains("earlier run")), "{resumed}");

    // With short intervals the lease is over before it can be started again.
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

#[test]
fn an_upgrade_of_the_master_and_of_the_backup_is_no_failover() {
    let lab = lab();
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    becomes(&one, "MASTER");
    let two = evenkeel(&lab, second(&lab), &instance(100, &[FAST]));
    becomes(&two, "BACKUP");
    let changes = |evenkeel: &Evenkeel| report(evenkeel).expect("a report")["transitions"].clone();
    let before = changes(&two);
    one.done(&["upgrade"]).expect("an upgrade of the master");
    becomes(&one, "MASTER");
    assert_eq!(resolve(lab.client(), VIP), Some(mac(&lab.balancer)));
    assert_eq!((changes(&two), state(&two).as_str()), (before, "BACKUP"));
    let of_one = changes(&one);
    two.done(&["upgrade"]).expect("an upgrade of the backup");
    becomes(&two, "BACKUP");
    assert_eq!((changes(&one), state(&one).as_str()), (of_one, "MASTER"));
    assert!(!has_vip(second(&lab)));
}
