//! The commands that act, with the shipped binary and real connections: drain, maint, ready, set,
//! kill, rebalance.

mod commands;
mod rebalance;
mod wrong;

use std::time::{Duration, Instant};

use lab::{Capture, capture, client::hold::Holding, daemon::Answer, topology::PORT, wait};
use nix::sys::signal::Signal;

use crate::cluster::{Cluster, SOON, all_served};

/// What tcpdump may see late, and the packet that was between the program and the backend.
const WIRE: Duration = Duration::from_millis(5);

fn cluster() -> Cluster {
    Cluster::new("tc", |service| service)
}

impl Cluster {
    /// Runs a command that must exit with 0; returns what it printed.
    fn done(&self, args: &[&str]) -> String {
        self.evenkeel.done(args).unwrap_or_else(|error| panic!("{error:#}\n{}", self.evenkeel.log()))
    }

    fn command(&self, args: &[&str]) -> Answer {
        self.evenkeel.command(args).expect("a command")
    }

    fn stands(&self, name: &str, state: &str, reason: Option<&str>) {
        let backend = self.backend(name);
        assert_eq!((backend.state.as_str(), backend.reason.as_deref()), (state, reason), "{}", self.evenkeel.log());
    }
}

/// How many of the held connections were reset.
fn reset(held: &mut Holding) -> u64 {
    held.status().expect("status").ended.get("reset").copied().unwrap_or(0)
}

#[test]
fn drain_with_a_deadline_lets_nobody_in_from_its_first_line_on_and_resets_the_rest_at_the_rate() {
    let cluster = cluster();
    let mut held = cluster.hold(&[]);
    all_served(&held.open(1500).expect("open"), 1500, "held");
    cluster.active([500, 500, 500]);
    let syns = Capture::of_syns(&cluster.lab.backends[0], PORT).expect("tcpdump");
    let storm = cluster.storm(&["--seconds", "10", "--rate", "300"]);
    wait::until("the storm reaches cp01", SOON, || (syns.seen().len() > 20).then_some(())).expect("SYNs");

    let began = Instant::now();
    let drain = ["drain", "cp01", "--deadline", "5s", "--rate", "200", "--wait"];
    let (mut process, mut said) = cluster.evenkeel.begin(&drain).expect("drain");
    let first = said.hear().expect("a line");
    let told = capture::now();
    assert!(first.starts_with("cp01 of kube-apiserver is draining (admin): no new connections, 5"), "{first}");
    assert!(first.contains("are reset at 200/s"), "{first}");
    cluster.stands("cp01", "draining", Some("admin"));

    // Until the deadline no established connection is touched.
    wait::until("almost the deadline", SOON, || (began.elapsed() > Duration::from_millis(4700)).then_some(())).unwrap();
    assert_eq!((reset(&mut held), cluster.backend("cp01").active), (0, 500));
    let mut lines = Vec::new();
    while let Ok(line) = said.hear() {
        lines.push(line);
    }
    let took = began.elapsed();
    process.succeed(SOON).expect("exit 0 when it is empty");
    assert_eq!(lines.last().map(String::as_str), Some("cp01 of kube-apiserver is empty\n"), "{lines:?}");
    assert!(lines.iter().any(|line| line.ends_with(" active\n")), "{lines:?}");
    // 500 resets at 200 per second.
    assert!(took > Duration::from_millis(7300) && took < Duration::from_millis(9500), "{took:?}");
    wait::until("clients saw their RSTs", SOON, || (reset(&mut held) == 500).then_some(())).expect("resets");
    assert_eq!(held.ask().expect("ask").answered, 1000, "nobody else was touched");
    assert_eq!(cluster.evenkeel.counter("drained").expect("counter"), 500);

    let report = storm.finish(Duration::from_secs(30)).expect("its report");
    assert_eq!(report.failures(), 0, "{report:?}");
    let late: Vec<_> = syns.seen().into_iter().filter(|at| *at > told + WIRE).collect();
    assert!(
        late.is_empty(),
        "{} SYNs came after the command had answered, the first {:?} later",
        late.len(),
        late[0] - told
    );
}

#[test]
fn a_client_whose_syn_was_not_answered_is_served_elsewhere_when_it_sends_again() {
    let cluster = Cluster::new("tc", |service| service.line("connect_timeout = \"10s\""));
    let host = &cluster.lab.backends[0];
    host.drop_syns(PORT).expect("nft");
    let syns = Capture::of_syns(host, PORT).expect("tcpdump");
    let storm = cluster.storm(&["--connections", "30", "--parallel", "30"]);
    wait::until("a third waits for cp01", SOON, || (syns.seen().len() == 10).then_some(())).expect("SYNs");
    cluster.done(&["drain", "cp01"]);
    let told = capture::now();
    let report = storm.finish(SOON).expect("its report");
    assert_eq!((report.done, report.failures()), (30, 0), "{report:?}");
    // Linux repeats a SYN after one second.
    assert!(report.max_ms < 1500.0, "{report:?}");
    assert_eq!(syns.seen().into_iter().filter(|at| *at > told + WIRE).count(), 0, "{:?}", syns.lines());
    assert_eq!(cluster.evenkeel.counter("moved_on").expect("counter"), 10);
    assert_eq!(cluster.backend("cp01").connect_failures, 0);
}

