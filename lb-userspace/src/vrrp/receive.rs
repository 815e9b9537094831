//! Which advertisements are accepted: every one climbs a ladder of checks, in keepalived's order. One
//! that fails a check is counted by that check and changes nothing.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use super::wire::{self, Packet, View, v2, v3};
use crate::config::model::VrrpVersion;

macro_rules! refusals {
    ($($variant:ident, $name:literal, $meaning:literal;)*) => {
        /// Why an advertisement was refused: the rung of the ladder.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Refusal {
            $(#[doc = $meaning] $variant,)*
        }

        impl Refusal {
            /// All of them, in the order of the ladder.
            pub const ALL: &[Refusal] = &[$(Refusal::$variant,)*];

            /// The name in JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Refusal::$variant => $name,)* }
            }

            /// One line for the operator.
            pub const fn meaning(self) -> &'static str {
                match self { $(Refusal::$variant => $meaning,)* }
            }
        }
    };
}

refusals! {
    Truncated, "truncated", "shorter than the header of an advertisement";
    HopLimit, "hop_limit", "multicast, but its time to live is not 255: it was not sent on this link";
    Version, "version", "another version of VRRP";
    AuthenticationType, "auth_type", "version 2: another kind of authentication, or none";
    Password, "password", "version 2: another password";
    Interval, "interval", "version 2: another advert_interval; version 3: none at all";
    Type, "type", "not an advertisement";
    NoAddress, "no_address", "it lists no address";
    Length, "length", "it ends before its last address";
    Checksum, "checksum", "its checksum is wrong";
    Destination, "destination", "multicast where unicast is configured, or the other way round";
    Peer, "peer", "its sender is not one of unicast_peers";
    OwnAddress, "own_address", "it comes from this host's own address: the network loops, or another host has it too";
}

/// What an instance accepts as an advertisement of its own virtual router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// The configured version.
    pub version: VrrpVersion,
    /// IPv4, or else IPv6.
    pub ipv4: bool,
    /// Version 2's password.
    pub password: Option<v2::Password>,
    /// The configured interval, which version 2 requires of every router.
    pub interval: Duration,
    /// The only routers that are listened to; empty: the multicast group.
    pub peers: BTreeSet<IpAddr>,
    /// The virtual router's addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The host's own address.
    pub own: Option<IpAddr>,
}

/// How the addresses in an advertisement agree with the configured ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// They are the same, in any order.
    Same,
    /// Some are the same.
    Partly,
    /// None is the same: another virtual router uses the same number.
    Strange,
}

/// An accepted advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The sender's own address.
    pub source: IpAddr,
    /// The sender's priority; 0: it resigns.
    pub priority: u8,
    /// The sender's interval.
    pub interval: Duration,
    /// How its addresses agree with the configured ones.
    pub agreement: Agreement,
}

/// A refused advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedAdvert {
    /// The first check that it failed.
    pub why: Refusal,
    /// How its addresses agree with the configured ones, if they can be read: that tells a peer with
    /// another configuration from somebody else's router.
    pub agreement: Option<Agreement>,
}

/// The number of the virtual router in a packet; `None`: the packet is too short.
pub fn router_of(packet: &Packet) -> Option<u8> {
    View::new(packet.payload).map(View::router)
}

impl Expectation {
    /// Judges an advertisement that carries our virtual router's number.
    pub fn judge(&self, packet: &Packet) -> Result<Heard, RefusedAdvert> {
        let Some(view) = View::new(packet.payload) else {
            return Err(RefusedAdvert { why: Refusal::Truncated, agreement: None });
        };
        let addresses = view.addresses(self.ipv4);
        let agreement = addresses.as_ref().map(|addresses| self.agreement(addresses));
        let refused = |why| RefusedAdvert { why, agreement };
        self.climb(view, packet).map_err(refused)?;
        Ok(Heard {
            source: packet.source,
            priority: view.priority(),
            interval: interval(view),
            agreement: agreement.ok_or(refused(Refusal::Length))?,
        })
    }

