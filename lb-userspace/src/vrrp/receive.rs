//! Which advertisements are accepted: every one climbs a ladder of checks, in keepalived's order.
//! The last one is ours: who carries none of our addresses must not make us give them away.
//! One that fails a check is counted by that check and changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{
    group::InstanceId,
    machine::{DOWN_INTERVALS, RESIGN},
    wire::{self, Packet, View, v2, v3},
};
use crate::words::{AdvertRefusal, VrrpVersion};

/// What an instance accepts as an advertisement of its virtual router.
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
    /// The least time to live of what they send.
    pub min_ttl: u8,
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
    /// None is the same: another virtual router uses the same number, and its advertisements are
    /// refused, whatever its priority (RFC 3768 section 7.1).
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
    pub why: AdvertRefusal,
    /// How its addresses agree with the configured ones, if they can be read: that distinguishes a
    /// peer with another configuration from somebody else's router.
    pub agreement: Option<Agreement>,
}

/// The number of the virtual router in a packet; `None`: the packet is too short.
pub fn router_of(packet: &Packet) -> Option<u8> {
    View::new(packet.payload).map(View::router)
}

/// The instances that stood still without noticing it, and for how long: a router sends one
/// advertisement an interval, and of one router so many were found at the same moment that it took
/// longer to send them than a MASTER's lease lasts. A paused virtual machine shows it by nothing
/// else: its clocks stand still with it.
pub fn backlog(found: &[(InstanceId, Heard)]) -> BTreeMap<InstanceId, Duration> {
    let mut senders: BTreeMap<_, u32> = BTreeMap::new();
    let mut slept = BTreeMap::new();
    for (id, heard) in found.iter().filter(|(_, heard)| heard.priority != RESIGN) {
        let before = senders.entry((*id, heard.source)).or_default();
        if *before >= DOWN_INTERVALS {
            slept.insert(*id, heard.interval * *before);
        }
        *before += 1;
    }
    slept
}

impl Expectation {
    /// Judges an advertisement that carries our virtual router's number.
    pub fn judge(&self, packet: &Packet) -> Result<Heard, RefusedAdvert> {
        let Some(view) = View::new(packet.payload) else {
            return Err(RefusedAdvert { why: AdvertRefusal::Truncated, agreement: None });
        };
        let addresses = view.addresses(self.ipv4);
        let agreement = addresses.as_ref().map(|addresses| self.agreement(addresses));
        let refused = |why| RefusedAdvert { why, agreement };
        self.climb(view, packet).map_err(refused)?;
        let agreement = agreement.ok_or(refused(AdvertRefusal::Length))?;
        if agreement == Agreement::Strange {
            return Err(refused(AdvertRefusal::Addresses));
        }
        Ok(Heard { source: packet.source, priority: view.priority(), interval: interval(view), agreement })
    }

    fn climb(&self, view: View, packet: &Packet) -> Result<(), AdvertRefusal> {
        let multicast = self.peers.is_empty();
        let least = if multicast { wire::HOP_LIMIT } else { self.min_ttl };
        ensure(packet.hop_limit >= least, AdvertRefusal::HopLimit)?;
        ensure(view.version() == self.version.number(), AdvertRefusal::Version)?;
        match self.version {
            VrrpVersion::V2 => self.climb_v2(view)?,
            VrrpVersion::V3 => ensure(v3::centiseconds(view) > 0, AdvertRefusal::Interval)?,
        }
        ensure(view.kind() == wire::ADVERTISEMENT, AdvertRefusal::Type)?;
        ensure(view.count() > 0, AdvertRefusal::NoAddress)?;
        ensure(view.addresses(self.ipv4).is_some(), AdvertRefusal::Length)?;
        let intact = match self.version {
            VrrpVersion::V2 => v2::is_intact(view),
            VrrpVersion::V3 => v3::is_intact(view, packet.source, packet.destination),
        };
        ensure(intact, AdvertRefusal::Checksum)?;
        ensure(multicast == packet.destination.is_multicast(), AdvertRefusal::Destination)?;
        ensure(self.own != Some(packet.source), AdvertRefusal::OwnAddress)?;
        ensure(multicast || self.peers.contains(&packet.source), AdvertRefusal::Peer)
    }

    fn climb_v2(&self, view: View) -> Result<(), AdvertRefusal> {
        let trailer = v2::trailer(view).ok_or(AdvertRefusal::Length)?;
        let authentication = if self.password.is_some() { v2::PASSWORD } else { v2::NO_AUTHENTICATION };
        ensure(v2::authentication(view) == authentication, AdvertRefusal::AuthenticationType)?;
        ensure(self.password.is_none_or(|password| password == trailer), AdvertRefusal::Password)?;
        ensure(interval(view) == self.interval, AdvertRefusal::Interval)
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

fn ensure(holds: bool, otherwise: AdvertRefusal) -> Result<(), AdvertRefusal> {
    if holds { Ok(()) } else { Err(otherwise) }
}

fn interval(view: View) -> Duration {
    match view.version() {
        v2::VERSION => Duration::from_secs(v2::seconds(view).into()),
        _ => Duration::from_millis(u64::from(v3::centiseconds(view)) * 10),
    }
}

/// What an instance advertises, and to which routers.
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
    /// The only routers that advertisements are sent to; empty: the multicast group.
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
