//! VRRP: versions, states, and what is counted of an instance.

use serde::{Deserialize, Serialize, Serializer};

/// The priority of the router that owns the addresses (RFC 9568 section 5.2.4): no weight changes it.
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
    /// As it stands in the configuration and in every advertisement.
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
