//! Does what the machines and the holdings order, and reports it; without waiting for anything.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, TryLockError},
    time::Duration,
};

use ipnet::IpNet;
use lb_common::time::Instant;

use super::{RETRY, Thread, monotonic};
use crate::vrrp::{
    group::{InstanceId, Outputs},
    holdings::{HoldingOrder, NewClaim},
    machine::{Contention, Input, Machine, Output, RESIGN, State, Why},
    messages::{InstanceEvent, Occurrence, Trouble},
    receive::Voice,
    shell::{
        instance::{Instance, send},
        network::NetworkOrder,
    },
    wire::{arp, nd},
};

impl Thread {
    /// Does what the machines order.
    pub(super) fn act(&mut self, outputs: Outputs, now: Instant) {
        let mut work = VecDeque::from(outputs);
        while let Some((id, output)) = work.pop_front() {
            match output {
                Output::Advertise(priority) => work.extend(self.advertise(id, priority)),
                Output::Concede { priority, interval } => self.concede(id, priority, interval),
                Output::Hold => self.hold(id, now),
                Output::Release => {
                    let orders = self.holdings.release(id);
                    self.carry_out(orders);
                }
                Output::Announce => self.announce(id),
                Output::Moved { from, to, why } => self.moved(id, from, to, why),
                Output::Contention(contention) => self.contention(id, contention, now),
            }
        }
    }

    /// Does what the holdings order.
    pub(super) fn carry_out(&mut self, orders: Vec<HoldingOrder>) {
        for order in orders {
            match order {
                HoldingOrder::Renew { lease, until } => self.tables.renew_lease(lease, until.0),
                HoldingOrder::Forget { lease } => self.tables.remove_lease(lease),
                HoldingOrder::TakeOff { interface, addresses } => {
                    self.network.push_back(NetworkOrder::Release { interface, addresses });
                }
                HoldingOrder::PutOn { id, interface, addresses } => {
                    let Some(instance) = self.instances.get(&id) else { continue };
                    let lease = instance.setup.settings.lease();
                    let addresses = addresses.iter().map(IpNet::addr).collect();
                    self.network.push_back(NetworkOrder::Hold { id, interface, addresses, lease });
                }
            }
        }
    }

    /// Sends an advertisement and, if it left, renews the leases from the moment before.
    fn advertise(&mut self, id: InstanceId, priority: u8) -> Outputs {
        let (Some(instance), Some(machine)) = (self.instances.get_mut(&id), self.machines.machine(id)) else {
            return Outputs::new();
        };
        let at = monotonic();
        // The host was stopped after the wake-up, for so long that another one may be MASTER by
        // now.
        if priority != RESIGN && machine.lease() <= at {
            return Outputs::new();
        }
        let socket = self.sockets.get(&(instance.setup.interface.clone(), instance.setup.ipv4));
        let sent = send(&instance.setup.voice, socket, machine.source(), priority);
        let counters = &mut instance.counters.adverts;
        match sent {
            Ok(()) => {
                counters.sent += 1;
                counters.resignations_sent += u64::from(priority == RESIGN);
                if priority != RESIGN {
                    self.machines.sent(id, at);
                    self.renew_leases(id);
                }
            }
            Err(error) => {
                counters.send_failures += 1;
                // Nobody can know that this host is MASTER, and its peers must not lose the addresses
                // to it. It tries again after a pause.
                if priority != RESIGN && !machine.has_spoken() {
                    instance.facts.mute = Some(format!("cannot advertise: {error}"));
                    instance.retry_at = Some(at + RETRY);
                }
                self.trouble(id, Trouble::CannotSend(error), at);
                return self.judge(id, at);
            }
        }
        self.claimed(id, at)
    }

    /// Sends one more advertisement after the mastership. If it does not leave, the segment learns
    /// later where the addresses are.
    fn concede(&mut self, id: InstanceId, priority: u8, interval: Duration) {
        let (Some(instance), Some(machine)) = (self.instances.get_mut(&id), self.machines.machine(id)) else { return };
        let socket = self.sockets.get(&(instance.setup.interface.clone(), instance.setup.ipv4));
        let voice = Voice { interval, ..instance.setup.voice.clone() };
        match send(&voice, socket, machine.source(), priority) {
            Ok(()) => instance.counters.adverts.sent += 1,
            Err(_) => instance.counters.adverts.send_failures += 1,
        }
    }

    /// In the table, the leases end when the machine's does.
    pub(super) fn renew_leases(&mut self, id: InstanceId) {
        let until = self.machines.machine(id).map_or(Instant::ZERO, |machine| machine.lease());
        self.carry_out(self.holdings.renew(id, until));
    }

