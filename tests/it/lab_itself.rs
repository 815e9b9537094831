//! The lab without a balancer: what the other tests rely on.

use std::{collections::BTreeMap, path::Path, time::Duration};

use lab::{
    Host, Lab, Plan, StandIn, binaries,
    client::{bulk, hold::Holding, storm},
    process,
    topology::Topology,
    wait,
};

const SOON: Duration = Duration::from_secs(5);

fn lab(plan: &Plan) -> Lab {
    Lab::build(plan).expect("the lab")
}

fn standin(host: &Host) -> StandIn {
    StandIn::start(host).expect("a stand-in")
}

/// A closed port refuses, so packets travelled both ways.
fn reaches(from: &Host, to: &Host) -> bool {
    let closed = format!("{}:9", to.address());
    let mut held = Holding::start(from, &[&closed, "--timeout-ms", "3000"]).expect("hold");
    held.open(1).expect("open").failed == by("refused", 1)
}

fn by(name: &str, count: u64) -> BTreeMap<String, u64> {
    [(name.to_owned(), count)].into()
}

#[test]
fn clients_reach_every_backend_or_its_gateway_in_each_topology() {
    for (topology, ways) in [
        (Topology::Segment, ["client1 cp01", "client1 cp03", "lb cp02"]),
        (Topology::TwoSides, ["lb cp01", "lb cp03", "client1 lb"]),
        (Topology::Routed, ["lb cp01", "router cp03", "client1 lb"]),
    ] {
        let lab = lab(&Plan::new(topology));
        let hosts: Vec<_> = lab.clients.iter().chain(&lab.backends).chain([&lab.balancer]).chain(&lab.router).collect();
        let host = |name: &str| hosts.iter().find(|host| &*host.name == name).expect("a host of that name");
        for way in ways {
            let (from, to) = way.split_once(' ').expect("two names");
            assert!(reaches(host(from), host(to)), "{topology:?}, {way}");
        }
    }
}

#[test]
fn a_dropped_lab_leaves_nothing_behind() {
    let lab = lab(&Plan::new(Topology::Segment));
    let (folder, namespace) = (lab.folder().to_owned(), lab.client().namespace().to_owned());
    let standin = standin(&lab.backends[0]);
    assert!(Path::new("/run/netns").join(&namespace).exists());
    drop(lab);
    assert!(!Path::new("/run/netns").join(&namespace).exists());
    assert!(!folder.exists());
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
    assert!(!mounts.contains(folder.to_str().expect("UTF-8")), "still mounted");
    drop(standin);
}

#[test]
fn a_killed_lab_is_removed_by_its_reaper() {
    let mut child = std::process::Command::new(binaries::lab().expect("evenkeel-lab"))
        .arg("hold-lab")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a process with a lab");
    let prefix = format!("ek-{}-", child.id());
    let left = || {
        let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        names.filter(|name| name.file_name().to_string_lossy().starts_with(&prefix)).count()
    };
    wait::until("the lab stands", SOON, || (left() == 6).then_some(())).expect("a lab");
    child.kill().expect("kill -9");
    child.wait().expect("its end");
    wait::until("the lab is gone", SOON, || (left() == 0).then_some(())).expect("nothing left");
}

#[test]
fn an_xdp_program_that_passes_everything_stands_at_the_far_end_of_the_balancers_cable() {
    let lab = lab(&Plan::new(Topology::Segment).for_xdp());
    let link = lab.switch.ip(&["link", "show", "lb"]).expect("the port");
    assert!(link.contains("prog/xdp"), "{link}");
    let features = lab.client().run("ethtool", &["-k", "eth0"]).expect("features");
    assert!(features.contains("tx-checksumming: off"), "{features}");
    assert!(reaches(lab.client(), &lab.balancer), "frames still pass");
}

#[test]
fn curl_is_served_over_both_http_versions_with_and_without_a_client_certificate() {
    let lab = lab(&Plan::new(Topology::Segment).backends(1));
    let standin = standin(&lab.backends[0]);
    let file = |name: &str| lab.folder().join(name).display().to_string();
    let url = |path: &str| format!("https://{}{path}", standin.address());
    for version in ["--http1.1", "--http2"] {
        let (ca, url) = (file("ca.crt"), url("/livez?verbose"));
        let told = lab.client().run("curl", &["-sSi", version, "--cacert", &ca, &url]).expect("curl");
        assert!(told.contains("x-served-by: cp01") && told.contains("livez check passed"), "{told}");
    }
    let (ca, cert, key, url) = (file("ca.crt"), file("admin.crt"), file("admin.key"), url("/version"));
    let args = ["-sS", "--cacert", &ca, "--cert", &cert, "--key", &key, &url];
    assert!(lab.client().run("curl", &args).expect("curl").contains("v1.33.0"));
}

#[test]
fn kubectl_gets_the_version_from_a_stand_in() {
    let lab = lab(&Plan::new(Topology::Segment).backends(1));
    let standin = standin(&lab.backends[0]);
    let server = format!("--server=https://{}", standin.address());
    let told = lab::daemon::kubectl(lab.client(), &[&server, "get", "--raw", "/version"]).expect("kubectl");
    assert!(told.contains("v1.33.0"), "{told}");
}

