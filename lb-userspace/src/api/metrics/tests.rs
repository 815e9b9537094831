use std::collections::BTreeSet;

use super::{
    families::{ALL, Kind, Metric},
    *,
};
use crate::{
    api::{
        report::PoolUse,
        tests::{backend, status},
        types::{SyncStatus, VrrpAdverts, VrrpStatus},
    },
    words::{AdvertCounts, RefusedDatagrams, SyncCounts},
};

fn report() -> Report {
    let mut status = status();
    status.services[0].backends[0].name = "a\"b\\c\nd".into();
    status.vrrp.push(VrrpStatus {
        name: "VI_1".into(),
        state: VrrpState::Backup,
        priority: 90,
        base_priority: 150,
        addresses: vec![],
        since: backend().last_change,
        transitions: 3,
        master: None,
        interface: "eth0".into(),
        virtual_router_id: 51,
        version: 3,
        reason: "started".into(),
        weights: vec![],
        faults: vec![],
        source: None,
        lease_ms: 0,
        waits_for_flow_sync: false,
        peers: vec![],
        adverts: VrrpAdverts {
            counts: AdvertCounts { sent: 7, ..AdvertCounts::default() },
            refused: [("password".to_owned(), 3)].into(),
        },
    });
    status.sync = Some(SyncStatus {
        listen: "10.0.1.1:9644".parse().unwrap(),
        error: None,
        master_of: vec![],
        send_failures: 0,
        peers: vec![SyncPeer {
            address: "10.0.1.2:9644".parse().unwrap(),
            state: SyncState::Lost,
            version: "0.1.0".into(),
            silent_ms: Some(3500),
            waiting: 7,
            lag_ms: 40,
            counts: SyncCounts {
                lost: 1,
                datagrams_sent: 9,
                flows_sent: 100,
                ends_sent: 3,
                copies_sent: 1,
                flows_received: 50,
                ends_received: 2,
                copies_received: 1,
                refused: RefusedDatagrams { replayed: 4, ..RefusedDatagrams::default() },
                ..SyncCounts::default()
            },
        }],
    });
    status.counters = Reason::ALL.iter().map(|reason| (reason.name().to_owned(), *reason as u64)).collect();
    status.counters.insert("least_conn_drift".into(), 0);
    status.counters.insert("client_count_drift".into(), 0);
    status.counters.insert("of_a_newer_daemon".into(), 1);
    let mut times = [0; CONNECT_TIME_BUCKETS];
    (times[0], times[3], times[4], times[63]) = (1, 2, 3, 4);
    Report {
        stranded: vec![],
        status,
        reloaded: false,
        capacity: 262_144,
        connects: vec![Connects { times, sum_us: 1_500_000 }],
        pools: vec![PoolUse {
            backend: "10.0.1.10:6443".parse().unwrap(),
            snat: "10.0.1.100".parse().unwrap(),
            ports: 22_528,
            used: 7,
        }],
    }
}

fn render(report: &Report) -> String {
    Metrics::default().render(report).expect("a text")
}

/// The rows of one metric: everything after its name.
fn rows(text: &str, name: &str) -> Vec<String> {
    let of_it = text.lines().filter_map(|line| line.strip_prefix(name));
    of_it.filter(|rest| rest.starts_with([' ', '{'])).map(str::to_owned).collect()
}

#[test]
fn every_metric_of_the_list_is_told_and_no_other() {
    let text = render(&report());
    let told: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let told: BTreeSet<_> = told.iter().filter(|line| line.starts_with("evenkeel_")).copied().collect();
    let kind = |metric: &Metric| format!("{:?}", metric.kind).to_lowercase();
    let listed: Vec<_> = ALL.iter().map(|metric| format!("{} {}", metric.name, kind(metric))).collect();
    assert_eq!(told, listed.iter().map(String::as_str).collect());
    for of_process in ["process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"] {
        assert_eq!(rows(&text, of_process).len(), 1, "{of_process}");
    }
}

#[test]
fn names_follow_the_conventions() {
    for metric in ALL {
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        assert!(metric.name.starts_with("evenkeel_"));
        assert!(metric.help.ends_with('.'), "{}: a sentence", metric.name);
        let unit_is_last = ["seconds", "bytes"].iter().all(|unit| {
            let name = metric.name.trim_end_matches("_total");
            !name.contains(unit) || name.ends_with(unit)
        });
        assert!(unit_is_last, "{}", metric.name);
    }
    assert_eq!(ALL.iter().map(|metric| metric.name).collect::<BTreeSet<_>>().len(), ALL.len());
}

