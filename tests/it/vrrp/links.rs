//! The interface goes and comes back, as with `netplan apply`, a hot-plugged card or a VLAN that is
//! made anew: what was attached, guarded and joined comes back with it, nobody has to do anything.

use std::{net::Ipv4Addr, time::Instant};

use lab::{StandIn, client::hold::Holding};

use super::*;

const FAST: &str = "advert_interval = \"100ms\"";
/// From the moment at which the interface has its address again.
const BACK: Duration = Duration::from_secs(3);

/// A backend that answers, and connections to it.
fn hold(lab: &Lab, count: u64) -> Holding {
    let folder = lab.folder().display().to_string();
    let target = format!("{VIP}:6443");
    let mut holding = Holding::start(lab.client(), &[&target, "--tls", &folder, "--timeout-ms", "5000"]).expect("hold");
    let opened = holding.open(count).expect("opened");
    assert_eq!(opened.opened, count, "{opened:?}");
    holding
}

/// Clients are answered by this host and served, old connections too.
#[track_caller]
fn serves(lab: &Lab, host: &Host, evenkeel: &Evenkeel, holding: &mut Holding) {
    assert_eq!(resolve(lab.client(), VIP), Some(mac(host)));
    let held = holding.status().expect("status").open;
    let asked = holding.ask().expect("ask");
    assert_eq!((asked.answered, asked.failed.len()), (held, 0), "{asked:?}\n{}", evenkeel.log());
    let opened = holding.open(5).expect("opened");
    assert_eq!(opened.opened, 5, "{opened:?}\n{}", evenkeel.log());
}

/// One eth0 everywhere, with the program and the guard on it.
#[track_caller]
fn stands_once(lab: &Lab, host: &Host, evenkeel: &Evenkeel, clsact: bool) {
    let ifindex = host.inside(|| Ok(evenkeel::sys::netdev::index_of("eth0")?)).expect("an index");
    let links = std::fs::read_dir(evenkeel.bpffs().join("links")).expect("links").flatten();
    let mut links: Vec<_> = links.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    links.sort_unstable();
    let hooks = if clsact { ["clsact", "clsact-out"] } else { ["tcx", "tcx-out"] };
    assert_eq!(links, hooks.map(|hook| format!("{ifindex}-{hook}")), "{}", evenkeel.log());
    let datapaths = evenkeel.status().expect("status")["services"][0]["datapath"].clone();
    let names: Vec<_> = datapaths.as_array().expect("a list").iter().map(|it| it["interface"].clone()).collect();
    assert_eq!(names, ["eth0"], "{datapaths}");
    let tables = evenkeel::dataplane::tables_beside(evenkeel.bpffs()).expect("the tables");
    let entered: Vec<_> = (0..64).map(|number| tables.interface(number).ifindex).filter(|it| *it != 0).collect();
    assert_eq!(entered, [ifindex], "{}", evenkeel.log());
    let trace = evenkeel.json(&["trace", &format!("{}:7", lab.client().address())]).expect("trace");
    assert_eq!(trace["new"][0]["verdict"], "forwarded", "{trace}");
    assert!(faults(evenkeel).is_empty(), "{}", faults(evenkeel));
}

fn faults(evenkeel: &Evenkeel) -> String {
    let report = report(evenkeel).expect("a report");
    report["faults"].as_array().expect("a list").iter().map(Value::to_string).collect()
}

/// It takes less than `BACK` from now until the host answers for the VIP.
#[track_caller]
fn is_back(lab: &Lab, host: &Host, evenkeel: &Evenkeel, since: Instant) {
    becomes(evenkeel, "MASTER");
    vip_goes(host, true);
    let vip: Ipv4Addr = VIP.parse().expect("an address");
    let asker = lab::Asker::start(lab.client(), &[vip]).expect("an asker");
    let own = mac(host);
    let answers = || (asker.answerers(vip).last() == Some(&own)).then_some(());
    wait::until("the host answers", SOON, answers).unwrap_or_else(|late| panic!("{late:#}\n{}", evenkeel.log()));
    assert!(since.elapsed() < BACK, "{:?}\n{}", since.elapsed(), evenkeel.log());
}

fn made_anew_on_a_lone_master(clsact: bool, names: &[&str]) {
    let lab = lab();
    let _backend = StandIn::start(&lab.backends[0]).expect("a stand-in");
    let mut one = Evenkeel::on(&lab, &lab.balancer, &(service(&lab) + "\n" + &instance(150, &[FAST]))).expect("files");
    if clsact {
        one.run_option("--clsact");
    }
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    let mut holding = hold(&lab, 20);
    for name in names {
        lab.make_anew(&lab.balancer, "eth0", name, Duration::from_secs(1)).expect("another eth0");
        is_back(&lab, &lab.balancer, &one, Instant::now());
        stands_once(&lab, &lab.balancer, &one, clsact);
        serves(&lab, &lab.balancer, &one, &mut holding);
    }
}

#[test]
fn an_interface_made_anew_twice_is_served_again_and_connections_live_on() {
    made_anew_on_a_lone_master(false, &["eth0", "eth0"]);
}

#[test]
fn an_interface_made_under_another_name_is_served_once_it_has_its_own() {
    made_anew_on_a_lone_master(false, &["new0"]);
}

#[test]
fn with_filters_instead_of_links_it_is_the_same() {
    made_anew_on_a_lone_master(true, &["eth0", "new0"]);
}

