//! Where clients and backends can be: on one interface with the balancer or on two, behind a
//! router, and a backend that is a client itself; on every hook, and with checksums completed by
//! the card or in software.

use lab::{
    Host, Plan,
    client::{bulk, hold::Holding},
    daemon::Service,
    topology::{PORT, Topology},
    wait,
};

use crate::cluster::{Cluster, SOON, VIP, all_served};

/// Everything that depends on where packets come from and go to, for one client.
fn works(cluster: &mut Cluster, client: &Host, what: &str) {
    let mut held = Holding::start(client, &[VIP]).expect("hold");
    all_served(&held.open(30).expect("open"), 30, what);
    cluster.active([10, 10, 10]);
    for direction in ["download", "upload"] {
        bulk::transfer(client, VIP, direction, 16 << 20)
            .unwrap_or_else(|error| panic!("{what}, {direction}: {error:#}"));
    }
    refusals_and_silence(cluster, &mut held, what);
    resets(cluster, &mut held, what);
    cluster.standins[0].revive().expect("the stand-in");
    cluster.lab.backends[1].open_firewall().expect("nft");
    cluster.reload(&cluster.service);
}

/// A closed port, a firewall that rejects, and one that drops.
fn refusals_and_silence(cluster: &mut Cluster, held: &mut Holding, what: &str) {
    cluster.standins[0].kill();
    cluster.lab.backends[1].reject_syns(PORT).expect("nft");
    let opened = held.open(12).expect("open");
    all_served(&opened, 12, &format!("{what}, two refusing"));
    assert_eq!(opened.by, [("cp03".to_owned(), 12)].into(), "{what}");
    cluster.lab.backends[1].drop_syns(PORT).expect("nft");
    let opened = held.open(3).expect("open");
    all_served(&opened, 3, &format!("{what}, one refusing and one silent"));
    // cp01's own kernel has reset the ones that it had.
    cluster.active([0, 10, 25]);
    assert_eq!(held.ask().expect("ask").answered, 35, "{what}");
}

/// RSTs that answer no packet: to the clients, and to the backends.
fn resets(cluster: &Cluster, held: &mut Holding, what: &str) {
    cluster.reload(&cluster.service.clone().line("idle_timeout = \"1s\""));
    let all_ended = || held.status().ok().filter(|status| status.open == 0);
    let ended = wait::until("clients met the RSTs", SOON, all_ended).expect(what).ended;
    assert_eq!(ended.get("reset"), Some(&35), "{what}: {ended:?}");
    for backend in &cluster.lab.backends {
        let open = || backend.run("ss", &["-Htn", "state", "established", "sport", "=", ":6443"]);
        wait::until("the backend met the RSTs", SOON, || open().is_ok_and(|open| open.is_empty()).then_some(()))
            .unwrap_or_else(|error| panic!("{what}, {}: {error:#}\n{:?}", backend.name, open()));
    }
    cluster.active([0, 0, 0]);
}

/// Every client tries every backend, whatever happened before.
fn cluster(topology: Topology, hook: &str) -> Cluster {
    Cluster::of(Plan::new(topology), hook, |service| {
        let service = service.line("connect_timeout = \"500ms\"");
        (0..3).fold(service, |service, backend| service.backend_line(backend, "max_fails = 0"))
    })
}

/// On every hook at once: from a client, and from a backend.
fn everywhere(topology: Topology) {
    std::thread::scope(|scope| {
        for hook in ["tc", "clsact", "xdp"] {
            scope.spawn(move || {
                let mut cluster = cluster(topology, hook);
                let client = cluster.lab.client().clone();
                works(&mut cluster, &client, &format!("{topology:?}, {hook}"));
                let backend = cluster.lab.backends[2].clone();
                works(&mut cluster, &backend, &format!("{topology:?}, {hook}, a backend as client"));
            });
        }
    });
}

#[test]
fn on_one_interface() {
    everywhere(Topology::Segment);
}

#[test]
fn on_two_interfaces() {
    everywhere(Topology::TwoSides);
}

#[test]
fn behind_a_router() {
    everywhere(Topology::Routed);
}

#[test]
fn checksums_are_right_when_the_balancers_card_finishes_none() {
    std::thread::scope(|scope| {
        for (topology, devices) in [(Topology::Segment, &["eth0"][..]), (Topology::TwoSides, &["eth0", "eth1"])] {
            scope.spawn(move || {
                let mut cluster = cluster(topology, "tc");
                devices.iter().for_each(|device| cluster.lab.balancer.offload(device, "tx", false).expect("ethtool"));
                let client = cluster.lab.client().clone();
                works(&mut cluster, &client, &format!("{topology:?}, tx off"));
            });
        }
    });
}

/// The far ends of the balancer's cables take no XDP frames here, as a bridge or a VLAN device would
/// not: what native XDP sends out would be lost.
#[test]
fn native_xdp_by_name_is_refused_where_frames_would_be_lost_and_auto_serves() {
    for topology in [Topology::Segment, Topology::TwoSides] {
        let mut cluster = Cluster::of(Plan::new(topology), "auto", |service| service);
        let mut held = cluster.hold(&[]);
        all_served(&held.open(30).expect("open"), 30, "auto");
        let native = Service::new(&cluster.lab, "xdp").toml();
        cluster.evenkeel.write(&native).expect("a configuration");
        let refused = cluster.evenkeel.command(&["reload"]).expect("reload");
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.err.contains("(veth) takes no XDP frames: its other end has no XDP program"), "{refused:?}");
        assert_eq!(held.ask().expect("ask").answered, 30, "{topology:?}: the configuration in force serves");
        all_served(&held.open(30).expect("open"), 30, "after a refused reload");
        let status = cluster.evenkeel.done(&["status"]).expect("status");
        assert!(status.contains("datapath tc on eth0"), "{status}");

        cluster.evenkeel.terminate().expect("an end in order");
        let error = cluster.evenkeel.run().expect_err("no start by half");
        assert!(format!("{error:#}").contains("takes no XDP frames"), "{error:#}");
        cluster.evenkeel.write(&cluster.service.toml()).expect("a configuration");
        cluster.evenkeel.run().expect("evenkeel");
        assert_eq!(held.ask().expect("ask").answered, 60, "{topology:?}: connections go on");
    }
}
