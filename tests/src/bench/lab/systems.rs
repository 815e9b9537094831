//! The systems that are compared, each in its own lab with the same hosts and cables, so that they
//! do not disturb each other.

use std::{fs, net::SocketAddrV4, time::Duration};

use anyhow::{Context, Result};
use aya::Ebpf;

use super::bare;
use crate::{
    Evenkeel, Host, Lab, Plan, Process, binaries,
    daemon::Service,
    peers, process,
    topology::{PORT, Topology, VIP},
    wait,
};

/// Three backends with the default `snat_ports`.
const CONNECTIONS: u32 = 3 * 22_528;
const START: Duration = Duration::from_secs(10);

/// A way from clients to API servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// No balancer: clients know all servers.
    Direct,
    /// nginx stream with the classic configuration.
    Nginx,
    /// HAProxy in TCP mode, as in kubeadm's guide.
    Haproxy,
    /// nftables: DNAT to the servers in turn, and masquerade.
    Nft,
    /// Only the rewriting, on TC.
    Bare,
    /// Evenkeel on TC.
    Tc,
    /// No balancer, on hosts without offloads, as native XDP on veth needs them.
    DirectXdp,
    /// Evenkeel on native XDP.
    Xdp,
}

impl System {
    pub const ALL: [System; 8] = [
        System::Direct,
        System::Nginx,
        System::Haproxy,
        System::Nft,
        System::Bare,
        System::Tc,
        System::DirectXdp,
        System::Xdp,
    ];
    /// The systems of a quick look.
    pub const QUICK: [System; 3] = [System::Direct, System::Nginx, System::Tc];

    /// The name in the figures.
    pub const fn name(self) -> &'static str {
        match self {
            System::Direct => "direct",
            System::Nginx => "nginx",
            System::Haproxy => "haproxy",
            System::Nft => "nft",
            System::Bare => "bare-tc",
            System::Tc => "evenkeel-tc",
            System::DirectXdp => "direct-xdp",
            System::Xdp => "evenkeel-xdp",
        }
    }

    /// The system from which counts what this one adds.
    pub const fn base(self) -> System {
        match self {
            System::Xdp | System::DirectXdp => System::DirectXdp,
            _ => System::Direct,
        }
    }

    /// Whether it terminates connections in its own process.
    pub const fn is_proxy(self) -> bool {
        matches!(self, System::Nginx | System::Haproxy)
    }

    const fn has_offloads(self) -> bool {
        !matches!(self, System::Xdp | System::DirectXdp)
    }
}

/// What the API servers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// They answer requests, of as many connections at a time as they have threads.
    Answering,
    /// They hold any number of connections.
    Idle,
}

/// A running system.
pub struct Stage {
    pub system: System,
    /// The addresses that clients connect to.
    pub targets: Vec<SocketAddrV4>,
    pub evenkeel: Option<Evenkeel>,
    /// The balancer's own processes, if it is not evenkeel.
    pub balancer: Vec<Process>,
    /// The programs of the bare balancer.
    _bare: Option<Ebpf>,
    _servers: Vec<Process>,
    pub lab: Lab,
}

impl Stage {
    pub fn start(system: System, servers: Servers) -> Result<Stage> {
        Self::try_start(system, servers).with_context(|| format!("start {}", system.name()))
    }

    fn try_start(system: System, servers: Servers) -> Result<Stage> {
        let plan = Plan::new(Topology::Segment);
        let lab = Lab::build(&if system.has_offloads() { plan } else { plan.for_xdp() })?;
        // Enough ports for a new connection per request, and those in TIME_WAIT are reused. That
        // holds for the balancer too: a proxy closes first towards the servers, and would soon run
        // out of the default range of ports.
        for host in [lab.client(), &lab.balancer] {
            host.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
            host.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
        }
        let servers = lab.backends.iter().map(|host| server(host, servers)).collect::<Result<_>>()?;
        let mut stage = Stage {
            system,
            targets: Vec::new(),
            evenkeel: None,
            balancer: Vec::new(),
            _bare: None,
            _servers: servers,
            lab,
        };
        stage.targets = vec![SocketAddrV4::new(VIP, stage.put_up()?)];
        if matches!(system, System::Direct | System::DirectXdp) {
            stage.targets = stage.lab.backends.iter().map(|host| SocketAddrV4::new(host.address(), PORT)).collect();
        }
        Ok(stage)
    }

