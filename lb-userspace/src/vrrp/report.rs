//! How the instances stand, for `evenkeel vrrp`, `status` and the metrics.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use serde::{Deserialize, Serialize};

use super::{
    machine::{Past, State, Why},
    receive::Refusal,
};
use crate::words::{AdvertCounts, VrrpVersion};

/// One instance. Times are CLOCK_MONOTONIC in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its name.
    pub name: Arc<str>,
    /// The interface.
    pub interface: String,
    /// The virtual router's number.
    pub router: u8,
    /// 2 or 3.
    pub version: VrrpVersion,
    /// Its state.
    pub state: State,
    /// Since when.
    pub since: u64,
    /// What made it so.
    pub why: Why,
    /// With all weights.
    pub priority: u8,
    /// As configured.
    pub base_priority: u8,
    /// What changes it, and by how much.
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
    /// Until when this host answers for the addresses; 0 while it is not MASTER.
    pub lease: u64,
    /// The mastership was given away, and whoever has it keeps it.
    pub given_away: bool,
    /// Other routers that were heard.
    pub peers: Vec<Peer>,
    /// What was counted.
    pub counters: Counters,
}

/// What the next process of the daemon is to know of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its name.
    pub name: Arc<str>,
    /// The virtual router's number, and the interface: with another one it is not the same.
    pub router: u8,
    /// The interface.
    pub interface: String,
    /// What made its state what it is.
    pub why: Why,
    /// The state.
    pub past: Past,
}

impl Report {
    /// For the next process.
    pub fn remembered(&self) -> Remembered {
        let Report { state, since, transitions, given_away: yields, .. } = *self;
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
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// Its priority, when it was heard last.
    pub priority: u8,
    /// When that was.
    pub heard: u64,
}

/// What an instance counts, since it was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// All but the refused ones.
    pub adverts: AdvertCounts,
    refused: [u64; Refusal::ALL.len()],
}

impl Counters {
    /// Counts an advertisement that did not count.
    pub fn refuse(&mut self, why: Refusal) {
        self.refused[why as usize] += 1;
    }

    /// Advertisements that did not count, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (Refusal, u64)> + '_ {
        Refusal::ALL.iter().map(|why| (*why, self.refused[*why as usize]))
    }
}
