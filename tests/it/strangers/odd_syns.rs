use std::{net::SocketAddrV4, thread, time::Duration};

use lab::{
    Evenkeel, Lab, Plan, StandIn,
    client::hold::Holding,
    daemon::Service,
    forger::Forger,
    packet::{LINUX_OPTIONS, SYN, Segment},
    topology::Topology,
};

use super::{HOOKS, VIP, all_alive, hold, nowhere};
use crate::{
    cluster::{Cluster, SOON, all_served},
    vrrp,
};

/// What a listener drops or refuses: TCP-MD5, TCP-AO, a time to live that ends behind a router; and
/// the join of a token that an MPTCP listener does not know. The firewall does what a kernel with
/// all of these does.
const PICKY: [&str; 4] = [
    "tcp option md5sig exists drop",
    "tcp option 29 exists drop",
    "tcp flags syn ip ttl < 3 drop",
    "tcp option mptcp exists reject with tcp reset",
];

/// Options of SYNs, each a multiple of four bytes.
const OPTIONS: [&[u8]; 8] = [
    &[19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 1],
    &[2, 4, 5, 180, 19, 18, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 0],
    &[29, 16, 1, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
    &[30, 12, 0x10, 1, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4],
    &[2, 4, 5, 180, 4, 2, 30, 12, 0x11, 2, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1],
    &[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1],
    &[
        1, 19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 29, 4, 1, 1, 30, 12, 0x10, 1, 0, 0, 0, 1, 0,
        0, 0, 2, 254, 4, 1, 1, 0,
    ],
    &[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 14, 2, 4, 0, 1, 0],
];

/// Three SYNs of each kind, from addresses that nobody has.
fn odd_syns(forger: &Forger) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for round in 0..3 {
        let syn = |number: u32| {
            let from = SocketAddrV4::new(nowhere(round * 1000 + number), 50_000);
            Segment::new(from, VIP, SYN).numbers(77 + number, 0)
        };
        let with_options = OPTIONS.iter().enumerate().map(|(number, options)| {
            let options = options.iter().copied().chain([0; 3]).take(options.len().next_multiple_of(4));
            forger.frame(&syn(number as u32).options(&options.collect::<Vec<_>>()))
        });
        frames.extend(with_options);
        let mut short_lived = syn(100).options(&LINUX_OPTIONS);
        short_lived.ttl = 2;
        frames.push(forger.frame(&short_lived));
        frames.push(forger.frame(&syn(101).options(&[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1]).payload(&[7; 500])));
        let mut wrong = forger.frame(&syn(102).options(&LINUX_OPTIONS));
        wrong[50] ^= 0x55;
        frames.push(wrong);
    }
    frames
}

fn picky(backends: &[lab::Host]) {
    backends.iter().for_each(|host| host.firewall(&PICKY, &[]).expect("a firewall"));
}

