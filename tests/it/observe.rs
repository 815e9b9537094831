//! What an operator sees: every command that reads, the events, through the shipped binary.

use lab::{StandIn, daemon::Service, wait};
use serde_json::Value;

use crate::cluster::{Cluster, SOON};

/// A backend goes out with the first failure, and is tried again a second later.
fn quick(service: Service) -> Service {
    (0..3).fold(service, |service, backend| service.backend_line(backend, "max_fails = 1\nfail_timeout = \"1s\""))
}

/// Kills cp01's stand-in and waits until a client's connection has found that out.
fn take_cp01_out(cluster: &mut Cluster) {
    cluster.standins[0].kill();
    cluster.storm(&["--connections", "20"]).finish(SOON).expect("a storm");
    cluster.wait_state("cp01", "down", SOON);
}

fn bring_cp01_back(cluster: &mut Cluster) {
    cluster.standins[0].revive().expect("cp01");
    wait::until("cp01 is up", SOON, || {
        cluster.storm(&["--connections", "10"]).finish(SOON).expect("a storm");
        (cluster.backend("cp01").state == "up").then_some(())
    })
    .expect("cp01");
}

fn texts(events: &[Value], kind: &str) -> Vec<String> {
    let of_kind = events.iter().filter(|event| event["kind"] == kind);
    of_kind.map(|event| event["text"].as_str().expect("a text").to_owned()).collect()
}

#[test]
fn events_tell_of_health_reloads_and_the_daemon_and_are_followed_until_it_ends() {
    let mut cluster = Cluster::new("tc", quick);
    let mut follow = cluster.evenkeel.client(&["events", "-f", "-o", "json"]).expect("events -f");
    take_cp01_out(&mut cluster);
    bring_cp01_back(&mut cluster);
    cluster.evenkeel.write("[[service]]\nname = 1\n").expect("a wrong configuration");
    assert_eq!(cluster.evenkeel.command(&["reload"]).expect("reload").code, 1);
    cluster.evenkeel.write(&Service::new(&cluster.lab, "tc").toml()).expect("a right one");
    cluster.evenkeel.done(&["reload"]).expect("reload");

    let events = cluster.evenkeel.json(&["events"]).expect("events");
    let events = events.as_array().expect("a list");
    let health: Vec<_> =
        events.iter().filter(|event| event["kind"] == "health" && event["backend"] == "cp01").collect();
    assert!(health[0]["text"].as_str().expect("a text").starts_with("is out for 1.0 s: refused"), "{health:?}");
    assert_eq!((&health[0]["level"], &health[0]["service"]), (&"warn".into(), &"kube-apiserver".into()));
    assert_eq!(health.last().expect("two")["text"], "is up");
    let reloads = texts(events, "reload");
    assert!(reloads[0].starts_with("the configuration was not reloaded, nothing has changed"), "{reloads:?}");
    assert!(reloads[1].starts_with("configuration applied, generation 2"), "{reloads:?}");
    assert!(texts(events, "datapath")[0].starts_with("interface eth0: tc"), "{events:?}");
    assert!(texts(events, "lifecycle")[0].contains("is ready after"), "{events:?}");
    let newest = cluster.evenkeel.done(&["events", "--limit", "1"]).expect("events");
    assert_eq!(newest.lines().count(), 2, "{newest}");
    assert!(newest.contains("reload") && newest.contains("configuration applied, generation 2"), "{newest}");

    cluster.evenkeel.terminate().expect("an end in order");
    assert_eq!(follow.wait(SOON).expect("the follower ends with the daemon").code(), Some(2));
    let log = follow.log();
    let followed: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(followed[..events.len()], events[..], "what is followed is what is listed");
    assert!(texts(&followed, "lifecycle").last().expect("an end").starts_with("ending"), "{log}");
    let numbers: Vec<_> = followed.iter().map(|event| event["number"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (1..=followed.len() as u64).collect::<Vec<_>>(), "none is missing and none comes twice");
    cluster.standins.iter_mut().for_each(StandIn::kill);
}
