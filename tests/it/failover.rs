//! Flow sync on real hosts: connections that survive failovers, and what happens to those that do
//! not.

mod churn;

use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt, time::Duration};

use lab::{
    Host, Lab, Plan,
    client::{
        bulk,
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
/// The advertisement interval of a pair that must take over fast.
const FAST: &str = "advert_interval = \"100ms\"";

/// Two balancers, three backends, a client.
struct Pair {
    lab: Lab,
    one: Evenkeel,
    two: Evenkeel,
    backends: Vec<StandIn>,
}

/// What both hosts have in common.
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
        Pair { lab, one, two, backends }
    }
}

/// The `[sync]` table of a host.
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

/// How many connections are in a host's tables.
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

    /// The host of `one` vanishes from one moment to the next: its controller is killed, its cable
    /// cut.
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

/// Sends a request over every held connection: all answer, and soon.
#[track_caller]
fn all_answer(holding: &mut Holding, count: u64, pair: &Pair) -> f64 {
    let asked = holding.ask().expect("ask");
    let mut ended = holding.status().expect("status").ended;
    // Ended by our own side.
    ended.remove("closed");
    assert!(asked.answered == count && ended.is_empty(), "{asked:?} {ended:?}\n{}", pair.told());
    assert!(asked.slowest_ms < 500.0, "{asked:?}");
    asked.slowest_ms
}

/// The only connections opened in the meantime that may have failed are those established in the
/// last 50 ms before a failover, and none has waited for more than one repeated SYN.
#[track_caller]
fn few_failed(report: &Report, failovers: u64, rate: u64, pair: &Pair) {
    let most = failovers * rate / 20;
    assert!(report.failures() <= most, "{report:?}\n{}", pair.told());
    assert!(report.max_ms < 2_900.0, "the second SYN sent again comes after 3 s: {report:?}\n{}", pair.told());
    assert!(report.done > rate, "{report:?}");
}

/// The master's host crashes with `held` connections and new ones all the time; it comes back and
/// takes over again.
fn crash_and_back(setup: &Setup, held: u64) {
    let rate = 200;
    let mut pair = setup.start();
    let mut holding = pair.hold(held);
    let options = [VIP, "--rate", "200", "--parallel", "1000", "--seconds", "120", "--every", "0.1"];
    let storm = storm::start(pair.lab.client(), &options).expect("storm");
    knows(&pair.two, held);

    pair.crash();
    becomes(&pair.two, "MASTER");
    let after = all_answer(&mut holding, held, &pair);
    pair.come_back();
    becomes(&pair.one, "MASTER");
    becomes(&pair.two, "BACKUP");
    let back = all_answer(&mut holding, held, &pair);

    let goes_on = || storm.latest().ok().filter(|so_far| so_far.done > 2 * rate).map(drop);
    wait::until("new connections go on", SOON, goes_on).expect("new connections");
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

#[test]
fn on_native_xdp_they_survive_too() {
    crash_and_back(&Setup { hook: "xdp", ..Setup::default() }, if full() { 5_000 } else { 200 });
}

#[test]
fn with_advertisements_a_second_apart_none_is_lost_either() {
    let held = if full() { 5_000 } else { 200 };
    let mut pair = Setup { keys: &[], ..Setup::default() }.start();
    let mut holding = pair.hold(held);
    knows(&pair.two, held);
    pair.crash();
    becomes(&pair.two, "MASTER");
    all_answer(&mut holding, held, &pair);
}

#[test]
fn without_sync_every_stale_connection_gets_a_reset_on_its_next_packet() {
    let mut pair = Setup { sync: false, ..Setup::default() }.start();
    let mut holding = pair.hold(200);
    pair.crash();
    becomes(&pair.two, "MASTER");
    let asked = holding.ask().expect("ask");
    assert_eq!((asked.answered, asked.failed.get("reset")), (0, Some(&200)), "{asked:?}\n{}", pair.told());
    assert_eq!(holding.status().expect("status").open, 0);
    assert_eq!(holding.open(50).expect("opened").opened, 50, "clients that come back are served");
}

/// A download that takes some seconds, because the backends' cable is slow.
fn slow_download(pair: &Pair, bytes: u64, rate: &str) -> std::thread::JoinHandle<anyhow::Result<bulk::Report>> {
    for backend in &pair.lab.backends {
        let shaper = ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "256kb", "latency", "200ms"];
        backend.run("tc", &shaper).expect("a slow cable");
    }
    let client = pair.lab.client().clone();
    std::thread::spawn(move || bulk::transfer(&client, VIP, "download", bytes))
}

