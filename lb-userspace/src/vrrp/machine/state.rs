//! The state of a virtual router and what made it so: words that one process of the daemon hands on to the next.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// keepalived's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Before the start and after the end.
    #[default]
    Init,
    /// Listens.
    Backup,
    /// Has the addresses and says so.
    Master,
    /// Cannot be a router now.
    Fault,
}

/// What made a state change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// It begins.
    Started,
    /// An earlier run was MASTER, and its lease still holds.
    Resumed,
    /// The MASTER was not heard for three intervals and the skew, or there never was one.
    Silence,
    /// The MASTER resigned.
    Resigned,
    /// The MASTER has a lower priority.
    Preempts(IpAddr),
    /// It owns the addresses.
    Owner,
    /// Another router has a higher priority, or the same and a higher address.
    Outranked(IpAddr),
    /// Nothing could be sent for three intervals.
    LeaseLapsed,
    /// An operator has given the mastership away.
    GivenAway,
    /// Another one of the group changed.
    Group,
    /// The host cannot be a router.
    Fault,
    /// The host can be a router again.
    Recovered,
    /// It ends.
    Ended,
}

/// What a machine knows that the next process of the daemon goes on with: see [`Machine::recall`](super::Machine::recall).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Its state.
    pub state: State,
    /// Since when.
    pub since: u64,
    /// How often it has changed.
    pub transitions: u64,
    /// The mastership was given away, and whoever has it keeps it.
    pub yields: bool,
}