#[test]
fn held_connections_say_who_serves_them_and_how_they_ended() {
    let lab = lab(&Plan::new(Topology::Segment).backends(1));
    let mut standin = standin(&lab.backends[0]);
    let address = standin.address().to_string();
    let folder = lab.folder().display().to_string();
    for options in
        [vec![address.as_str()], vec![&address, "--tls", &folder], vec![&address, "--tls", &folder, "--watch"]]
    {
        let mut held = Holding::start(lab.client(), &options).expect("hold");
        let opened = held.open(40).expect("open");
        assert_eq!((opened.opened, &opened.by, opened.failed.len()), (40, &by("cp01", 40), 0), "{options:?}");
        if !options.contains(&"--watch") {
            assert_eq!(held.ask().expect("ask").answered, 40);
        }
        assert_eq!(held.close(10, "cp01", "fin").expect("close").closed, 10);
        assert_eq!(held.close(10, "-", "rst").expect("close").closed, 10);
        assert_eq!(held.status().expect("status").by, by("cp01", 20));

        // Its kernel closes the connections of the killed process.
        standin.kill();
        let ended =
            wait::until("all ended", SOON, || held.status().ok().filter(|status| status.open == 0)).expect("ended");
        assert_eq!(ended.ended.values().sum::<u64>(), 40, "{ended:?}");
        assert_eq!(held.open(1).expect("open").failed, by("refused", 1));
        standin.revive().expect("alive again");
    }
}

#[test]
fn a_paused_stand_in_is_connected_to_but_does_not_answer() {
    let lab = lab(&Plan::new(Topology::Segment).backends(1));
    let standin = standin(&lab.backends[0]);
    let address = standin.address().to_string();
    standin.pause().expect("SIGSTOP");
    let mut held = Holding::start(lab.client(), &[&address, "--timeout-ms", "300"]).expect("hold");
    assert_eq!(held.open(1).expect("open").failed, by("timeout", 1));
    standin.resume().expect("SIGCONT");
    assert_eq!(held.open(1).expect("open").opened, 1);
}

#[test]
fn firewalls_and_cut_cables_do_what_they_say() {
    let lab = lab(&Plan::new(Topology::Segment).backends(1));
    let standin = standin(&lab.backends[0]);
    let address = standin.address().to_string();
    let mut held = Holding::start(lab.client(), &[&address, "--timeout-ms", "400"]).expect("hold");
    let mut one = |what: &str| {
        let opened = held.open(1).expect(what);
        opened.failed.into_keys().next().unwrap_or_default()
    };
    let host = &standin.host;
    host.drop_syns(6443).expect("nft");
    assert_eq!(one("SYNs dropped"), "timeout");
    host.reject_syns(6443).expect("nft");
    assert_eq!(one("rejected with tcp reset"), "refused");
    host.open_firewall().expect("nft");
    assert_eq!(one("open"), "");
    host.link("eth0", false).expect("cut");
    assert_eq!(one("cable cut"), "timeout");
    host.link("eth0", true).expect("plugged in");
    // The kernel may react to the carrier of the switch's port as much as a second later.
    wait::until("the cable is plugged in", SOON, || one("plugged in").is_empty().then_some(())).expect("a connection");
}

#[test]
fn storms_count_every_way_to_close_from_several_addresses() {
    let lab = lab(&Plan::new(Topology::Segment).backends(1).addresses(4));
    let standin = standin(&lab.backends[0]);
    let address = standin.address().to_string();
    let from: Vec<_> = lab.client().addresses.iter().map(ToString::to_string).collect();
    let from = from.join(",");
    let folder = lab.folder().display().to_string();
    let plain = vec![address.as_str(), "--from", &from, "--connections", "2000"];
    let tls = vec![address.as_str(), "--tls", &folder, "--connections", "200"];
    let plain_closes = ["client-fin", "client-rst", "server-fin", "server-rst", "half", "mixed"];
    let tls_closes = ["client-fin", "client-rst", "server-fin", "mixed"];
    let all = plain_closes.map(|close| (plain.clone(), close, 2000)).into_iter();
    for (mut options, close, count) in all.chain(tls_closes.map(|close| (tls.clone(), close, 200))) {
        options.extend(["--close", close]);
        let report = storm::start(lab.client(), &options).and_then(|storm| storm.finish(SOON * 4)).expect("storm");
        assert_eq!(
            (report.done, report.failures(), &report.by),
            (count, 0, &by("cp01", count)),
            "{options:?}: {report:?}"
        );
    }
}

#[test]
fn a_storm_has_the_rate_and_the_end_that_were_asked_for() {
    let lab = lab(&Plan::new(Topology::Segment).backends(1));
    let standin = standin(&lab.backends[0]);
    let address = standin.address().to_string();
    let options = [&address, "--rate", "200", "--seconds", "1.5", "--every", "0.2"];
    let report = storm::start(lab.client(), &options).and_then(|storm| storm.finish(SOON)).expect("storm");
    assert!((250..=301).contains(&report.done) && report.failures() == 0, "{report:?}");
}

#[test]
fn bulk_transfers_arrive_unharmed_in_both_directions() {
    let lab = lab(&Plan::new(Topology::Segment).backends(1));
    let standin = standin(&lab.backends[0]);
    for direction in ["download", "upload"] {
        let report =
            bulk::transfer(lab.client(), &standin.address().to_string(), direction, 50_000_001).expect(direction);
        assert_eq!((report.bytes, &*report.served_by), (50_000_001, "cp01"));
    }
}

#[test]
fn two_labs_stand_side_by_side() {
    let (one, other) = (lab(&Plan::new(Topology::Segment)), lab(&Plan::new(Topology::Segment)));
    assert_ne!(one.folder(), other.folder());
    let pids = process::output(std::process::Command::new("ip").args(["netns", "pids", one.balancer.namespace()]));
    assert_eq!(pids.expect("pids"), "");
    drop(one);
    assert!(Path::new("/run/netns").join(other.balancer.namespace()).exists());
}
