//! Many connections, opened and closed in every way while others are held: none fails, and nothing
//! is left over.

use std::time::{Duration, Instant};

use lab::{
    Host, Plan,
    client::{
        hold::Holding,
        storm::{self, Report},
    },
    topology::Topology,
    wait,
};

use crate::cluster::{Cluster, Slots, VIP, all_served, both, both_at_once, full, use_all_ports};

/// The size of a test.
struct Size {
    /// Connections per storm.
    short: u64,
    /// Connections that each process begins per second.
    rate: &'static str,
    snat_ports: &'static str,
    /// 40 % of all slots.
    held: u64,
}

fn size() -> Size {
    if full() {
        // The default range: 67,584 slots.
        Size { short: 200_000, rate: "1000000", snat_ports: "10240-32767", held: 27_034 }
    } else {
        // 6,144 slots, so that every storm meets ports that were used a second ago. With fewer, a
        // SYN that meets a socket in TIME_WAIT twice within half a second would not even be
        // answered (tcp_invalid_ratelimit).
        Size { short: 6_000, rate: "1000", snat_ports: "10240-12287", held: 2_458 }
    }
}

/// A process has at most 20,000 files, and one core.
const HOLDERS: u64 = 4;
const STORMS: u64 = 2;

#[test]
fn short_connections_of_every_kind_beside_40_percent_held_ones_neither_fail_nor_wait_nor_leave_anything() {
    let size = size();
    let plan = Plan::new(Topology::Segment).clients(2).addresses(8);
    let cluster = Cluster::of(plan, "tc", |service| service.line(&format!("snat_ports = \"{}\"", size.snat_ports)));
    let [storming, holding] = &cluster.lab.clients[..] else { panic!("two clients") };
    [storming, holding].into_iter().for_each(use_all_ports);
    let mut held = hold(holding, size.held);
    let eight: Vec<_> = storming.addresses.iter().map(ToString::to_string).collect();
    for (addresses, from) in [("one", &eight[..1]), ("eight", &eight[..])] {
        for close in ["client-fin", "server-fin"] {
            let started = Instant::now();
            let report = storm(storming, &size, close, &from.join(","));
            println!(
                "{} connections from {addresses} address(es), {close}: {} failed, {} slower than 0.5 s, p50 {:.1} ms, \
                 p99 {:.1} ms, max {:.0} ms, {:.0} a second",
                report.done,
                report.failures(),
                report.slow,
                report.p50_ms,
                report.p99_ms,
                report.max_ms,
                report.done as f64 / started.elapsed().as_secs_f64()
            );
            println!("{:?}", Slots::of(&cluster.evenkeel));
            assert_eq!(
                (report.done, report.failures()),
                (size.short, 0),
                "{addresses}, {close}: {report:?}\n{}",
                told(&cluster)
            );
            assert!(report.slow <= size.short / 2000, "{addresses}, {close}: {report:?}\n{}", told(&cluster));
            let open = || (Slots::of(&cluster.evenkeel).open == size.held).then_some(());
            wait::until("only those that are held stand", Duration::from_secs(10), open)
                .unwrap_or_else(|error| panic!("{error:#}: {:?}", Slots::of(&cluster.evenkeel)));
        }
    }
    for holder in &mut held {
        let asked = holder.ask().expect("ask");
        assert_eq!(asked.failed.len(), 0, "{asked:?}");
        holder.close(size.held, "-", "fin").expect("close");
    }
    cluster.active([0, 0, 0]);
    let slots = Slots::of(&cluster.evenkeel);
    assert!(slots.are_whole() && slots.open == 0, "{slots:?}");
    if full() {
        let all_free = || (Slots::of(&cluster.evenkeel).free == slots.all).then_some(());
        wait::until("every slot is free", Duration::from_secs(120), all_free).expect("slots");
    }
    assert_eq!(cluster.evenkeel.counter("least_conn_drift").expect("a counter"), 0);
}