#[test]
fn a_state_is_one_row_of_ones_and_labels_are_escaped() {
    let text = render(&report());
    let states = rows(&text, "evenkeel_backend_state");
    assert_eq!(states.len(), BackendState::ALL.len());
    assert!(states.contains(&r#"{service="api",backend="a\"b\\c\nd",state="slow_start"} 1"#.to_owned()), "{states:?}");
    assert_eq!(states.iter().filter(|row| row.ends_with(" 1")).count(), 1);
    assert_eq!(rows(&text, "evenkeel_vrrp_adverts_refused_total"), [r#"{vrrp_instance="VI_1",reason="password"} 3"#]);
    assert_eq!(rows(&text, "evenkeel_sync_lag_seconds"), [r#"{peer="10.0.1.2:9644"} 0.04"#]);
    assert!(rows(&text, "evenkeel_sync_peer_state").contains(&r#"{peer="10.0.1.2:9644",state="lost"} 1"#.to_owned()));
    assert!(rows(&text, "evenkeel_vrrp_state").contains(&r#"{vrrp_instance="VI_1",state="BACKUP"} 1"#.to_owned()));
}

#[test]
fn the_histogram_is_cumulative_and_its_sum_is_that_of_the_table() {
    let text = render(&report());
    let buckets = rows(&text, "evenkeel_backend_connect_duration_seconds_bucket");
    assert_eq!(buckets.len(), 17, "{buckets:?}");
    let ends: Vec<_> = buckets.iter().map(|row| row.split("le=").nth(1).expect("a bound")).collect();
    assert_eq!((ends[0], ends[1], ends[2]), (r#""0.000064"} 1"#, r#""0.000128"} 6"#, r#""0.000256"} 6"#));
    assert_eq!((ends[15], ends[16]), (r#""2.097152"} 6"#, r#""+Inf"} 10"#));
    assert!(rows(&text, "evenkeel_backend_connect_duration_seconds_sum")[0].ends_with(" 1.5"));
    assert!(rows(&text, "evenkeel_backend_connect_duration_seconds_count")[0].ends_with(" 10"));
}

#[test]
fn every_reason_stands_in_one_metric() {
    let text = render(&report());
    for reason in Reason::ALL {
        let row = format!("{{reason=\"{}\"}} {}", reason.name(), *reason as u8);
        assert_eq!(
            rows(&text, of_group(reason.group()).name).iter().filter(|other| **other == row).count(),
            1,
            "{row}"
        );
    }
    assert!(!text.contains("of_a_newer_daemon"));
}

#[test]
fn payload_never_falls_unless_the_backend_began_anew() {
    let metrics = Metrics::default();
    let told = |total: u64, bytes: u64| {
        let mut report = report();
        let backend = &mut report.status.services[0].backends[0];
        (backend.total, backend.bytes_in, backend.bytes_out) = (total, bytes, bytes);
        let text = metrics.render(&report).expect("a text");
        let row = rows(&text, "evenkeel_backend_received_bytes_total").remove(0);
        row.rsplit(' ').next().and_then(|value| value.parse::<u64>().ok()).expect("a number")
    };
    // A connection that ended while the slots were read is missed once.
    assert_eq!([told(5, 100), told(6, 90), told(6, 110)], [100, 100, 110]);
    assert_eq!(told(1, 10), 10, "removed, and back again");
    let mut without = report();
    without.status.services[0].backends.clear();
    metrics.render(&without).expect("a text");
    assert!(metrics.payload.lock().unwrap().is_empty(), "nothing is remembered of a backend that is gone");
}

/// The table in docs/operations.md is made from the list.
#[test]
fn the_documentation_lists_every_metric_as_it_is() {
    let mut table = String::from("| metric | type | labels | |\n|---|---|---|---|\n");
    for metric in ALL {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        table += &format!("| `{}` | {kind} | {} | {} |\n", metric.name, labels.join(", "), metric.help);
    }
    let page = include_str!("../../../../docs/operations.md");
    assert!(page.contains(&table), "docs/operations.md should have this table:\n{table}");
}