/// Checks for as long as a silence could be charged that every backend stays as it is.
fn stays_up(evenkeel: &Evenkeel, what: &str) {
    for _ in 0..30 {
        for backend in evenkeel.backends().expect("backends") {
            let stands = (backend.state.as_str(), backend.connect_failures);
            assert_eq!(stands, ("up", 0), "{what}: {backend:?}\n{}", evenkeel.log());
        }
        thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn syns_that_listeners_drop_or_refuse_take_no_backend_out_and_reset_nobody() {
    for (hook, probe) in HOOKS.into_iter().flat_map(|hook| [(hook, false), (hook, true)]) {
        let what = format!("{hook}, with a probe: {probe}");
        let cluster = Cluster::new(hook, |service| {
            let service = service.line("connect_timeout = \"1s\"");
            if probe { service.probe("probe = \"tcp\"").probe("interval = \"1s\"") } else { service }
        });
        picky(&cluster.lab.backends);
        let mut held = hold(&cluster, 30, &what);
        let forger = Forger::new(cluster.lab.client(), &cluster.lab.balancer).expect("a forger");
        forger.send_frames(&odd_syns(&forger)).expect("SYNs");
        stays_up(&cluster.evenkeel, &what);
        all_alive(&mut held, 30, &what);
        all_served(&cluster.hold(&[]).open(12).expect("open"), 12, &what);
    }
}

#[test]
fn syns_whose_time_to_live_ends_at_a_router_take_no_backend_out() {
    for (hook, probe) in [("tc", false), ("xdp", true)] {
        let cluster = Cluster::of(Plan::new(Topology::Routed), hook, |service| {
            let service = service.line("connect_timeout = \"1s\"");
            if probe { service.probe("probe = \"tcp\"").probe("interval = \"1s\"") } else { service }
        });
        let mut held = hold(&cluster, 30, hook);
        let forger = Forger::new(cluster.lab.client(), &cluster.lab.balancer).expect("a forger");
        let syns = (0..30).map(|number| {
            let from = SocketAddrV4::new(nowhere(number), 50_000);
            let syn = Segment::new(from, VIP, SYN).numbers(77 + number, 0).options(&LINUX_OPTIONS);
            Segment { ttl: 1 + (number % 3) as u8, ..syn }
        });
        forger.send(&syns.collect::<Vec<_>>()).expect("SYNs");
        stays_up(&cluster.evenkeel, hook);
        all_alive(&mut held, 30, hook);
        all_served(&cluster.hold(&[]).open(12).expect("open"), 12, hook);
    }
}

/// The kernel's counter of this name on a host.
fn nstat(host: &lab::Host, name: &str) -> u64 {
    let told = host.run("nstat", &["-asz", name]).expect("nstat");
    told.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok()).expect("a counter")
}

/// Servers as Go makes them, and clients of MPTCP with more than one address, each of which would
/// join every connection: at whichever server the join comes to.
#[test]
fn clients_of_mptcp_fall_back_to_tcp_and_disturb_nobody() {
    for hook in ["tc"] {
        let plan = Plan::new(Topology::Segment).clients(2).addresses(3);
        let cluster = Cluster::with(plan, hook, &["--mptcp"], |service| service);
        let mut held = hold(&cluster, 30, hook);
        ["cp01", "cp02", "cp03"].iter().for_each(|name| cluster.wait_state(name, "up", SOON));
        let client = &cluster.lab.clients[1];
        client.ip(&["mptcp", "limits", "set", "subflows", "4", "add_addr_accepted", "4"]).expect("limits");
        for address in &client.addresses[1..] {
            client.ip(&["mptcp", "endpoint", "add", &address.to_string(), "dev", "eth0", "subflow"]).expect("endpoint");
        }
        let mut of_mptcp = Holding::start(client, &[crate::cluster::VIP, "--mptcp"]).expect("hold");
        all_served(&of_mptcp.open(15).expect("open"), 15, hook);
        all_alive(&mut of_mptcp, 15, hook);
        stays_up(&cluster.evenkeel, hook);
        all_alive(&mut of_mptcp, 15, hook);
        all_alive(&mut held, 30, hook);
        assert!(nstat(client, "MPTcpExtMPCapableSYNTX") >= 15, "{hook}: it was MPTCP");
        let met: Vec<_> = cluster.lab.backends.iter().map(|host| nstat(host, "MPTcpExtMPCapableSYNRX")).collect();
        assert_eq!(met, [0; 3], "{hook}: none of it has come through");
    }
}

#[test]
fn syns_that_listeners_drop_or_refuse_do_not_move_the_virtual_address() {
    let lab = Lab::build(&Plan::new(Topology::Segment).pair()).expect("the lab");
    let _standins: Vec<_> = lab.backends.iter().map(|host| StandIn::start(host).expect("a stand-in")).collect();
    picky(&lab.backends);
    let service = Service::new(&lab, "tc").line("connect_timeout = \"1s\"").toml();
    let start = |host, priority, state| {
        let keys = ["advert_interval = \"100ms\"", "preempt = true"];
        let file = format!("{service}\n{}", vrrp::instance(priority, &keys));
        let mut evenkeel = Evenkeel::on(&lab, host, &file).expect("files");
        evenkeel.run().expect("evenkeel");
        vrrp::becomes(&evenkeel, state);
        evenkeel
    };
    let one = start(&lab.balancer, 150, "MASTER");
    let two = start(vrrp::second(&lab), 100, "BACKUP");
    let mut held = Holding::start(lab.client(), &[crate::cluster::VIP]).expect("hold");
    all_served(&held.open(10).expect("open"), 10, "before");
    let before = vrrp::report(&one).expect("a report")["transitions"].clone();
    let forger = Forger::new(lab.client(), &lab.balancer).expect("a forger");
    forger.send_frames(&odd_syns(&forger)).expect("SYNs");
    stays_up(&one, "the master");
    stays_up(&two, "the backup");
    assert_eq!((vrrp::state(&one), vrrp::state(&two)), ("MASTER".to_owned(), "BACKUP".to_owned()));
    assert_eq!(vrrp::report(&one).expect("a report")["transitions"], before, "{}", one.log());
    all_alive(&mut held, 10, "after");
}
