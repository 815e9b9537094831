//! `snat_ports` that are widened, narrowed and moved while connections are open.

use std::{collections::BTreeSet, net::SocketAddr, ops::RangeInclusive, time::Duration};

use lab::{Evenkeel, Plan, client::hold::Holding, daemon::Service, topology::Topology, wait};

use crate::cluster::{Cluster, SOON, Slots, all_served, both_at_once};

fn with_ports(mut service: Service, ports: &str) -> Service {
    service.lines.retain(|line| !line.starts_with("snat_ports"));
    service.line(&format!("snat_ports = \"{ports}\""))
}

/// The SNAT ports of all open connections.
fn ports(evenkeel: &Evenkeel) -> BTreeSet<u16> {
    let conns = evenkeel.json(&["conns"]).unwrap_or_else(|error| panic!("{error:#}\n{}", evenkeel.log()));
    let rows = conns.as_array().expect("a list").iter();
    let snat = rows.map(|row| row["snat"].as_str().and_then(|snat| snat.parse::<SocketAddr>().ok()));
    snat.map(|snat| snat.expect("an address").port()).collect()
}

/// Opens connections, and checks that they get ports of these.
fn open(cluster: &Cluster, held: &mut Holding, count: u64, allowed: RangeInclusive<u16>) {
    let before = ports(&cluster.evenkeel);
    all_served(&held.open(count).expect("open"), count, &format!("with {allowed:?}\n{}", cluster.evenkeel.log()));
    let new: BTreeSet<_> = ports(&cluster.evenkeel).difference(&before).copied().collect();
    assert_eq!(new.len() as u64, count);
    assert!(new.iter().all(|port| allowed.contains(port)), "{allowed:?}: {new:?}");
}

/// Every connection that is held still answers.
fn answers(cluster: &Cluster, held: &mut Holding, count: u64) {
    let asked = held.ask().expect("ask");
    assert_eq!((asked.answered, asked.failed.len()), (count, 0), "{asked:?}\n{}", cluster.evenkeel.log());
}

#[test]
fn a_reload_widens_narrows_and_moves_the_ports_while_connections_are_open() {
    both_at_once(|hook| {
        let plan = Plan::new(Topology::Segment).backends(1);
        let mut cluster = Cluster::of(plan, hook, |service| with_ports(service, "20000-20099"));
        let [wider, narrow, moved, both_sides] = ["20000-29999", "25000-25049", "1024-1100", "1024-65535"]
            .map(|ports| with_ports(cluster.service.clone(), ports));
        let mut held = cluster.hold(&[]);
        open(&cluster, &mut held, 100, 20_000..=20_099);
        assert_eq!(held.open(1).expect("open").opened, 0, "{hook}: all ports are in use");
        cluster.reload(&wider);
        open(&cluster, &mut held, 300, 20_100..=29_999);
        cluster.reload(&narrow);
        open(&cluster, &mut held, 20, 25_000..=25_049);
        // A controller that starts anew finds all of it.
        cluster.evenkeel.kill();
        cluster.evenkeel.run().expect("a start");
        answers(&cluster, &mut held, 420);
        open(&cluster, &mut held, 20, 25_000..=25_049);
        cluster.reload(&moved);
        open(&cluster, &mut held, 77, 1024..=1100);
        assert_eq!(held.open(1).expect("open").opened, 0, "{hook}: all ports are in use");
        answers(&cluster, &mut held, 517);
        // What ends outside does not come back, what ends inside does.
        held.close(517, "-", "fin").expect("close");
        wait::until("all have ended", SOON, || ports(&cluster.evenkeel).is_empty().then_some(())).expect("an end");
        open(&cluster, &mut held, 60, 1024..=1100);
        cluster.reload(&both_sides);
        open(&cluster, &mut held, 500, 1024..=65_535);
        answers(&cluster, &mut held, 560);
        let slots = Slots::of(&cluster.evenkeel);
        assert!(slots.are_whole(), "{hook}: {slots:?}");
        assert_eq!(slots.all, 64_512 - 1, "one is the listener's");
    });
}

#[test]
fn ports_that_change_under_load_fail_no_connection() {
    both_at_once(|hook| {
        let plan = Plan::new(Topology::Segment).backends(2);
        let cluster = Cluster::of(plan, hook, |service| with_ports(service, "20000-20999"));
        let mut held = cluster.hold(&[]);
        all_served(&held.open(200).expect("open"), 200, hook);
        let storm = cluster.storm(&["--rate", "200", "--every", "0.1"]);
        let ranges = ["20000-24999", "30000-31999", "15000-21999", "20500-22499", "1024-65535", "10240-32767"];
        for ports in ranges.repeat(2) {
            cluster.reload(&with_ports(cluster.service.clone(), ports));
            let done = storm.latest().map_or(0, |report| report.done);
            wait::until("traffic goes on", SOON, || (storm.latest().ok()?.done >= done + 20).then_some(()))
                .expect("traffic");
        }
        let report = storm.stop(Duration::from_secs(30)).expect("its report");
        assert_eq!((report.failures(), report.slow), (0, 0), "{hook}: {report:?}\n{}", cluster.evenkeel.log());
        answers(&cluster, &mut held, 200);
        let is_whole = || Slots::of(&cluster.evenkeel).are_whole().then_some(());
        wait::until("every port is where it belongs", SOON, is_whole)
            .unwrap_or_else(|late| panic!("{late:#}: {:?}", Slots::of(&cluster.evenkeel)));
    });
}
