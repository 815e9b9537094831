use super::format::Surroundings;
use super::limit::Limit;
use super::*;
use jiff::tz::{TimeZone, offset};
use lb_common::verdict::Reason;
use std::time::{Duration, Instant};

fn tried(address: &str, connected_in: Option<u64>) -> Try {
    Try { address: address.parse().unwrap(), connected_in: connected_in.map(Duration::from_micros) }
}

/// A connection that was served by the second backend after the first had refused.
pub(super) fn served() -> Record {
    Record {
        client: "10.0.3.7:40123".parse().unwrap(),
        server: "10.0.1.100:6443".parse().unwrap(),
        ended: "2026-11-23T23:16:01.2345Z".parse().unwrap(),
        session: Duration::from_micros(1_234_900),
        bytes_received: 517,
        bytes_sent: 4096,
        status: Status::Served,
        tries: vec![tried("10.0.1.10:6443", None), tried("10.0.1.11:6443", Some(1999))],
        service: "api".into(),
        backend: Some("cp02".into()),
        reason: Some(Reason::IdleTimeout),
        snat: Some("10.0.1.100:10240".parse().unwrap()),
        connection: 42,
    }
}

pub(super) fn turned_away(status: Status) -> Record {
    Record { status, tries: vec![], backend: None, snat: None, reason: Some(Reason::NoBackend), ..served() }
}

fn line(format: &str, record: &Record, zone: TimeZone) -> String {
    let surroundings = Surroundings::new(zone, "lb1", 7);
    let mut line = String::new();
    Format::parse(format).unwrap().write(record, &surroundings, &mut line);
    line
}

#[test]
fn the_default_line_is_as_nginx_writes_it() {
    let mut written = String::new();
    let surroundings = Surroundings::new(TimeZone::UTC, "lb1", 7);
    Format::default().write(&served(), &surroundings, &mut written);
    let wanted = "10.0.3.7 [23/Nov/2026:23:16:01 +0000] TCP 200 4096 517 1.234 \"10.0.1.10:6443, 10.0.1.11:6443\" \"-, 0.001\"\n";
    assert_eq!(written, wanted);
}

#[test]
fn every_variable_has_nginx_s_form() {
    let cases = [
        ("$remote_addr", "10.0.3.7"),
        ("$remote_port", "40123"),
        ("$server_addr", "10.0.1.100"),
        ("$server_port", "6443"),
        ("$time_local", "24/Nov/2026:04:46:01 +0530"),
        ("$time_iso8601", "2026-11-24T04:46:01+05:30"),
        ("$msec", "1795475761.234"),
        ("$protocol", "TCP"),
        ("$status", "200"),
        ("$bytes_sent", "4096"),
        ("$bytes_received", "517"),
        ("$session_time", "1.234"),
        ("$upstream_addr", "10.0.1.10:6443, 10.0.1.11:6443"),
        ("$upstream_connect_time", "-, 0.001"),
        ("$upstream_bytes_sent", "0, 517"),
        ("$upstream_bytes_received", "0, 4096"),
        ("$connection", "42"),
        ("$hostname", "lb1"),
        ("$pid", "7"),
        ("$service", "api"),
        ("$backend", "cp02"),
        ("$reason", "idle_timeout"),
        ("$snat_addr", "10.0.1.100:10240"),
        ("<${status}00>", "<20000>"),
        ("", ""),
    ];
    let zone = offset(5).checked_add(Duration::from_secs(1800)).unwrap().to_time_zone();
    for (format, wanted) in cases {
        assert_eq!(line(format, &served(), zone.clone()), format!("{wanted}\n"), "{format}");
    }
}

#[test]
fn a_connection_without_a_backend_names_the_service_if_one_was_looked_for() {
    let format = "$status $upstream_addr $upstream_connect_time $upstream_bytes_sent $backend $snat_addr $reason";
    for (status, begins) in [(Status::NoBackend, "502 api"), (Status::Denied, "403 -"), (Status::OverLimit, "503 -")] {
        assert_eq!(line(format, &turned_away(status), TimeZone::UTC), format!("{begins} - - - - no_backend\n"));
    }
    let open = Record { status: Status::Open, reason: None, ..served() };
    assert_eq!(line("$status $reason", &open, TimeZone::UTC), "- -\n");
}

#[test]
fn a_wrong_format_says_where_and_what() {
    for (format, offset, what) in [
        ("$status $bytes_snt", 8, "unknown variable `$bytes_snt`: did you mean `$bytes_sent`?"),
        ("$zzz", 0, "unknown variable `$zzz`: there are $remote_addr $remote_port"),
        ("a $ b", 2, "a `$` begins a variable"),
        ("a ${status", 2, "a `$` begins a variable"),
        ("${a b}", 0, "a `$` begins a variable"),
        ("$status\n", 7, "a line cannot hold control characters"),
    ] {
        let wrong = Format::parse(format).unwrap_err();
        assert_eq!(wrong.offset, offset, "{format}");
        assert!(wrong.what.starts_with(what), "{}", wrong.what);
    }
}

#[test]
fn a_hundred_lines_a_second_are_allowed_and_a_new_second_begins_with_a_line() {
    let mut limit = Limit::default();
    let began = Instant::now();
    let allowed =
        |limit: &mut Limit, after: u64| (0..150).filter(|_| limit.allows(began + Duration::from_millis(after))).count();
    assert_eq!(allowed(&mut limit, 0), 100);
    assert_eq!(allowed(&mut limit, 999), 0);
    assert_eq!(allowed(&mut limit, 1000), 100);
    assert_eq!(allowed(&mut limit, 5000), 100);
}

#[test]
fn what_a_line_cannot_hold_is_escaped_as_by_nginx() {
    let mut line = String::new();
    let surroundings = Surroundings::new(TimeZone::UTC, "a\"b\\c\nd\x7fé~ ", 7);
    Format::parse("$hostname").unwrap().write(&served(), &surroundings, &mut line);
    assert_eq!(line, "a\\x22b\\x5Cc\\x0Ad\\x7F\\xC3\\xA9~ \n");
}
