//! Every command of the shipped binary: its JSON answer and its exit code.
//!
//! The list is compared with that of `evenkeel --help`, so a new command must be added here.

use std::fs;

use lab::{Evenkeel, bench::lab::memory::table_bytes, daemon::Answer};
use serde_json::Value;

use crate::cluster::{Cluster, SOON, VIP, all_served};

/// One call, with `-o json`.
struct Case {
    /// `{config}`, `{bad}` and `{client}` stand for a correct file, a wrong one, and a connection.
    call: &'static str,
    code: i32,
    /// Fields of the answer; of a list, those of its first element.
    fields: &'static [&'static str],
}

const fn case(call: &'static str, fields: &'static [&'static str]) -> Case {
    Case { call, code: 0, fields }
}

/// Not carried out: the answer contains nothing to read.
const fn refused(call: &'static str) -> Case {
    Case { call, code: 1, fields: &[] }
}

const CHANGED: &[&str] =
    &["service", "backend", "state", "reason", "weight", "max_conns", "active", "deadline", "task"];
const TASK: &[&str] = &["id", "state", "total", "reset", "rate"];

/// In this order: each command finds what the previous ones have left.
const CASES: &[Case] = &[
    case("check -c {config}", &["ok", "errors", "warnings", "files", "capacity"]),
    Case { call: "check -c {bad}", code: 1, fields: &["ok", "errors"] },
    refused("check -c /nonexistent.toml"),
    case("dump -c {config}", &["daemon", "service"]),
    refused("dump -c {bad}"),
    case("status", &["version", "uptime_s", "config", "services", "vrrp", "counters"]),
    refused("status everything"),
    case(
        "backends",
        &[
            "service",
            "name",
            "address",
            "state",
            "backup",
            "reason",
            "weight",
            "active",
            "half_open",
            "total",
            "connect_failures",
            "resets",
            "bytes_in",
            "bytes_out",
            "connect_time_ms",
            "last_change",
        ],
    ),
    refused("backends cp01"),
    case("conns", &["client", "service", "backend", "snat", "state", "age_s", "idle_s", "bytes_in", "bytes_out"]),
    case("conns --backend cp01 --client 10.0.1.101 --state established --older 0s --limit 1", &["client"]),
    case("conns --older 1h", &[]),
    refused("conns --state asleep"),
    refused("conns --backend cp1"),
    refused("conns --older soon"),
    case("trace {client}", &["client", "connections", "new"]),
    case("trace 10.0.1.101:7", &["client", "connections", "new"]),
    refused("trace 10.0.1.101:7 --service nobody"),
    case("counters", &["refused", "not_ours", "access_log_lost", "least_conn_drift"]),
    case("counters --list", &["reason", "group", "meaning"]),
    refused("counters refused"),
    case("events", &["number", "time", "level", "kind", "service", "backend", "instance", "text"]),
    case("events --limit 1", &["text"]),
    refused("events --limit many"),
    case("vrrp", &["name", "state", "priority", "base_priority", "addresses", "since", "transitions", "master"]),
    refused("vrrp failover VI_9"),
    case("drain cp01 --deadline 1h --rate 5", CHANGED),
    refused("drain nobody"),
    case("maint cp01", CHANGED),
    refused("maint nobody"),
    case("ready cp01", CHANGED),
    refused("ready nobody"),
    case("set cp01 weight=3 max_conns=500", CHANGED),
    refused("set cp01 weight=0"),
    case("rebalance --dry-run", &["services", "resets", "seconds", "tasks"]),
    case("rebalance --rate 50 --tolerance 100", &["services", "resets", "seconds", "tasks"]),
    refused("rebalance --service nobody"),
    case("kill {client}", TASK),
    refused("kill {client}"),
    case("kill --client 10.0.1.101", TASK),
    refused("kill --backend cp02"),
    case("drain cp02 --wait", &["service", "backend", "active"]),
    case("reload", &["generation", "changes", "warnings"]),
    refused("reload now"),
    case("upgrade", &["version", "pid"]),
    refused("upgrade now"),
    // While a daemon runs, and when it has ended.
    refused("detach -c {config}"),
    case("stop", &["stopped", "detached"]),
    refused("stop now"),
    case("detach -c {config}", &["interfaces", "addresses", "files"]),
];

/// Commands without JSON output, with a correct call and a part of what it prints.
const PLAIN: &[(&str, &str)] =
    &[("completions bash", "complete -F _evenkeel"), ("man", ".TH evenkeel 1"), ("man drain", ".TH evenkeel-drain 1")];
/// Commands that run until they are stopped; they have their own tests.
const ENDLESS: &[&str] = &["run", "top"];

/// Commands that need no daemon.
fn is_for_files(call: &str) -> bool {
    ["check", "dump", "detach", "counters --list"].iter().any(|files| call.starts_with(files))
}

struct Calls {
    config: String,
    bad: String,
    client: String,
}

impl Calls {
    fn run(&self, evenkeel: &Evenkeel, call: &str) -> Answer {
        let call = call.replace("{config}", &self.config).replace("{bad}", &self.bad).replace("{client}", &self.client);
        let words: Vec<_> = call.split(' ').chain(["-o", "json"]).collect();
        evenkeel.command(&words).expect("it runs")
    }
}

fn vrrp(service: &str) -> String {
    let instance = "name = \"VI_1\"\ninterface = \"eth0\"\nvirtual_router_id = 77\naddresses = [\"10.0.1.200/24\"]\n";
    format!("{service}\n[[vrrp]]\n{instance}")
}

/// The names in the help of the program.
fn names(help: &str) -> Vec<&str> {
    let list = help.split("Commands:\n").nth(1).expect("a list of commands");
    // The second line of a description is indented further than a name.
    let lines = list.lines().take_while(|line| line.starts_with("  ")).filter(|line| !line.starts_with("   "));
    lines.filter_map(|line| line.split_whitespace().next()).collect()
}

#[test]
fn every_command_answers_in_json_and_its_exit_code_says_how_it_went() {
    let mut cluster = Cluster::new("tc", |service| service);
    cluster.evenkeel.write(&vrrp(&cluster.service.toml())).expect("a configuration");
    cluster.evenkeel.done(&["reload"]).expect("reload");
    let mut held = cluster.hold(&[]);
    all_served(&held.open(6).expect("open"), 6, VIP);
    let bad = cluster.evenkeel.state_dir().join("bad.toml");
    fs::write(&bad, "[[service]]\nname = 7\n").expect("a file");
    let conns = cluster.evenkeel.json(&["conns", "--backend", "cp03"]).expect("conns");
    let calls = Calls {
        config: cluster.evenkeel.config().display().to_string(),
        bad: bad.display().to_string(),
        client: conns[0]["client"].as_str().expect("a client").to_owned(),
    };
    // After an upgrade the lab would take the end of the old process for a crash.
    lab::Process::inherit_orphans().expect("orphans");
    for Case { call, code, fields } in CASES {
        let answer = calls.run(&cluster.evenkeel, call);
        assert_eq!(answer.code, *code, "{call}: {}{}\n{}", answer.out, answer.err, cluster.evenkeel.log());
        assert_eq!(answer.err.is_empty(), *code == 0, "{call}: {}", answer.err);
        has_fields(call, &answer, fields);
        if *call == "upgrade" {
            cluster.evenkeel.after_upgrade().expect("another process");
        }
        if call.starts_with("kill --client") {
            cluster.evenkeel.wait_active(&[("cp01", 0), ("cp02", 0), ("cp03", 0)], SOON).expect("nobody is left");
        }
    }
    for Case { call, .. } in CASES.iter().filter(|case| case.code == 0) {
        let answer = calls.run(&cluster.evenkeel, call);
        let wanted = if is_for_files(call) { 0 } else { 2 };
        assert_eq!(answer.code, wanted, "{call} without a daemon: {}{}", answer.out, answer.err);
        assert_eq!(answer.out.is_empty(), wanted == 2, "{call}: {}", answer.out);
    }
    for (call, printed) in PLAIN {
        let words: Vec<_> = call.split(' ').collect();
        assert!(cluster.evenkeel.done(&words).expect(call).contains(printed), "{call}");
        let wrong = cluster.evenkeel.command(&[&words[..], &["nothing"]].concat()).expect("it runs");
        assert_eq!((wrong.code, wrong.out.as_str()), (1, ""), "{call} nothing");
    }
}

/// What is carried out has the fields; what is refused prints the reason to the other output, and
/// may print an answer as well.
fn has_fields(call: &str, answer: &Answer, fields: &[&str]) {
    // Progress comes as one line per step.
    for line in answer.out.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{call}: {error}: {line}"));
        let value = if value.is_array() && !fields.is_empty() { &value[0] } else { &value };
        for field in fields {
            assert!(value.get(field).is_some(), "{call}: no {field:?} in {line}");
        }
    }
    assert!(!answer.out.is_empty() || fields.is_empty(), "{call} answers nothing");
}