fn hold(host: &Host, count: u64) -> Vec<Holding> {
    let from = host.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut holders = Vec::new();
    for holder in 0..HOLDERS {
        let share = count / HOLDERS + u64::from(holder < count % HOLDERS);
        let mut holding = Holding::start(host, &[VIP, "--from", &from]).expect("hold");
        all_served(&holding.open(share).expect("open"), share, "held ones");
        holders.push(holding);
    }
    holders
}

fn storm(host: &Host, size: &Size, close: &str, from: &str) -> Report {
    let share = (size.short / STORMS).to_string();
    let options = [VIP, "--connections", &share, "--rate", size.rate, "--close", close, "--from", from];
    let running: Vec<_> = (0..STORMS).map(|_| storm::start(host, &options).expect("storm")).collect();
    let mut sum = Report::default();
    running.into_iter().for_each(|storm| sum.add(&storm.finish(Duration::from_secs(600)).expect("its report")));
    sum
}

#[test]
fn connections_that_end_by_chance_leave_no_drift_and_no_slot_behind() {
    // At full size a minute on each hook.
    if full() { both(by_chance) } else { both_at_once(by_chance) }
}

/// By FIN, by RST, from either side, half-closed, and by clients that vanish.
fn by_chance(hook: &str) {
    let seconds = if full() { "60" } else { "12" };
    let cluster = Cluster::new(hook, |service| service.line("idle_timeout = \"5s\""));
    let client = cluster.lab.client();
    use_all_ports(client);
    let mut held = cluster.hold(&[]);
    all_served(&held.open(300).expect("open"), 300, hook);
    let options = [VIP, "--seconds", seconds, "--close", "random"];
    let mut storms: Vec<_> = (0..STORMS).map(|_| storm::start(client, &options).expect("storm")).collect();
    // The held ones send something now and then, as watches do, so they are not idle.
    let mut keep = || assert_eq!(held.ask().expect("ask").answered, 300, "{hook}\n{}", told(&cluster));
    while storms.iter_mut().any(|storm| storm.is_running()) {
        keep();
        std::thread::sleep(Duration::from_millis(500));
    }
    let mut report = Report::default();
    storms.into_iter().for_each(|storm| report.add(&storm.finish(Duration::from_secs(60)).expect("its report")));
    println!("{hook}: {} connections ended by chance, {} failed, {} slow", report.done, report.failures(), report.slow);
    assert_eq!(report.failures(), 0, "{hook}: {report:?}\n{}", told(&cluster));

    let over = Instant::now();
    let settled = || {
        keep();
        (counted(&cluster) == [300; 4]).then_some(())
    };
    wait::until("only those that are held stand, wherever one looks", Duration::from_secs(15), settled)
        .unwrap_or_else(|error| panic!("{hook}: {error:#}: {:?}\n{}", counted(&cluster), told(&cluster)));
    println!("{hook}: all counts right after {:.1?}", over.elapsed());
    let slots = Slots::of(&cluster.evenkeel);
    assert!(slots.are_whole(), "{hook}: {slots:?}");
    assert_eq!(
        cluster.evenkeel.counter("least_conn_drift").expect("a counter"),
        0,
        "{hook}\n{}",
        cluster.evenkeel.log()
    );
}

/// Connections counted by the backends' `active`, by the slots, by `conns`, and by the backends'
/// own kernels.
fn counted(cluster: &Cluster) -> [u64; 4] {
    let active = cluster.evenkeel.backends().expect("backends").iter().map(|backend| backend.active).sum();
    let flows = cluster.evenkeel.json(&["conns", "--limit", "100000"]).expect("conns").as_array().map_or(0, Vec::len);
    let of = |host: &Host| {
        host.run("ss", &["-Htn", "state", "established", "sport", "=", ":6443"]).map_or(0, |told| told.lines().count())
    };
    let open: usize = cluster.lab.backends.iter().map(of).sum();
    [active, Slots::of(&cluster.evenkeel).open, flows as u64, open as u64]
}

/// What the datapath has counted, for the message of a failure.
fn told(cluster: &Cluster) -> String {
    let told = |command: &str| cluster.evenkeel.done(&[command]).unwrap_or_default();
    format!("{}{}{:?}", told("counters"), told("backends"), Slots::of(&cluster.evenkeel))
}
