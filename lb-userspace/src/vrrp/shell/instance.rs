//! One instance in the shell: everything about it that is not the machine's.

use std::net::IpAddr;

use crate::{
    sys::raw_ip::RawIp,
    tables::Tables,
    vrrp::{
        machine::{Machine, Why},
        report::{Counters, Peer, Remembered, Report},
        setup::Setup,
        tracking::{Own, Standing, Streak},
    },
};

/// Other routers of one number that are remembered.
const PEERS: usize = 16;

/// The instance.
pub struct Instance {
    pub setup: Setup,
    pub own: Own,
    pub standing: Standing,
    pub counters: Counters,
    pub peers: Vec<Peer>,
    pub why: Why,
    /// Its leases: address, place in the table, and the claims of others that are known already.
    pub leases: Vec<(IpAddr, u16, u32)>,
    /// An earlier run was MASTER, and its lease still held when we began.
    pub resumes: bool,
    /// What another process of this daemon has left.
    pub remembered: Option<Remembered>,
    /// The machine has been told whether the host is of use.
    pub started: bool,
    /// When the addresses are tried again that could not be put on the interface.
    pub retry_at: Option<u64>,
}

impl Instance {
    /// With its leases in the table; an error for those that found no place.
    pub fn new(setup: Setup, tables: &Tables, now: u64) -> (Instance, Vec<String>) {
        let mut instance = Instance {
            own: Own::default(),
            standing: Standing::default(),
            counters: Counters::default(),
            peers: Vec::new(),
            why: Why::Started,
            leases: Vec::new(),
            resumes: false,
            remembered: None,
            started: false,
            retry_at: None,
            setup,
        };
        instance.own.scripts = vec![Streak::default(); instance.setup.tracked.scripts.len()];
        let problems = instance.place_leases(tables);
        instance.resumes = instance.leases.iter().all(|(_, number, _)| tables.lease_until(*number) > now);
        if !instance.resumes {
            instance.set_leases(tables, 0);
        }
        (instance, problems)
    }

    /// Enters the leases of all addresses in the table.
    pub fn place_leases(&mut self, tables: &Tables) -> Vec<String> {
        let mut problems = Vec::new();
        self.leases.clear();
        for address in &self.setup.addresses {
            match tables.place_lease(address.addr()) {
                Ok(number) => self.leases.push((address.addr(), number, tables.claims(number).count)),
                Err(error) => problems.push(format!("{error:#}")),
            }
        }
        problems
    }

    /// Sets the end of all leases.
    pub fn set_leases(&self, tables: &Tables, until: u64) {
        self.leases.iter().for_each(|(_, number, _)| tables.renew_lease(*number, until));
    }

    /// Claims of other hosts that are not known yet: the addresses, and who it was.
    pub fn new_claims(&mut self, tables: &Tables) -> Vec<(IpAddr, [u8; 6])> {
        let mut new = Vec::new();
        for (address, number, known) in &mut self.leases {
            let claims = tables.claims(*number);
            if claims.count != *known {
                self.counters.adverts.claims += u64::from(claims.count.wrapping_sub(*known));
                *known = claims.count;
                new.push((*address, claims.by));
            }
        }
        new
    }

    /// Other settings of the same virtual router.
    pub fn configure(&mut self, setup: Setup) {
        if self.setup.tracked.scripts != setup.tracked.scripts {
            self.own.scripts = vec![Streak::default(); setup.tracked.scripts.len()];
        }
        self.setup = setup;
        self.setup.expectation.own = self.standing.source;
    }

    /// Another router was heard.
    pub fn heard(&mut self, address: IpAddr, priority: u8, now: u64) {
        let peer = Peer { address, priority, heard: now };
        match self.peers.iter_mut().find(|peer| peer.address == address) {
            Some(known) => *known = peer,
            None => {
                if self.peers.len() == PEERS {
                    let oldest = self.peers.iter().enumerate().min_by_key(|(_, peer)| peer.heard);
                    let oldest = oldest.map_or(0, |(place, _)| place);
                    self.peers.remove(oldest);
                }
                self.peers.push(peer);
            }
        }
    }

    /// Sends an advertisement to everybody who is to have it; well if one of them got it.
    pub fn send(&self, socket: Option<&RawIp>, source: Option<IpAddr>, priority: u8) -> Result<(), String> {
        let socket = socket.ok_or("it has no socket")?;
        let source = source.ok_or("it has no address of its own")?;
        let voice = &self.setup.voice;
        let mut result = Err("there is nobody to send to".to_owned());
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

    /// How it stands.
    pub fn report(&self, machine: &Machine) -> Report {
        let is_master = machine.lease() > 0;
        Report {
            name: self.setup.name.clone(),
            interface: self.setup.interface.clone(),
            router: self.setup.router(),
            version: self.setup.settings.version,
            state: machine.state(),
            since: machine.since(),
            why: self.why,
            priority: machine.priority(),
            base_priority: self.setup.priority,
            weights: self.standing.weights.clone(),
            faults: self.standing.faults.clone(),
            addresses: self.setup.addresses.clone(),
            transitions: machine.transitions(),
            master: if is_master { machine.source() } else { machine.master().map(|master| master.address) },
            source: self.standing.source,
            lease: machine.lease(),
            given_away: machine.past().yields,
            peers: self.peers.clone(),
            counters: self.counters.clone(),
        }
    }
}
