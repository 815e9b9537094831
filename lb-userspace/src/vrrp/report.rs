//! The state of the instances: for `evenkeel vrrp`, `status` and the metrics, and for the next
//! process of the daemon.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use lb_common::time::Instant;
use serde::{Deserialize, Serialize};

use super::{
    machine::{Past, State, Why},
    setup::Setup,
};
use crate::words::{AdvertCounts, AdvertRefusal, VrrpVersion};

/// The state of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceReport {
    /// Its name.
    pub name: Arc<str>,
    /// The interface.
    pub interface: String,
    /// The virtual router's number.
    pub router: u8,
    /// The configured version.
    pub version: VrrpVersion,
    /// Its state.
    pub state: State,
    /// When it entered the state.
    pub since: Instant,
    /// What made it enter the state.
    pub why: Why,
    /// The priority with all weights.
    pub priority: u8,
    /// The configured priority.
    pub base_priority: u8,
    /// What changes the priority, and by how much.
    pub weights: Vec<(String, i16)>,
    /// What makes it FAULT.
    pub faults: Vec<String>,
    /// The addresses.
    pub addresses: Vec<IpNet>,
    /// Changes between BACKUP, MASTER and FAULT.
    pub transitions: u64,
    /// The host that is MASTER, if one is known.
    pub master: Option<IpAddr>,
    /// This host's own address, which it speaks from.
    pub source: Option<IpAddr>,
    /// Until when this host answers for the addresses; zero while it is not MASTER.
    pub lease: Instant,
    /// The mastership was given away, and whichever router has it keeps it.
    pub given_away: bool,
    /// It leaves a lower MASTER in peace until flow sync knows all of its connections.
    pub waits_for_flows: bool,
    /// Other routers that were heard.
    pub peers: Vec<HeardRouter>,
    /// What it has counted.
    pub counters: Counters,
}

/// What the next process of the daemon needs to know of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its name.
    pub name: Arc<str>,
    /// The virtual router's number. With another number or interface it is another instance.
    pub router: u8,
    /// The interface.
    pub interface: String,
    /// What made it enter its state.
    pub why: Why,
    /// The machine's state.
    pub past: Past,
}

impl Remembered {
    /// Whether it is about this instance.
    pub fn is_of(&self, setup: &Setup) -> bool {
        (&self.name, self.router, &self.interface) == (&setup.name, setup.router(), &setup.interface)
    }
}

impl InstanceReport {
    /// What the next process needs to know.
    pub fn remembered(&self) -> Remembered {
        let InstanceReport { state, since, transitions, given_away: yields, .. } = *self;
        Remembered {
            name: self.name.clone(),
            router: self.router,
            interface: self.interface.clone(),
            why: self.why,
            past: Past { state, since, transitions, yields },
        }
    }
}

/// Another router of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeardRouter {
    /// Its address.
    pub address: IpAddr,
    /// The priority in its last advertisement.
    pub priority: u8,
    /// When it was last heard.
    pub heard: Instant,
}

/// What an instance has counted since it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Everything but refused advertisements.
    pub adverts: AdvertCounts,
    refused: [u64; AdvertRefusal::ALL.len()],
}

impl Counters {
    /// Counts a refused advertisement.
    pub fn refuse(&mut self, why: AdvertRefusal) {
        self.refused[why as usize] += 1;
    }

    /// Refused advertisements, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (AdvertRefusal, u64)> + '_ {
        AdvertRefusal::ALL.iter().map(|why| (*why, self.refused[*why as usize]))
    }
}
