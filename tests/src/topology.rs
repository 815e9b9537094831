//! The hosts and cables of the lab.
//!
//! ```text
//! segment     clients ─┬─ switch ─┬─ lb        one interface, everything on 10.0.1.0/24
//!                      └──────────┴─ backends
//! two sides   clients ── switch ── lb ── switch ── backends         10.0.1.0/24 and 10.0.2.0/24
//! routed      clients and lb ── switch ── router ── backends        10.0.1.0/24 and 10.0.3.0/24
//! ```
//! `Plan::pair` adds a second balancer to the segment, and leaves the VIP to the two.
//!
//! The switch is a bridge in its own namespace, so the balancer's cable ends in a switch port as in
//! reality.

use std::{
    fs,
    io::Write,
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    host::Host,
    pki, process,
    reaper::{self, Name},
    xdp_pass,
};

/// The address that clients connect to. The lab puts it on the balancer's eth0, unless there are
/// two balancers.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 100);
pub const PORT: u16 = 6443;

const BALANCER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
const BALANCER_BACK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 254);
const ROUTER_BACK: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 254);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One L2 segment, one interface.
    Segment,
    /// Clients on eth0, backends on eth1; the backends reach the VIP through the balancer.
    TwoSides,
    /// Backends behind a router.
    Routed,
}

/// What to build.
#[derive(Clone, Debug)]
pub struct Plan {
    pub topology: Topology,
    /// How many client hosts: 1 to 20.
    pub clients: u8,
    /// Addresses per client host: 1 to 8.
    pub addresses: u8,
    /// How many backends: 1 to 64, at 10.0.x.10 and up.
    pub backends: u8,
    /// `false`: every host sends MTU-sized frames with complete checksums, as native XDP on veth
    /// needs, and the far ends of the balancer's cables run XDP_PASS. `true`: the offloads of veth
    /// stay on, as TC meets them.
    pub offloads: bool,
    /// A second balancer on the segment. The VIP is on neither; the balancers put it on an
    /// interface.
    pub pair: bool,
}

impl Plan {
    /// One client and three backends.
    pub fn new(topology: Topology) -> Self {
        Self { topology, clients: 1, addresses: 1, backends: 3, offloads: true, pair: false }
    }

    pub fn clients(self, clients: u8) -> Self {
        Self { clients, ..self }
    }

    pub fn addresses(self, addresses: u8) -> Self {
        Self { addresses, ..self }
    }

    pub fn backends(self, backends: u8) -> Self {
        Self { backends, ..self }
    }

    /// Adds a second balancer, see `pair`.
    pub fn pair(self) -> Self {
        Self { pair: true, ..self }
    }

    /// Prepares the cables for native XDP, see `offloads`.
    pub fn for_xdp(self) -> Self {
        Self { offloads: false, ..self }
    }
}

/// A lab. Dropping it removes all of it, including the processes in its namespaces.
pub struct Lab {
    pub plan: Plan,
    pub clients: Vec<Host>,
    pub balancer: Host,
    /// The second balancer of a pair.
    pub second: Option<Host>,
    pub backends: Vec<Host>,
    /// The switch of the clients' segment. Its ports are named after the hosts.
    pub switch: Host,
    /// The switch of the backends' segment, if they have their own.
    pub back_switch: Option<Host>,
    pub router: Option<Host>,
    name: Name,
    folder: Arc<std::path::PathBuf>,
    reaper: Child,
}

