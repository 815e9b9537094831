//! An instance of the configuration, in the units and types of VRRP's pure parts.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use ipnet::IpNet;

use super::{
    machine::Settings,
    receive::{Expectation, Voice},
    tracking::Tracked,
    wire::{v2, v3::Dialect},
};
use crate::{
    config::model::{Vrrp, VrrpChecksum},
    words::VrrpVersion,
};

/// Everything that one instance needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// The instance's name.
    pub name: Arc<str>,
    /// The interface on which it advertises and holds its addresses.
    pub interface: String,
    /// IPv4, or else IPv6.
    pub ipv4: bool,
    /// `priority`
    pub priority: u8,
    /// The addresses, as they are on the interface.
    pub addresses: Vec<IpNet>,
    /// `group`
    pub group: Option<String>,
    /// For the machine.
    pub settings: Settings,
    /// What it advertises.
    pub voice: Voice,
    /// What it accepts. The host's own address is added when it is found.
    pub expectation: Expectation,
    /// `unicast_source`
    pub source: Option<IpAddr>,
    /// `garp_repeat`
    pub garp_repeat: u32,
    /// What it depends on.
    pub tracked: Tracked,
    /// `notify`
    pub notify: Option<PathBuf>,
}

impl Setup {
    /// From the configuration.
    pub fn of(instance: &Vrrp) -> Setup {
        let addresses = in_sending_order(&instance.addresses);
        let password = instance.auth_pass.as_deref().filter(|_| instance.version == VrrpVersion::V2).map(v2::password);
        let ipv4 = instance.addresses.iter().all(|address| address.addr().is_ipv4());
        Setup {
            name: instance.name.clone(),
            interface: instance.interface.clone(),
            ipv4,
            priority: instance.priority.get(),
            addresses: instance.addresses.clone(),
            group: instance.group.clone(),
            settings: Settings {
                version: instance.version,
                priority: instance.priority.get(),
                interval: instance.advert_interval,
                preempt: instance.preempt,
                preempt_delay: instance.preempt_delay,
                garp_delay: instance.garp_delay,
                garp_refresh: instance.garp_refresh,
            },
            voice: Voice {
                version: instance.version,
                router: instance.virtual_router_id.get(),
                interval: instance.advert_interval,
                password,
                dialect: match instance.checksum {
                    VrrpChecksum::PseudoHeader => Dialect::PseudoHeader,
                    VrrpChecksum::Rfc9568 => Dialect::MessageOnly,
                },
                addresses: addresses.clone(),
                peers: instance.unicast_peers.clone(),
            },
            expectation: Expectation {
                version: instance.version,
                ipv4,
                password,
                interval: instance.advert_interval,
                peers: instance.unicast_peers.iter().copied().collect(),
                min_ttl: instance.min_ttl,
                addresses: addresses.into_iter().collect(),
                own: None,
            },
            source: instance.unicast_source,
            garp_repeat: instance.garp_repeat,
            tracked: Tracked::of(instance),
            notify: instance.notify.clone(),
        }
    }

    /// The virtual router's number.
    pub fn router(&self) -> u8 {
        self.voice.router
    }

    /// Whether both describe the same virtual router, so that its state survives a reload.
    pub fn is_same_router(&self, other: &Setup) -> bool {
        (&self.interface, self.ipv4, self.router()) == (&other.interface, other.ipv4, other.router())
    }
}

/// The order of the file, but over IPv6 a link-local address comes first (RFC 9568 section 5.2.9).
fn in_sending_order(addresses: &[IpNet]) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = addresses.iter().map(|address| address.addr()).collect();
    addresses.sort_by_key(|address| !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()));
    addresses
}
