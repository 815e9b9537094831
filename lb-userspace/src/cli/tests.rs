use std::time::Duration;

use clap::{CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;
use lb_common::verdict::Reason;

use super::args::{Cli, Command, Format, Setting};
use crate::{
    api::{
        trace::{Candidate, DecidingRule, Elsewhere, Foretold, Trace, Verdict},
        types::{Backend, ConnState, ConnectTime, Counters},
    },
    cli::{manual, show, trace},
    client::units,
    words::{BackendReason, BackendState, Event, EventKind, EventLevel, VrrpState},
};

#[test]
fn the_arguments_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn conns_takes_all_its_filters() {
    let cli = Cli::parse_from(
        "evenkeel conns --backend cp01 --client 10.0.0.1 --state half_open --older 10m --limit 5 -o json --socket /s"
            .split(' '),
    );
    assert_eq!(cli.socket.to_str(), Some("/s"));
    let Command::Conns { filter, output } = cli.command else { panic!("not conns") };
    assert_eq!(output.format, Format::Json);
    let filter = filter.to_filter(filter.limit);
    assert_eq!((filter.backend.as_deref(), filter.state), (Some("cp01"), Some(ConnState::HalfOpen)));
    assert_eq!((filter.older_s, filter.limit), (Some(600), Some(5)));
}

#[test]
fn wrong_usage_is_told_from_help() {
    for (arguments, is_error) in [
        ("evenkeel", true),
        ("evenkeel frobnicate", true),
        ("evenkeel conns --state asleep", true),
        ("evenkeel status -o yaml", true),
        ("evenkeel --help", false),
        ("evenkeel status --help", false),
        ("evenkeel --version", false),
    ] {
        let error = Cli::try_parse_from(arguments.split(' ')).expect_err("it is not a command to carry out");
        assert_eq!(error.use_stderr(), is_error, "{arguments}");
    }
}

#[test]
fn orders_are_read_as_the_contract_writes_them() {
    let command = |line: &str| Cli::try_parse_from(line.split(' ')).expect(line).command;
    let Command::Drain { which, args, .. } = command("evenkeel drain cp01 --service s --deadline 60s --rate 5 --wait")
    else {
        panic!("not drain")
    };
    assert_eq!((which.backend.as_str(), which.service.as_deref()), ("cp01", Some("s")));
    let rate = args.rate.map(std::num::NonZeroU32::get);
    assert_eq!((args.deadline, rate, args.wait), (Some(Duration::from_secs(60)), Some(5), true));
    let Command::Set { settings, .. } = command("evenkeel set cp01 weight=3 max_conns=0") else { panic!("not set") };
    assert_eq!(settings, [Setting::Weight(3), Setting::MaxConns(0)]);
    let Command::Kill { args, .. } = command("evenkeel kill 10.0.0.1:50000") else { panic!("not kill") };
    assert_eq!(args.connection, Some("10.0.0.1:50000".parse().unwrap()));
    let Command::Kill { args, .. } = command("evenkeel kill [2001:db8::1]:50000") else { panic!("not kill") };
    assert_eq!(args.connection, Some("[2001:db8::1]:50000".parse().unwrap()));
    assert!(matches!(command("evenkeel maint cp01 --reset"), Command::Maint { reset: true, .. }));
    assert!(matches!(command("evenkeel ready cp01 -o json"), Command::Ready { .. }));
    let Command::Rebalance { args, .. } = command("evenkeel rebalance --tolerance 10") else { panic!("not rebalance") };
    assert_eq!((args.rate, args.tolerance.map(std::num::NonZeroU32::get), args.dry_run), (None, Some(10), false));
}

#[test]
fn numbers_are_shown_with_units_for_people() {
    for (bytes, shown) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10_239, "10.0 KiB"),
        (1_048_000, "1.00 MiB"),
        (1 << 30, "1.00 GiB"),
        (u64::MAX, "16.0 EiB"),
    ] {
        assert_eq!(units::bytes(bytes), shown, "{bytes}");
    }
    for (seconds, shown) in
        [(0, "0s"), (59, "59s"), (60, "1m"), (125, "2m5s"), (3600, "1h"), (3661, "1h1m"), (90_061, "1d1h")]
    {
        assert_eq!(units::seconds(seconds), shown);
    }
    for (time, shown) in [(None, "-"), (Some(0.25), "0.25ms"), (Some(12.4), "12ms"), (Some(1500.0), "1.50s")] {
        assert_eq!(units::milliseconds(time), shown);
    }
}