#[test]
fn no_command_is_left_out_of_these_tests() {
    let help = lab::binaries::evenkeel().expect("the program");
    let help = std::process::Command::new(help).arg("--help").output().expect("help").stdout;
    let help = String::from_utf8(help).expect("text");
    let first = |call: &'static str| call.split(' ').next().expect("a name");
    let tried = CASES.iter().map(|case| first(case.call)).chain(PLAIN.iter().map(|(call, _)| first(call)));
    let tried: Vec<_> = tried.chain(ENDLESS.iter().copied()).collect();
    let names = names(&help);
    assert!(names.len() > 15, "{help}");
    for name in names.iter().filter(|name| **name != "help") {
        assert!(tried.contains(name), "no test calls evenkeel {name}");
    }
    let refused: Vec<_> = CASES.iter().filter(|case| case.code == 1).map(|case| first(case.call)).collect();
    for case in CASES {
        assert!(refused.contains(&first(case.call)), "no test has evenkeel {} refused", first(case.call));
    }
}

#[test]
fn check_names_the_memory_that_the_tables_take() {
    let cluster = Cluster::new("tc", |service| {
        service.line("per_client_connections = 9").line("rules = [\"allow all\"]").line("balance = \"hash\"")
    });
    let config = cluster.evenkeel.config().display().to_string();
    let said = cluster.evenkeel.json(&["check", "-c", &config]).expect("an answer")["memory_bytes"].clone();
    let taken = table_bytes(cluster.evenkeel.bpffs()).expect("bpftool");
    let left_out = taken - said.as_f64().expect("bytes");
    // What check leaves out: counters for each processor, a small hash, the heads of outer maps.
    let processors = std::thread::available_parallelism().expect("a number").get() as f64;
    assert!((0.0..24_576.0 + 2048.0 * processors).contains(&left_out), "{said} is said, {taken} are taken");
}
