use std::{net::SocketAddrV4, thread, time::Duration};

use lab::{
    client::storm::{self, Report},
    forger::Forger,
    packet::{ACK, FIN, LINUX_OPTIONS, RST, SYN, Segment},
    peers::{self, NGINX_PORT},
    power::Dice,
    topology::VIP as ADDRESS,
    wait,
};

use super::{HOOKS, VIP, all_alive, client_of, conns, hold, nowhere};
use crate::cluster::{Cluster, SOON, Slots, full};

/// Connections held through a flood.
const HELD: u64 = 60;

/// A flood from addresses that nobody has.
#[derive(Clone, Copy)]
pub struct Flood {
    /// Segments a second; none: as fast as the machine sends.
    pub rate: Option<u64>,
    pub time: Duration,
}

impl Flood {
    /// `short` seconds, or `long` ones at full size.
    fn of(rate: u64, short: u64, long: u64) -> Flood {
        Flood { rate: Some(rate), time: Duration::from_secs(if full() { long } else { short }) }
    }
}

pub fn random_syn(dice: &mut Dice) -> Segment {
    let from = SocketAddrV4::new(nowhere(dice.number()), 1024 + dice.below(60_000) as u16);
    Segment::new(from, VIP, SYN).numbers(dice.number(), 0).options(&LINUX_OPTIONS)
}

/// Of the honest connections, 999 of 1,000 are served within a second.
pub fn is_served(report: &Report, what: &str) {
    let (bad, all) = (report.failures() + report.slow, report.done + report.failures());
    assert!(all > 50 && bad * 1000 <= all, "{what}: {report:?}");
}

/// Floods beside held connections and honest new ones; `during` looks at it now and then.
pub fn beside(
    cluster: &Cluster,
    flood: Flood,
    make: impl FnMut(u64) -> Segment + Send,
    mut during: impl FnMut(),
) -> Report {
    let forger = Forger::new(cluster.lab.client(), &cluster.lab.balancer).expect("a forger");
    let storm = cluster.storm(&["--rate", "50", "--slow-ms", "1000", "--timeout-ms", "5000"]);
    let sent = thread::scope(|scope| {
        let flood = scope.spawn(move || forger.flood(flood.rate, flood.time, make).expect("a flood"));
        while !flood.is_finished() {
            during();
            thread::sleep(Duration::from_millis(300));
        }
        flood.join().expect("the flood")
    });
    let report = storm.stop(SOON).expect("its report");
    println!("{sent} segments of strangers, honest: {report:?}");
    report
}

/// So few ports that a flood uses them up.
const FEW_PORTS: &str = "snat_ports = \"20000-20063\"";

/// A flood of SYNs that backends answer.
fn flooded_by_syns(hook: &str, line: &str, flood: Flood) {
    let cluster = Cluster::new(hook, |service| service.line(line));
    let mut held = hold(&cluster, HELD, hook);
    let mut dice = Dice::new(1);
    let (mut most, mut confirmed) = (0, Vec::new());
    let report = beside(
        &cluster,
        flood,
        move |_| random_syn(&mut dice),
        || {
            let backends = cluster.evenkeel.backends().expect("backends");
            most = most.max(backends.iter().map(|backend| backend.half_open).sum::<u64>());
            let strangers = conns(&cluster).into_iter().filter(|row| client_of(row).ip().octets()[0] == 11);
            confirmed.extend(strangers.filter(|row| row["state"] != "half_open"));
        },
    );
    is_served(&report, hook);
    assert_eq!(confirmed, Vec::<serde_json::Value>::new(), "{hook}: none of them has acknowledged anything");
    assert!(most > 50, "{hook}: at most {most} half-open connections were counted");
    all_alive(&mut held, HELD, hook);
    let free = || Some(Slots::of(&cluster.evenkeel)).filter(|slots| slots.open == HELD && slots.are_whole());
    wait::until("the slots are free again", SOON, free).unwrap_or_else(|late| {
        panic!("{hook}: {late:#}: {:?}\n{}", Slots::of(&cluster.evenkeel), cluster.evenkeel.log())
    });
    for backend in cluster.evenkeel.backends().expect("backends") {
        assert_eq!((backend.state.as_str(), backend.connect_failures), ("up", 0), "{hook}: {backend:?}");
    }
}

#[test]
fn a_flood_of_syns_that_backends_answer_keeps_nobody_out_and_ends_no_connection() {
    for hook in HOOKS {
        flooded_by_syns(hook, "", Flood::of(2_000, 5, 60));
    }
}

/// At full size as fast as the machine sends. What nginx makes of it is printed.
#[test]
fn a_flood_beside_nginx_is_survived_with_as_many_connections_as_it_has() {
    let (flood, held_ones) = match full() {
        true => (Flood { rate: None, time: Duration::from_secs(60) }, 1_000),
        false => (Flood::of(5_000, 3, 3), HELD),
    };
    for hook in ["tc", "xdp"] {
        let cluster = Cluster::new(hook, |service| service);
        let _nginx = peers::nginx(&cluster.lab).expect("nginx");
        let mut held = hold(&cluster, held_ones, hook);
        let through_nginx = format!("{ADDRESS}:{NGINX_PORT}");
        let options = [&through_nginx[..], "--rate", "50", "--slow-ms", "1000", "--timeout-ms", "5000"];
        let nginx = storm::start(cluster.lab.client(), &options).expect("a storm");
        let mut dice = Dice::new(2);
        let report = beside(&cluster, flood, move |_| random_syn(&mut dice), || {});
        println!("{hook}: through nginx {:?}", nginx.stop(SOON).expect("its report"));
        is_served(&report, hook);
        all_alive(&mut held, held_ones, hook);
    }
}

#[test]
fn floods_of_acknowledgements_resets_fins_and_syn_acks_change_nothing() {
    for hook in HOOKS {
        let cluster = Cluster::new(hook, |service| service.line(FEW_PORTS));
        let mut held = hold(&cluster, HELD, hook);
        let known: Vec<_> = conns(&cluster).iter().map(client_of).collect();
        let mut dice = Dice::new(3);
        // From nowhere, and in the names of the clients that have connections.
        let make = move |number: u64| {
            let nobody = SocketAddrV4::new(nowhere(dice.number()), 1024 + dice.below(60_000) as u16);
            let from = if number.is_multiple_of(2) { nobody } else { dice.choose(&known) };
            let flags = dice.choose(&[ACK, RST, RST | ACK, FIN | ACK, SYN | ACK, FIN]);
            Segment::new(from, VIP, flags).numbers(dice.number(), dice.number())
        };
        let report = beside(&cluster, Flood::of(2_000, 4, 60), make, || {});
        is_served(&report, hook);
        all_alive(&mut held, HELD, hook);
        let states: Vec<_> = conns(&cluster).into_iter().filter(|row| row["state"] != "established").collect();
        assert!(states.is_empty(), "{hook}: {states:?}");
    }
}
