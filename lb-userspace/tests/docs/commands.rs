//! docs/commands.md against clap.

use std::collections::BTreeSet;

use clap::Command;
use lb_common::verdict::Reason;

use super::page::{quoted, read, rows, section};

/// Options that the page describes once for all commands.
const EVERYWHERE: [&str; 4] = ["help", "version", "output", "socket"];

/// `drain` → its options, `vrrp failover` → its, and so on.
fn commands(within: &Command, before: &str) -> Vec<(String, BTreeSet<String>)> {
    let visible = within.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    visible
        .flat_map(|command| {
            let name = format!("{before}{}", command.get_name());
            let options = command.get_arguments().filter(|option| !option.is_hide_set()).filter_map(|option| {
                let long = option.get_long().filter(|long| !EVERYWHERE.contains(long));
                long.map(str::to_owned)
            });
            let inner = commands(command, &format!("{name} "));
            std::iter::once((name, options.collect())).chain(inner).collect::<Vec<_>>()
        })
        .collect()
}

/// The words of a usage line before its arguments, and the options in it.
fn usage(cell: &str) -> Option<(String, BTreeSet<String>)> {
    let words = quoted(cell)?.strip_prefix("evenkeel ")?.split(' ');
    let name: Vec<_> = words.clone().take_while(|word| word.chars().all(|c| c.is_ascii_lowercase())).collect();
    let options = words.filter_map(|word| word.trim_matches(['[', ']']).strip_prefix("--")).map(str::to_owned);
    // -c FILE
    let config = quoted(cell)?.contains("[-c FILE]").then(|| "config".to_owned());
    Some((name.join(" "), options.chain(config).collect()))
}

#[test]
fn the_page_of_commands_has_every_command_and_option() {
    let mut described: Vec<_> = rows(&read("docs/commands.md")).iter().filter_map(|row| usage(&row[0])).collect();
    let mut wanted = commands(&evenkeel::cli::definition(), "");
    described.sort();
    wanted.sort();
    assert_eq!(described, wanted, "the page on the left, clap on the right");
}

#[test]
fn the_exit_codes_in_the_page_are_those_of_the_program() {
    let page = read("docs/commands.md");
    let codes = rows(section(&page, "Output and exit codes"));
    let codes: Vec<_> = codes.iter().map(|row| row[0].as_str()).collect();
    let (refused, unreachable) = (evenkeel::client::exit::REFUSED, evenkeel::client::exit::UNREACHABLE);
    assert_eq!(codes, ["0", &refused.to_string(), &unreachable.to_string()]);
}

#[test]
fn reasons_that_the_page_on_trace_names_are_in_the_list() {
    let page = read("docs/operations.md");
    let refusals = rows(section(&page, "One connection, or none: `trace`"));
    let named: Vec<_> = refusals.iter().filter_map(|row| row[0].strip_prefix("`refused`, ")).collect();
    assert!(!named.is_empty());
    for reason in named {
        let word = quoted(reason).expect("a word");
        assert!(Reason::ALL.iter().any(|reason| reason.name() == word), "no reason {word}");
    }
}