#[test]
fn a_long_transfer_arrives_intact_over_three_failovers() {
    let (bytes, rate) = if full() { (1 << 30, "400mbit") } else { (64 << 20, "60mbit") };
    let mut pair = Setup::default().start();
    let download = slow_download(&pair, bytes, rate);
    knows(&pair.two, 1);
    pair.crash();
    becomes(&pair.two, "MASTER");
    pair.come_back();
    becomes(&pair.one, "MASTER");
    becomes(&pair.two, "BACKUP");
    synced(&pair.two);
    let told = pair.one.done(&["vrrp", "failover", "VI_1"]).expect("failover");
    assert!(told.contains("10.0.1.2 is master"), "{told}");
    assert!(!download.is_finished(), "it was over too soon to prove anything");
    let report = download.join().expect("a thread").unwrap_or_else(|error| panic!("{error:#}\n{}", pair.told()));
    println!("{bytes} bytes in {:.1} s over three failovers", report.seconds);
    // The host that has carried it on has followed its numbers: it sees the end.
    let over = || pair.two.json(&["conns"]).expect("conns").as_array().is_some_and(Vec::is_empty).then_some(());
    wait::until("the connection is over here too", SOON, over)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", pair.told()));
}

fn state_of(evenkeel: &Evenkeel, backend: &str) -> String {
    evenkeel.backend(backend).map_or_else(|error| format!("{error:#}"), |backend| backend.state)
}

#[track_caller]
fn goes(evenkeel: &Evenkeel, backend: &str, wanted: &str) {
    let is = || (state_of(evenkeel, backend) == wanted).then_some(());
    let late = wait::until(&format!("{backend} is {wanted}"), SOON, is);
    late.unwrap_or_else(|late| panic!("{late:#}, but {}\n{}", state_of(evenkeel, backend), evenkeel.log()));
}

/// The host without the address knows every connection, and can reset none.
fn connections_are_reset_where_they_are(pair: &Pair) {
    let mut holding = pair.hold(8);
    knows(&pair.two, 8);
    let rows = pair.two.json(&["conns"]).expect("conns");
    let client = rows[0]["client"].as_str().expect("a client").to_owned();
    for (command, words) in [
        (&["maint", "cp03", "--reset"][..], "nothing has changed"),
        (&["kill", &client], "one of another host"),
        (&["kill", "--backend", "cp03"], "one of another host"),
    ] {
        let answer = pair.two.command(command).expect("a command");
        assert!(answer.code == 1 && answer.err.contains(words), "{command:?}: {answer:?}");
    }
    assert_eq!(state_of(&pair.two, "cp03"), "up");
    assert_eq!(holding.ask().expect("ask").answered, 8);
    let done = pair.one.done(&["kill", "--backend", "cp03"]).expect("kill");
    assert!(done.contains('4'), "{done}");
    assert_eq!(holding.ask().expect("ask").answered, 4);
}

#[test]
fn an_operator_s_command_on_one_host_holds_on_the_other() {
    let mut pair = Setup::default().start();
    pair.one.done(&["drain", "cp01"]).expect("drain");
    goes(&pair.two, "cp01", "draining");
    // Ordered there, it counts here: the later order.
    pair.two.done(&["ready", "cp01"]).expect("ready");
    goes(&pair.one, "cp01", "up");
    pair.one.done(&["maint", "cp02"]).expect("maint");
    goes(&pair.two, "cp02", "maint");
    connections_are_reset_where_they_are(&pair);

    // It holds after a failover, and for the host that was not there when it was ordered.
    pair.crash();
    becomes(&pair.two, "MASTER");
    let mut holding = pair.hold(30);
    let by = holding.status().expect("status").by;
    assert!(!by.contains_key("cp02"), "{by:?}");
    pair.two.done(&["drain", "cp03"]).expect("drain");
    pair.two.done(&["ready", "cp02"]).expect("ready");
    pair.come_back();
    goes(&pair.one, "cp03", "draining");
    goes(&pair.one, "cp02", "up");
    // It survives a restart of one of them, whose file no longer has the older order.
    pair.two.kill();
    pair.two.run().expect("a start");
    goes(&pair.two, "cp03", "draining");
    goes(&pair.two, "cp02", "up");
}

