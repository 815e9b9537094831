use std::{fs, net::SocketAddrV4, thread, time::Duration};

use lab::{
    client::storm::{self, Report},
    forger::Forger,
    packet::{ACK, FIN, LINUX_OPTIONS, RST, SYN, Segment},
    peers::{self, NGINX_PORT},
    power::Dice,
    topology::{PORT, VIP as ADDRESS},
    wait,
};

use super::{HOOKS, VIP, all_alive, client_of, conns, hold, nowhere};
use crate::cluster::{Cluster, SOON, Slots, full};

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

    /// A minute as fast as the machine sends; or a few seconds at a rate that leaves it time for
    /// everything else.
    fn fast() -> Flood {
        if full() { Flood { rate: None, time: Duration::from_secs(60) } } else { Flood::of(10_000, 6, 6) }
    }
}

/// Connections held through a flood.
fn held() -> u64 {
    if full() { 1_000 } else { 60 }
}

/// From nobody.
fn stranger(dice: &mut Dice) -> SocketAddrV4 {
    SocketAddrV4::new(nowhere(dice.number()), 1024 + dice.below(60_000) as u16)
}

pub fn random_syn(dice: &mut Dice, to: SocketAddrV4) -> Segment {
    Segment::new(stranger(dice), to, SYN).numbers(dice.number(), 0).options(&LINUX_OPTIONS)
}

/// Of the honest connections, all but one of this many are served within a second.
pub fn is_served(report: &Report, all_but_one_of: u64, what: &str) {
    let (bad, all) = (report.failures() + report.slow, report.done + report.failures());
    assert!(all > 50 && bad * all_but_one_of <= all, "{what}: {report:?}");
}

/// With SYN cookies, and where none are needed.
pub const WITH_COOKIES: u64 = 10_000;
/// By the limits alone, and so few ports that each is used again within a quarter of a second: a SYN
/// is late if it meets a port before the controller has ended what its backend still holds there,
/// and how soon that is, the machine's load decides.
const BY_FEW_PORTS: u64 = 20;

/// A flood beside 50 honest new connections a second to `to`; `during` looks at it now and then.
pub fn beside(
    cluster: &Cluster,
    to: SocketAddrV4,
    flood: Flood,
    make: impl FnMut(u64) -> Segment + Send,
    mut during: impl FnMut(),
) -> Report {
    let forger = Forger::new(cluster.lab.client(), &cluster.lab.balancer).expect("a forger");
    let options = [&to.to_string()[..], "--rate", "50", "--slow-ms", "1000", "--timeout-ms", "5000"];
    let storm = storm::start(cluster.lab.client(), &options).expect("a storm");
    let sent = thread::scope(|scope| {
        let flood = scope.spawn(move || forger.flood(flood.rate, flood.time, make).expect("a flood"));
        while !flood.is_finished() {
            during();
            thread::sleep(Duration::from_millis(300));
        }
        flood.join().expect("the flood")
    });
    let report = storm.stop(SOON).expect("its report");
    println!(
        "{sent} segments of strangers in {:.0} s; honest connections to {to}: {} served, {} failed, {} later than \
         1 s, p99 {:.0} ms, at most {:.0} ms",
        flood.time.as_secs_f64(),
        report.done,
        report.failures(),
        report.slow,
        report.p99_ms,
        report.max_ms
    );
    report
}

/// So few ports that a flood uses them up.
const FEW_PORTS: &str = "snat_ports = \"20000-20063\"";
const NO_COOKIES: &str = "syn_cookies = \"off\"";