#[test]
fn backends_are_plain_columns_away_from_a_terminal() {
    let backend = Backend {
        service: "api".into(),
        name: "cp01".into(),
        address: "10.0.1.10:6443".parse().unwrap(),
        state: BackendState::Down,
        backup: false,
        reason: Some(BackendReason::Refused),
        weight: 1,
        active: 2,
        half_open: 0,
        total: 3,
        connect_failures: 4,
        resets: 5,
        bytes_in: 6,
        bytes_out: 7000,
        connect_time_ms: ConnectTime::default(),
        last_change: jiff::Timestamp::UNIX_EPOCH,
    };
    let plain = super::table::Style::Plain;
    assert_eq!(
        show::backends(&[backend], Format::Table, plain),
        "\
SERVICE  BACKEND  ADDRESS         STATE  REASON   WEIGHT  ACTIVE  TOTAL  FAILURES  CONNECT   IN       OUT
api      cp01     10.0.1.10:6443  down   refused       1       2      3         4        -  6 B  6.84 KiB
"
    );
}

#[test]
fn events_are_lines_that_say_when_who_and_what() {
    let event = Event {
        number: 7,
        time: "2026-11-23T23:16:01.5Z".parse().unwrap(),
        level: EventLevel::Warn,
        kind: EventKind::Health,
        service: Some("api".into()),
        backend: Some("cp01".into()),
        instance: None,
        text: "is out\nfor 10 s".into(),
    };
    assert_eq!(
        show::events(&[event], Format::Wide),
        "\
NUMBER  TIME                            LEVEL  KIND       SUBJECT                   EVENT
     7  2026-11-23T23:16:01.5Z          warn   health     api/cp01                  is out; for 10 s
"
    );
}

#[test]
fn counters_show_what_happened_and_what_it_means() {
    let counters =
        Counters::from([("refused".into(), 2), ("closed".into(), 30), ("no_slot".into(), 0), ("new".into(), 1)]);
    let plain = super::table::Style::Plain;
    let names = |format| -> Vec<String> {
        let shown = show::counters(&counters, format, plain);
        shown.lines().skip(1).map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(Format::Table), ["closed", "refused", "new"]);
    assert_eq!(names(Format::Wide), ["closed", "refused", "new", "no_slot"]);
    assert!(show::counters(&counters, Format::Table, plain).contains(Reason::Refused.meaning()));
}

#[test]
fn every_reason_is_listed_with_its_meaning() {
    let listed = show::reasons(Format::Table, super::table::Style::Plain);
    let json = show::reasons(Format::Json, super::table::Style::Plain);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json.as_array().unwrap().len(), Reason::ALL.len());
    for reason in Reason::ALL {
        assert!(listed.contains(reason.name()) && listed.contains(reason.meaning()));
    }
}

#[test]
fn a_forecast_says_what_comes_of_a_syn_why_and_who_else_there_is() {
    let candidate = |name: &str, state, reason| Candidate {
        backend: name.into(),
        address: "10.0.1.10:6443".parse().unwrap(),
        state,
        reason,
        backup: false,
        weight: 1,
        active: 2,
        max_conns: 0,
    };
    let it = Foretold {
        service: "api".into(),
        listen: "10.0.1.100:6443".parse().unwrap(),
        verdict: Verdict::Refused,
        syn_cookie: true,
        makes_room: false,
        reason: Some("no_backend".into()),
        meaning: Some("nobody".into()),
        rule: Some(DecidingRule { number: 1, text: "allow 10.0.0.0/8".into() }),
        client_limit: None,
        balance: "least_conn".into(),
        chosen: None,
        backend: None,
        address: None,
        snat: None,
        mac: None,
        interface: None,
        backends: vec![
            candidate("cp01", BackendState::Draining, Some(BackendReason::Admin)),
            candidate("cp2", BackendState::Down, Some(BackendReason::Config)),
        ],
        elsewhere: Some(Elsewhere {
            instance: "VI_1".into(),
            state: VrrpState::Backup,
            master: Some([10, 0, 1, 2].into()),
        }),
    };
    let told = trace::told(&Trace { client: "10.0.3.7:1".parse().unwrap(), connections: vec![], new: vec![it] });
    assert_eq!(
        told,
        "\
10.0.3.7:1 has no connection. A SYN from it now would do this:
to 10.0.1.100:6443 (service api): is refused (RST)
  but first    it is answered with a SYN cookie: this is what its client meets if it answers
  but          this host is BACKUP of VI_1: SYNs go to 10.0.1.2, which holds the address
  reason       no_backend: nobody
  rule         1: \"allow 10.0.0.0/8\"
  backends     cp01  draining (admin), weight 1, 2 active
               cp2   down (config), weight 1, 2 active
"
    );
}