#[test]
fn what_connections_have_shown_of_a_backend_is_known_on_the_other_host() {
    let setup = Setup { service: |service| service.backend_line(0, "fail_timeout = \"2s\""), ..Setup::default() };
    let mut pair = setup.start();
    pair.backends[0].kill();
    let _held = pair.hold(30);
    let is_out = |evenkeel: &Evenkeel| {
        let backend = evenkeel.backend("cp01").ok()?;
        (backend.state != "up" && backend.reason.as_deref() == Some("refused")).then_some(())
    };
    wait::until("it is out here", SOON, || is_out(&pair.one))
        .unwrap_or_else(|late| panic!("{late:#}\n{}", pair.told()));
    wait::until("and there", SOON, || is_out(&pair.two)).unwrap_or_else(|late| panic!("{late:#}\n{}", pair.told()));
    pair.backends[0].revive().expect("it is back");
    let is_up = || {
        // A client that tries it.
        let _one = pair.hold(1);
        (state_of(&pair.one, "cp01") == "up").then_some(())
    };
    wait::until("it is up here", SOON, is_up).expect("a trial");
    goes(&pair.two, "cp01", "up");
}

#[test]
fn a_backup_that_starts_late_or_again_gets_all_connections_and_forgets_those_that_have_ended() {
    let mut pair = Setup::default().start();
    pair.two.stop_detach().expect("the backup ends, with its tables");
    let mut holding = pair.hold(300);
    pair.two.run().expect("a late start");
    synced(&pair.two);
    knows(&pair.two, 300);

    // While it is away, some connections end and others begin.
    pair.two.kill();
    assert_eq!(holding.close(100, "-", "fin").expect("close").closed, 100);
    assert_eq!(holding.open(50).expect("opened").opened, 50);
    pair.two.run().expect("a second start");
    synced(&pair.two);
    let same = || (active(&pair.two) == 250 && active(&pair.one) == 250).then_some(());
    wait::until("both know the same", SOON, same).unwrap_or_else(|late| panic!("{late:#}\n{}", pair.told()));
    pair.crash();
    becomes(&pair.two, "MASTER");
    all_answer(&mut holding, 250, &pair);
}

#[test]
fn ports_that_are_changed_on_one_host_after_the_other_cost_no_connection() {
    let ports = |service: Service, range: &str| service.line(&format!("snat_ports = \"{range}\""));
    let setup = Setup { service: |service| service.line("snat_ports = \"20000-20099\""), ..Setup::default() };
    let mut pair = setup.start();
    let change = |pair: &Pair, evenkeel: &Evenkeel, own: &Host, other: &Host, priority, range| {
        let service = ports(Service::new(&pair.lab, "tc"), range).toml() + "\n" + &instance(priority, &[FAST]);
        evenkeel.write(&(service + &sync(&pair.lab, own, other))).expect("files");
        evenkeel.done(&["reload"]).unwrap_or_else(|error| panic!("{error:#}\n{}", evenkeel.log()));
    };
    let (first, second) = (pair.lab.balancer.clone(), second(&pair.lab).clone());
    let mut holding = pair.hold(60);
    // The master has other ports than the one that stands by, and is cut off.
    change(&pair, &pair.one, &first, &second, 150, "30000-31999");
    let opened = holding.open(200).expect("opened");
    assert_eq!(opened.opened, 200, "{opened:?}");
    knows(&pair.two, 260);
    pair.crash();
    becomes(&pair.two, "MASTER");
    all_answer(&mut holding, 260, &pair);
    // It comes back with the new ones, to which it has connections from the old ones too.
    pair.come_back();
    becomes(&pair.one, "MASTER");
    all_answer(&mut holding, 260, &pair);
    // The one that stands by gets fewer ports than the master has, and takes over what lies
    // outside.
    change(&pair, &pair.two, &second, &first, 100, "1024-1099");
    let opened = holding.open(100).expect("opened");
    assert_eq!(opened.opened, 100, "{opened:?}");
    knows(&pair.two, 360);
    pair.crash();
    becomes(&pair.two, "MASTER");
    all_answer(&mut holding, 360, &pair);
    let opened = holding.open(30).expect("opened");
    assert_eq!(opened.opened, 30, "{opened:?}");
    assert!(pair.two.log().contains("a port that is not in snat_ports here"), "{}", pair.two.log());
}

#[test]
fn the_backup_leaves_idle_flows_to_the_master_and_takes_over_those_of_backends_it_does_not_know() {
    let setup = Setup { service: |service| service.line("idle_timeout = \"6s\""), ..Setup::default() };
    let mut pair = setup.start();
    // The other host's file lacks a backend, as during the rollout of a change.
    let mut two = Service::new(&pair.lab, "tc").line("idle_timeout = \"6s\"");
    two.backends.remove(0);
    let rest = instance(100, setup.keys) + &sync(&pair.lab, second(&pair.lab), &pair.lab.balancer);
    pair.two.write(&(two.toml() + "\n" + &rest)).expect("a file");
    pair.two.done(&["reload"]).expect("reload");
    let mut holding = pair.hold(90);
    let by = holding.status().expect("status").by;
    let of_unknown = by.get("cp01").copied().unwrap_or(0);
    assert!(of_unknown > 0, "{by:?}");
    // A connection with a packet every second or so is not idle; the backup sees none of them.
    for _ in 0..9 {
        all_answer(&mut holding, 90, &pair);
        std::thread::sleep(Duration::from_secs(1));
    }
    pair.crash();
    becomes(&pair.two, "MASTER");
    all_answer(&mut holding, 90, &pair);
    assert_eq!(pair.two.counter("idle_timeout").expect("a counter"), 0, "{}", pair.told());
    // And idle connections are closed by the host that has them.
    let is_over = || (holding.status().ok()?.open == 0).then_some(());
    wait::until("idle connections are reset", Duration::from_secs(30), is_over).expect("they are");
}

