//! What `netplan apply` and its like do to a host's interface, once a second under load: on the
//! host that has the address, and on the other one. A minute on each at full size (`--full`).

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use lab::Asker;

use super::*;
use crate::vrrp::{mac, report, state};

const HELD: u64 = 200;
const RATE: u64 = 100;
const PACE: Duration = Duration::from_secs(1);
/// Three advertisements of 100 ms, and the skew of the lower priority.
const TAKEOVER: Duration = Duration::from_millis(300 + 61);

/// What is done to eth0.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Every address away, and the host's own back.
    Addresses,
    Mtu,
    Mac,
    /// Down and up, as quickly as it goes.
    Blink,
    /// Down for longer than a takeover takes.
    Down,
    /// All of it at once, as a network manager does it.
    Apply,
    /// Deleted and made anew.
    Anew,
    /// Made anew under another name first.
    Renamed,
    /// To another network namespace and back, under its index.
    Away,
}

use Step::{Addresses, Anew, Apply, Away, Blink, Down, Mac, Mtu, Renamed};

/// An odd number of them, so that with two hosts in turn each gets all of them.
const LADDER: [Step; 9] = [Mtu, Addresses, Anew, Mac, Blink, Away, Apply, Down, Renamed];

impl Step {
    fn take(self, lab: &Lab, host: &Host, round: usize) {
        let own = format!("address add {}/24 brd + dev eth0", host.address());
        let mtu = format!("link set eth0 mtu {}", 1500 - 100 * (round % 2));
        let mac = format!("link set eth0 address 02:0e:{:02x}:00:00:{round:02x}", host.address().octets()[3]);
        let flush = "address flush dev eth0";
        let done = match self {
            Addresses => batch(host, &[flush, &own]),
            Mtu => batch(host, &[&mtu]),
            Mac => batch(host, &[&mac]),
            Blink => batch(host, &["link set eth0 down", "link set eth0 up"]),
            Down => host.link("eth0", false).and_then(|()| {
                thread::sleep(TAKEOVER + Duration::from_millis(140));
                host.link("eth0", true)
            }),
            Apply => batch(host, &["link set eth0 down", flush, &mac, &mtu, "link set eth0 up", &own]),
            Anew => lab.make_anew(host, "eth0", "eth0", Duration::from_millis(100)),
            Renamed => lab.make_anew(host, "eth0", "new0", Duration::ZERO),
            Away => lab.take_away_and_back(host, "eth0"),
        };
        done.unwrap_or_else(|error| panic!("round {round}, {self:?} on {}: {error:#}", host.name));
    }
}

/// The steps follow each other within microseconds.
fn batch(host: &Host, steps: &[&str]) -> anyhow::Result<()> {
    let text = steps.join("\n");
    host.run("sh", &["-c", &format!("printf '%s\\n' '{text}' | ip -batch -")]).map(drop)
}

/// The load: connections that are asked all the time, and new ones.
struct Load<'a> {
    pair: &'a Pair,
    asker: Asker,
}

impl Load<'_> {
    /// Takes `steps` steps, one a second, each on the host that `whose` names. None of the held
    /// connections ends.
    fn runs(&self, holding: &mut Holding, steps: usize, whose: impl Fn(&Pair) -> bool) -> Report {
        let pair = self.pair;
        let options = [VIP, "--rate", "100", "--parallel", "300"];
        let storm = storm::start(pair.lab.client(), &options).expect("storm");
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let asked = scope.spawn(|| {
                let mut rounds = 0;
                while !over.load(Ordering::Relaxed) {
                    let asked = holding.ask().expect("ask");
                    assert_eq!(asked.answered, HELD, "{asked:?}\n{}", pair.told());
                    rounds += 1;
                }
                rounds
            });
            for round in 0..steps {
                let began = Instant::now();
                let host = if whose(pair) { &pair.lab.balancer } else { second(&pair.lab) };
                LADDER[round % LADDER.len()].take(&pair.lab, host, round);
                thread::sleep(PACE.saturating_sub(began.elapsed()));
                if asked.is_finished() {
                    break;
                }
            }
            over.store(true, Ordering::Relaxed);
            assert!(asked.join().expect("all are answered") > 1);
        });
        storm.stop(SOON).expect("its report")
    }

    /// The longest time for which nobody has answered for the address since a moment on the clock
    /// of captures.
    fn longest_gap(&self, since: Duration) -> (Duration, Duration) {
        let answers: Vec<_> =
            self.asker.answers().into_iter().map(|answer| answer.at).filter(|at| *at > since).collect();
        let gaps = answers.windows(2).map(|two| (two[1] - two[0], two[0] - since));
        gaps.max().expect("answers")
    }
}

