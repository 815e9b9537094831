//! The state of a virtual router and what made it so: words that one process of the daemon hands to
//! the next.

use std::net::IpAddr;

use lb_common::time::Instant;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The states, in keepalived's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Before the start and after the end.
    #[default]
    Init,
    /// Watches the MASTER.
    Backup,
    /// Holds the addresses and says so. RFC 9568: Active.
    Master,
    /// Cannot be a router now.
    Fault,
}

/// What made a state change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// The instance begins.
    Started,
    /// An earlier run was MASTER, and its lease still holds.
    Resumed,
    /// No MASTER was heard for three intervals and the skew.
    Silence,
    /// The MASTER resigned.
    Resigned,
    /// The MASTER has a lower priority.
    Preempts(IpAddr),
    /// This router owns the addresses.
    Owner,
    /// Another router has a higher priority, or the same priority and a higher address.
    Outranked(IpAddr),
    /// No advertisement left for three intervals.
    LeaseLapsed,
    /// An operator has given the mastership away.
    GivenAway,
    /// Another member of the group changed its state.
    Group,
    /// The host cannot be a router.
    Fault,
    /// The host can be a router again.
    Recovered,
    /// The instance ends.
    Ended,
}

/// What the next process of the daemon needs in order to go on with a machine; see
/// [`Machine::recall`](super::Machine::recall).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The state.
    pub state: State,
    /// When it was entered.
    #[serde(serialize_with = "to_nanoseconds", deserialize_with = "from_nanoseconds")]
    pub since: Instant,
    /// Changes between BACKUP, MASTER and FAULT.
    pub transitions: u64,
    /// The mastership was given away, and whichever router has it keeps it.
    pub yields: bool,
}

fn to_nanoseconds<S: Serializer>(at: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(at.0)
}

fn from_nanoseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Instant, D::Error> {
    u64::deserialize(deserializer).map(Instant)
}
