//! Stand-in API servers behind the shipped binary: the start of most tests with real connections.

use std::time::Duration;

use evenkeel::{dataplane::tables_beside, tables::rows::Ports};
use lab::{
    Evenkeel, Lab, Plan, StandIn,
    client::{
        hold::{Holding, Opened},
        storm,
    },
    daemon::{Backend, Service},
    topology::{PORT, Topology},
};

/// The address that clients connect to.
pub const VIP: &str = "10.0.1.100:6443";
/// How long a test waits for what should happen at once: the machine may be busy.
pub const SOON: Duration = Duration::from_secs(10);

/// A lab with stand-ins on its backends, and evenkeel on its balancer.
pub struct Cluster {
    pub evenkeel: Evenkeel,
    pub standins: Vec<StandIn>,
    /// The service as configured.
    pub service: Service,
    pub lab: Lab,
}

impl Cluster {
    /// One client and three backends on one segment. `hook`: see [`Cluster::of`].
    pub fn new(hook: &str, configure: impl Fn(Service) -> Service) -> Cluster {
        Cluster::of(Plan::new(Topology::Segment), hook, configure)
    }

    /// `hook`: `tc` (tcx, with the offloads of veth), `clsact` (the same), or `xdp` (native,
    /// without offloads).
    pub fn of(plan: Plan, hook: &str, configure: impl Fn(Service) -> Service) -> Cluster {
        Cluster::with(plan, hook, &[], configure)
    }

    /// The same with stand-ins that have more options of `evenkeel-lab apiserver`.
    pub fn with(
        plan: Plan,
        hook: &str,
        standin: &'static [&'static str],
        configure: impl Fn(Service) -> Service,
    ) -> Cluster {
        let plan = if hook == "xdp" { plan.for_xdp() } else { plan };
        let lab = Lab::build(&plan).expect("the lab");
        let standins =
            lab.backends.iter().map(|host| StandIn::start_with(host, standin).expect("a stand-in")).collect();
        let datapath = if hook == "clsact" { "tc" } else { hook };
        let service = configure(Service::new(&lab, datapath));
        let mut evenkeel = Evenkeel::stopped(&lab, &service.toml()).expect("a configuration");
        if hook == "clsact" {
            evenkeel.run_option("--clsact");
        }
        evenkeel.run().expect("evenkeel");
        Cluster { evenkeel, standins, service, lab }
    }

    /// Applies another configuration at once.
    pub fn reload(&self, service: &Service) {
        self.evenkeel.write(&service.toml()).expect("a configuration");
        self.evenkeel.done(&["reload"]).unwrap_or_else(|error| panic!("{error:#}\n{}", self.evenkeel.log()));
    }

    /// A client that holds connections through the balancer.
    pub fn hold(&self, options: &[&str]) -> Holding {
        Holding::start(self.lab.client(), &[&[VIP], options].concat()).expect("hold")
    }

    /// Short connections of the client through the balancer.
    pub fn storm(&self, options: &[&str]) -> storm::Running {
        storm::start(self.lab.client(), &[&[VIP], options].concat()).expect("storm")
    }

    /// Waits until cp01, cp02 and cp03 have this many `active` connections.
    pub fn active(&self, active: [u64; 3]) {
        let wanted = [("cp01", active[0]), ("cp02", active[1]), ("cp03", active[2])];
        self.evenkeel.wait_active(&wanted, SOON).unwrap_or_else(|error| panic!("{error:#}\n{}", self.evenkeel.log()));
    }

    pub fn backend(&self, name: &str) -> Backend {
        self.evenkeel.backend(name).unwrap_or_else(|error| panic!("{error:#}\n{}", self.evenkeel.log()))
    }

    /// Waits until a backend is in `state`.
    pub fn wait_state(&self, name: &str, state: &str, limit: Duration) {
        let what = format!("{name} is {state}");
        lab::wait::until(&what, limit, || (self.backend(name).state == state).then_some(()))
            .unwrap_or_else(|error| panic!("{error:#}\n{:?}\n{}", self.backend(name), self.evenkeel.log()));
    }
}

/// The contents of the slots of all pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    pub all: u64,
    /// In the rings of free slots.
    pub free: u64,
    /// With a connection.
    pub open: u64,
    /// Held back for a minute, because the backend still held an older connection on the port.
    pub held_back: u64,
}

impl Slots {
    /// Counts in the tables themselves those that new connections get. SNAT ports that are also
    /// listen ports (at most one per pool) are in no ring.
    pub fn of(evenkeel: &Evenkeel) -> Slots {
        let tables = tables_beside(evenkeel.bpffs()).expect("the tables");
        let mut slots = Slots { all: 0, free: 0, open: 0, held_back: 0 };
        for (number, pool) in tables.pools() {
            let ports = Ports::of(&pool);
            slots.all += u64::from(ports.count) - u64::from(ports.has(PORT));
            slots.free += u64::from(tables.free_slots(number));
            for head in tables.heads(number, 0..u32::MAX).filter(|head| ports.has_slot(&pool, head.flow.at.slot())) {
                *if head.flow.ctl.state().is_active() { &mut slots.open } else { &mut slots.held_back } += 1;
            }
        }
        slots
    }

    /// Checks that every slot is where it belongs: lost or doubled ones would show here.
    pub fn are_whole(&self) -> bool {
        self.free + self.open + self.held_back == self.all
    }
}

/// Without the second setting half the ports are soon in TIME_WAIT, and a connect searches 50 ms
/// for a free one.
pub fn use_all_ports(client: &lab::Host) {
    client.sysctl("net.ipv4.ip_local_port_range", "1024 65535").expect("sysctl");
    client.sysctl("net.ipv4.tcp_tw_reuse", "1").expect("sysctl");
}

/// Whether the heavy tests run at full size (`cargo xtask test --full`).
pub fn full() -> bool {
    std::env::var_os("EVENKEEL_FULL").is_some()
}

/// Checks that all of them were served; returns how many by which server.
pub fn all_served(opened: &Opened, count: u64, what: &str) {
    assert_eq!((opened.opened, opened.failed.len()), (count, 0), "{what}: {opened:?}");
}

/// Runs the same test on TC and then on native XDP.
pub fn both(case: impl Fn(&str)) {
    ["tc", "xdp"].into_iter().for_each(case);
}

/// Runs the same test on TC and on native XDP at once, for tests that mostly wait.
pub fn both_at_once(case: impl Fn(&str) + Sync) {
    std::thread::scope(|scope| ["tc", "xdp"].map(|hook| scope.spawn(|| case(hook))).map(|_| ()));
}
