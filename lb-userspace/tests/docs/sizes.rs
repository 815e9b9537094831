//! Figures: memory against what `check` says, speed against the runs in docs/bench.

use std::fs;

use evenkeel::config;
use serde_json::Value;

use super::page::{read, rows, section};

/// Rounds of a figure in docs/bench.
fn rounds(run: &Value, name: &str) -> Vec<f64> {
    let figures = run["figures"].as_array().expect("figures");
    let figure = figures.iter().find(|figure| figure["name"] == name).unwrap_or_else(|| panic!("no figure {name}"));
    figure["rounds"].as_array().expect("rounds").iter().filter_map(Value::as_f64).collect()
}

fn run(file: &str) -> Value {
    serde_json::from_str(&read(&format!("docs/bench/{file}"))).expect("JSON")
}

fn median(mut rounds: Vec<f64>) -> f64 {
    rounds.sort_by(f64::total_cmp);
    rounds[rounds.len() / 2]
}

/// What a system adds to a connection without a balancer, as docs/bench works it out: the median of
/// the rounds.
fn added(lab: &Value, work: &str, system: &str, what: &str) -> f64 {
    let of = |system: &str| rounds(lab, &format!("lab/{work}/{system}/{what}"));
    median(of(system).iter().zip(of("direct")).map(|(with, without)| with - without).collect())
}

/// Shown with two or three digits.
fn assert_shows(shown: &str, measured: f64, what: &str) {
    let number: f64 = shown.parse().unwrap_or_else(|_| panic!("{what}: {shown:?} is no number"));
    assert!((number - measured).abs() <= measured.abs() * 0.03, "{what}: {shown} is shown, {measured:.2} was measured");
}

#[test]
fn the_readme_shows_the_last_run_of_the_lab() {
    let (readme, lab) = (read("README.md"), run("lab.json"));
    let works = [("kept-tcp", "cpu"), ("new-tcp", "cpu"), ("one", "p50")];
    let table = rows(section(&readme, "Speed"));
    assert_eq!(table.len(), works.len());
    for (row, (work, what)) in table.iter().zip(works) {
        for (shown, system) in row[1..].iter().zip(["evenkeel-tc", "nft", "nginx", "haproxy"]) {
            assert_shows(shown, added(&lab, work, system, what), &format!("{} {system}", row[0]));
        }
    }
}

#[test]
fn sizing_shows_the_last_run_of_the_packets() {
    let (page, packets) = (read("docs/sizing.md"), run("packets.json"));
    let names = [
        "forward/1024",
        "reply/1024",
        "forward/65536",
        "reply/65536",
        "new",
        "answer",
        "first_ack",
        "first_fin",
        "last_fin",
        "last_ack",
    ];
    let table: Vec<_> = rows(section(&page, "The figures"));
    assert_eq!(table.len(), names.len());
    for (row, name) in table.iter().zip(names) {
        assert_shows(&row[1], median(rounds(&packets, &format!("packets/xdp/{name}"))), &row[0]);
    }
    let life: f64 =
        names[4..].iter().map(|name| median(rounds(&packets, &format!("packets/xdp/{name}"))).round()).sum();
    let said = page.split(" ns together").next().and_then(|text| text.rsplit(' ').next()).expect("the sum");
    assert_shows(&said.replace(',', ""), life, "begin and end");
}

/// Bytes of the tables for this many backends with these ports.
fn bytes(backends: u32, ports: &str, max_connections: u32) -> u64 {
    let mut text = format!(
        "[daemon]\nmax_connections = {max_connections}\n[[service]]\nname = \"s\"\nlisten = \"10.0.1.100:6443\"\n\
         snat_ports = \"{ports}\"\n"
    );
    for backend in 1..=backends {
        text += &format!("[[service.backend]]\nname = \"cp{backend}\"\naddress = \"10.0.2.{backend}:6443\"\n");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("evenkeel.toml");
    fs::write(&file, text).expect("a file");
    config::load(&file).expect("it is right").config.capacity().memory_bytes
}

#[test]
fn the_table_of_memory_is_what_check_says() {
    let page = read("docs/sizing.md");
    let shown: Vec<_> = rows(section(&page, "Memory")).iter().map(|row| format!("{}, {}", row[5], row[6])).collect();
    let cases = [
        (3, "10240-32767", 67_584, 67_584),
        (3, "10240-32767", 262_144, 67_584),
        (3, "1024-65535", 262_144, 193_536),
        (16, "1024-65535", 1_032_192, 1_032_192),
    ];
    let said = cases.map(|(backends, ports, max_connections, connections)| {
        let bytes = bytes(backends, ports, max_connections) as f64;
        let (mib, each) = (bytes / f64::from(1 << 20), bytes / f64::from(connections));
        let digits = if mib < 100.0 { 1 } else { 0 };
        format!("{mib:.digits$} MiB, {each:.0}")
    });
    assert_eq!(shown, said);
}