    /// Starts the balancer and returns the port that it listens on.
    fn put_up(&mut self) -> Result<u16> {
        match self.system {
            System::Direct | System::DirectXdp => {}
            System::Nginx => {
                self.balancer.push(peers::nginx(&self.lab)?);
                return Ok(peers::NGINX_PORT);
            }
            System::Haproxy => {
                self.balancer.push(peers::haproxy(&self.lab)?);
                return Ok(peers::HAPROXY_PORT);
            }
            System::Nft => nft(&self.lab)?,
            System::Bare => self._bare = Some(bare::attach(&self.lab)?),
            System::Tc => self.evenkeel = Some(evenkeel(&self.lab, "tc")?),
            System::Xdp => self.evenkeel = Some(evenkeel(&self.lab, "xdp")?),
        }
        Ok(PORT)
    }

    /// Sets whether all hosts and the switch use super-packets or frames of MTU size.
    pub fn segmentation(&self, on: bool) -> Result<()> {
        let value = if on { "on" } else { "off" };
        let set = |host: &Host, device: &str| {
            host.run("ethtool", &["-K", device, "tso", value, "gso", value, "gro", value]).map(drop)
        };
        for host in self.lab.clients.iter().chain(&self.lab.backends).chain([&self.lab.balancer]) {
            set(host, "eth0")?;
            set(&self.lab.switch, &host.name)?;
        }
        Ok(())
    }
}

/// Starts a server on a backend's host.
pub fn server(host: &Host, servers: Servers) -> Result<Process> {
    let mut command = host.command(binaries::lab()?);
    match servers {
        Servers::Answering => command.arg("bench-server"),
        Servers::Idle => command.args(["apiserver", "--name", &host.name]),
    };
    command.args(["--listen", &format!("{}:{PORT}", host.address()), "--pki"]).arg(host.folder());
    let server = host.start("bench-server", &mut command)?;
    wait::until("the server listens", START, || server.log().contains("listening").then_some(()))?;
    Ok(server)
}

/// With an access log of one line per connection, like nginx.
fn evenkeel(lab: &Lab, datapath: &str) -> Result<Evenkeel> {
    let log = lab.folder().join("evenkeel-access.log");
    let service = Service::new(lab, datapath).toml();
    // The tables have exactly as many slots as there are ports, which shows what a slot costs. The
    // line continues the table [daemon].
    let daemon = format!("max_connections = {CONNECTIONS}\n");
    Evenkeel::start(lab, &format!("{daemon}{service}\n[service.access_log]\npath = \"{}\"\n", log.display()))
}

/// What people use in the kernel today.
fn nft(lab: &Lab) -> Result<()> {
    let addresses: Vec<_> = lab.backends.iter().map(|host| host.address().to_string()).collect();
    let map: Vec<_> = addresses.iter().enumerate().map(|(number, address)| format!("{number} : {address}")).collect();
    let rules = format!(
        "table ip bench {{
  chain in {{
    type nat hook prerouting priority dstnat;
    ip daddr {VIP} tcp dport {PORT} dnat to numgen inc mod {} map {{ {} }}
  }}
  chain out {{
    type nat hook postrouting priority srcnat;
    ip daddr {{ {} }} tcp dport {PORT} masquerade
  }}
}}
",
        map.len(),
        map.join(", "),
        addresses.join(", ")
    );
    let file = lab.folder().join("bench.nft");
    fs::write(&file, rules).with_context(|| file.display().to_string())?;
    lab.balancer.sysctl("net.ipv4.ip_forward", "1")?;
    // Everything is on one segment: the kernel would point the clients to a shorter way.
    for name in ["all", "eth0"] {
        lab.balancer.sysctl(&format!("net.ipv4.conf.{name}.send_redirects"), "0")?;
    }
    process::output(lab.balancer.command("nft").arg("-f").arg(&file)).map(drop)
}
