//! The controller is stopped under load until the ring of events is full: clients do not notice,
//! every missing line is counted, and all that it knows is right again when it continues.

use std::time::Duration;

use evenkeel::dataplane::tables_beside;
use lab::wait;
use lb_common::{event::Event, layout::EVENTS_BYTES, verdict::Reason};
use nix::sys::signal::Signal;

use super::{folder, lines, log_to, until};
use crate::cluster::{Cluster, SOON, all_served, use_all_ports};

/// How many events fit into the ring, with 8 bytes more for each.
const RING: u64 = EVENTS_BYTES as u64 / (size_of::<Event>() as u64 + 8);
const STORM: Duration = Duration::from_secs(60);

/// Short connections, none of which fails.
fn storm(cluster: &Cluster, count: u64, close: &str) {
    let storm = cluster.storm(&["--connections", &count.to_string(), "--close", close]);
    let report = storm.finish(STORM).expect("its report");
    assert_eq!((report.done, report.failures()), (count, 0), "{report:?}");
}

#[test]
fn what_the_ring_has_no_room_for_is_counted_to_the_last_line_and_the_controller_finds_its_way_back() {
    let mut cluster = Cluster::new("tc", |service| service);
    use_all_ports(cluster.lab.client());
    let path = folder(&cluster, "log").join("access.log");
    cluster.reload(&log_to(cluster.service.clone(), &path, "$remote_port $status $reason"));
    let mut held = cluster.hold(&[]);
    all_served(&held.open(90).expect("open"), 90, "held");
    let tables = tables_beside(cluster.evenkeel.bpffs()).expect("the tables");
    let lost = || tables.counter(Reason::EventLost).expect("a counter");

    cluster.evenkeel.signal(Signal::SIGSTOP).expect("SIGSTOP");
    storm(&cluster, RING + 500, "mixed");
    let ended = || (lost() == 500).then_some(());
    wait::until("500 events lost", SOON, ended).unwrap_or_else(|error| panic!("{error:#}: {}", lost()));
    // Without the controller too, the kernel program takes it out at the third failure.
    cluster.standins[0].kill();
    storm(&cluster, 300, "client-fin");
    let failures =
        || tables.backend(0).connect_failures + tables.backend(1).connect_failures + tables.backend(2).connect_failures;
    assert!((3..10).contains(&failures()), "{}", failures());
    // Those of the storm, and the thirty that the host of cp01 has reset.
    let all = || (lost() == 500 + 300 + 30 + failures()).then_some(());
    wait::until("every event lost", SOON, all).unwrap_or_else(|error| panic!("{error:#}: {} {}", lost(), failures()));
    cluster.evenkeel.signal(Signal::SIGCONT).expect("SIGCONT");

    let text = until(&cluster, "as many lines as the ring has room for", &path, |text| {
        text.ends_with('\n') && text.lines().count() as u64 == RING
    });
    assert_eq!(lines(&text, |line| line.contains(" 200 ")) as u64, RING);
    cluster.wait_state("cp01", "down", SOON);
    assert_eq!(cluster.backend("cp01").reason.as_deref(), Some("refused"));
    cluster.active([0, 30, 30]);
    let counter = |name| cluster.evenkeel.counter(name).expect("a counter");
    assert_eq!(counter("event_lost"), lost());

    // And everything continues.
    cluster.standins[0].revive().expect("cp01");
    let mut more = 0;
    let back = || {
        more += 9;
        storm(&cluster, 9, "client-fin");
        (cluster.backend("cp01").state == "up").then_some(())
    };
    wait::until("cp01 is up", SOON * 3, back).unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.evenkeel.log()));
    let counted = lost();
    held.close(60, "-", "fin").expect("close");
    cluster.active([0, 0, 0]);
    until(&cluster, "a line of every one since then", &path, |text| {
        text.ends_with('\n') && text.lines().count() as u64 == RING + more + 60
    });
    assert_eq!((counter("event_lost"), counter("access_log_lost"), counter("least_conn_drift")), (counted, 0, 0));
}