/// In no time: what is known of it has not changed, and none of it is true.
#[test]
fn an_interface_that_comes_back_under_its_index_is_joined_and_served_anew() {
    for clsact in [false, true] {
        let lab = lab();
        let _backend = StandIn::start(&lab.backends[0]).expect("a stand-in");
        let start = |host: &Host, priority| {
            let file = service(&lab) + "\n" + &instance(priority, &[FAST]);
            let mut evenkeel = Evenkeel::on(&lab, host, &file).expect("files");
            if clsact {
                evenkeel.run_option("--clsact");
            }
            evenkeel.run().expect("evenkeel");
            evenkeel
        };
        let one = start(&lab.balancer, 150);
        becomes(&one, "MASTER");
        let two = start(second(&lab), 100);
        becomes(&two, "BACKUP");
        // The one that listens has to hear, or there are two.
        let index = |host: &Host| host.inside(|| Ok(evenkeel::sys::netdev::index_of("eth0")?)).expect("an index");
        let before = index(second(&lab));
        lab.take_away_and_back(second(&lab), "eth0").expect("the same eth0");
        assert_eq!(index(second(&lab)), before);
        becomes(&two, "BACKUP");
        let heard = || report(&two).expect("a report")["adverts"]["received"].as_u64().expect("a number");
        let before = heard();
        wait::until("adverts are heard", SOON, || (heard() > before + 10).then_some(())).expect("multicast");
        assert_eq!((state(&one), state(&two)), ("MASTER".into(), "BACKUP".into()));
        stands_once(&lab, second(&lab), &two, clsact);
        // The one that speaks has to be heard, and to hear.
        lab.take_away_and_back(&lab.balancer, "eth0").expect("the same eth0");
        is_back(&lab, &lab.balancer, &one, Instant::now());
        becomes(&two, "BACKUP");
        stands_once(&lab, &lab.balancer, &one, clsact);
        serves(&lab, &lab.balancer, &one, &mut hold(&lab, 3));
    }
}

#[test]
fn a_backup_whose_interface_was_made_anew_listens_and_takes_over() {
    let lab = lab();
    let _backend = StandIn::start(&lab.backends[0]).expect("a stand-in");
    let (mut one, two) = master_and_backup(&lab, &service(&lab), &[FAST]);
    lab.make_anew(second(&lab), "eth0", "eth0", Duration::from_millis(500)).expect("another eth0");
    becomes(&two, "BACKUP");
    let heard = || report(&two).expect("a report")["adverts"]["received"].as_u64().expect("a number");
    let before = heard();
    wait::until("adverts are heard", SOON, || (heard() > before + 10).then_some(())).expect("multicast");
    assert_eq!((state(&one), state(&two)), ("MASTER".into(), "BACKUP".into()));
    stands_once(&lab, second(&lab), &two, false);
    one.kill();
    lab.balancer.link("eth0", false).expect("a cable");
    is_back(&lab, second(&lab), &two, Instant::now());
    serves(&lab, second(&lab), &two, &mut hold(&lab, 3));
}

/// While nobody looks.
#[test]
fn what_an_interface_of_an_earlier_run_has_left_is_forgotten_at_the_start() {
    let lab = lab();
    let _backend = StandIn::start(&lab.backends[0]).expect("a stand-in");
    let mut one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    for _ in 0..3 {
        becomes(&one, "MASTER");
        one.kill();
        lab.make_anew(&lab.balancer, "eth0", "eth0", Duration::ZERO).expect("another eth0");
        one.run().expect("evenkeel");
    }
    becomes(&one, "MASTER");
    stands_once(&lab, &lab.balancer, &one, false);
    serves(&lab, &lab.balancer, &one, &mut hold(&lab, 3));
}

/// Until then the host would answer for the address, and refuse every client itself.
#[test]
fn native_xdp_that_a_new_interface_does_not_take_is_a_fault_and_put_there_once_it_does() {
    let mut lab = Lab::build(&Plan::new(Topology::Segment).backends(1).pair().for_xdp()).expect("the lab");
    let _backend = StandIn::start(&lab.backends[0]).expect("a stand-in");
    let file = Service::new(&lab, "xdp").toml() + "\n" + &instance(150, &[FAST]);
    let mut one = Evenkeel::on(&lab, &lab.balancer, &file).expect("files");
    one.run().expect("evenkeel");
    becomes(&one, "MASTER");
    // Its other end has no program.
    lab.plan.offloads = true;
    lab.make_anew(&lab.balancer, "eth0", "eth0", Duration::ZERO).expect("another eth0");
    let what = "the program cannot be put on eth0";
    let is_told = || faults(&one).contains(what).then_some(());
    wait::until(what, SOON, is_told).unwrap_or_else(|late| panic!("{late:#}\n{}", one.log()));
    becomes(&one, "FAULT");
    lab.balancer.offload("eth0", "tx", false).expect("ethtool");
    lab::xdp_pass::attach(&lab.switch, &lab.balancer.name).expect("a program");
    is_back(&lab, &lab.balancer, &one, Instant::now());
    assert_eq!(one.status().expect("status")["services"][0]["datapath"][0]["mode"], "xdp", "{}", one.log());
    serves(&lab, &lab.balancer, &one, &mut hold(&lab, 3));
}

#[test]
fn an_interface_that_comes_later_gets_the_guard_without_a_reload() {
    let lab = lab();
    let one = evenkeel(&lab, &lab.balancer, &instance(150, &[FAST]));
    becomes(&one, "MASTER");
    lab.second_cable(&lab.balancer, "eth1").expect("a cable");
    let ifindex = lab.balancer.inside(|| Ok(evenkeel::sys::netdev::index_of("eth1")?)).expect("an index");
    let pin = one.bpffs().join("links").join(format!("{ifindex}-tcx-out"));
    wait::until("the guard", SOON, || pin.exists().then_some(()))
        .unwrap_or_else(|late| panic!("{late:#}\n{}", one.log()));
}
