//! The interfaces that need the program: those through which clients come; those through which
//! backends are reached, because their answers come in there; and those of the VRRP instances,
//! where it keeps two hosts from answering for one address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, UdpSocket},
    sync::Arc,
};

use log::Level;

use super::vrrp;
use crate::{
    config::model::{Config, Datapath, Service},
    dataplane::{Attached, Dataplane, Requested},
    notice::{Kind, Notice},
    sys::{netdev, netlink},
    tables::Installed,
};

/// What a configuration asks for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// How the program is to be attached, by interface.
    pub interfaces: BTreeMap<String, Requested>,
    /// The interfaces of each service, for `status`.
    pub of_service: BTreeMap<Arc<str>, BTreeSet<String>>,
    /// The interfaces on which the host must not speak for an address without its lease, or for one
    /// that is on another interface: all of them, if there is VRRP.
    pub guarded: BTreeSet<String>,
    /// Those of them that came later.
    late: BTreeSet<String>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

impl Wanted {
    /// Whether an interface gets the guard: one that comes later may answer for addresses as well.
    pub fn guards(&mut self, name: &str, asked: bool) -> bool {
        if asked && !self.guarded.is_empty() && self.guarded.insert(name.to_owned()) {
            self.late.insert(name.to_owned());
        }
        self.guarded.contains(name) && (asked || !self.late.contains(name))
    }

    /// Whether an interface that came later no longer gets it: it is a port of a bridge by now,
    /// which other hosts' answers pass.
    pub fn guards_no_more(&mut self, name: &str, asked: bool) -> bool {
        !asked && self.is_gone(name)
    }

    /// An interface is gone. True: it was one that came later.
    pub fn is_gone(&mut self, name: &str) -> bool {
        self.late.remove(name) && self.guarded.remove(name)
    }
}

/// The loopback device: the host's own addresses lead there, and no frame of ours passes it.
const LOOPBACK: &str = "lo";

/// Finds the interfaces of all services from the configuration and the routes. A service without
/// one is an error.
pub async fn wanted(config: &Config) -> Result<Wanted, Vec<String>> {
    let mut wanted = Wanted::default();
    let mut errors = Vec::new();
    let carried = vrrp::carried(config);
    for service in &config.services {
        let mut names: BTreeSet<_> = service.interfaces.iter().cloned().collect();
        let moving = service.listen.iter().filter_map(|listen| carried.get(&listen.ip()));
        if names.is_empty() {
            names = moving.cloned().collect();
        }
        if names.is_empty() {
            names = by_route(service, service.listen.iter().map(|listen| listen.ip()), &mut wanted.warnings).await;
        }
        if names.is_empty() {
            errors
                .push(format!("service {}: no interface leads to its clients: set interface = \"...\"", service.name));
        }
        names.extend(by_route(service, service.backends.iter().map(|b| b.address.ip()), &mut wanted.warnings).await);
        for name in &names {
            let requested = wanted.interfaces.entry(name.clone()).or_insert(Requested::Auto);
            if *requested == Requested::Auto {
                *requested = requested_by(service);
            }
        }
        wanted.of_service.insert(service.name.clone(), names);
        let stay = service.listen.iter().map(|listen| listen.ip()).filter(|address| !carried.contains_key(address));
        wanted.warnings.extend(stay.filter_map(|address| no_such_address(service, address)));
    }
    for interface in carried.into_values() {
        wanted.interfaces.entry(interface.clone()).or_insert(Requested::Auto);
        wanted.guarded.insert(interface);
    }
    if !wanted.guarded.is_empty() {
        match netlink::asked_interfaces().await {
            Ok(names) => wanted.guarded.extend(names),
            Err(error) => wanted.warnings.push(format!("other interfaces may answer for addresses: {error:#}")),
        }
    }
    if errors.is_empty() { Ok(wanted) } else { Err(errors) }
}

async fn by_route(
    service: &Service,
    addresses: impl Iterator<Item = IpAddr>,
    warnings: &mut Vec<String>,
) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for address in addresses.collect::<BTreeSet<_>>() {
        match netlink::interface_of(address).await {
            Ok(name) if name == LOOPBACK => {
                warnings
                    .push(format!("service {}: {address} is this host itself, which is not supported", service.name));
            }
            Ok(name) => _ = names.insert(name),
            Err(error) => warnings.push(format!("service {}: {error:#}", service.name)),
        }
    }
    names
}

fn requested_by(service: &Service) -> Requested {
    match service.datapath {
        Datapath::Auto => Requested::Auto,
        Datapath::Xdp => Requested::Xdp,
        Datapath::XdpGeneric => Requested::XdpGeneric,
        Datapath::Tc => Requested::Tc,
    }
}

/// No host answers ARP for an address that no interface has. The kernel knows which addresses the
/// host has: it refuses to bind to any other.
fn no_such_address(service: &Service, address: IpAddr) -> Option<String> {
    let missing =
        UdpSocket::bind((address, 0)).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable);
    missing.then(|| {
        format!(
            "service {}: no interface of this host has the address {address}; clients reach it only if it is routed here",
            service.name
        )
    })
}

/// Attaches the program where it is wanted and is missing, or attached in another mode.
pub fn attach(dataplane: &mut Dataplane, wanted: &Wanted, clsact: bool) -> Result<Vec<Notice>, Vec<String>> {
    let (mut notices, mut errors) = (Vec::new(), Vec::new());
    for group in groups(wanted) {
        let before = dataplane.attached();
        match dataplane.attach_together(&group, clsact) {
            Ok(attached) => notices.extend(put_on(&before, &attached)),
            Err(error) => {
                let names: Vec<_> = group.keys().map(String::as_str).collect();
                errors.push(format!("interface {}: {error:#}", names.join(", ")));
            }
        }
    }
    for name in &wanted.guarded {
        match dataplane.guard(name, clsact) {
            Ok(()) => {}
            Err(error) if wanted.interfaces.contains_key(name) => errors.push(format!("{error:#}")),
            // It may be gone by now.
            Err(error) => log::warn!("interface {name} may answer for addresses of others: {error:#}"),
        }
    }
    if errors.is_empty() { Ok(notices) } else { Err(errors) }
}

