//! Others on our hooks: what they put in front of our program, and what they take away.

use std::{fs, path::Path, process::Command, time::Instant};

use lab::{
    Evenkeel, Host, Lab, Plan,
    client::hold::Holding,
    daemon::Service,
    foreign::{self, ENDS, GOES_ON, Tcx},
    topology::Topology,
    wait,
};

use crate::{
    cluster::{Cluster, SOON, VIP},
    vrrp::{becomes, instance, is_told_of, report, told_of},
};

#[track_caller]
fn is_told(evenkeel: &Evenkeel, what: &str) {
    is_told_of(evenkeel, "datapath", what);
}

/// A new client is served.
fn is_served(lab: &Lab) -> bool {
    let mut holding = Holding::start(lab.client(), &[VIP, "--timeout-ms", "300"]).expect("hold");
    holding.open(1).expect("opened").opened == 1
}

#[track_caller]
fn becomes_served(lab: &Lab, evenkeel: &Evenkeel) {
    let begin = Instant::now();
    let late = wait::until("clients are served", SOON, || is_served(lab).then_some(()));
    late.unwrap_or_else(|late| panic!("{late:#}\n{}", evenkeel.log()));
    assert!(begin.elapsed().as_secs_f64() < 3.0, "{:?}\n{}", begin.elapsed(), evenkeel.log());
}

fn behind(evenkeel: &Evenkeel) -> String {
    evenkeel.status().expect("status")["services"][0]["datapath"][0]["behind"].to_string()
}

#[test]
fn a_program_that_is_put_in_front_of_ours_is_overtaken_and_one_that_insists_is_told() {
    let cluster = Cluster::new("tc", |service| service);
    let (lab, evenkeel) = (&cluster.lab, &cluster.evenkeel);
    let mut held = cluster.hold(&[]);
    assert_eq!(held.open(20).expect("opened").opened, 20);
    let mut other = Tcx::first(&lab.balancer, "eth0", "swallows", ENDS).expect("a program");
    becomes_served(lab, evenkeel);
    is_told(evenkeel, "interface eth0: swallows (tcx, id ");
    is_told(evenkeel, "the program is put in front of it");
    assert_eq!(behind(evenkeel), "null");
    assert_eq!(held.ask().expect("ask").answered, 20, "{}", evenkeel.log());
    // It comes back: two that overtake each other for ever help nobody.
    other.again().expect("first again");
    is_told(evenkeel, "frames pass it before the program sees them");
    wait::until("it is in the status", SOON, || behind(evenkeel).contains("swallows (tcx").then_some(())).expect("it");
    let shown = evenkeel.done(&["status"]).expect("status");
    assert!(shown.contains("  behind swallows (tcx, id "), "{shown}");
    drop(other);
    becomes_served(lab, evenkeel);
    wait::until("nobody is first", SOON, || (behind(evenkeel) == "null").then_some(())).expect("it");
}

#[test]
fn a_filter_with_the_first_priority_is_overtaken_too() {
    let cluster = Cluster::new("clsact", |service| service);
    let (lab, evenkeel) = (&cluster.lab, &cluster.evenkeel);
    let mut held = cluster.hold(&[]);
    assert_eq!(held.open(20).expect("opened").opened, 20);
    foreign::filter(&lab.balancer, "eth0", "swallows", ENDS, 1).expect("a filter");
    becomes_served(lab, evenkeel);
    is_told(evenkeel, "swallows (filter of priority 1, id ");
    assert_eq!(held.ask().expect("ask").answered, 20, "{}", evenkeel.log());
    // What cannot be overtaken: another hook sees frames before.
    let _other = Tcx::first(&lab.balancer, "eth0", "looks", GOES_ON).expect("a program");
    is_told(evenkeel, "looks (tcx, id ");
    is_told(evenkeel, "frames pass it before the program sees them");
    wait::until("it is in the status", SOON, || behind(evenkeel).contains("looks (tcx").then_some(())).expect("it");
    becomes_served(lab, evenkeel);
}