#[test]
fn drain_and_wait_returns_when_the_last_one_has_left_by_itself() {
    let cluster = cluster();
    let mut held = cluster.hold(&[]);
    held.open(30).expect("open");
    cluster.active([10, 10, 10]);
    let (mut process, mut said) = cluster.evenkeel.begin(&["drain", "cp02", "--wait"]).expect("drain");
    let first = said.hear().expect("a line");
    assert!(first.ends_with("no new connections, 10 active; they stay until they end\n"), "{first}");
    assert_eq!(said.hear().expect("a line"), "10 active\n");
    held.close(10, "cp02", "fin").expect("close");
    assert_eq!(said.hear().expect("a line"), "cp02 of kube-apiserver is empty\n");
    process.succeed(SOON).expect("exit 0");
    // In JSON one value per line, the first one when the drain takes effect.
    let out = cluster.done(&["drain", "cp02", "--wait", "-o", "json"]);
    let values: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&values[0]["state"], &values[0]["was"]), (&"draining".into(), &"draining".into()), "{out}");
    assert_eq!((&values[1]["order"], &values[1]["active"]), (&"drain".into(), &0.into()), "{out}");
}

#[test]
fn a_drain_that_somebody_takes_back_is_not_waited_for_and_ctrl_c_leaves_it_in_force() {
    let cluster = cluster();
    let mut held = cluster.hold(&[]);
    held.open(3).expect("open");
    let (mut process, mut said) = cluster.evenkeel.begin(&["drain", "cp01", "--wait"]).expect("drain");
    said.hear().expect("a line");
    cluster.done(&["ready", "cp01"]);
    assert_eq!(process.wait(SOON).expect("its end").code(), Some(1));
    assert!(process.log().contains("is no longer drained"), "{}", process.log());

    let (mut process, mut said) = cluster.evenkeel.begin(&["drain", "cp01", "--wait"]).expect("drain");
    said.hear().expect("a line");
    process.signal(Signal::SIGINT).expect("Ctrl-C");
    assert_eq!(process.wait(SOON).expect("its end").code(), Some(1));
    assert!(process.log().contains("the drain continues (evenkeel ready cp01 ends it)"), "{}", process.log());
    cluster.stands("cp01", "draining", Some("admin"));
    assert_eq!(held.ask().expect("ask").answered, 3);
}

#[test]
fn a_drain_goes_on_through_reload_stop_kill_and_start() {
    let mut cluster = cluster();
    let mut held = cluster.hold(&[]);
    held.open(30).expect("open");
    cluster.active([10, 10, 10]);
    cluster.done(&["drain", "cp01"]);
    cluster.done(&["maint", "cp03"]);
    let total = |cluster: &Cluster| (cluster.backend("cp01").total, cluster.backend("cp03").total);
    let before = total(&cluster);
    let storm = cluster.storm(&["--seconds", "8", "--rate", "200"]);
    let holds = |cluster: &Cluster, after: &str| {
        cluster.stands("cp01", "draining", Some("admin"));
        cluster.stands("cp03", "maint", Some("admin"));
        assert_eq!(total(cluster), before, "somebody came after {after}");
    };
    cluster.done(&["reload"]);
    holds(&cluster, "a reload");
    cluster.evenkeel.terminate().expect("SIGTERM");
    cluster.evenkeel.run().expect("a start");
    holds(&cluster, "a stop and a start");
    cluster.evenkeel.kill();
    cluster.evenkeel.run().expect("a start");
    holds(&cluster, "a kill and a start");
    let report = storm.finish(Duration::from_secs(30)).expect("its report");
    assert_eq!((report.failures(), report.by.keys().map(String::as_str).collect::<Vec<_>>()), (0, vec!["cp02"]));
    holds(&cluster, "a storm");
    assert_eq!(held.ask().expect("ask").answered, 30);

    // The deadline too: one that passed while the controller was dead is met at its start. A
    // command that waits for the drain survives a restart of the daemon.
    let (mut waits, _said) = cluster.evenkeel.begin(&["drain", "cp01", "--wait"]).expect("drain");
    wait::until("it is waited for", SOON, || cluster.evenkeel.log().contains("is drained by").then_some(()))
        .expect("log");
    cluster.done(&["drain", "cp01", "--deadline", "1s", "--rate", "1000"]);
    cluster.evenkeel.kill();
    wait::until("the deadline", SOON, wait_for(Duration::from_millis(1200))).expect("a second");
    assert_eq!(held.ask().expect("ask").answered, 30);
    cluster.evenkeel.run().expect("a start");
    cluster.active([0, 10, 10]);
    waits.succeed(SOON).expect("exit 0");

    for name in ["cp01", "cp03"] {
        cluster.done(&["ready", name]);
        cluster.stands(name, "up", None);
    }
    cluster.evenkeel.kill();
    cluster.evenkeel.run().expect("a start");
    cluster.stands("cp01", "up", None);
    all_served(&held.open(31).expect("open"), 31, "after ready");
    cluster.active([17, 17, 17]);
}