    fn climb(&self, view: View, packet: &Packet) -> Result<(), Refusal> {
        let multicast = self.peers.is_empty();
        ensure(!multicast || packet.hop_limit == wire::HOP_LIMIT, Refusal::HopLimit)?;
        ensure(view.version() == version_number(self.version), Refusal::Version)?;
        match self.version {
            VrrpVersion::V2 => self.climb_v2(view)?,
            VrrpVersion::V3 => ensure(v3::centiseconds(view) > 0, Refusal::Interval)?,
        }
        ensure(view.kind() == wire::ADVERTISEMENT, Refusal::Type)?;
        ensure(view.count() > 0, Refusal::NoAddress)?;
        ensure(view.addresses(self.ipv4).is_some(), Refusal::Length)?;
        let intact = match self.version {
            VrrpVersion::V2 => v2::is_intact(view),
            VrrpVersion::V3 => v3::is_intact(view, packet.source, packet.destination),
        };
        ensure(intact, Refusal::Checksum)?;
        ensure(multicast == packet.destination.is_multicast(), Refusal::Destination)?;
        ensure(self.own != Some(packet.source), Refusal::OwnAddress)?;
        ensure(multicast || self.peers.contains(&packet.source), Refusal::Peer)
    }

    fn climb_v2(&self, view: View) -> Result<(), Refusal> {
        let trailer = v2::trailer(view).ok_or(Refusal::Length)?;
        let authentication = if self.password.is_some() { v2::PASSWORD } else { v2::NO_AUTHENTICATION };
        ensure(v2::authentication(view) == authentication, Refusal::AuthenticationType)?;
        ensure(self.password.is_none_or(|password| password == trailer), Refusal::Password)?;
        ensure(interval(view) == self.interval, Refusal::Interval)
    }

    fn agreement(&self, addresses: &[IpAddr]) -> Agreement {
        let theirs: BTreeSet<_> = addresses.iter().copied().collect();
        if theirs == self.addresses {
            Agreement::Same
        } else if theirs.is_disjoint(&self.addresses) {
            Agreement::Strange
        } else {
            Agreement::Partly
        }
    }
}

fn ensure(holds: bool, otherwise: Refusal) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(otherwise) }
}

fn version_number(version: VrrpVersion) -> u8 {
    match version {
        VrrpVersion::V2 => v2::VERSION,
        VrrpVersion::V3 => v3::VERSION,
    }
}

fn interval(view: View) -> Duration {
    match view.version() {
        v2::VERSION => Duration::from_secs(v2::seconds(view).into()),
        _ => Duration::from_millis(u64::from(v3::centiseconds(view)) * 10),
    }
}

/// What an instance advertises, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voice {
    /// The configured version.
    pub version: VrrpVersion,
    /// The virtual router's number.
    pub router: u8,
    /// The configured interval.
    pub interval: Duration,
    /// Version 2's password.
    pub password: Option<v2::Password>,
    /// What version 3's checksum covers over IPv4.
    pub dialect: v3::Dialect,
    /// The virtual router's addresses, in the order in which they are sent.
    pub addresses: Vec<IpAddr>,
    /// The only routers that are told; empty: the multicast group.
    pub peers: Vec<IpAddr>,
}

impl Voice {
    /// Where advertisements go, from this source.
    pub fn destinations(&self, source: IpAddr) -> Vec<IpAddr> {
        match source {
            _ if !self.peers.is_empty() => self.peers.clone(),
            IpAddr::V4(_) => vec![wire::GROUP_V4.into()],
            IpAddr::V6(_) => vec![wire::GROUP_V6.into()],
        }
    }

    /// The packet for one destination: with its header over IPv4, without it over IPv6.
    pub fn advertisement(&self, priority: u8, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let message = match self.version {
            VrrpVersion::V2 => {
                let seconds = self.interval.as_secs() as u8;
                v2::encode(self.router, priority, seconds, self.password, &self.addresses)
            }
            VrrpVersion::V3 => {
                let numbers = (self.router, priority, (self.interval.as_millis() / 10) as u16);
                v3::encode(numbers, &self.addresses, (source, destination), self.dialect)
            }
        };
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => wire::ipv4::packet(source, destination, &message),
            _ => message,
        }
    }
}

#[cfg(test)]
mod tests;