#[test]
fn what_was_there_before_the_start_is_behind_ours_or_told() {
    for hook in ["tc", "clsact"] {
        let lab = Lab::build(&Plan::new(Topology::Segment).backends(1)).expect("the lab");
        let _standin = lab::StandIn::start(&lab.backends[0]).expect("a stand-in");
        let _other = if hook == "tc" {
            Some(Tcx::first(&lab.balancer, "eth0", "swallows", ENDS).expect("a program"))
        } else {
            foreign::filter(&lab.balancer, "eth0", "swallows", ENDS, 1).expect("a filter");
            None
        };
        foreign::generic_xdp(&lab.balancer, "eth0", "looks").expect("a program");
        let mut evenkeel = Evenkeel::stopped(&lab, &Service::new(&lab, "tc").toml()).expect("files");
        if hook == "clsact" {
            evenkeel.run_option("--clsact");
        }
        evenkeel.run().expect("evenkeel");
        is_told(&evenkeel, "looks (generic XDP, id ");
        assert!(is_served(&lab), "{hook}\n{}", evenkeel.log());
        assert!(
            !told_of(&evenkeel, "datapath").iter().any(|text| text.contains("swallows")),
            "{:?}",
            told_of(&evenkeel, "datapath")
        );
        assert!(behind(&evenkeel).contains("looks (generic XDP"), "{}", behind(&evenkeel));
    }
}

/// What somebody may do to us.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// `tc qdisc del dev eth0 clsact`
    Filters,
    /// `rm -rf BPFFS/links`
    Links,
    /// `rm -rf BPFFS`
    Everything,
    /// `bpftool link detach`, of the program and of the guard
    Detached,
}

fn link_pins(evenkeel: &Evenkeel) -> Vec<std::path::PathBuf> {
    fs::read_dir(evenkeel.bpffs().join("links")).expect("links").flatten().map(|entry| entry.path()).collect()
}

fn shell(command: &str) -> String {
    lab::process::output(Command::new("sh").args(["-c", command])).expect("a command")
}

impl Blow {
    fn strike(self, evenkeel: &Evenkeel, host: &Host) {
        let bpffs = evenkeel.bpffs().display();
        match self {
            Blow::Filters => _ = host.run("tc", &["qdisc", "del", "dev", "eth0", "clsact"]).expect("tc"),
            Blow::Links => _ = shell(&format!("rm -rf {bpffs}/links")),
            Blow::Everything => _ = shell(&format!("rm -rf {bpffs}")),
            Blow::Detached => {
                for pin in link_pins(evenkeel) {
                    shell(&format!("bpftool link detach pinned {}", pin.display()));
                }
            }
        }
    }
}

/// Whatever it is: it is mended before anybody else takes over.
fn mended(hook: &str, blows: &[Blow]) {
    let plan = Plan::new(Topology::Segment).backends(1).pair();
    let lab = Lab::build(&if hook == "xdp" { plan.for_xdp() } else { plan }).expect("the lab");
    let _standin = lab::StandIn::start(&lab.backends[0]).expect("a stand-in");
    let datapath = if hook == "clsact" { "tc" } else { hook };
    let file = Service::new(&lab, datapath).toml() + "\n" + &instance(150, &["advert_interval = \"100ms\""]);
    let mut evenkeel = Evenkeel::on(&lab, &lab.balancer, &file).expect("files");
    if hook == "clsact" {
        evenkeel.run_option("--clsact");
    }
    evenkeel.run().expect("evenkeel");
    becomes(&evenkeel, "MASTER");
    let mut held = Holding::start(lab.client(), &[VIP, "--timeout-ms", "3000"]).expect("hold");
    assert_eq!(held.open(10).expect("opened").opened, 10);
    let pins = link_pins(&evenkeel);
    let maps = fs::read_dir(evenkeel.bpffs().join("maps")).expect("maps").count();
    let transitions = || report(&evenkeel).expect("a report")["transitions"].clone();
    let before = transitions();
    for blow in blows {
        let tales = told_of(&evenkeel, "datapath").len();
        blow.strike(&evenkeel, &lab.balancer);
        let back = |what: &str| {
            let told = &told_of(&evenkeel, "datapath")[tales..];
            told.iter().any(|text| text.contains(what) && text.ends_with("and is back"))
        };
        let is_back = || (back("the program ") && back("the guard ")).then_some(());
        wait::until("both are back", SOON, is_back)
            .unwrap_or_else(|late| panic!("{hook} {blow:?}: {late:#}\n{}", evenkeel.log()));
        becomes_served(&lab, &evenkeel);
        assert_eq!(link_pins(&evenkeel).len(), pins.len(), "{hook} {blow:?}");
        assert_eq!(transitions(), before, "{hook} {blow:?}: {}", evenkeel.log());
        assert_eq!(report(&evenkeel).expect("a report")["state"], "MASTER");
    }
    assert_eq!(fs::read_dir(evenkeel.bpffs().join("maps")).expect("maps").count(), maps);
    // Those that spoke to the host meanwhile were answered by it; idle ones live on.
    assert_eq!(held.ask().expect("ask").answered, 10, "{}", evenkeel.log());
    // The next start finds everything.
    evenkeel.kill();
    evenkeel.run().expect("evenkeel");
    becomes(&evenkeel, "MASTER");
    assert_eq!(held.ask().expect("ask").answered, 10, "{}", evenkeel.log());
    assert!(evenkeel.log().contains("took over the tables of an earlier run"), "{}", evenkeel.log());
}