/// Every command, by the words that lead to it.
fn commands() -> Vec<(Vec<String>, clap::Command)> {
    fn below(words: &[String], command: &clap::Command, all: &mut Vec<(Vec<String>, clap::Command)>) {
        for sub in command.get_subcommands() {
            let words = [words, &[sub.get_name().to_owned()]].concat();
            below(&words, sub, all);
            all.push((words, sub.clone()));
        }
    }
    let mut all = Vec::new();
    below(&[], &Cli::command(), &mut all);
    all
}

#[test]
fn every_command_has_help_with_examples_that_are_accepted() {
    let mut seen = 0;
    for (words, command) in commands() {
        let words = words.join(" ");
        assert!(command.get_about().is_some(), "{words} does not say what it does");
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        // A line is a command, with shell syntax around it or a remark after two spaces.
        let lines = help.lines().map(|line| line.trim().trim_start_matches("Example: "));
        let commands = lines.flat_map(|line| line.split(&['|', '>'][..])).flat_map(|part| part.split("&& "));
        let examples: Vec<_> = commands
            .filter_map(|part| part.split("  ").next().map(str::trim))
            .filter(|part| part.starts_with("evenkeel "))
            .collect();
        assert!(examples.iter().any(|example| example.starts_with(&format!("evenkeel {words}"))), "{words}: {help}");
        for example in examples {
            let parsed = Cli::try_parse_from(example.split_whitespace());
            assert!(parsed.is_ok(), "{words}: {example}: {}", parsed.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen >= 30, "{seen} examples were read");
}

#[test]
fn the_commands_of_the_contract_are_there() {
    let there: Vec<_> = commands().into_iter().map(|(words, _)| words.join(" ")).collect();
    for command in [
        "run",
        "stop",
        "check",
        "dump",
        "status",
        "backends",
        "drain",
        "maint",
        "ready",
        "set",
        "conns",
        "kill",
        "trace",
        "rebalance",
        "vrrp",
        "vrrp failover",
        "counters",
        "events",
        "top",
        "reload",
        "upgrade",
        "completions",
        "man",
    ] {
        assert!(there.iter().any(|name| name == command), "{command} is missing");
    }
}

#[test]
fn there_are_completions_for_every_shell_and_bash_accepts_its_own() {
    for shell in Shell::value_variants() {
        let mut script = Vec::new();
        clap_complete::generate(*shell, &mut Cli::command(), "evenkeel", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("rebalance") && script.contains("deadline"), "{shell}");
        if *shell == Shell::Bash {
            let syntax = std::process::Command::new("bash").args(["-n", "-c", &script]).output().unwrap();
            assert!(syntax.status.success() && syntax.stderr.is_empty(), "{syntax:?}");
        }
    }
}

#[test]
fn every_command_has_a_manual_page_that_renders() {
    let mut renderer = Some("groff");
    for (words, command) in [(Vec::new(), Cli::command())].into_iter().chain(commands()) {
        let page = String::from_utf8(manual::page(&words).expect("a page")).unwrap();
        let name = [&["evenkeel".to_owned()], &words[..]].concat().join("-");
        for part in [format!(".TH {name} 1 "), ".SH NAME".into(), ".SH SYNOPSIS".into(), ".SH OPTIONS".into()] {
            assert!(page.contains(&part), "{name}: no {part:?} in {page}");
        }
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(
            help.lines().all(|line| page.contains(line.trim().split(['-', '\'', '"', '.']).next().unwrap())),
            "{page}"
        );
        renderer = renderer.filter(|groff| renders(groff, &page));
    }
    assert!(manual::page(&["fly".into()]).is_err() && manual::page(&["drain".into(), "cp01".into()]).is_err());
}

/// Whether the renderer is there; a page that it objects to fails.
fn renders(groff: &str, page: &str) -> bool {
    use std::{io::Write, process};
    let mut command = process::Command::new(groff);
    command.args(["-man", "-Tascii", "-ww", "-z"]).stdin(process::Stdio::piped()).stderr(process::Stdio::piped());
    // Not every machine has it; what does not depend on it was checked before.
    let Ok(mut child) = command.spawn() else { return false };
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}\n{page}", String::from_utf8_lossy(&output.stderr));
    true
}
