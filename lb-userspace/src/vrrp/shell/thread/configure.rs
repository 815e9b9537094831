//! Brings the instances in line with the configuration, and tells the machines how usable the
//! host is for them.

use ipnet::IpNet;
use lb_common::time::Instant;

use super::Thread;
use crate::vrrp::{
    group::{InstanceId, Outputs},
    holdings::{LeaseRecord, Resumption},
    machine::{Input, Output, State, Why},
    messages::Trouble,
    setup::Setup,
    shell::{
        instance::Instance,
        network::{NetworkOrder, Wanted},
    },
    tracking,
};

impl Thread {
    pub(super) fn configure(&mut self, setups: Vec<Setup>, now: Instant) {
        self.configured_addresses(&setups);
        let known: Vec<_> = self.instances.iter().map(|(id, instance)| (*id, instance.setup.clone())).collect();
        for (id, old) in known {
            if !setups.iter().any(|setup| setup.is_same_router(&old)) {
                self.remove(id, now);
            }
        }
        self.watch(&setups);
        // A router is known by its number and interface: under another name it goes on.
        for setup in setups {
            let known = self.instances.iter().find(|(_, instance)| instance.setup.is_same_router(&setup));
            match known.map(|(id, _)| *id) {
                Some(id) => self.change(id, setup, now),
                None => self.add(setup, now),
            }
        }
        self.forget_strangers();
        self.evaluate_all(now);
    }

    pub(super) fn configured_addresses(&mut self, setups: &[Setup]) {
        self.holdings.configure(setups.iter().flat_map(|setup| &setup.addresses).map(IpNet::addr));
        self.holdings.find_own(self.host.own.keys().copied());
    }

    /// Has vrrp-net watch the interfaces and open the sockets that are wanted, and closes the
    /// others.
    fn watch(&mut self, setups: &[Setup]) {
        let mut wanted = Wanted::default();
        for setup in setups {
            wanted.interfaces.insert(setup.interface.clone());
            wanted.interfaces.extend(setup.tracked.interfaces.iter().cloned());
            let mut shared = setups.iter().filter(|it| (&it.interface, it.ipv4) == (&setup.interface, setup.ipv4));
            let multicast = shared.any(|it| it.voice.peers.is_empty());
            wanted.sockets.insert((setup.interface.clone(), setup.ipv4, multicast));
        }
        let is_used = |name: &str, ipv4: bool| setups.iter().any(|it| it.interface == name && it.ipv4 == ipv4);
        let unused: Vec<_> = self.sockets.keys().filter(|(name, ipv4)| !is_used(name, *ipv4)).cloned().collect();
        for key in unused {
            self.network.extend(self.sockets.remove(&key).map(NetworkOrder::Close));
        }
        self.network.push_back(NetworkOrder::Watch(wanted));
    }

    fn add(&mut self, setup: Setup, now: Instant) {
        let id = self.next;
        self.next += 1;
        self.machines.add(id, setup.settings.clone(), setup.group.as_deref());
        let (leases, problems) = self.place_leases(&setup.addresses);
        let orders = self.holdings.begin(id, &setup.interface, &setup.addresses, leases, now);
        self.carry_out(orders);
        let mut instance = Instance::new(setup);
        if let Some(known) = self.remembered.iter().position(|it| it.is_of(&instance.setup)) {
            let known = self.remembered.swap_remove(known);
            self.machines.recall(id, known.past);
            instance.remembered = Some(known);
        }
        self.instances.insert(id, instance);
        for problem in problems {
            self.trouble(id, Trouble::Addresses(problem), now);
        }
    }