/// The daemon's own memory in KiB, without what it maps of the kernel's tables.
fn memory(cluster: &Cluster) -> u64 {
    let file = format!("/proc/{}/status", cluster.evenkeel.id().expect("a process"));
    let status = fs::read_to_string(&file).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// How much of that may come while a flood lasts.
const FLAT_KIB: u64 = 8 * 1024;

/// A flood of SYNs that backends answer.
fn flooded_by_syns(hook: &str, lines: &[&str], flood: Flood, count: u64) {
    let cluster = Cluster::new(hook, |service| lines.iter().fold(service, |service, line| service.line(line)));
    let mut held = hold(&cluster, count, hook);
    let before = memory(&cluster);
    let mut dice = Dice::new(1);
    let (mut most, mut confirmed, mut foretold) = (0, Vec::new(), Vec::new());
    let report = beside(
        &cluster,
        VIP,
        flood,
        move |_| random_syn(&mut dice, VIP),
        || {
            let backends = cluster.evenkeel.backends().expect("backends");
            most = most.max(backends.iter().map(|backend| backend.half_open).sum::<u64>());
            let strangers = conns(&cluster).into_iter().filter(|row| client_of(row).ip().octets()[0] == 11);
            confirmed.extend(strangers.filter(|row| row["state"] != "half_open"));
            foretold.push(cluster.evenkeel.json(&["trace", "10.0.1.101:7"]).expect("trace")["new"][0].take());
        },
    );
    is_served(&report, if lines.contains(&NO_COOKIES) { BY_FEW_PORTS } else { WITH_COOKIES }, hook);
    assert_eq!(report.failures(), 0, "{hook}: {report:?}");
    assert_eq!(confirmed, Vec::<serde_json::Value>::new(), "{hook}: none of them has acknowledged anything");
    assert!(foretold.iter().all(|it| it["verdict"] == "forwarded"), "{hook}: {foretold:?}");
    let makes_room = foretold.iter().any(|it| it["makes_room"] == true);
    assert!(makes_room || !lines.contains(&FEW_PORTS), "{hook}: {foretold:?}");
    assert!(most > 50, "{hook}: at most {most} half-open connections were counted");
    all_alive(&mut held, count, hook);
    are_free_again(&cluster, count, hook);
    let grown = memory(&cluster).saturating_sub(before);
    assert!(grown < FLAT_KIB, "{hook}: {grown} KiB more than the {before} before");
    for backend in cluster.evenkeel.backends().expect("backends") {
        assert_eq!((backend.state.as_str(), backend.connect_failures), ("up", 0), "{hook}: {backend:?}");
    }
}

/// Waits until the slots of strangers are free again.
fn are_free_again(cluster: &Cluster, held: u64, what: &str) {
    let free = || Some(Slots::of(&cluster.evenkeel)).filter(|slots| slots.open == held && slots.are_whole());
    wait::until("the slots are free again", SOON, free).unwrap_or_else(|late| {
        panic!("{what}: {late:#}: {:?}\n{}", Slots::of(&cluster.evenkeel), cluster.evenkeel.log())
    });
}

#[test]
fn a_flood_of_syns_that_backends_answer_keeps_nobody_out_and_ends_no_connection() {
    for hook in HOOKS {
        flooded_by_syns(hook, &[], Flood::of(2_000, 5, 60), held());
    }
}

#[test]
fn a_slow_flood_of_syns_that_backends_answer_keeps_nobody_out_however_long_it_lasts() {
    // At full size it lasts as long as the default idle_timeout, and those that are held say
    // nothing.
    flooded_by_syns("tc", &["idle_timeout = \"1h\""], Flood::of(200, 8, 600), held());
}

/// The oldest of them gives way, and its backend waits for it no longer.
#[test]
fn a_flood_that_uses_up_all_ports_keeps_nobody_out() {
    for (hook, rate) in [("tc", 200), ("clsact", 1_000)] {
        flooded_by_syns(hook, &[FEW_PORTS, NO_COOKIES], Flood::of(rate, 8, 60), 60);
    }
}

/// What nginx makes of the same flood is printed.
#[test]
fn the_fastest_flood_keeps_nobody_out_and_ends_no_connection() {
    for hook in ["tc", "xdp"] {
        let cluster = Cluster::new(hook, |service| service);
        let _nginx = peers::nginx(&cluster.lab).expect("nginx");
        let mut held_ones = hold(&cluster, held(), hook);
        let before = memory(&cluster);
        let mut dice = Dice::new(2);
        let report = beside(&cluster, VIP, Flood::fast(), move |_| random_syn(&mut dice, VIP), || {});
        all_alive(&mut held_ones, held(), hook);
        are_free_again(&cluster, held(), hook);
        let grown = memory(&cluster).saturating_sub(before);
        assert!(grown < FLAT_KIB, "{hook}: {grown} KiB more than the {before} before");
        let (to, mut dice) = (SocketAddrV4::new(ADDRESS, NGINX_PORT), Dice::new(2));
        let nginx = beside(&cluster, to, Flood::fast(), move |_| random_syn(&mut dice, to), || {});
        println!("{hook}: {report:?}, nginx {nginx:?}");
        is_served(&report, WITH_COOKIES, hook);
        all_alive(&mut held_ones, held(), hook);
    }
}

/// A segment of no connection that is not meant to open one either; in the names of clients and of
/// backends that have connections, too.
fn stray(dice: &mut Dice, known: &[SocketAddrV4], backends: &[SocketAddrV4]) -> Segment {
    let flags = dice.choose(&[ACK, RST, RST | ACK, FIN | ACK, SYN | ACK, FIN]);
    let (from, to) = match dice.below(3) {
        0 => (stranger(dice), VIP),
        1 => (dice.choose(known), VIP),
        _ => (dice.choose(backends), SocketAddrV4::new(ADDRESS, 20_000 + dice.below(64) as u16)),
    };
    Segment::new(from, to, flags).numbers(dice.number(), dice.number())
}

#[test]
fn floods_of_acknowledgements_resets_fins_and_syn_acks_change_nothing() {
    // All that the few ports have room for beside the honest ones.
    const HELD: u64 = 60;
    for hook in HOOKS {
        let cluster = Cluster::new(hook, |service| service.line(FEW_PORTS));
        let mut held = hold(&cluster, HELD, hook);
        let before = memory(&cluster);
        let known: Vec<_> = conns(&cluster).iter().map(client_of).collect();
        let backends: Vec<_> =
            cluster.lab.backends.iter().map(|host| SocketAddrV4::new(host.address(), PORT)).collect();
        let mut dice = Dice::new(3);
        let report = beside(&cluster, VIP, Flood::fast(), move |_| stray(&mut dice, &known, &backends), || {});
        is_served(&report, WITH_COOKIES, hook);
        all_alive(&mut held, HELD, hook);
        let states: Vec<_> = conns(&cluster).into_iter().filter(|row| row["state"] != "established").collect();
        assert!(states.is_empty(), "{hook}: {states:?}");
        are_free_again(&cluster, HELD, hook);
        let grown = memory(&cluster).saturating_sub(before);
        assert!(grown < FLAT_KIB, "{hook}: {grown} KiB more than the {before} before");
        for backend in cluster.evenkeel.backends().expect("backends") {
            assert_eq!((backend.state.as_str(), backend.connect_failures), ("up", 0), "{hook}: {backend:?}");
        }
    }
}
