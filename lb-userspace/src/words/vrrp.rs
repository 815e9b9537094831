//! VRRP: versions, states, and what is counted of an instance.

use serde::{Deserialize, Serialize, Serializer};

/// The priority of the router that owns the addresses (RFC 9568 section 5.2.4): no weight changes
/// it.
pub const OWNER_PRIORITY: u8 = 255;

/// The protocol's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VrrpVersion {
    /// RFC 3768 with the passwords of RFC 2338, as in keepalived.
    V2,
    /// RFC 9568.
    V3,
}

impl VrrpVersion {
    /// As in the configuration and in every advertisement.
    pub fn number(self) -> u8 {
        match self {
            VrrpVersion::V2 => 2,
            VrrpVersion::V3 => 3,
        }
    }
}

impl Serialize for VrrpVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.number())
    }
}

/// The state of an instance, in keepalived's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum VrrpState {
    /// Holds the addresses and advertises them.
    Master,
    /// Listens to the MASTER.
    Backup,
    /// Cannot take part.
    Fault,
    /// Not started yet, or stopped.
    Init,
}

impl VrrpState {
    /// Every state there is.
    pub const ALL: &[VrrpState] = &[VrrpState::Master, VrrpState::Backup, VrrpState::Fault, VrrpState::Init];
}

/// What an instance has counted since it was started; refused advertisements apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvertCounts {
    /// Advertisements sent; one to several unicast peers counts once.
    pub sent: u64,
    /// Of those sent: resignations, with priority 0.
    pub resignations_sent: u64,
    /// Advertisements that the interface did not take.
    pub send_failures: u64,
    /// Valid advertisements received.
    pub received: u64,
    /// Of those received: resignations.
    pub resignations_received: u64,
    /// Of those received: with other addresses than ours.
    pub address_mismatches: u64,
    /// Advertisements of another master while this host was MASTER.
    pub dual_master: u64,
    /// Claims of other hosts, by ARP or ND, to an address that this host held.
    pub claims: u64,
    /// Gratuitous ARP packets and neighbour advertisements sent.
    pub announcements: u64,
}

macro_rules! refusals {
    ($($variant:ident, $name:literal, $meaning:literal;)*) => {
        /// Why an advertisement was refused: the first check that it failed, in the order of the
        /// checks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum AdvertRefusal {
            $(#[doc = $meaning] $variant,)*
        }

        impl AdvertRefusal {
            /// All of them, in the order of the checks.
            pub const ALL: &[AdvertRefusal] = &[$(AdvertRefusal::$variant,)*];

            /// The name in JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(AdvertRefusal::$variant => $name,)* }
            }

            /// One line for the operator.
            pub const fn meaning(self) -> &'static str {
                match self { $(AdvertRefusal::$variant => $meaning,)* }
            }
        }
    };
}

refusals! {
    Truncated, "truncated", "shorter than the header of an advertisement";
    HopLimit, "hop_limit", "its time to live is below 255 (multicast) or min_ttl (unicast): it comes from farther away";
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
    Addresses, "addresses", "it carries none of our addresses: somebody else's virtual router has the same number";
}

impl AdvertRefusal {
    /// What is wrong with a refused advertisement, and what to do about it; `None`: that depends.
    pub const fn advice(self) -> Option<&'static str> {
        Some(match self {
            AdvertRefusal::Version => "another version: write the same `version` on both hosts",
            AdvertRefusal::AuthenticationType => {
                "a password where none is expected, or none where one is: write the same `auth_pass` on both hosts"
            }
            AdvertRefusal::Password => {
                "another password: write the same `auth_pass` (its first 8 bytes count) on both hosts"
            }
            AdvertRefusal::Interval => {
                "another interval, which version 2 does not permit: write the same `advert_interval` on both hosts"
            }
            AdvertRefusal::Destination => {
                "multicast where this host has unicast_peers, or the other way round: configure both hosts alike"
            }
            AdvertRefusal::Peer => "unicast, but is not one of unicast_peers: add it, or find out which host that is",
            AdvertRefusal::OwnAddress => {
                "this host's own address as its source: another host has the same address, or the network loops"
            }
            AdvertRefusal::HopLimit => {
                "a time to live that shows it comes from farther away: somebody may be trying to interfere, or `min_ttl` is too high"
            }
            AdvertRefusal::Addresses => {
                "none of our addresses: somebody else's virtual router; choose another virtual_router_id for one of the two"
            }
            _ => return None,
        })
    }
}
