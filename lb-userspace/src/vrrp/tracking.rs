//! How usable this host is: the state of what an instance depends on, and what that makes of its
//! priority.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::setup::Setup;
use crate::{
    config::model::{TrackDatapath, TrackScript, Vrrp},
    sys::netlink::Interface,
};

/// What an instance depends on, as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracked {
    /// The weight that applies while no backend is up.
    pub backends: i16,
    /// What applies while the datapath fails.
    pub datapath: TrackDatapath,
    /// Interfaces that must be up; otherwise the instance is in FAULT.
    pub interfaces: Vec<String>,
    /// The scripts, in the order of the file.
    pub scripts: Vec<TrackScript>,
}

impl Tracked {
    /// From the configuration.
    pub fn of(instance: &Vrrp) -> Tracked {
        Tracked {
            backends: instance.track_backends,
            datapath: instance.track_datapath,
            interfaces: instance.track_interface.clone(),
            scripts: instance.track_script.clone(),
        }
    }
}

/// What is known of the host as a whole.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// The interfaces that exist, by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// The addresses that are the host's own, on any interface.
    pub own: BTreeMap<IpAddr, String>,
    /// Those of the interfaces that forward IPv6.
    pub routers: BTreeSet<String>,
    /// Why the datapath fails, if it does.
    pub datapath: Option<String>,
    /// Whether no backend of any service is up.
    pub no_backend: bool,
    /// Whether another host may have connections that are not known here.
    pub lacks_flows: bool,
}

/// What is known of one instance alone.
#[derive(Clone, Debug, Default)]
pub struct InstanceFacts {
    /// The results of its scripts, in the order of the file.
    pub scripts: Vec<Streak>,
    /// Why its addresses could not be put on the interface.
    pub addresses: Option<String>,
    /// Why its socket could not be opened.
    pub socket: Option<String>,
    /// Why its first advertisement as MASTER did not leave.
    pub mute: Option<String>,
}

/// A script passes or fails; to change that it has to say the opposite several times in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streak {
    failing: bool,
    against: u32,
}

impl Streak {
    /// Whether the script counts as failing. Before its first results it does not.
    pub fn is_failing(self) -> bool {
        self.failing
    }

    /// Enters one more result.
    pub fn result(&mut self, passed: bool, script: &TrackScript) {
        if passed != self.failing {
            self.against = 0;
            return;
        }
        self.against += 1;
        let needed = if self.failing { script.rise } else { script.fall };
        if self.against >= needed.get() {
            *self = Streak { failing: !self.failing, against: 0 };
        }
    }
}

/// What the facts make of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usability {
    /// What changes the priority, and by how much.
    pub weights: Vec<(String, i16)>,
    /// What makes the instance FAULT.
    pub faults: Vec<String>,
    /// The address that it speaks from.
    pub source: Option<IpAddr>,
}

impl Usability {
    /// The sum of the weights.
    pub fn weight(&self) -> i32 {
        self.weights.iter().map(|(_, weight)| i32::from(*weight)).sum()
    }

    /// For the machine: the source, unless there is a fault.
    pub fn usable(&self) -> Option<IpAddr> {
        self.source.filter(|_| self.faults.is_empty())
    }
}

/// Judges how usable the host is for an instance. `moving`: the addresses of all instances, which
/// no host can speak from.
pub fn usability(setup: &Setup, host: &HostFacts, own: &InstanceFacts, moving: &BTreeSet<IpAddr>) -> Usability {
    let mut usability = Usability { source: source(setup, host, moving), ..Usability::default() };
    usability.faults.extend(interface_fault(&setup.interface, host));
    usability.faults.extend(setup.addresses.iter().filter_map(|address| own_address_fault(address.addr(), host)));
    if usability.faults.is_empty() && usability.source.is_none() {
        let name = &setup.interface;
        usability.faults.push(match (setup.source, setup.ipv4) {
            (Some(source), _) => format!("no interface has {source}, which advertisements are to come from"),
            (None, true) => format!("interface {name} has no IPv4 address of its own"),
            (None, false) => format!("interface {name} has no link-local IPv6 address of its own"),
        });
    }
    let tracked = &setup.tracked;
    usability.faults.extend(tracked.interfaces.iter().filter_map(|name| interface_fault(name, host)));
    usability.faults.extend(own.addresses.iter().chain(&own.socket).chain(&own.mute).cloned());
    if let Some(why) = &host.datapath {
        match tracked.datapath {
            TrackDatapath::Fault => usability.faults.push(format!("datapath: {why}")),
            TrackDatapath::Weight(weight) => usability.weights.push((format!("datapath: {why}"), weight)),
        }
    }
    if host.no_backend {
        usability.weights.push(("no backend is up".into(), tracked.backends));
    }
    for (script, streak) in tracked.scripts.iter().zip(&own.scripts) {
        let (name, failing) = (script.command.display(), streak.is_failing());
        match script.weight {
            0 if failing => usability.faults.push(format!("{name} fails")),
            weight if weight < 0 && failing => usability.weights.push((format!("{name} fails"), weight)),
            weight if weight > 0 && !failing => usability.weights.push((format!("{name} passes"), weight)),
            _ => {}
        }
    }
    usability.weights.retain(|(_, weight)| *weight != 0);
    usability
}

fn interface_fault(name: &str, host: &HostFacts) -> Option<String> {
    match host.interfaces.get(name) {
        None => Some(format!("there is no interface {name}")),
        Some(interface) if !interface.up => Some(format!("interface {name} is down")),
        Some(_) => None,
    }
}

/// A virtual address moves; one that the host has otherwise is not taken from it.
fn own_address_fault(address: IpAddr, host: &HostFacts) -> Option<String> {
    let interface = host.own.get(&address)?;
    Some(format!(
        "{address} of `addresses` is this host's own on {interface}: choose one that no host has by itself, or take it \
         off {interface} (ip address del)"
    ))
}

/// The configured address, if the host has it, or the first one of the interface that does not move.
fn source(setup: &Setup, host: &HostFacts, moving: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let interface = host.interfaces.get(&setup.interface)?;
    if let Some(source) = setup.source {
        let has = |interface: &Interface| interface.addresses.iter().any(|address| address.addr() == source);
        return host.interfaces.values().any(has).then_some(source);
    }
    let stays = |address: &IpAddr| !moving.contains(address);
    let is_own = |address: &IpAddr| match address {
        IpAddr::V4(_) => setup.ipv4,
        IpAddr::V6(address) => !setup.ipv4 && address.is_unicast_link_local(),
    };
    interface.addresses.iter().map(|address| address.addr()).filter(is_own).find(stays)
}

#[cfg(test)]
mod tests;
