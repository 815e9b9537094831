//! Flow sync on real hosts: connections that live through failovers, and what becomes of those that do not.

use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt, time::Duration};

use lab::{
    Host, Lab, Plan,
    client::{
        hold::Holding,
        storm::{self, Report},
    },
    daemon::{Evenkeel, Service},
    standin::StandIn,
    topology::Topology,
    wait,
};
use serde_json::Value;

use crate::{
    cluster::full,
    vrrp::{becomes, instance, second},
};

const SOON: Duration = Duration::from_secs(15);
const VIP: &str = "10.0.1.100:6443";
/// Advertisements of a pair that is to take over fast.
const FAST: &str = "advert_interval = \"100ms\"";

/// Two balancers, three backends, a client.
struct Pair {
    lab: Lab,
    one: Evenkeel,
    two: Evenkeel,
    _backends: Vec<StandIn>,
}

/// What is the same on both hosts.
struct Setup<'a> {
    hook: &'a str,
    keys: &'a [&'a str],
    sync: bool,
    service: fn(Service) -> Service,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Setup { hook: "tc", keys: &[FAST], sync: true, service: |service| service }
    }
}

impl Setup<'_> {
    fn toml(&self, lab: &Lab, own: &Host, other: &Host, priority: u8) -> String {
        let mut text = (self.service)(Service::new(lab, self.hook)).toml() + "\n" + &instance(priority, self.keys);
        if self.sync {
            text += &sync(lab, own, other);
        }
        text
    }

    fn lab(&self) -> Lab {
        let plan = Plan::new(Topology::Segment).pair();
        Lab::build(&if self.hook == "xdp" { plan.for_xdp() } else { plan }).expect("the lab")
    }

    fn start(&self) -> Pair {
        let lab = self.lab();
        let backends = lab.backends.iter().map(|host| StandIn::start(host).expect("a stand-in")).collect();
        let (first, other) = (&lab.balancer, second(&lab));
        let mut one = Evenkeel::on(&lab, first, &self.toml(&lab, first, other, 150)).expect("files");
        one.run().expect("evenkeel");
        becomes(&one, "MASTER");
        let mut two = Evenkeel::on(&lab, other, &self.toml(&lab, other, first, 100)).expect("files");
        two.run().expect("evenkeel");
        becomes(&two, "BACKUP");
        if self.sync {
            synced(&two);
            synced(&one);
        }
        Pair { lab, one, two, _backends: backends }
    }
}

/// `[sync]` of a host.
fn sync(lab: &Lab, own: &Host, other: &Host) -> String {
    let key = lab.folder().join("sync.key");
    if !key.exists() {
        fs::write(&key, "7e".repeat(32)).expect("a key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("its mode");
    }
    let mut text = String::from("\n[sync]\n");
    _ = writeln!(text, "listen = \"{}:9644\"\npeers = [\"{}:9644\"]", own.address(), other.address());
    _ = writeln!(text, "key_file = \"{}\"", key.display());
    text
}

fn peer(evenkeel: &Evenkeel) -> Option<Value> {
    evenkeel.status().ok().map(|status| status["sync"]["peers"][0].clone()).filter(Value::is_object)
}

#[track_caller]
fn synced(evenkeel: &Evenkeel) {
    let is_synced = || peer(evenkeel).filter(|peer| peer["state"] == "synced").map(drop);
    if let Err(late) = wait::until("flows are synced", SOON, is_synced) {
        panic!("{late:#}: {:?}\n{}", peer(evenkeel), evenkeel.log());
    }
}

/// Connections that stand in a host's tables.
fn active(evenkeel: &Evenkeel) -> u64 {
    evenkeel.backends().map_or(0, |all| all.iter().map(|backend| backend.active).sum())
}

#[track_caller]
fn knows(evenkeel: &Evenkeel, at_least: u64) {
    let known = || (active(evenkeel) >= at_least).then_some(());
    if let Err(late) = wait::until(&format!("{at_least} connections are known"), SOON, known) {
        panic!("{late:#}: {}, {:?}\n{}", active(evenkeel), peer(evenkeel), evenkeel.log());
    }
}

impl Pair {
    fn hold(&self, count: u64) -> Holding {
        let folder = self.lab.folder().display().to_string();
        let options = [VIP, "--tls", &folder, "--timeout-ms", "5000"];
        let mut holding = Holding::start(self.lab.client(), &options).expect("hold");
        let opened = holding.open(count).expect("opened");
        assert_eq!(opened.opened, count, "{opened:?}");
        holding
    }

    /// The host of `one` is gone from one moment to the next: its controller killed, its cable cut.
    fn crash(&mut self) {
        self.lab.switch.link("lb", false).expect("a cable");
        self.one.kill();
    }

    fn come_back(&mut self) {
        self.lab.switch.link("lb", true).expect("a cable");
        self.one.run().expect("a second start");
    }

    fn told(&self) -> String {
        let told = |evenkeel: &Evenkeel| {
            let status = evenkeel.done(&["status"]).unwrap_or_default();
            format!("{status}{}", evenkeel.log())
        };
        format!("{}\n----\n{}", told(&self.one), told(&self.two))
    }
}

/// Asks every connection that is held: all answer, and soon.
#[track_caller]
fn all_answer(holding: &mut Holding, count: u64, pair: &Pair) -> f64 {
    let asked = holding.ask().expect("ask");
    let ended = holding.status().expect("status").ended;
    assert!(asked.answered == count && ended.is_empty(), "{asked:?} {ended:?}\n{}", pair.told());
    assert!(asked.slowest_ms < 500.0, "{asked:?}");
    asked.slowest_ms
}

/// Of the connections that were opened meanwhile only those may have failed that were established in the last 50 ms before
/// a failover, and none has waited for more than one SYN sent again.
#[track_caller]
fn few_failed(report: &Report, failovers: u64, rate: u64, pair: &Pair) {
    let most = failovers * rate / 20;
    assert!(report.failures() <= most, "{report:?}\n{}", pair.told());
    assert!(report.max_ms < 2_900.0, "the second SYN sent again comes after 3 s: {report:?}\n{}", pair.told());
    assert!(report.done > rate, "{report:?}");
}

/// The master's host crashes with `held` connections and new ones all the time; it comes back and takes over again.
fn crash_and_back(setup: &Setup, held: u64) {
    let rate = 200;
    let mut pair = setup.start();
    let mut holding = pair.hold(held);
    let options = [VIP, "--rate", "200", "--parallel", "1000", "--seconds", "120"];
    let storm = storm::start(pair.lab.client(), &options).expect("storm");
    knows(&pair.two, held);

    pair.crash();
    becomes(&pair.two, "MASTER");
    let after = all_answer(&mut holding, held, &pair);
    pair.come_back();
    becomes(&pair.one, "MASTER");
    becomes(&pair.two, "BACKUP");
    let back = all_answer(&mut holding, held, &pair);

    let report = storm.stop(SOON).expect("its report");
    println!(
        "{}: {held} held: answers within {after:.0} ms after the crash, {back:.0} ms after it was back; {report:?}",
        setup.hook
    );
    few_failed(&report, 2, rate, &pair);
    for evenkeel in [&pair.one, &pair.two] {
        assert_eq!(evenkeel.counter("least_conn_drift").expect("a counter"), 0, "{}", pair.told());
    }
}

#[test]
fn connections_survive_a_crash_of_the_master_and_its_return() {
    crash_and_back(&Setup::default(), if full() { 5_000 } else { 500 });
}