#[test]
fn a_backup_whose_flow_sync_ends_leaves_the_master_s_connections_alone() {
    let setup = Setup { service: |service| service.line("idle_timeout = \"5s\""), ..Setup::default() };
    let mut pair = setup.start();
    let mut holding = pair.hold(60);
    knows(&pair.two, 60);
    let without = Setup { sync: false, service: setup.service, ..Setup::default() };
    let text = without.toml(&pair.lab, second(&pair.lab), &pair.lab.balancer, 100);
    pair.two.write(&text).expect("a file");
    pair.two.done(&["reload"]).expect("reload");
    for _ in 0..14 {
        all_answer(&mut holding, 60, &pair);
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(pair.two.counter("idle_timeout").expect("a counter"), 0, "{}", pair.told());
    for backend in ["cp01", "cp02", "cp03"] {
        assert_eq!((&*state_of(&pair.one, backend), &*state_of(&pair.two, backend)), ("up", "up"), "{}", pair.told());
    }
    let forgotten = || (active(&pair.two) == 0).then_some(());
    wait::until("they are forgotten there", SOON, forgotten).unwrap_or_else(|late| panic!("{late:#}\n{}", pair.told()));
    // Nor does one that starts without flow sync take what it finds in its tables for its own.
    let with = setup.toml(&pair.lab, second(&pair.lab), &pair.lab.balancer, 100);
    pair.two.write(&with).expect("a file");
    pair.two.done(&["reload"]).expect("reload");
    knows(&pair.two, 60);
    pair.two.kill();
    pair.two.write(&text).expect("a file");
    pair.two.run().expect("a start");
    for _ in 0..10 {
        all_answer(&mut holding, 60, &pair);
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(active(&pair.one), 60);
}

#[test]
fn what_was_given_away_is_not_taken_back_after_a_cut_cable_or_a_restart() {
    let mut pair = Setup::default().start();
    pair.one.done(&["vrrp", "failover", "VI_1"]).expect("failover");
    becomes(&pair.two, "MASTER");
    let stays = |pair: &Pair, why: &str| {
        becomes(&pair.one, "BACKUP");
        // A host that is back waits for all connections, at most 10 s, and then preempts.
        std::thread::sleep(Duration::from_secs(12));
        becomes(&pair.one, "BACKUP");
        assert!(pair.two.status().expect("status")["vrrp"][0]["state"] == "MASTER", "{why}\n{}", pair.told());
    };
    pair.lab.switch.link("lb", false).expect("a cable");
    becomes(&pair.one, "FAULT");
    pair.lab.switch.link("lb", true).expect("a cable");
    stays(&pair, "after a cut cable");
    pair.one.kill();
    pair.one.run().expect("a start");
    stays(&pair, "after a restart");
    pair.two.done(&["stop"]).expect("the other host ends");
    becomes(&pair.one, "MASTER");
}

#[test]
fn a_host_with_another_key_is_not_believed() {
    let pair = Setup::default().start();
    let other = pair.lab.folder().join("other.key");
    fs::write(&other, "a1".repeat(32)).expect("a key");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).expect("its mode");
    let text = fs::read_to_string(pair.two.config()).expect("the file");
    let key = pair.lab.folder().join("sync.key").display().to_string();
    fs::write(pair.two.config(), text.replace(&key, &other.display().to_string())).expect("a file");
    pair.two.done(&["reload"]).expect("reload");
    let refused = || {
        let peer = peer(&pair.one)?;
        let not_authentic = peer["refused"]["not_authentic"].as_u64()?;
        (not_authentic > 0 && peer["state"] == "lost").then_some(())
    };
    wait::until("the other key is noticed", SOON, refused).unwrap_or_else(|late| panic!("{late:#}\n{}", pair.told()));
    // Nor does an invalid key change anything.
    fs::write(&other, "no key").expect("a file");
    let answer = pair.two.command(&["reload"]).expect("a command");
    assert!(answer.code == 1 && answer.err.contains("key_file"), "{answer:?}");
}
