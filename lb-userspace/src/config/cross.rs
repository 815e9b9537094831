//! What must be true between tables and files: names once, addresses once, no more of anything than the maps hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::layout;

use super::{
    model::{Config, PortRange, Vrrp},
    problem::{Findings, Place},
    raw::At,
};

/// Keys that may stand once, and where they stood first.
pub struct Once<'a, K> {
    /// What the key is, for the message: `service`.
    kind: &'static str,
    first: BTreeMap<K, Place<'a>>,
}

impl<'a, K: Ord + std::fmt::Display> Once<'a, K> {
    pub fn new(kind: &'static str) -> Self {
        Once { kind, first: BTreeMap::new() }
    }

    /// Notes an error if the key has stood somewhere already.
    pub fn enter(&mut self, key: K, place: Place<'a>, findings: &Findings) {
        if let Some(first) = self.first.get(&key) {
            findings.error(place.problem(format!("{} {key} stands twice: it is at {first} already", self.kind)));
            return;
        }
        self.first.insert(key, place);
    }
}

/// The instances by `group`.
#[derive(Default)]
pub struct Groups<'a>(BTreeMap<String, Vec<(Member, Place<'a>)>>);

/// What the instances of a group should have in common, for they move together.
#[derive(PartialEq, Eq)]
struct Member {
    name: String,
    priority: u8,
    preempt: bool,
}

impl<'a> Groups<'a> {
    /// An instance that was understood.
    pub fn enter(&mut self, instance: &Vrrp, place: Place<'a>) {
        let member =
            Member { name: instance.name.to_string(), priority: instance.priority.get(), preempt: instance.preempt };
        if let Some(group) = &instance.group {
            self.0.entry(group.clone()).or_default().push((member, place));
        }
    }

    fn check(&self, findings: &Findings) {
        for (group, members) in &self.0 {
            let Some(((first, place), others)) = members.split_first() else { continue };
            if others.is_empty() {
                findings.warning(place.problem(format!("group {group} has no instance but {}", first.name)));
            }
            for (other, place) in others {
                if (other.priority, other.preempt) != (first.priority, first.preempt) {
                    let what = format!(
                        "{} has another priority or `preempt` than {}, but they are in group {group} and move together: \
                         with each of them best on another host neither is master",
                        other.name, first.name
                    );
                    findings.warning(place.problem(what));
                }
            }
        }
    }
}

/// What the tables of all files have in common; filled while they are read.
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
    pools: BTreeMap<(SocketAddr, IpAddr), (PortRange, Place<'a>)>,
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

    /// A service that was understood so far, with the places of its addresses.
    pub fn service(
        &mut self,
        listen: &[At<'a, SocketAddr>],
        backends: &[At<'a, SocketAddr>],
        snat: &[At<'a, IpAddr>],
        ports: At<'a, PortRange>,
        findings: &Findings,
    ) {
        for at in listen {
            self.listeners.enter(at.value, at.place, findings);
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

    /// Slots belong to (backend, SNAT address): services that share both have to agree on the ports.
    fn pool(&mut self, backend: SocketAddr, snat: IpAddr, ports: At<'a, PortRange>, findings: &Findings) {
        let (first, place) = *self.pools.entry((backend, snat)).or_insert((ports.value, ports.place));
        if first != ports.value {
            findings.error(ports.place.problem(format!(
                "snat_ports: {} differs from {first} at {place}, but both services reach {backend} from {snat}: \
                 write the same range, or another SNAT address",
                ports.value
            )));
        }
    }

    /// Called once, when all files are read.
    pub fn check(&self, findings: &Findings) {
        let listens: BTreeSet<SocketAddr> = self.listens.iter().map(|at| at.value).collect();
        let (circles, backends): (Vec<&At<_>>, Vec<_>) =
            self.backends.iter().partition(|backend| listens.contains(&backend.value));
        for backend in circles {
            let what =
                format!("address: {} is a listen address: a connection would go round in circles", backend.value);
            findings.error(backend.place.problem(what));
        }
        let hosts: BTreeSet<IpAddr> = backends.iter().map(|at| at.value.ip()).collect();
        for (address, place) in self.virtual_addresses.first.iter().filter(|(address, _)| hosts.contains(address)) {
            findings.error(place.problem(format!("addresses: {address} is a backend's own address: it cannot move")));
        }
        self.groups.check(findings);
        for snat in self.snat.iter().filter(|snat| hosts.contains(&snat.value)) {
            let what = format!("snat: {} is a backend's own address: its answers would never leave it", snat.value);
            findings.error(snat.place.problem(what));
        }
    }
}

/// Bounds of the tables in the kernel, which hold for all services together. `top` is the beginning of the main file.
pub fn check_sizes(config: &Config, top: Place, findings: &Findings) {
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
            "virtual addresses",
            config.vrrp.iter().map(|instance| instance.addresses.len()).sum(),
            1 << layout::LEASE_BITS >> 1,
        ),
    ];
    for (what, count, most) in sizes {
        if count > most as usize {
            findings.error(top.problem(format!("{count} {what} in all files together: the most is {most}")));
        }
    }
}