#[test]
fn links_pins_and_the_guard_that_were_taken_from_tcx_are_put_back_at_once() {
    mended("tc", &[Blow::Links, Blow::Detached, Blow::Everything, Blow::Links]);
}

#[test]
fn filters_that_were_flushed_and_their_pins_are_put_back_at_once() {
    mended("clsact", &[Blow::Filters, Blow::Everything, Blow::Filters]);
}

#[test]
fn native_xdp_that_was_taken_away_is_put_back_at_once() {
    mended("xdp", &[Blow::Detached, Blow::Links]);
}

/// Other pins, the same interface: the old program would go on in front of the new one.
#[test]
fn a_start_beside_another_evenkeel_is_refused_with_what_to_run() {
    for (datapath, clsact) in [("tc", false), ("tc", true), ("xdp-generic", false)] {
        let lab = Lab::build(&Plan::new(Topology::Segment).backends(1)).expect("the lab");
        let _standin = lab::StandIn::start(&lab.backends[0]).expect("a stand-in");
        let mut evenkeel = Evenkeel::stopped(&lab, &Service::new(&lab, datapath).toml()).expect("files");
        if clsact {
            evenkeel.run_option("--clsact");
        }
        evenkeel.run().expect("evenkeel");
        evenkeel.terminate().expect("an end in order");
        let (old, new) = (evenkeel.bpffs().to_owned(), evenkeel.bpffs().with_file_name("elsewhere"));
        let text = fs::read_to_string(evenkeel.config()).expect("the file");
        let moved = text.replace(&old.display().to_string(), &new.display().to_string());
        fs::write(evenkeel.config(), &moved).expect("the file");
        let refused = format!("{:#}", evenkeel.run().expect_err("a refusal"));
        assert!(refused.contains("interface eth0 has the program of another evenkeel"), "{refused}");
        assert!(refused.contains(&format!("its pins are in {}.", old.display())), "{refused}");
        assert!(!new.exists(), "a refused start leaves nothing behind");
        // It is run as it is said.
        let commands: Vec<_> =
            refused.split('`').filter(|part| part.starts_with("rm ") || part.starts_with("tc ")).collect();
        assert!(!commands.is_empty(), "{refused}");
        for command in commands {
            lab.balancer.run("sh", &["-c", command]).expect(command);
        }
        assert!(!Path::new(&old).exists());
        evenkeel.run().unwrap_or_else(|error| panic!("{datapath} {clsact}: {error:#}"));
        becomes_served(&lab, &evenkeel);
        // The old one again: the way back is refused, too.
        evenkeel.terminate().expect("an end in order");
        fs::write(evenkeel.config(), &text).expect("the file");
        assert!(format!("{:#}", evenkeel.run().expect_err("a refusal")).contains("elsewhere"));
    }
}
