//! Rules across tables and files: every name and address once, and no more of anything than the
//! maps can hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use lb_common::layout;

use super::{
    model::{Config, PortRange, Vrrp},
    problem::{Findings, SourcePos},
    raw::At,
};
use crate::sys::host;

/// Keys that may appear once, and where each appeared first.
pub struct Once<'a, K> {
    /// What the key is, for messages: `service`.
    kind: &'static str,
    first: BTreeMap<K, SourcePos<'a>>,
}

impl<'a, K: Ord + std::fmt::Display> Once<'a, K> {
    pub fn new(kind: &'static str) -> Self {
        Once { kind, first: BTreeMap::new() }
    }

    /// Reports an error if the key has appeared before.
    pub fn enter(&mut self, key: K, pos: SourcePos<'a>, findings: &Findings) {
        if let Some(first) = self.first.get(&key) {
            findings.error(pos.problem(format!("{} {key} appears twice: first at {first}", self.kind)));
            return;
        }
        self.first.insert(key, pos);
    }
}

/// The VRRP instances by `group`.
#[derive(Default)]
pub struct Groups<'a>(BTreeMap<String, Vec<(Member, SourcePos<'a>)>>);

/// What the instances of a group should have in common, because they move together.
#[derive(PartialEq, Eq)]
struct Member {
    name: String,
    priority: u8,
    preempt: bool,
}

impl<'a> Groups<'a> {
    /// Adds an instance.
    pub fn enter(&mut self, instance: &Vrrp, pos: SourcePos<'a>) {
        let member =
            Member { name: instance.name.to_string(), priority: instance.priority.get(), preempt: instance.preempt };
        if let Some(group) = &instance.group {
            self.0.entry(group.clone()).or_default().push((member, pos));
        }
    }

    fn check(&self, findings: &Findings) {
        for (group, members) in &self.0 {
            let Some(((first, pos), others)) = members.split_first() else { continue };
            if others.is_empty() {
                findings.warning(pos.problem(format!("group {group} has only one instance, {}", first.name)));
            }
            for (other, pos) in others {
                if (other.priority, other.preempt) != (first.priority, first.preempt) {
                    let what = format!(
                        "{} differs from {} in priority or `preempt`, but both are in group {group} and move together: \
                         if each is best on another host, neither becomes master",
                        other.name, first.name
                    );
                    findings.warning(pos.problem(what));
                }
            }
        }
    }
}

/// What is checked across all files; filled while they are read.
pub struct Cross<'a> {
    pub services: Once<'a, String>,
    pub instances: Once<'a, String>,
    /// `virtual_router_id`, interface and family.
    pub routers: Once<'a, String>,
    pub virtual_addresses: Once<'a, IpAddr>,
    pub groups: Groups<'a>,
    pub listeners: Once<'a, SocketAddr>,
    listens: Vec<At<'a, SocketAddr>>,
    backends: Vec<At<'a, SocketAddr>>,
    snat: Vec<At<'a, IpAddr>>,
    /// The ports of every pool, by backend and SNAT address.
    pools: BTreeMap<(SocketAddr, IpAddr), (PortRange, SourcePos<'a>)>,
}

impl<'a> Cross<'a> {
    pub fn new() -> Self {
        Cross {
            services: Once::new("service"),
            instances: Once::new("vrrp instance"),
            routers: Once::new("virtual_router_id"),
            virtual_addresses: Once::new("virtual address"),
            groups: Groups::default(),
            listeners: Once::new("listen address"),
            listens: Vec::new(),
            backends: Vec::new(),
            snat: Vec::new(),
            pools: BTreeMap::new(),
        }
    }

