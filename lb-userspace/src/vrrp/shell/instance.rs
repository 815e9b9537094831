//! One instance in the shell: everything about it except its machine, its addresses and its leases.

use std::net::IpAddr;

use lb_common::time::Instant;

use crate::{
    sys::raw_ip::RawIp,
    vrrp::{
        machine::{Machine, State, Why},
        receive::Voice,
        report::{Counters, HeardRouter, InstanceReport, Remembered},
        setup::Setup,
        tracking::{InstanceFacts, Streak, Usability},
    },
};

/// Other routers of the same number that are remembered.
const ROUTERS: usize = 16;

pub struct Instance {
    pub setup: Setup,
    pub facts: InstanceFacts,
    /// What the machine last learned about the host; `None`: nothing yet.
    pub usability: Option<Usability>,
    pub counters: Counters,
    pub peers: Vec<HeardRouter>,
    pub why: Why,
    /// What another process of this daemon has left, until the machine is in that state.
    pub remembered: Option<Remembered>,
    /// When to try again to put the addresses on the interface.
    pub retry_at: Option<Instant>,
}

impl Instance {
    pub fn new(setup: Setup) -> Instance {
        Instance {
            facts: facts(&setup),
            usability: None,
            counters: Counters::default(),
            peers: Vec::new(),
            why: Why::Started,
            remembered: None,
            retry_at: None,
            setup,
        }
    }

    /// Applies other settings of the same virtual router.
    pub fn configure(&mut self, setup: Setup) {
        if self.setup.tracked.scripts != setup.tracked.scripts {
            self.facts.scripts = facts(&setup).scripts;
        }
        self.setup = setup;
        self.setup.expectation.own = self.usability.as_ref().and_then(|usability| usability.source);
    }

    /// Remembers another router that was heard, in place of the one that was silent for longest.
    pub fn heard(&mut self, address: IpAddr, priority: u8, now: Instant) {
        let peer = HeardRouter { address, priority, heard: now };
        match self.peers.iter_mut().find(|peer| peer.address == address) {
            Some(known) => *known = peer,
            None => {
                if self.peers.len() == ROUTERS {
                    let oldest = self.peers.iter().enumerate().min_by_key(|(_, peer)| peer.heard);
                    let oldest = oldest.map_or(0, |(position, _)| position);
                    self.peers.remove(oldest);
                }
                self.peers.push(peer);
            }
        }
    }

    pub fn report(&self, machine: &Machine, now: Instant) -> InstanceReport {
        let usability = self.usability.clone().unwrap_or_default();
        let is_master = machine.state() == State::Master;
        InstanceReport {
            name: self.setup.name.clone(),
            interface: self.setup.interface.clone(),
            router: self.setup.router(),
            version: self.setup.settings.version,
            state: machine.state(),
            since: machine.since(),
            why: self.why,
            priority: machine.priority(),
            base_priority: self.setup.priority,
            weights: usability.weights,
            faults: usability.faults,
            addresses: self.setup.addresses.clone(),
            transitions: machine.transitions(),
            master: if is_master { machine.source() } else { machine.master().map(|master| master.address) },
            source: usability.source,
            lease: machine.lease(),
            given_away: machine.past().yields,
            waits_for_flows: machine.waits_for_flows(now),
            peers: self.peers.clone(),
            counters: self.counters.clone(),
        }
    }
}

/// Before anything is known.
fn facts(setup: &Setup) -> InstanceFacts {
    let scripts = vec![Streak::default(); setup.tracked.scripts.len()];
    InstanceFacts { scripts, ..InstanceFacts::default() }
}

/// Sends an advertisement to every destination. It has left if one of them was reached.
pub fn send(voice: &Voice, socket: Option<&RawIp>, source: Option<IpAddr>, priority: u8) -> Result<(), String> {
    let socket = socket.ok_or("it has no socket")?;
    let source = source.ok_or("it has no address of its own")?;
    let mut result = Err("there is no destination".to_owned());
    for destination in voice.destinations(source) {
        let packet = voice.advertisement(priority, source, destination);
        match socket.send(&packet, source, destination) {
            Ok(()) => result = Ok(()),
            Err(error) if result.is_err() => result = Err(format!("to {destination}: {error}")),
            Err(_) => {}
        }
    }
    result
}
