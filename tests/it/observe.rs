//! What an operator sees through the shipped binary: every command that reads, and the events.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use lab::{StandIn, daemon::Service, picture::API, wait};
use serde_json::Value;

use crate::cluster::{Cluster, SOON};

/// A backend goes out with the first failure, and is tried again a second later.
fn quick(service: Service) -> Service {
    (0..3).fold(service, |service, backend| service.backend_line(backend, "max_fails = 1\nfail_timeout = \"1s\""))
}

/// Kills cp01's stand-in and waits until a client's connection has noticed.
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

/// Adds `[api]` to the configuration, and reloads it.
fn turn_api_on(cluster: &Cluster) {
    let services = quick(Service::new(&cluster.lab, "tc")).toml();
    cluster.evenkeel.write(&format!("[api]\nlisten = \"{API}\"\n\n{services}")).expect("a configuration");
    cluster.evenkeel.done(&["reload"]).expect("reload");
}

/// What the client host gets from `[api]`: the status and the body; `000` if nothing listens.
fn fetch(cluster: &Cluster, path: &str) -> (String, String) {
    let mut curl = cluster.lab.client().command("curl");
    let output =
        curl.args(["-s", "-m", "10", "-w", "\n%{http_code}", &format!("http://{API}{path}")]).output().expect("curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (status.to_owned(), body.to_owned())
}

fn scrape(cluster: &Cluster) -> String {
    let (status, text) = fetch(cluster, "/metrics");
    assert_eq!(status, "200", "{text}");
    text
}

/// Every counter and every part of a histogram, by name and labels.
fn counters(text: &str) -> BTreeMap<String, f64> {
    let grows = |name: &str| ["_total", "_bucket", "_sum", "_count"].iter().any(|end| name.ends_with(end));
    let rows = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let ours = rows.filter(|(row, _)| row.starts_with("evenkeel_") && grows(row.split('{').next().expect("a name")));
    ours.map(|(row, value)| (row.to_owned(), value.parse().expect("a number"))).collect()
}

/// Checks that `promtool check metrics` accepts without a word, and that `check rules` reports how
/// many rules there are.
fn promtool_likes(what: &[&str], text: &str) -> String {
    let mut promtool = Command::new("promtool");
    promtool.arg("check").args(what).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("promtool");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("its input");
    let output = child.wait_with_output().expect("its end");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(output.status.success(), "{told}");
    told
}

#[test]
fn the_example_alerts_are_rules_over_existing_metrics() {
    let page = include_str!("../../docs/operations.md");
    let rules = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("rules");
    let told = promtool_likes(&["rules", "/dev/stdin"], rules);
    let alerts = rules.matches("- alert:").count();
    assert!(alerts > 0 && told.contains(&format!("SUCCESS: {alerts} rules found")), "{told}");
    let words = rules.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    for name in words.filter(|word| word.starts_with("evenkeel_")) {
        assert!(page.contains(&format!("| `{name}` |")), "{name} is no metric of ours");
    }
}

#[test]
fn metrics_are_promtool_clean_agree_with_the_status_and_go_on_after_a_kill() {
    let mut cluster = Cluster::new("tc", quick);
    turn_api_on(&cluster);
    let mut held = cluster.hold(&[]);
    held.open(30).expect("open");
    take_cp01_out(&mut cluster);
    held.ask().expect("some bytes");

    let text = scrape(&cluster);
    assert_eq!(promtool_likes(&["metrics"], &text), "");
    let has = |row: &str| assert!(text.lines().any(|line| line == row), "{row} is missing:\n{text}");
    has(r#"evenkeel_backend_state{service="kube-apiserver",backend="cp01",state="down"} 1"#);
    has(r#"evenkeel_backend_state{service="kube-apiserver",backend="cp02",state="up"} 1"#);
    has(r#"evenkeel_datapath_info{service="kube-apiserver",interface="eth0",mode="tc"} 1"#);
    has("evenkeel_config_generation 2");
    has("evenkeel_config_last_reload_successful 1");
    has("evenkeel_least_conn_drift_total 0");
    let before = counters(&text);
    let cp02 = cluster.backend("cp02");
    for (name, value) in
        [("connections", cp02.total), ("received_bytes", cp02.bytes_in), ("sent_bytes", cp02.bytes_out)]
    {
        let row = format!(r#"evenkeel_backend_{name}_total{{service="kube-apiserver",backend="cp02"}}"#);
        assert_eq!(before[&row], value as f64, "{row}");
    }
    let labels = r#"{service="kube-apiserver",backend="cp02"}"#;
    let count = before[&format!("evenkeel_backend_connect_duration_seconds_count{labels}")];
    let mean = before[&format!("evenkeel_backend_connect_duration_seconds_sum{labels}")] / count;
    assert!(count >= 10.0 && mean > 0.0 && mean < 1.0, "{count} connects, {mean} s each");
    assert!(before[r#"evenkeel_connect_tries_failed_total{reason="refused"}"#] >= 1.0);
    let processes = text.lines().find(|line| line.starts_with("process_resident_memory_bytes ")).expect("its memory");
    assert!(processes.ends_with(|last: char| last.is_ascii_digit()), "{processes}");

    cluster.evenkeel.kill();
    cluster.evenkeel.run().expect("a second start");
    let after = counters(&scrape(&cluster));
    let of_the_process = ["drift_total", "access_log", "api_refused", "vrrp"];
    for (row, value) in before {
        if !of_the_process.iter().any(|name| row.contains(name)) {
            assert!(after.get(&row).is_some_and(|after| *after >= value), "{row}: {value}, then {:?}", after.get(&row));
        }
    }
}

#[test]
fn health_and_readiness_are_reported_and_reloads_turn_the_listener_on_and_off() {
    let mut cluster = Cluster::new("tc", quick);
    assert_eq!(fetch(&cluster, "/healthz").0, "000", "nobody listens unless the file says so");
    turn_api_on(&cluster);
    let told = |path| fetch(&cluster, path);
    assert_eq!(told("/healthz"), ("200".into(), "ok\n".into()));
    assert_eq!(told("/readyz"), ("200".into(), "ready\n".into()));
    let status: Value = serde_json::from_str(&told("/api/v1/status").1).expect("JSON");
    assert_eq!(status["services"][0]["backends"][2]["name"], "cp03");
    assert_eq!(status["config"], cluster.evenkeel.status().expect("status")["config"]);

    cluster.standins.iter_mut().for_each(StandIn::kill);
    // Clients that are refused take the backends out, until the first of them is tried again.
    let unready = || {
        cluster.storm(&["--connections", "6"]).finish(SOON).expect("a storm");
        Some(fetch(&cluster, "/readyz")).filter(|(status, _)| status == "503")
    };
    let (_, reasons) = wait::until("nobody is served", SOON, unready).expect("readyz");
    assert_eq!(reasons, "service kube-apiserver: no backend is up\n");
    assert_eq!(fetch(&cluster, "/healthz").0, "200", "that is no reason to restart the daemon");

    cluster.evenkeel.write(&Service::new(&cluster.lab, "tc").toml()).expect("a configuration");
    cluster.evenkeel.done(&["reload"]).expect("reload");
    assert_eq!(fetch(&cluster, "/healthz").0, "000", "turned off");
    turn_api_on(&cluster);
    assert_eq!(fetch(&cluster, "/healthz").0, "200", "and on again");
}

#[test]
fn every_command_that_shows_something_does_so_in_every_form() {
    let cluster = Cluster::new("tc", |service| service);
    let mut held = cluster.hold(&[]);
    held.open(3).expect("open");
    let config = cluster.evenkeel.config().display().to_string();
    let commands: [&[&str]; 8] = [
        &["status"],
        &["backends"],
        &["conns"],
        &["counters"],
        &["counters", "--list"],
        &["events"],
        &["check", "-c", &config],
        &["dump", "-c", &config],
    ];
    for command in commands {
        for format in ["table", "wide", "json"] {
            let shown = cluster.evenkeel.done(&[command, &["-o", format]].concat()).expect("exit code 0");
            assert!(!shown.contains('\x1b'), "{command:?} -o {format}: colour away from a terminal");
            match format {
                "json" => drop(serde_json::from_str::<Value>(&shown).expect("JSON")),
                _ => assert!(shown.lines().count() > 1, "{command:?} -o {format}: {shown}"),
            }
            let wrong = [command, &["-o", format, "--frobnicate"]].concat();
            assert_eq!(cluster.evenkeel.command(&wrong).expect("it runs").code, 1, "{wrong:?}");
        }
    }
    let counters = cluster.evenkeel.json(&["counters"]).expect("counters");
    let listed = cluster.evenkeel.json(&["counters", "--list"]).expect("the list");
    for reason in listed.as_array().expect("a list") {
        let name = reason["reason"].as_str().expect("a word");
        assert!(counters[name].is_u64(), "{name} is listed and not counted");
    }
    let nobody = ["--socket", "/nonexistent/control.sock"];
    for command in ["status", "backends", "conns", "counters", "events"] {
        assert_eq!(
            cluster.evenkeel.command(&[&nobody[..], &[command]].concat()).expect("it runs").code,
            2,
            "{command}"
        );
    }
}
