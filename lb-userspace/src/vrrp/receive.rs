//! Which advertisements count: the ladder of checks that every one has to climb, in keepalived's order. One that falls
//! off is counted by the rung and changes nothing.

use std::{collections::BTreeSet, net::IpAddr};

use super::wire::{self, Packet, View, v2, v3};
use crate::config::model::VrrpVersion;

macro_rules! refusals {
    ($($variant:ident, $name:literal, $meaning:literal;)*) => {
        /// Why an advertisement did not count: the rung of the ladder.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Refusal {
            $(#[doc = $meaning] $variant,)*
        }

        impl Refusal {
            /// All of them, in the order of the ladder.
            pub const ALL: &[Refusal] = &[$(Refusal::$variant,)*];

            /// The word in JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Refusal::$variant => $name,)* }
            }

            /// One line for an operator.
            pub const fn meaning(self) -> &'static str {
                match self { $(Refusal::$variant => $meaning,)* }
            }
        }
    };
}

refusals! {
    Truncated, "truncated", "shorter than the header of an advertisement";
    HopLimit, "hop_limit", "a multicast one whose time to live is not 255: it did not come from this link";
    Version, "version", "another version of VRRP";
    AuthenticationType, "auth_type", "version 2: another kind of authentication, or none";
    Password, "password", "version 2: another password";
    Interval, "interval", "version 2: another advert_interval; version 3: none at all";
    Type, "type", "no advertisement";
    NoAddress, "no_address", "it names no address";
    Length, "length", "it ends before its last address";
    Checksum, "checksum", "its checksum is wrong";
    Destination, "destination", "multicast where unicast is configured, or the other way round";
    Peer, "peer", "its sender is none of unicast_peers";
    OwnAddress, "own_address", "it comes from our own address: a loop, or another host has it too";
}

/// What an instance takes for an advertisement of its own virtual router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// The version configured.
    pub version: VrrpVersion,
    /// Whether the instance speaks IPv4.
    pub ipv4: bool,
    /// Version 2's password.
    pub password: Option<v2::Password>,
    /// The interval configured, in milliseconds.
    pub interval_ms: u64,
    /// Whom to listen to; empty: the multicast group.
    pub peers: BTreeSet<IpAddr>,
    /// The virtual router's addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Our own address.
    pub own: Option<IpAddr>,
}

/// How the addresses in an advertisement agree with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// The same, in whatever order.
    Same,
    /// Some are.
    Partly,
    /// None is: another virtual router has taken the same number.
    Strange,
}

/// An advertisement that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Who sent it.
    pub source: IpAddr,
    /// 0: the sender resigns.
    pub priority: u8,
    /// The sender's interval in milliseconds.
    pub interval_ms: u64,
    /// Ours and the sender's addresses.
    pub agreement: Agreement,
}

/// One that does not, and what its addresses say about its sender, if they can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The rung.
    pub why: Refusal,
    /// Ours and the sender's addresses.
    pub agreement: Option<Agreement>,
}

/// The virtual router a packet is about; nothing if it is too short to say.
pub fn router_of(packet: &Packet) -> Option<u8> {
    View::new(packet.payload).map(View::router)
}

impl Expectation {
    /// Judges an advertisement of our virtual router's number.
    pub fn judge(&self, packet: &Packet) -> Result<Heard, Refused> {
        let Some(view) = View::new(packet.payload) else {
            return Err(Refused { why: Refusal::Truncated, agreement: None });
        };
        let addresses = view.addresses(self.ipv4);
        let agreement = addresses.as_ref().map(|addresses| self.agreement(addresses));
        let refused = |why| Refused { why, agreement };
        self.climb(view, packet).map_err(refused)?;
        Ok(Heard {
            source: packet.source,
            priority: view.priority(),
            interval_ms: interval_ms(view),
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
        ensure(interval_ms(view) == self.interval_ms, Refusal::Interval)
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

fn interval_ms(view: View) -> u64 {
    match view.version() {
        v2::VERSION => u64::from(v2::seconds(view)) * 1000,
        _ => u64::from(v3::centiseconds(view)) * 10,
    }
}

/// What an instance says of itself, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voice {
    /// The version configured.
    pub version: VrrpVersion,
    /// The virtual router's number.
    pub router: u8,
    /// In milliseconds.
    pub interval_ms: u64,
    /// Version 2's password.
    pub password: Option<v2::Password>,
    /// Version 3's checksum over IPv4.
    pub dialect: v3::Dialect,
    /// The virtual router's addresses as they are sent.
    pub addresses: Vec<IpAddr>,
    /// To whom; empty: the multicast group.
    pub peers: Vec<IpAddr>,
}

impl Voice {
    /// Where advertisements go.
    pub fn destinations(&self, source: IpAddr) -> Vec<IpAddr> {
        match source {
            _ if !self.peers.is_empty() => self.peers.clone(),
            IpAddr::V4(_) => vec![wire::GROUP_V4.into()],
            IpAddr::V6(_) => vec![wire::GROUP_V6.into()],
        }
    }

    /// What is sent to one of them: an IPv4 packet with its header, or what an IPv6 packet carries.
    pub fn advertisement(&self, priority: u8, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        let message = match self.version {
            VrrpVersion::V2 => {
                let seconds = (self.interval_ms / 1000) as u8;
                v2::encode(self.router, priority, seconds, self.password, &self.addresses)
            }
            VrrpVersion::V3 => {
                let numbers = (self.router, priority, (self.interval_ms / 10) as u16);
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
