//! docs/configuration.md against the parser, and what it says `check` prints.

use std::{collections::BTreeSet, fs, process::Command};

use evenkeel::config;
use toml::{Table, Value};

use super::page::{blocks, quoted, read, rows, section};

const PAGE: &str = "docs/configuration.md";

/// A file with every table, each with nothing but what is required.
const SMALLEST: &str = r#"
[daemon]
[api]
[sync]
listen = "10.0.1.1:9644"
peers = "10.0.1.2:9644"
key_file = "/nonexistent/sync.key"
[[service]]
name = "kube-apiserver"
listen = "10.0.1.100:6443"
[service.health]
[service.access_log]
path = "/var/log/evenkeel/access.log"
[[service.backend]]
name = "cp01"
address = "10.0.1.10:6443"
[[vrrp]]
name = "VI_1"
interface = "eth0"
virtual_router_id = 251
addresses = "10.0.1.100/24"
[[vrrp.track_script]]
command = "/bin/true"
"#;

/// A table's heading in the page, its line in the file, and the way to it in what `dump` prints.
const TABLES: [(&str, &str, &[&str]); 10] = [
    ("Top of the file", "", &[]),
    ("`[[service]]`", "[[service]]", &["service"]),
    ("`[[service.backend]]`", "[[service.backend]]", &["service", "backend"]),
    ("`[service.health]`", "[service.health]", &["service", "health"]),
    ("`[service.access_log]`", "[service.access_log]", &["service", "access_log"]),
    ("`[[vrrp]]`", "[[vrrp]]", &["vrrp"]),
    ("`[[vrrp.track_script]]`", "[[vrrp.track_script]]", &["vrrp", "track_script"]),
    ("`[sync]`", "[sync]", &["sync"]),
    ("`[api]`", "[api]", &["api"]),
    ("`[daemon]`", "[daemon]", &["daemon"]),
];

/// Defaults that `dump` works out from other keys, so the page describes them.
const DERIVED: [&str; 2] = ["snat", "format"];

/// The errors of a text, or none.
fn errors(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("evenkeel.toml");
    fs::write(&file, text).expect("a file");
    config::load(&file).err().map(|problems| problems.to_string()).unwrap_or_default()
}

/// The keys that the parser knows in a table: it lists them where it meets one that it does not
/// know.
fn known_keys(line: &str) -> BTreeSet<String> {
    let unknown = "zzzzzzzz = 0\n";
    let text = match line {
        "" => format!("{unknown}{SMALLEST}"),
        line => SMALLEST.replacen(&format!("{line}\n"), &format!("{line}\n{unknown}"), 1),
    };
    let said = errors(&text);
    let list = said.lines().find(|said| said.contains("`zzzzzzzz`")).expect("the unknown key is refused");
    let list = list.rsplit(": ").next().unwrap_or_default();
    // "it knows name, listen, ...": the words before the first key are no keys.
    let words = list.split(", ").filter_map(|part| part.split(' ').next_back());
    words.map(|word| word.trim_matches(['`', '.']).to_owned()).collect()
}

#[test]
fn the_page_of_keys_and_the_parser_have_the_same_keys() {
    let page = read(PAGE);
    assert_eq!(errors(SMALLEST), "");
    for (heading, line, _) in TABLES {
        let described: Vec<_> = rows(section(&page, heading)).iter().filter_map(|row| key(row)).collect();
        let set: BTreeSet<_> = described.iter().cloned().collect();
        assert_eq!(set.len(), described.len(), "{heading} describes a key twice");
        assert_eq!(set, known_keys(line), "{heading}: the page on the left, the parser on the right");
    }
}

fn key(row: &[String]) -> Option<String> {
    quoted(&row[0]).map(str::to_owned)
}

#[test]
fn the_defaults_in_the_page_are_those_that_dump_prints() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("evenkeel.toml");
    fs::write(&file, SMALLEST).expect("a file");
    let dumped: Table = config::load(&file).expect("it is right").config.to_toml().parse().expect("TOML");
    let page = read(PAGE);
    for (heading, _, path) in TABLES.into_iter().skip(1) {
        let table = table_at(&dumped, path);
        for row in rows(section(&page, heading)) {
            let key = key(&row).expect("a key");
            let printed = table.get(&key).filter(|value| !is_tables(value)).map(ToString::to_string);
            let is_given = SMALLEST.contains(&format!("\n{key} = "));
            match quoted(&row[1]).filter(|_| row[1].starts_with('`')) {
                Some(default) => assert_eq!(printed.as_deref(), Some(default), "{heading} {key}"),
                None if row[1] == "required" => {
                    let without = without(&key, heading);
                    assert!(errors(&without).contains(&key), "{heading} {key} is not required");
                }
                None => assert!(
                    printed.is_none() || DERIVED.contains(&key.as_str()) || is_given,
                    "{heading} {key}: dump prints {printed:?}"
                ),
            }
        }
    }
}

fn table_at<'a>(dumped: &'a Table, path: &[&str]) -> &'a Table {
    path.iter().fold(dumped, |table, key| match &table[*key] {
        Value::Array(tables) => tables[0].as_table().expect("a table"),
        value => value.as_table().expect("a table"),
    })
}

fn is_tables(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(Value::is_table),
        value => value.is_table(),
    }
}

/// The smallest file without one key (or table) of the table under `heading`.
fn without(key: &str, heading: &str) -> String {
    let line = heading.trim_matches('`');
    let whole = format!("[[service.{key}]]\n");
    if let Some((before, after)) = SMALLEST.split_once(&whole) {
        let rest = after.split_once("\n[").map_or("", |(_, rest)| rest);
        return format!("{before}[{rest}");
    }
    let (before, after) = SMALLEST.split_once(&format!("{line}\n")).expect("the table");
    let (table, rest) = after.split_at(after.find("\n[").map_or(after.len(), |at| at + 1));
    let kept: String =
        table.lines().filter(|given| !given.starts_with(key)).map(|given| format!("{given}\n")).collect();
    format!("{before}{line}\n{kept}{rest}")
}

/// What `evenkeel check` prints for a text, in a file called evenkeel.toml.
fn checked(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("evenkeel.toml"), text).expect("a file");
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    let done = command.args(["check", "-c", "evenkeel.toml"]).current_dir(&folder).output().expect("evenkeel starts");
    String::from_utf8([done.stdout, done.stderr].concat()).expect("text")
}

#[test]
fn the_page_shows_what_check_prints() {
    let page = read(PAGE);
    let shown = blocks(section(&page, "Mistakes"));
    let [(_, wrong), (_, mistakes), (_, room)] = shown[..] else { panic!("three blocks: {shown:?}") };
    let after_command = |block: &str| block.split_once('\n').map(|(_, said)| format!("{said}\n")).unwrap_or_default();
    assert_eq!(after_command(mistakes), checked(wrong));
    let backends = (1..=3).map(|n| format!("[[service.backend]]\nname = \"cp0{n}\"\naddress = \"10.0.1.1{n}:6443\"\n"));
    let right: String = std::iter::once(SERVICE.to_owned()).chain(backends).collect();
    assert_eq!(after_command(room), checked(&right));
}

const SERVICE: &str = "[[service]]\nname = \"kube-apiserver\"\nlisten = \"10.0.1.100:6443\"\n";

#[test]
fn the_configuration_in_the_readme_is_right() {
    let readme = read("README.md");
    let examples: Vec<_> = blocks(&readme).into_iter().filter(|(language, _)| *language == "toml").collect();
    let [(_, example)] = examples[..] else { panic!("one example: {examples:?}") };
    assert_eq!(errors(example), "");
}