fn wait_for(time: Duration) -> impl FnMut() -> Option<()> {
    let began = Instant::now();
    move || (began.elapsed() >= time).then_some(())
}

#[test]
fn what_was_ordered_goes_with_the_backend_when_that_leaves_the_configuration() {
    let cluster = cluster();
    cluster.done(&["drain", "cp02"]);
    let all = lab::daemon::Service::new(&cluster.lab, "tc");
    let mut without = all.clone();
    without.backends.remove(1);
    cluster.evenkeel.write(&without.toml()).expect("a configuration");
    cluster.done(&["reload"]);
    cluster.evenkeel.write(&all.toml()).expect("a configuration");
    cluster.done(&["reload"]);
    cluster.stands("cp02", "up", None);
}

#[test]
fn an_unreadable_admin_file_is_warned_about_and_the_daemon_starts_anyway() {
    let mut cluster = cluster();
    cluster.done(&["drain", "cp01"]);
    let file = cluster.evenkeel.state_dir().join("admin.json");
    let kept = std::fs::read_to_string(&file).expect("what is in force");
    assert!(kept.contains("\"cp01\""), "{kept}");
    cluster.evenkeel.terminate().expect("SIGTERM");
    std::fs::write(&file, kept.replace("\"drain\"", "\"drown\"")).expect("a file");
    cluster.evenkeel.run().expect("a start");
    cluster.stands("cp01", "up", None);
    let log = cluster.evenkeel.log();
    assert!(log.contains("admin.json cannot be used") && log.contains("unknown variant `drown`"), "{log}");
    let events = cluster.done(&["events"]);
    assert!(events.contains("admin.json cannot be used"), "{events}");
    assert!(file.with_extension("json.bad").exists());
    cluster.done(&["maint", "cp01"]);
    cluster.evenkeel.kill();
    cluster.evenkeel.run().expect("a start");
    cluster.stands("cp01", "maint", Some("admin"));
}

#[test]
fn in_and_out_of_maintenance_under_load_no_client_fails_and_no_held_connection_is_lost() {
    let cluster = cluster();
    let mut held = cluster.hold(&[]);
    held.open(30).expect("open");
    cluster.active([10, 10, 10]);
    let storm = cluster.storm(&["--seconds", "8", "--rate", "400"]);
    for round in 0..12 {
        let name = ["cp01", "cp02", "cp03"][round % 3];
        cluster.done(&["maint", name]);
        cluster.stands(name, "maint", Some("admin"));
        let total = cluster.backend(name).total;
        wait::until("others are served", SOON, wait_for(Duration::from_millis(150))).expect("a while");
        assert_eq!(cluster.backend(name).total, total, "{name} got somebody in maintenance");
        cluster.done(&["ready", name]);
        wait::until("it is used again", SOON, || (cluster.backend(name).total > total).then_some(())).expect("used");
    }
    let report = storm.finish(Duration::from_secs(30)).expect("its report");
    assert_eq!(report.failures(), 0, "{report:?}");
    assert_eq!(held.ask().expect("ask").answered, 30);
}

#[test]
fn whoever_takes_out_the_last_one_is_warned() {
    let cluster = cluster();
    let warning = "warning: service kube-apiserver has no backend left that is up";
    for (args, is_last) in [
        (&["drain", "cp01"][..], false),
        (&["maint", "cp02"], false),
        (&["drain", "cp03"], true),
        (&["ready", "cp02"], false),
        (&["maint", "cp02", "--force"], true),
    ] {
        let answer = cluster.command(args);
        assert_eq!((answer.code, answer.err.starts_with(warning)), (0, is_last), "{args:?}: {answer:?}");
    }
    let json: serde_json::Value = serde_json::from_str(&cluster.done(&["drain", "cp02", "-o", "json"])).expect("JSON");
    assert!(json["warning"].as_str().is_some_and(|text| text.contains("no backend left")), "{json}");
}

#[test]
fn maint_with_reset_resets_what_the_backend_has_and_only_that() {
    let cluster = cluster();
    let mut held = cluster.hold(&[]);
    held.open(300).expect("open");
    cluster.active([100, 100, 100]);
    let out = cluster.done(&["maint", "cp03", "--reset"]);
    assert_eq!(
        out,
        "cp03 of kube-apiserver is maint (admin): no new connections, resetting 100 at 5000/s\n100 connections reset\n"
    );
    cluster.active([100, 100, 0]);
    wait::until("clients saw their RSTs", SOON, || (reset(&mut held) == 100).then_some(())).expect("resets");
    assert_eq!(cluster.evenkeel.counter("maintenance").expect("counter"), 100);
    let json: serde_json::Value =
        serde_json::from_str(&cluster.done(&["maint", "cp03", "--reset", "-o", "json"])).expect("JSON");
    assert_eq!((&json["state"], &json["task"]), (&"maint".into(), &serde_json::Value::Null), "nothing to reset");
}
