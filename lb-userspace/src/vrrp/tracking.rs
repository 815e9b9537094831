//! How useful this host is: what an instance depends on, as it stands, and what that makes of its priority.

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
    /// Added while no backend is up.
    pub backends: i16,
    /// While the datapath fails.
    pub datapath: TrackDatapath,
    /// Interfaces without which it is in FAULT.
    pub interfaces: Vec<String>,
    /// In the order of the file.
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
pub struct Host {
    /// Interfaces that exist, by name.
    pub interfaces: BTreeMap<String, Interface>,
    /// Those of them that forward IPv6.
    pub routers: BTreeSet<String>,
    /// The addresses of all instances: none of them is anybody's own.
    pub moving: BTreeSet<IpAddr>,
    /// Why the datapath fails, if it does.
    pub datapath: Option<String>,
    /// Whether no backend of any service is up.
    pub no_backend: bool,
    /// Whether another host may have connections that are not known here.
    pub lacks_flows: bool,
}

/// What is known of one instance alone.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// How its scripts do, in the order of the file.
    pub scripts: Vec<Streak>,
    /// Why its addresses could not be put on the interface.
    pub addresses: Option<String>,
    /// Why it has no socket, if that was tried.
    pub socket: Option<String>,
}

/// A script's results: it passes or fails, and how often in a row it has said the opposite since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streak {
    failing: bool,
    against: u32,
}

impl Streak {
    /// Whether it counts as failing. Before its first results it does not.
    pub fn is_failing(self) -> bool {
        self.failing
    }

    /// One more result.
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

/// What the host's state makes of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// What changes the priority, and by how much.
    pub weights: Vec<(String, i16)>,
    /// What makes it FAULT.
    pub faults: Vec<String>,
    /// The address it speaks from, if it has one.
    pub source: Option<IpAddr>,
}

impl Standing {
    /// The sum of the weights.
    pub fn weight(&self) -> i32 {
        self.weights.iter().map(|(_, weight)| i32::from(*weight)).sum()
    }

    /// What the machine wants to know.
    pub fn usable(&self) -> Option<IpAddr> {
        self.source.filter(|_| self.faults.is_empty())
    }
}

/// How an instance stands.
pub fn standing(setup: &Setup, host: &Host, own: &Own) -> Standing {
    let mut standing = Standing { source: source(setup, host), ..Standing::default() };
    standing.faults.extend(interface_fault(&setup.interface, host));
    if standing.faults.is_empty() && standing.source.is_none() {
        let family = if setup.ipv4 { "IPv4" } else { "link-local IPv6" };
        standing.faults.push(format!("interface {} has no {family} address of its own", setup.interface));
    }
    let tracked = &setup.tracked;
    standing.faults.extend(tracked.interfaces.iter().filter_map(|name| interface_fault(name, host)));
    standing.faults.extend(own.addresses.iter().chain(&own.socket).cloned());
    if let Some(why) = &host.datapath {
        match tracked.datapath {
            TrackDatapath::Fault => standing.faults.push(format!("datapath: {why}")),
            TrackDatapath::Weight(weight) => standing.weights.push((format!("datapath: {why}"), weight)),
        }
    }
    if host.no_backend {
        standing.weights.push(("no backend is up".into(), tracked.backends));
    }
    for (script, streak) in tracked.scripts.iter().zip(&own.scripts) {
        let (name, failing) = (script.command.display(), streak.is_failing());
        match script.weight {
            0 if failing => standing.faults.push(format!("{name} fails")),
            weight if weight < 0 && failing => standing.weights.push((format!("{name} fails"), weight)),
            weight if weight > 0 && !failing => standing.weights.push((format!("{name} passes"), weight)),
            _ => {}
        }
    }
    standing.weights.retain(|(_, weight)| *weight != 0);
    standing
}

fn interface_fault(name: &str, host: &Host) -> Option<String> {
    match host.interfaces.get(name) {
        None => Some(format!("there is no interface {name}")),
        Some(interface) if !interface.up => Some(format!("interface {name} is down")),
        Some(_) => None,
    }
}

/// The configured one, or the interface's first that does not move.
fn source(setup: &Setup, host: &Host) -> Option<IpAddr> {
    let interface = host.interfaces.get(&setup.interface)?;
    let stays = |address: &IpAddr| !host.moving.contains(address);
    let is_own = |address: &IpAddr| match address {
        IpAddr::V4(_) => setup.ipv4,
        IpAddr::V6(address) => !setup.ipv4 && address.is_unicast_link_local(),
    };
    let mut own = interface.addresses.iter().map(|address| address.addr()).filter(is_own).filter(stays);
    setup.source.or_else(|| own.next())
}

#[cfg(test)]
mod tests;