    fn change(&mut self, id: InstanceId, setup: Setup, now: Instant) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if instance.setup == setup {
            return;
        }
        let lease_differs = instance.setup.settings.lease() != setup.settings.lease();
        instance.configure(setup.clone());
        let change = self.holdings.change(id, &setup.addresses);
        self.carry_out(change.orders);
        let (leases, problems) = self.place_leases(&setup.addresses);
        self.holdings.enter(id, leases);
        let outputs = self.machines.configure(id, setup.settings, setup.group.as_deref(), now);
        self.act(outputs, now);
        if lease_differs && self.machines.is_master(id) {
            self.act(vec![(id, Output::Hold)], now);
        }
        if change.differs && self.machines.is_master(id) {
            self.renew_leases(id);
            self.act(vec![(id, Output::Hold), (id, Output::Announce)], now);
        }
        for problem in problems {
            self.trouble(id, Trouble::Addresses(problem), now);
        }
    }

    pub(super) fn remove(&mut self, id: InstanceId, now: Instant) {
        self.input(id, Input::End, now);
        let outputs = self.machines.remove(id, now);
        self.act(outputs, now);
        self.instances.remove(&id);
        let orders = self.holdings.end(id);
        self.carry_out(orders);
    }

    /// Enters the leases of these addresses in the table. Returns those that found room, and what
    /// is wrong with the others.
    fn place_leases(&self, addresses: &[IpNet]) -> (Vec<LeaseRecord>, Vec<String>) {
        let (mut leases, mut problems) = (Vec::new(), Vec::new());
        let moving = addresses.iter().map(IpNet::addr).filter(|address| !self.holdings.is_own(address));
        for address in moving {
            match self.tables.place_lease(address) {
                Ok(number) => leases.push(LeaseRecord {
                    address,
                    number,
                    until: Instant(self.tables.lease_until(number)),
                    claims: self.tables.claims(number).count,
                }),
                Err(error) => problems.push(format!("{error:#}")),
            }
        }
        (leases, problems)
    }

    /// The kernel program keeps the host from answering for an address whose lease does not hold: an
    /// address that is the host's own has none.
    pub(super) fn leave_own_addresses(&mut self) {
        if !self.holdings.find_own(self.host.own.keys().copied()) {
            return;
        }
        let all: Vec<_> = self.instances.iter().map(|(id, it)| (*id, it.setup.addresses.clone())).collect();
        for (id, addresses) in all {
            let (leases, _) = self.place_leases(&addresses);
            self.holdings.enter(id, leases);
        }
        self.forget_strangers();
    }

    /// Only the interface of an instance may announce its addresses.
    pub(super) fn tie_leases(&self) {
        for (id, instance) in &self.instances {
            let interface = self.host.interfaces.get(&instance.setup.interface);
            let number = interface.and_then(|interface| self.tables.interface_number(interface.ifindex));
            self.holdings.leases(*id).for_each(|lease| self.tables.set_lease_link(lease, number));
        }
    }

    pub(super) fn forget_strangers(&mut self) {
        let orders = self.holdings.forget_strangers(self.tables.leases());
        self.carry_out(orders);
    }

    pub(super) fn evaluate_all(&mut self, now: Instant) {
        if !self.interfaces_known {
            return;
        }
        let ids: Vec<_> = self.instances.keys().copied().collect();
        ids.iter().for_each(|id| self.evaluate(*id, now));
        // Members of a group begin together.
        ids.iter().for_each(|id| self.resume(*id, now));
    }

    /// Tells the machine how usable the host is.
    pub(super) fn evaluate(&mut self, id: InstanceId, now: Instant) {
        let outputs = self.judge(id, now);
        self.act(outputs, now);
    }

    /// What the machine makes of how usable the host is.
    pub(super) fn judge(&mut self, id: InstanceId, now: Instant) -> Outputs {
        let Some(instance) = self.instances.get_mut(&id) else { return Outputs::new() };
        let key = (instance.setup.interface.clone(), instance.setup.ipv4);
        // Its first socket is still to come, and without it the instance would be deaf.
        if !self.sockets.contains_key(&key)
            && instance.facts.socket.is_none()
            && self.host.interfaces.contains_key(&key.0)
        {
            return Outputs::new();
        }
        let moving = self.holdings.configured();
        let usability = tracking::usability(&instance.setup, &self.host, &instance.facts, moving);
        let (weight, usable) = (usability.weight(), usability.usable());
        instance.setup.expectation.own = usability.source;
        let before = instance.usability.replace(usability);
        let mut outputs = self.machines.handle(id, Input::Weight(weight), now);
        outputs.extend(self.machines.handle(id, Input::LacksFlows(self.host.lacks_flows), now));
        if before.is_none_or(|before| before.usable() != usable) {
            outputs.extend(self.machines.handle(id, Input::Usable(usable), now));
        }
        outputs
    }

    /// Continues the mastership of an earlier run, if that ended only a moment ago.
    fn resume(&mut self, id: InstanceId, now: Instant) {
        if self.machines.machine(id).is_none_or(|machine| machine.state() == State::Init) {
            return;
        }
        let tables = &self.tables;
        match self.holdings.resume(id, |lease| Instant(tables.lease_until(lease)), now) {
            Resumption::None => return,
            Resumption::Holds => self.input(id, Input::Resume, now),
            Resumption::Lapsed => {}
        }
        if !self.machines.is_master(id) {
            self.act(vec![(id, Output::Release)], now);
            self.moved(id, State::Init, State::Backup, Why::Started);
        }
    }
}