    /// Whether another host has claimed an address since the last advertisement. One that is about
    /// to preempt this one would have been heard by now.
    fn claimed(&mut self, id: InstanceId, now: Instant) -> Outputs {
        let mut outputs = Outputs::new();
        for claim in self.new_claims(id) {
            self.trouble(id, Trouble::Claimed { address: claim.address, mac: claim.by }, now);
            outputs.extend(self.machines.handle(id, Input::Claimed, now));
        }
        outputs
    }

    fn new_claims(&mut self, id: InstanceId) -> Vec<NewClaim> {
        let claims = self.holdings.new_claims(id, |lease| self.tables.claims(lease));
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.counters.adverts.claims += claims.iter().map(|claim| u64::from(claim.times)).sum::<u64>();
        }
        claims
    }

    fn hold(&mut self, id: InstanceId, now: Instant) {
        // Its first advertisement may not have left.
        if !self.machines.is_master(id) {
            return;
        }
        self.tie_leases();
        // Claims from before do not matter now; they are only counted.
        self.new_claims(id);
        let orders = self.holdings.hold(id, now);
        self.carry_out(orders);
    }

    pub(super) fn announce(&mut self, id: InstanceId) {
        if !self.machines.machine(id).is_some_and(Machine::has_spoken) {
            return;
        }
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let Some(interface) = self.host.interfaces.get(&instance.setup.interface) else { return };
        let is_router = self.host.routers.contains(&interface.name);
        for _ in 0..instance.setup.garp_repeat {
            for address in &instance.setup.addresses {
                let frames = match address.addr() {
                    IpAddr::V4(ip) => vec![arp::request(interface.mac, ip), arp::reply(interface.mac, ip)],
                    IpAddr::V6(ip) => vec![nd::advertisement(interface.mac, ip, is_router)],
                };
                for frame in frames {
                    // If one finds no room, the next of its kind makes up for it.
                    let sent = self.frames.send(interface.ifindex, &frame).is_ok();
                    instance.counters.adverts.announcements += u64::from(sent);
                }
            }
        }
    }

    // ---- what is reported ----

    pub(super) fn moved(&mut self, id: InstanceId, from: State, to: State, why: Why) {
        let (Some(instance), Some(machine)) = (self.instances.get_mut(&id), self.machines.machine(id)) else {
            return;
        };
        instance.why = why;
        if let Some(known) = instance.remembered.take_if(|known| known.past.since == machine.since()) {
            // Another process has reported it.
            instance.why = known.why;
            return;
        }
        // Whether it goes on as MASTER is decided in a moment.
        if self.holdings.resumes(id) && (from, to) == (State::Init, State::Backup) {
            return;
        }
        let priority = machine.priority();
        let faults = instance.usability.as_ref().map_or_else(Vec::new, |usability| usability.faults.clone());
        let what = Occurrence::Moved { from, to, why, priority, faults };
        self.events.push_back(InstanceEvent { instance: instance.setup.name.clone(), what });
    }

    fn contention(&mut self, id: InstanceId, contention: Contention, now: Instant) {
        let trouble = match contention {
            Contention::LowerMaster { from, priority } => {
                if let Some(instance) = self.instances.get_mut(&id) {
                    instance.counters.adverts.dual_master += 1;
                }
                Trouble::LowerMaster { from, priority }
            }
            Contention::SplitHealed => Trouble::SplitHealed,
            Contention::TwoOwners(other) => Trouble::TwoOwners(other),
            // `claimed` has reported it, with the address and the claimant.
            Contention::Claimed => return,
        };
        self.trouble(id, trouble, now);
    }

    pub(super) fn trouble(&mut self, id: InstanceId, trouble: Trouble, now: Instant) {
        let Some(instance) = self.instances.get(&id) else { return };
        let name = &instance.setup.name;
        if self.limit.lets_pass(name, &trouble, now) {
            self.events.push_back(InstanceEvent { instance: name.clone(), what: Occurrence::Trouble(trouble) });
        }
    }

    /// Hands on events and orders, and updates the reports. What is locked is tried again soon.
    pub(super) fn publish(&mut self) {
        let posted = [self.shared.events.try_post(&mut self.events), self.shared.network.try_post(&mut self.network)];
        let now = monotonic();
        let reports = || {
            let report =
                |(id, instance): (&InstanceId, &Instance)| Some(instance.report(self.machines.machine(*id)?, now));
            Arc::new(self.instances.iter().filter_map(report).collect())
        };
        let shown = match self.shared.reports.try_lock() {
            Ok(mut shown) => {
                *shown = reports();
                true
            }
            Err(TryLockError::Poisoned(poisoned)) => {
                *poisoned.into_inner() = reports();
                true
            }
            Err(TryLockError::WouldBlock) => false,
        };
        if shown {
            // The receiver may have stopped waiting.
            self.configured.drain(..).for_each(|done| _ = done.send(()));
        }
        self.again = !shown || posted.contains(&false);
    }
}
