//! The commands ready, set and kill.

use lab::wait;

use super::{cluster, reset};
use crate::cluster::{Cluster, SOON};

#[test]
fn down_in_the_file_wins_over_ready_and_ready_lifts_only_what_an_admin_did() {
    let mut cluster = Cluster::new("tc", |service| service.backend_line(0, "down = true"));
    let answer = cluster.command(&["ready", "cp01"]);
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains("cp01 has down = true in the configuration, which wins"), "{}", answer.err);
    cluster.stands("cp01", "down", Some("config"));

    // Health checks found cp02 down before the admin took it out too.
    cluster.standins[1].kill();
    let mut held = cluster.hold(&[]);
    held.open(20).expect("open");
    cluster.wait_state("cp02", "down", SOON);
    cluster.done(&["maint", "cp02"]);
    cluster.stands("cp02", "maint", Some("admin"));
    let out = cluster.done(&["ready", "cp02"]);
    assert_eq!(
        out,
        "cp02 of kube-apiserver is down (refused): its health decides this, and ready does not change that\n"
    );
    let out = cluster.done(&["ready", "cp03"]);
    assert_eq!(out, "cp03 of kube-apiserver is up\n", "as it was");
}

#[test]
fn a_weight_that_is_set_counts_and_is_gone_after_a_reload() {
    let cluster = cluster();
    let mut held = cluster.hold(&[]);
    held.open(30).expect("open");
    cluster.active([10, 10, 10]);
    let out = cluster.done(&["set", "cp01", "weight=3"]);
    assert_eq!(out, "cp01 of kube-apiserver: weight 3, max_conns 0 until the next reload\n");
    assert_eq!(cluster.backend("cp01").weight, 3);
    held.open(20).expect("open");
    cluster.active([30, 10, 10]);
    cluster.done(&["set", "cp02", "max_conns=10", "weight=2"]);
    held.open(12).expect("open");
    cluster.active([39, 10, 13]);
    // It is not an admin's setting, so the file's value counts again.
    cluster.done(&["reload"]);
    assert_eq!((cluster.backend("cp01").weight, cluster.backend("cp02").weight), (1, 1));
    held.open(3).expect("open");
    cluster.active([39, 13, 13]);
    let json = cluster.evenkeel.json(&["set", "cp03", "weight=9"]).expect("JSON");
    assert_eq!((&json["backend"], &json["weight"], &json["state"]), (&"cp03".into(), &9.into(), &"up".into()));
}

#[test]
fn set_does_not_bring_a_drained_backend_back() {
    let cluster = cluster();
    cluster.done(&["drain", "cp01"]);
    cluster.done(&["set", "cp01", "weight=100"]);
    cluster.stands("cp01", "draining", Some("admin"));
    cluster.hold(&[]).open(30).expect("open");
    assert_eq!(cluster.backend("cp01").total, 0);
}

#[test]
fn kill_resets_what_it_names_and_kill_of_nothing_is_exit_1() {
    let cluster = cluster();
    let mut held = cluster.hold(&[]);
    held.open(30).expect("open");
    cluster.active([10, 10, 10]);
    let conns = cluster.evenkeel.json(&["conns", "--backend", "cp01"]).expect("conns");
    let client = conns[0]["client"].as_str().expect("a client").to_owned();

    assert_eq!(cluster.done(&["kill", &client]), "1 connection reset\n");
    cluster.active([9, 10, 10]);
    let again = cluster.command(&["kill", &client]);
    assert_eq!((again.code, again.out.as_str()), (1, ""));
    assert_eq!(again.err, format!("there is no connection of {client}\n"));

    assert_eq!(cluster.done(&["kill", "--backend", "cp02"]), "10 connections reset\n");
    cluster.active([9, 0, 10]);
    assert_eq!(cluster.command(&["kill", "--backend", "cp02"]).code, 1);

    assert_eq!(cluster.command(&["kill", "--client", "10.0.1.99"]).code, 1);
    let address = cluster.lab.client().address().to_string();
    let json = cluster.evenkeel.json(&["kill", "--client", &address]).expect("JSON");
    assert_eq!((&json["state"], &json["total"], &json["reset"]), (&"done".into(), &19.into(), &19.into()));
    cluster.active([0, 0, 0]);
    wait::until("clients saw their RSTs", SOON, || (reset(&mut held) == 30).then_some(())).expect("resets");
    assert_eq!(cluster.evenkeel.counter("killed").expect("counter"), 30);
    let events = cluster.done(&["events"]);
    assert!(events.contains(&format!("every connection of {client} is reset by uid 0: 1 at 5000/s")), "{events}");
}

#[test]
fn a_half_open_connection_can_be_killed_too() {
    let cluster = Cluster::new("tc", |service| service.line("connect_timeout = \"10s\""));
    cluster.lab.backends.iter().for_each(|host| host.drop_syns(6443).expect("nft"));
    let storm = cluster.storm(&["--connections", "1"]);
    let client = wait::until("a half-open connection", SOON, || {
        let conns = cluster.evenkeel.json(&["conns", "--state", "half_open"]).ok()?;
        Some(conns[0]["client"].as_str()?.to_owned())
    });
    assert_eq!(cluster.done(&["kill", &client.expect("a client")]), "1 connection reset\n");
    let report = storm.finish(SOON).expect("its report");
    assert_eq!(report.failed, [("refused".to_owned(), 1)].into(), "{report:?}");
    cluster.active([0, 0, 0]);
}