fn is_master(evenkeel: &Evenkeel) -> bool {
    state(evenkeel) == "MASTER"
}

/// Both hosts are as they were at the start, and each serves every connection.
fn is_well(pair: &Pair, holding: &mut Holding) {
    for (host, evenkeel) in [(&pair.lab.balancer, &pair.one), (second(&pair.lab), &pair.two)] {
        synced(evenkeel);
        knows(evenkeel, HELD);
        if !is_master(evenkeel) {
            let other = if host.name == pair.lab.balancer.name { &pair.two } else { &pair.one };
            other.done(&["vrrp", "failover", "VI_1"]).expect("failover");
        }
        becomes(evenkeel, "MASTER");
        all_answer(holding, HELD, pair);
        let report = report(evenkeel).expect("a report");
        assert_eq!(report["faults"].as_array().map(Vec::len), Some(0), "{report}");
        assert_eq!(evenkeel.counter("least_conn_drift").expect("a counter"), 0, "{}", pair.told());
        assert_eq!(crate::vrrp::resolve(pair.lab.client(), "10.0.1.100"), Some(mac(host)));
    }
}

fn churn(hook: &str) {
    let (steps, slack) = if full() { (63, 100) } else { (9, 400) };
    let pair = Setup { hook, ..Setup::default() }.start();
    let folder = pair.lab.folder().display().to_string();
    let options = [VIP, "--tls", &folder, "--timeout-ms", "20000"];
    let mut holding = Holding::start(pair.lab.client(), &options).expect("hold");
    assert_eq!(holding.open(HELD).expect("opened").opened, HELD);
    knows(&pair.two, HELD);
    let asker = Asker::start(pair.lab.client(), &["10.0.1.100".parse().expect("an address")]).expect("an asker");
    let load = Load { pair: &pair, asker };

    let began = lab::capture::now();
    let beside = load.runs(&mut holding, steps, |pair| !is_master(&pair.one));
    let (gap, at) = load.longest_gap(began);
    println!("{hook}, {steps} steps on the backup: nobody answers for {gap:?} at most (after {at:?}); {beside:?}");
    assert!(beside.failures() == 0 && beside.max_ms < 900.0, "{beside:?}\n{}", pair.told());
    assert!(gap < Duration::from_millis(slack), "{gap:?} after {at:?}\n{}", pair.told());
    is_well(&pair, &mut holding);

    let began = lab::capture::now();
    let through = load.runs(&mut holding, steps, |pair| is_master(&pair.one));
    let (gap, at) = load.longest_gap(began);
    println!("{hook}, {steps} steps on the master: nobody answers for {gap:?} at most (after {at:?}); {through:?}");
    assert!(gap < TAKEOVER + Duration::from_millis(slack), "{gap:?} after {at:?}\n{}", pair.told());
    // Those that went through the link that was missing.
    assert!(through.failures() <= steps as u64 * RATE / 20, "{through:?}\n{}", pair.told());
    for (host, evenkeel) in [(&pair.lab.balancer, &pair.one), (second(&pair.lab), &pair.two)] {
        assert_eq!(evenkeel.counter("no_backend").expect("a counter"), 0, "{}", pair.told());
        // Its own kernel answers where the program does not stand yet; a busy host may be late.
        let resets = host.tcp_counter("OutRsts").expect("a counter");
        assert!(resets <= steps as u64 / 3, "{resets} on {}: {}", host.name, pair.told());
    }
    is_well(&pair, &mut holding);
}

#[test]
fn an_interface_that_changes_once_a_second_costs_no_connection_on_tcx() {
    churn("tc");
}

#[test]
fn an_interface_that_changes_once_a_second_costs_no_connection_on_native_xdp() {
    churn("xdp");
}