impl Lab {
    pub fn build(plan: &Plan) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab creates network namespaces: run it as root");
        }
        reaper::remove_abandoned();
        let name = Name { process: std::process::id(), count: COUNT.fetch_add(1, Ordering::Relaxed) };
        let reaper = reaper::watch(&name)?;
        let mut lab = Self::without_hosts(plan, name, reaper);
        // From here on an error drops `lab`, which removes what was built so far.
        lab.prepare_folder()?;
        lab.build_hosts()?;
        if !plan.offloads {
            lab.suit_native_xdp()?;
        }
        pki::create(&lab.folder, &lab.addresses())?;
        Ok(lab)
    }

    fn without_hosts(plan: &Plan, name: Name, reaper: Child) -> Self {
        let folder = Arc::new(name.folder());
        let nobody = Host { namespace: "".into(), name: "".into(), addresses: Vec::new(), folder: Arc::clone(&folder) };
        Self {
            plan: plan.clone(),
            clients: Vec::new(),
            balancer: nobody.clone(),
            second: None,
            backends: Vec::new(),
            switch: nobody,
            back_switch: None,
            router: None,
            name,
            folder,
            reaper,
        }
    }

    /// The folder of certificates, logs, configuration and the bpffs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The only client of most tests.
    pub fn client(&self) -> &Host {
        &self.clients[0]
    }

    /// The bpffs for evenkeel's pins. It is mounted on the host: a mount inside a namespace would
    /// vanish with the last process there.
    pub fn bpffs(&self) -> std::path::PathBuf {
        self.folder.join("bpffs")
    }

    /// Adds a device to a host on the clients' segment, without an address.
    pub fn second_cable(&self, host: &Host, device: &str) -> Result<()> {
        self.cable_to_port(host, device, &self.switch, &format!("{}-{device}", host.name))
    }

    /// Removes a host's device on the clients' segment and makes another one, with the MAC address
    /// of its own, `meanwhile` later; it is called `name` at first. Its addresses are those of before.
    pub fn make_anew(&self, host: &Host, device: &str, name: &str, meanwhile: Duration) -> Result<()> {
        host.ip(&["link", "del", device])?;
        std::thread::sleep(meanwhile);
        self.cable(host, name, &self.switch)?;
        if !self.plan.offloads {
            host.offload(name, "tx", false)?;
            xdp_pass::attach(&self.switch, &host.name)?;
        }
        if name != device {
            configure(host, &[format!("link set {name} down"), format!("link set {name} name {device} up")])?;
        }
        let addresses: Vec<_> = host.addresses.iter().map(|ip| address(device, *ip, 24)).collect();
        configure(host, &addresses)
    }

    /// Moves a host's device to another network namespace and back: it keeps its index, and loses
    /// everything else.
    pub fn take_away_and_back(&self, host: &Host, device: &str) -> Result<()> {
        let away = self.name.namespace("away");
        process::output(Command::new("ip").args(["netns", "add", &away]))?;
        host.ip(&["link", "set", device, "netns", &away])?;
        process::output(Command::new("ip").args(["-n", &away, "link", "set", device, "netns", host.namespace()]))?;
        process::output(Command::new("ip").args(["netns", "del", &away]))?;
        let addresses = host.addresses.iter().map(|ip| address(device, *ip, 24));
        configure(host, &[format!("link set {device} up")].into_iter().chain(addresses).collect::<Vec<_>>())
    }

    fn prepare_folder(&self) -> Result<()> {
        let bpffs = self.bpffs();
        fs::create_dir_all(&bpffs).with_context(|| bpffs.display().to_string())?;
        process::output(Command::new("mount").args(["-t", "bpf", "none"]).arg(&bpffs)).map(drop)
    }

    fn build_hosts(&mut self) -> Result<()> {
        self.switch = self.add_switch("switch")?;
        self.balancer = self.add_host("lb")?;
        self.cable(&self.balancer.clone(), "eth0", &self.switch.clone())?;
        self.balancer.addresses = vec![BALANCER];
        configure(&self.balancer, &[address("eth0", BALANCER, 24)])?;
        if self.plan.pair {
            self.second = Some(self.add_second()?);
        } else {
            configure(&self.balancer, &[address("eth0", VIP, 32)])?;
        }
        for number in 0..self.plan.clients {
            let client = self.add_client(number)?;
            self.clients.push(client);
        }
        let segment = match self.plan.topology {
            Topology::Segment => self.switch.clone(),
            Topology::TwoSides => self.add_back_side()?,
            Topology::Routed => self.add_router()?,
        };
        for number in 0..self.plan.backends {
            let backend = self.add_backend(number, &segment)?;
            self.backends.push(backend);
        }
        Ok(())
    }

    fn add_second(&self) -> Result<Host> {
        let mut host = self.add_host("lb2")?;
        self.cable(&host, "eth0", &self.switch)?;
        host.addresses = vec![SECOND];
        configure(&host, &[address("eth0", SECOND, 24)])?;
        Ok(host)
    }

    fn add_client(&self, number: u8) -> Result<Host> {
        let mut host = self.add_host(&format!("client{}", number + 1))?;
        self.cable(&host, "eth0", &self.switch)?;
        // The first host's eight addresses are 10.0.1.101 to .108, and so on.
        let first = 101 + u16::from(number) * 8;
        let last = first + u16::from(self.plan.addresses);
        host.addresses =
            (first..last).filter_map(|last| u8::try_from(last).ok()).map(|last| [10, 0, 1, last].into()).collect();
        let addresses: Vec<_> = host.addresses.iter().map(|ip| address("eth0", *ip, 24)).collect();
        configure(&host, &addresses)?;
        Ok(host)
    }

    fn add_backend(&self, number: u8, switch: &Host) -> Result<Host> {
        let mut host = self.add_host(&format!("cp{:02}", number + 1))?;
        self.cable(&host, "eth0", switch)?;
        let (net, gateway) = match self.plan.topology {
            Topology::Segment => (1, None),
            Topology::TwoSides => (2, Some(BALANCER_BACK)),
            Topology::Routed => (3, Some(ROUTER_BACK)),
        };
        host.addresses = vec![Ipv4Addr::new(10, 0, net, 10 + number)];
        let mut lines = vec![address("eth0", host.address(), 24)];
        lines.extend(gateway.map(|gateway| format!("route add default via {gateway}")));
        configure(&host, &lines)?;
        Ok(host)
    }

    fn add_back_side(&mut self) -> Result<Host> {
        let switch = self.add_switch("switch2")?;
        self.cable(&self.balancer, "eth1", &switch)?;
        configure(&self.balancer, &[address("eth1", BALANCER_BACK, 24)])?;
        self.back_switch = Some(switch.clone());
        Ok(switch)
    }

    fn add_router(&mut self) -> Result<Host> {
        let switch = self.add_switch("switch2")?;
        let router = self.add_host("router")?;
        self.cable(&router, "eth0", &self.switch)?;
        self.cable(&router, "eth1", &switch)?;
        configure(&router, &[address("eth0", ROUTER, 24), address("eth1", ROUTER_BACK, 24)])?;
        router.sysctl("net.ipv4.ip_forward", "1")?;
        configure(&self.balancer, &[format!("route add 10.0.3.0/24 via {ROUTER}")])?;
        self.router = Some(router);
        self.back_switch = Some(switch.clone());
        Ok(switch)
    }

    fn add_switch(&self, name: &str) -> Result<Host> {
        let host = self.add_host(name)?;
        // No delay for learning, and no IPv6 packets from the switch itself.
        configure(&host, &["link add br0 type bridge forward_delay 0".into(), "link set br0 up".into()])?;
        // A switch does not pass every frame through the IP firewall, as a kernel with br_netfilter
        // does for a bridge.
        if Path::new("/proc/sys/net/bridge").exists() {
            for protocol in ["iptables", "ip6tables", "arptables"] {
                host.sysctl(&format!("net.bridge.bridge-nf-call-{protocol}"), "0")?;
            }
        }
        Ok(host)
    }

    fn add_host(&self, name: &str) -> Result<Host> {
        let namespace = self.name.namespace(name);
        process::output(Command::new("ip").args(["netns", "add", &namespace]))?;
        let folder = Arc::clone(&self.folder);
        let host = Host { namespace: namespace.into(), name: name.into(), addresses: Vec::new(), folder };
        host.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        host.ip(&["link", "set", "lo", "up"])?;
        Ok(host)
    }

    /// Adds a veth pair from a device of a host to a port of the switch, named after the host.
    fn cable(&self, host: &Host, device: &str, switch: &Host) -> Result<()> {
        self.cable_to_port(host, device, switch, &host.name)
    }

    fn cable_to_port(&self, host: &Host, device: &str, switch: &Host, port: &str) -> Result<()> {
        let pair = ["link", "add", device, "netns", &host.namespace, "type", "veth", "peer", "name", port, "netns"];
        process::output(Command::new("ip").args(pair).arg(&*switch.namespace))?;
        configure(host, &[format!("link set {device} up")])?;
        // Asking for one device by name makes the kernel look at its carrier at once; otherwise a
        // port may stay down for a second.
        configure(switch, &[format!("link set {port} master br0 up"), format!("link show dev {port}")])
    }

    /// See `Plan::offloads`.
    fn suit_native_xdp(&self) -> Result<()> {
        let hosts = self.clients.iter().chain(&self.backends).chain([&self.balancer]).chain(&self.second);
        hosts.into_iter().try_for_each(|host| host.offload("eth0", "tx", false))?;
        // The frames that an XDP program sends are drained by a NAPI poll that moves between CPUs.
        self.clients.iter().chain(&self.backends).try_for_each(|host| host.keep_order("eth0"))?;
        if let Some(router) = &self.router {
            router.offload("eth1", "tx", false)?;
        }
        xdp_pass::attach(&self.switch, &self.balancer.name)?;
        if let Some(second) = &self.second {
            xdp_pass::attach(&self.switch, &second.name)?;
        }
        match (&self.plan.topology, &self.back_switch) {
            (Topology::TwoSides, Some(switch)) => {
                self.balancer.offload("eth1", "tx", false)?;
                xdp_pass::attach(switch, &self.balancer.name)
            }
            _ => Ok(()),
        }
    }

    /// Every address that a certificate may be needed for.
    fn addresses(&self) -> Vec<Ipv4Addr> {
        let hosts = self.backends.iter().chain([&self.balancer]).chain(&self.second);
        hosts.flat_map(|host| host.addresses.iter().copied()).chain([VIP, Ipv4Addr::LOCALHOST]).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        reaper::remove(&self.name);
        // Closes its standard input. It ends, and finds nothing left to remove.
        drop(self.reaper.stdin.take());
        _ = self.reaper.wait();
    }
}

fn address(device: &str, address: Ipv4Addr, prefix: u8) -> String {
    format!("address add {address}/{prefix} dev {device}")
}

/// Runs lines of `ip -batch`, in one process for all of them.
fn configure(host: &Host, lines: &[String]) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(["-n", host.namespace(), "-batch", "-"]);
    ip.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = ip.spawn().context("cannot start ip")?;
    child.stdin.take().context("no pipe to ip")?.write_all(lines.join("\n").as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("ip on {}: {}\n{}", host.name, String::from_utf8_lossy(&output.stderr), lines.join("\n"));
    }
    Ok(())
}