fn put_on(before: &[Attached], now: &[Attached]) -> Vec<Notice> {
    let as_before = |now: &&Attached| before.iter().any(|it| it.ifindex == now.ifindex && it.mode == now.mode);
    let told = |now: &Attached| notice(Level::Info, &now.interface, &format!("{} ({})", now.mode.name(), now.reason));
    now.iter().filter(|now| !as_before(now)).map(told).collect()
}

/// Attaches what is still missing on interfaces that are there. The error is for an operator.
pub fn attach_missing(dataplane: &mut Dataplane, wanted: &Wanted, clsact: bool) -> Result<(), String> {
    let mut errors = Vec::new();
    let mut tried = |name: &str, attached: anyhow::Result<()>| {
        // It may be gone by now.
        if let Some(error) = attached.err().filter(|_| netdev::index_of(name).is_ok()) {
            errors.push(format!("the program cannot be put on {name}: {error:#}"));
        }
    };
    for (name, requested) in wanted.interfaces.iter().filter(|(name, _)| netdev::index_of(name).is_ok()) {
        if !dataplane.is_attached(name) {
            tried(name, dataplane.attach_beside(name, *requested, clsact).map(drop));
        }
    }
    for name in wanted.guarded.iter().filter(|name| netdev::index_of(name).is_ok()) {
        if !dataplane.is_guarded(name) {
            tried(name, dataplane.guard(name, clsact));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
}

/// What has become of the program on interfaces that went, came or were renamed.
pub fn moved(before: &[Attached], now: &[Attached]) -> Vec<Notice> {
    let is_gone = |it: &&Attached| now.iter().all(|now| now.ifindex != it.ifindex);
    let gone = before.iter().filter(is_gone);
    let gone = gone.map(|it| notice(Level::Warn, &it.interface, "gone, and the program with it"));
    gone.chain(put_on(before, now)).collect()
}

/// The interfaces between which frames go: those of a service, and of all that share one with it.
fn groups(wanted: &Wanted) -> Vec<BTreeMap<String, Requested>> {
    let mut groups: Vec<BTreeSet<&String>> = Vec::new();
    let alone = wanted.interfaces.keys().map(|name| BTreeSet::from([name]));
    for mut group in wanted.of_service.values().map(|names| names.iter().collect()).chain(alone) {
        groups.retain(|other| {
            let apart = other.is_disjoint(&group);
            if !apart {
                group.extend(other);
            }
            apart
        });
        groups.push(group);
    }
    let requested = |name: &&String| Some(((*name).clone(), *wanted.interfaces.get(*name)?));
    groups.iter().map(|group| group.iter().filter_map(requested).collect()).collect()
}

/// About an interface.
pub fn notice(level: Level, interface: &str, text: &str) -> Notice {
    Notice::daemon(level, Kind::Datapath, format!("interface {interface}: {text}"))
}

/// Detaches the program from interfaces that no service and no pool of a tombstone uses any longer,
/// and the guard from interfaces without VRRP.
pub fn detach_unused(dataplane: &mut Dataplane, wanted: &Wanted, installed: &Installed) -> Vec<Notice> {
    let mut notices = Vec::new();
    let tables = dataplane.tables().clone();
    let closing = installed.listeners.values().any(|listener| listener.state != lb_common::layout::ACTIVE);
    let attached = dataplane.attached().into_iter().map(|attached| attached.interface);
    let left = dataplane.left_attached().unwrap_or_else(|error| {
        log::warn!("what an earlier run has attached cannot be read: {error:#}");
        Vec::new()
    });
    for name in attached.chain(left).filter(|name| !wanted.interfaces.contains_key(name)).collect::<BTreeSet<_>>() {
        let number = dataplane.attached().into_iter().find(|attached| attached.interface == name).map(|a| a.number);
        let in_use = installed.pools.keys().any(|pool| {
            let hop = tables.pool(*pool).hop;
            hop.is_known() && Some(hop.interface()) == number
        });
        if closing || in_use {
            continue;
        }
        notices.push(match dataplane.detach(&name) {
            Ok(()) => notice(Level::Info, &name, "detached, no service uses it"),
            Err(error) => notice(Level::Warn, &name, &format!("cannot be detached: {error:#}")),
        });
    }
    if let Err(error) = dataplane.guard_only(&wanted.guarded) {
        log::warn!("what guards the egress of interfaces without VRRP cannot be detached: {error:#}");
    }
    notices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_belong_together_by_services_that_share_one() {
        let names = |list: &str| list.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
        let of_service = [("api", "eth0 eth1"), ("etcd", "eth2"), ("web", "eth1 br0"), ("dns", "eth4 eth5")];
        let interfaces = names("eth0 eth1 eth2 br0 eth4 eth5 vrrp0").into_iter().map(|name| (name, Requested::Auto));
        let wanted = Wanted {
            interfaces: interfaces.collect(),
            of_service: of_service.map(|(service, list)| (service.into(), names(list))).into(),
            ..Wanted::default()
        };
        let found: BTreeSet<Vec<String>> =
            groups(&wanted).into_iter().map(|group| group.into_keys().collect()).collect();
        let expected = ["br0 eth0 eth1", "eth2", "eth4 eth5", "vrrp0"].map(|list| names(list).into_iter().collect());
        assert_eq!(found, expected.into());
    }
}