    /// Adds a service, with the positions of its addresses.
    pub fn service(
        &mut self,
        listen: &[At<'a, SocketAddr>],
        backends: &[At<'a, SocketAddr>],
        snat: &[At<'a, IpAddr>],
        ports: At<'a, PortRange>,
        findings: &Findings,
    ) {
        for at in listen {
            self.listeners.enter(at.value, at.pos, findings);
        }
        self.listens.extend(listen);
        self.backends.extend(backends);
        self.snat.extend(snat);
        for backend in backends {
            for snat in snat.iter().filter(|snat| snat.value.is_ipv4() == backend.value.is_ipv4()) {
                self.pool(backend.value, snat.value, ports, findings);
            }
        }
    }

    /// Slots belong to (backend, SNAT address): services that share both must use the same ports.
    fn pool(&mut self, backend: SocketAddr, snat: IpAddr, ports: At<'a, PortRange>, findings: &Findings) {
        let (first, pos) = *self.pools.entry((backend, snat)).or_insert((ports.value, ports.pos));
        if first != ports.value {
            findings.error(ports.pos.problem(format!(
                "snat_ports: {} differs from {first} at {pos}, but both services reach {backend} from {snat}: \
                 use the same range, or another SNAT address",
                ports.value
            )));
        }
    }

    /// Called once, after all files are read.
    pub fn check(&self, findings: &Findings) {
        let listens: BTreeSet<SocketAddr> = self.listens.iter().map(|at| at.value).collect();
        let (circles, backends): (Vec<&At<_>>, Vec<_>) =
            self.backends.iter().partition(|backend| listens.contains(&backend.value));
        for backend in circles {
            let what = format!("address: {} is a listen address, so connections would loop", backend.value);
            findings.error(backend.pos.problem(what));
        }
        let hosts: BTreeSet<IpAddr> = backends.iter().map(|at| at.value.ip()).collect();
        for (address, pos) in self.virtual_addresses.first.iter().filter(|(address, _)| hosts.contains(address)) {
            findings.error(pos.problem(format!("addresses: {address} is a backend's own address, which cannot move")));
        }
        self.groups.check(findings);
        self.warn_of_ephemeral_ports(&host::ephemeral_ports(), findings);
        for snat in self.snat.iter().filter(|snat| hosts.contains(&snat.value)) {
            let what = format!(
                "snat: {} is a backend's own address, so that backend's answers would never leave it",
                snat.value
            );
            findings.error(snat.pos.problem(what));
        }
    }
}

impl Cross<'_> {
    /// Warns of SNAT addresses that may be the host's own, because no [[vrrp]] carries them, if the
    /// kernel gives the same ports to the host's own connections.
    fn warn_of_ephemeral_ports(&self, ephemeral: &[RangeInclusive<u16>], findings: &Findings) {
        let mut told = BTreeSet::new();
        for ((_, snat), (ports, pos)) in &self.pools {
            let is_carried = self.virtual_addresses.first.contains_key(snat);
            let meets = |own: &RangeInclusive<u16>| ports.first() <= *own.end() && *own.start() <= ports.last();
            if is_carried || !ephemeral.iter().any(meets) || !told.insert((*snat, *ports)) {
                continue;
            }
            findings.warning(pos.problem(format!(
                "snat_ports: {ports} overlaps the ports that this kernel gives to the host's own connections, and no [[vrrp]] \
                 carries {snat}: if it is the host's own address, connections of the host to backends get lost: \
                 sysctl -w net.ipv4.ip_local_reserved_ports={ports}, or other snat_ports"
            )));
        }
    }
}

/// Checks the sizes of the kernel's tables, which all services share. `top` is the start of the
/// main file.
pub fn check_sizes(config: &Config, top: SourcePos, findings: &Findings) {
    let pools: BTreeSet<_> = config.services.iter().flat_map(|service| service.pools()).collect();
    let interfaces: BTreeSet<_> = config.services.iter().flat_map(|service| &service.interfaces).collect();
    let sizes = [
        ("services", config.services.len(), layout::MAX_SERVICES),
        (
            "listen addresses",
            config.services.iter().map(|service| service.listen.len()).sum(),
            1 << layout::LISTENER_BITS >> 1,
        ),
        ("backends", config.services.iter().map(|service| service.backends.len()).sum(), layout::MAX_BACKENDS),
        ("pairs of backend and SNAT address", pools.len(), 1 << layout::POOL_BITS >> 1),
        ("interfaces", interfaces.len(), layout::MAX_INTERFACES),
        (
            "prefixes of `syn_cookies_exempt`",
            config.services.iter().map(|service| service.syn_cookies_exempt.len()).sum(),
            layout::MAX_EXEMPT,
        ),
        (
            "virtual addresses",
            config.vrrp.iter().map(|instance| instance.addresses.len()).sum(),
            1 << layout::LEASE_BITS >> 1,
        ),
    ];
    for (what, count, most) in sizes {
        if count > most as usize {
            findings.error(top.problem(format!("{count} {what} in all files: the maximum is {most}")));
        }
    }
}
