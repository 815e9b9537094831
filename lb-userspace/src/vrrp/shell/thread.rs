//! The thread that must not be late. Each turn: wait; read the sockets; take what others have put into the mailbox; do
//! what is due. In this order, so that a host that was stopped hears of its successor before it speaks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    os::fd::AsFd,
    sync::{Arc, TryLockError, mpsc},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use super::{
    FAREWELL, Fact, Order, Shared,
    instance::Instance,
    network::{self, Wanted},
};
use crate::{
    sys::{
        clock,
        packet_socket::PacketSocket,
        raw_ip::{RawIp, Received},
        realtime, wake,
    },
    tables::Tables,
    vrrp::{
        group::{Instances, Number, Outputs},
        machine::{Input, Notice, Output, RESIGN, State, Why},
        receive::{Agreement, router_of},
        report::Remembered,
        setup::Setup,
        tell::{Event, Limit, Trouble, What},
        tracking::{self, Host},
        wire::{Packet, arp, ipv4, nd},
    },
};

/// How soon a mailbox is tried again whose lock was taken.
const AGAIN: u64 = 1_000_000;
/// How soon addresses are tried again that could not be put on the interface.
const RETRY: u64 = 5_000_000_000;
/// Packets of one socket in one turn: far more than come while the host is well, and few enough to be done at once.
const PACKETS: usize = 1024;
/// The longest packet there is room for.
const PACKET: usize = 2048;

/// The thread's own.
pub struct Thread {
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    /// Heard when vrrp-net has ended.
    network_ended: mpsc::Receiver<()>,
    /// For ARP and neighbour discovery.
    frames: PacketSocket,
    machines: Instances,
    instances: BTreeMap<Number, Instance>,
    next: Number,
    sockets: BTreeMap<(String, bool), RawIp>,
    host: Host,
    /// Addresses that are no instance's any more and may still be on an interface.
    leaving: BTreeSet<IpAddr>,
    /// What another process of this daemon has left, of instances that are not here yet.
    remembered: Vec<Remembered>,
    /// The interfaces were looked at: what is not known of them does not exist.
    looked: bool,
    limit: Limit,
    events: VecDeque<Event>,
    network: VecDeque<network::Order>,
    /// Who waits until the reports are about the instances that were configured.
    configured: Vec<oneshot::Sender<()>>,
    /// A lock was taken: come again soon.
    again: bool,
}

/// Whether the thread goes on.
enum Turn {
    Go,
    End { hand_over: bool },
}

impl Thread {
    pub fn new(
        shared: Arc<Shared>,
        tables: Arc<Tables>,
        remembered: Vec<Remembered>,
        network_ended: mpsc::Receiver<()>,
    ) -> Result<Thread> {
        Ok(Thread {
            shared,
            tables,
            network_ended,
            frames: PacketSocket::open().context("cannot open a packet socket")?,
            machines: Instances::default(),
            instances: BTreeMap::new(),
            next: 0,
            sockets: BTreeMap::new(),
            host: Host::default(),
            leaving: BTreeSet::new(),
            remembered,
            looked: false,
            limit: Limit::default(),
            events: VecDeque::new(),
            network: VecDeque::new(),
            configured: Vec::new(),
            again: false,
        })
    }

    /// Until the end.
    pub fn run(mut self) {
        self.protect();
        let mut buffer = vec![0; PACKET];
        loop {
            let ready = self.wait();
            let now = clock::monotonic_ns();
            self.read_sockets(&ready, &mut buffer, now);
            if let Turn::End { hand_over } = self.take_orders(now) {
                return self.end(hand_over);
            }
            self.timers(now);
            self.publish();
        }
    }

    /// Real-time priority and locked memory where they are permitted; it works without, just not as surely.
    fn protect(&mut self) {
        let schedule = realtime::schedule().err().map(|error| format!("no real-time priority for VRRP: {error}"));
        let memory = realtime::lock_memory().err().map(|error| format!("VRRP's memory is not locked: {error}"));
        for what in [schedule, memory].into_iter().flatten() {
            let what =
                What::Trouble(Trouble::Unprotected(format!("{what}; a busy host may be late with advertisements")));
            self.events.push_back(Event { instance: "-".into(), what });
        }
    }

    /// Which sockets can be read; the mailbox is looked into in any case.
    fn wait(&self) -> Vec<bool> {
        let retries = self.instances.values().filter_map(|instance| instance.retry_at);
        let due = self.machines.deadline().into_iter().chain(retries).min();
        let now = clock::monotonic_ns();
        let again = self.again.then_some(now + AGAIN);
        let deadline = due.into_iter().chain(again).min();
        let time = deadline.map(|at| Duration::from_nanos(at.saturating_sub(now)));
        let sockets = self.sockets.values().map(AsFd::as_fd);
        let all: Vec<_> = sockets.chain([self.shared.orders.as_fd()]).collect();
        // A failure (no memory in the kernel) is as if everything were ready: nothing waits, nothing is lost.
        wake::wait(&all, time).unwrap_or_else(|_| vec![true; all.len()])
    }

    // ---- what comes in ----

    fn read_sockets(&mut self, ready: &[bool], buffer: &mut [u8], now: u64) {
        let keys: Vec<_> =
            self.sockets.keys().zip(ready).filter(|(_, ready)| **ready).map(|(key, _)| key.clone()).collect();
        for (interface, is_ipv4) in keys {
            for _ in 0..PACKETS {
                let Some(socket) = self.sockets.get(&(interface.clone(), is_ipv4)) else { break };
                let Ok(Some(received)) = socket.receive(buffer) else { break };
                let packet = match received {
                    Received::V4(length) => buffer.get(..length).and_then(ipv4::parse),
                    Received::V6 { length, source, destination, hop_limit } => buffer.get(..length).map(|payload| {
                        Packet { source: source.into(), destination: destination.into(), hop_limit, payload }
                    }),
                };
                if let Some(packet) = packet {
                    self.packet(&interface, is_ipv4, &packet, now);
                }
            }
        }
    }

    fn packet(&mut self, interface: &str, is_ipv4: bool, packet: &Packet, now: u64) {
        let Some(router) = router_of(packet) else { return };
        let is_ours = |instance: &Instance| {
            let setup = &instance.setup;
            setup.router() == router && setup.ipv4 == is_ipv4 && setup.interface == interface
        };
        let Some((number, instance)) = self.instances.iter_mut().find(|(_, instance)| is_ours(instance)) else {
            return;
        };
        let number = *number;
        match instance.setup.expectation.judge(packet) {
            Ok(heard) => {
                instance.counters.adverts.received += 1;
                instance.counters.adverts.resignations_received += u64::from(heard.priority == RESIGN);
                instance.heard(heard.source, heard.priority, now);
                if heard.agreement != Agreement::Same {
                    instance.counters.adverts.address_mismatches += 1;
                    let trouble = Trouble::Disagrees { from: heard.source, agreement: heard.agreement };
                    self.trouble(number, trouble, now);
                }
                let outputs = self.machines.handle(number, Input::Heard(heard), now);
                self.act(outputs, now);
            }
            Err(refused) => {
                instance.counters.refuse(refused.why);
                let trouble = Trouble::Refused { why: refused.why, from: packet.source, agreement: refused.agreement };
                self.trouble(number, trouble, now);
            }
        }
    }

    fn take_orders(&mut self, now: u64) -> Turn {
        let Some(orders) = self.shared.orders.try_take() else {
            self.again = true;
            return Turn::Go;
        };
        for order in orders {
            match order {
                Order::Configure(setups, done) => {
                    self.configure(setups, now);
                    self.configured.push(done);
                }
                Order::Fact(fact) => self.fact(fact, now),
                Order::GiveAway(name) => {
                    if let Some(number) = self.number(&name) {
                        let outputs = self.machines.handle(number, Input::GiveAway, now);
                        self.act(outputs, now);
                    }
                }
                Order::End { hand_over } => return Turn::End { hand_over },
            }
        }
        Turn::Go
    }

    fn number(&self, name: &str) -> Option<Number> {
        self.instances.iter().find(|(_, instance)| *instance.setup.name == *name).map(|(number, _)| *number)
    }

    fn fact(&mut self, fact: Fact, now: u64) {
        match fact {
            Fact::Interfaces(found) => {
                self.host.routers = found
                    .iter()
                    .filter(|(_, forwards)| *forwards)
                    .map(|(interface, _)| interface.name.clone())
                    .collect();
                self.host.interfaces =
                    found.into_iter().map(|(interface, _)| (interface.name.clone(), interface)).collect();
                self.looked = true;
            }
            Fact::Socket { interface, ipv4, socket } => self.socket(interface, ipv4, socket),
            Fact::Datapath(why) => self.host.datapath = why,
            Fact::NoBackend(none) => self.host.no_backend = none,
            Fact::LacksFlows(lacks) => self.host.lacks_flows = lacks,
            Fact::Script { instance, number, passed } => {
                let instance = self.number(&instance).and_then(|number| self.instances.get_mut(&number));
                if let Some(Instance { setup, own, .. }) = instance
                    && let (Some(streak), Some(script)) =
                        (own.scripts.get_mut(number), setup.tracked.scripts.get(number))
                {
                    streak.result(passed, script);
                }
            }
            Fact::Held { instance, result } => {
                let Some(number) = self.number(&instance) else { return };
                let Err(error) = result else { return };
                self.trouble(number, Trouble::Addresses(error.clone()), now);
                if let Some(instance) = self.instances.get_mut(&number) {
                    instance.own.addresses = Some(error);
                    instance.retry_at = Some(now + RETRY);
                }
            }
            Fact::Released { addresses, result } => self.released(&addresses, result, now),
        }
        self.evaluate_all(now);
    }

    fn socket(&mut self, interface: String, ipv4: bool, socket: Result<RawIp, String>) {
        let error = socket.as_ref().err().cloned();
        for instance in self.instances.values_mut() {
            if instance.setup.interface == interface && instance.setup.ipv4 == ipv4 {
                instance.own.socket = error.clone();
            }
        }
        if let Ok(socket) = socket
            && let Some(old) = self.sockets.insert((interface, ipv4), socket)
        {
            self.network.push_back(network::Order::Close(old));
        }
    }

    /// Addresses that no instance carries any more are whoever's: their leases go with them.
    fn released(&mut self, addresses: &[IpAddr], result: Result<(), String>, now: u64) {
        if let Err(error) = result {
            let of = |it: &Instance| it.setup.addresses.iter().any(|address| addresses.contains(&address.addr()));
            if let Some(number) = self.instances.iter().find(|(_, it)| of(it)).map(|(number, _)| *number) {
                self.trouble(number, Trouble::Addresses(error), now);
            }
            return;
        }
        addresses.iter().for_each(|address| _ = self.leaving.remove(address));
        self.remove_strange_leases();
    }

    // ---- configuration ----

    fn configure(&mut self, setups: Vec<Setup>, now: u64) {
        self.host.moving = setups.iter().flat_map(|setup| &setup.addresses).map(|address| address.addr()).collect();
        let known: Vec<_> = self.instances.iter().map(|(number, it)| (*number, it.setup.clone())).collect();
        for (number, old) in known {
            let new = setups.iter().find(|setup| setup.name == old.name);
            if new.is_none_or(|new| !new.is_same_router(&old)) {
                self.remove(number, now);
            }
        }
        self.watch(&setups);
        for setup in setups {
            match self.number(&setup.name) {
                Some(number) => self.change(number, setup, now),
                None => self.add(setup, now),
            }
        }
        self.remove_strange_leases();
        self.evaluate_all(now);
    }

    /// What is to be watched and open, and the sockets that are not used any more.
    fn watch(&mut self, setups: &[Setup]) {
        let mut wanted = Wanted::default();
        for setup in setups {
            wanted.interfaces.insert(setup.interface.clone());
            wanted.interfaces.extend(setup.tracked.interfaces.iter().cloned());
            let shared = setups.iter().filter(|it| (&it.interface, it.ipv4) == (&setup.interface, setup.ipv4));
            let multicast = shared.into_iter().any(|it| it.voice.peers.is_empty());
            wanted.sockets.insert((setup.interface.clone(), setup.ipv4, multicast));
        }
        let unused: Vec<_> = self
            .sockets
            .keys()
            .filter(|(name, ipv4)| !setups.iter().any(|it| (&it.interface, it.ipv4) == (name, *ipv4)))
            .cloned()
            .collect();
        for key in unused {
            self.network.extend(self.sockets.remove(&key).map(network::Order::Close));
        }
        self.network.push_back(network::Order::Watch(wanted));
    }

    fn add(&mut self, setup: Setup, now: u64) {
        let number = self.next;
        self.next += 1;
        let (mut instance, problems) = Instance::new(setup, &self.tables, now);
        let setup = &instance.setup;
        self.machines.add(number, setup.settings.clone(), setup.group.as_deref());
        let is_same = |it: &Remembered| it.name == setup.name && it.router == setup.router();
        let known = self.remembered.iter().position(|it| is_same(it) && it.interface == setup.interface);
        if let Some(known) = known.map(|place| self.remembered.swap_remove(place)) {
            self.machines.recall(number, known.past);
            instance.remembered = Some(known);
        }
        let setup = &instance.setup;
        if !instance.resumes {
            // What an earlier run has left there.
            let addresses = setup.addresses.iter().map(|address| address.addr()).collect();
            self.network.push_back(network::Order::Release { interface: setup.interface.clone(), addresses });
        }
        self.instances.insert(number, instance);
        for problem in problems {
            self.trouble(number, Trouble::Addresses(problem), now);
        }
    }

    fn change(&mut self, number: Number, setup: Setup, now: u64) {
        let Some(instance) = self.instances.get_mut(&number) else { return };
        if instance.setup == setup {
            return;
        }
        let kept: BTreeSet<_> = setup.addresses.iter().map(|address| address.addr()).collect();
        let gone: Vec<_> = instance.leases.iter().filter(|(address, _, _)| !kept.contains(address)).copied().collect();
        gone.iter().for_each(|(_, place, _)| self.tables.renew_lease(*place, 0));
        if !gone.is_empty() {
            let addresses: Vec<_> = gone.iter().map(|(address, _, _)| *address).collect();
            self.leaving.extend(addresses.iter().filter(|address| !self.host.moving.contains(*address)));
            self.network.push_back(network::Order::Release { interface: setup.interface.clone(), addresses });
        }
        let moved = instance.setup.addresses != setup.addresses;
        let group = setup.group.clone();
        let settings = setup.settings.clone();
        instance.configure(setup);
        let problems = instance.place_leases(&self.tables);
        let outputs = self.machines.configure(number, settings, group.as_deref(), now);
        self.act(outputs, now);
        let master = self.machines.machine(number).is_some_and(|machine| machine.state() == State::Master);
        if moved && master {
            let lease = self.machines.machine(number).map_or(0, |machine| machine.lease());
            self.instances[&number].set_leases(&self.tables, lease);
            self.act(vec![(number, Output::Hold), (number, Output::Announce)], now);
        }
        for problem in problems {
            self.trouble(number, Trouble::Addresses(problem), now);
        }
    }

    fn remove(&mut self, number: Number, now: u64) {
        let outputs = self.machines.handle(number, Input::End, now);
        self.act(outputs, now);
        let outputs = self.machines.remove(number, now);
        self.act(outputs, now);
        if let Some(instance) = self.instances.remove(&number) {
            self.leave(&instance);
        }
    }

    /// Its addresses are no more its own; they are taken away, whether it was MASTER or not.
    fn leave(&mut self, instance: &Instance) {
        let addresses: Vec<_> = instance.setup.addresses.iter().map(|address| address.addr()).collect();
        self.leaving.extend(addresses.iter().filter(|address| !self.host.moving.contains(*address)));
        let interface = instance.setup.interface.clone();
        self.network.push_back(network::Order::Release { interface, addresses });
    }

    /// Leases of addresses that are an operator's own now: those that were released, and those of an earlier run whose
    /// instance the configuration does not have any more.
    fn remove_strange_leases(&self) {
        for (number, address) in self.tables.leases() {
            if !self.host.moving.contains(&address) && !self.leaving.contains(&address) {
                self.tables.remove_lease(number);
            }
        }
    }

    fn evaluate_all(&mut self, now: u64) {
        if !self.looked {
            return;
        }
        let numbers: Vec<_> = self.instances.keys().copied().collect();
        numbers.iter().for_each(|number| self.evaluate(*number, now));
        // Members of a group begin together.
        numbers.iter().for_each(|number| self.resume(*number, now));
    }

    /// Tells the machine how the host stands.
    fn evaluate(&mut self, number: Number, now: u64) {
        let Some(instance) = self.instances.get_mut(&number) else { return };
        let key = (instance.setup.interface.clone(), instance.setup.ipv4);
        // Without its socket it would be deaf: its first one is on the way.
        if !self.sockets.contains_key(&key)
            && instance.own.socket.is_none()
            && self.host.interfaces.contains_key(&key.0)
        {
            return;
        }
        let standing = tracking::standing(&instance.setup, &self.host, &instance.own);
        let changed = !instance.started || instance.standing.usable() != standing.usable();
        instance.setup.expectation.own = standing.source;
        let (weight, usable) = (standing.weight(), standing.usable());
        instance.standing = standing;
        instance.started = true;
        let mut outputs = self.machines.handle(number, Input::Weight(weight), now);
        outputs.extend(self.machines.handle(number, Input::LacksFlows(self.host.lacks_flows), now));
        if changed {
            outputs.extend(self.machines.handle(number, Input::Usable(usable), now));
        }
        self.act(outputs, now);
    }

    /// Goes on where an earlier run was, if that was only a moment ago.
    fn resume(&mut self, number: Number, now: u64) {
        let has_begun = self.machines.machine(number).is_some_and(|machine| machine.state() != State::Init);
        let Some(instance) = self.instances.get_mut(&number).filter(|_| has_begun) else { return };
        if !std::mem::take(&mut instance.resumes) {
            return;
        }
        let holds = instance.leases.iter().all(|(_, place, _)| self.tables.lease_until(*place) > now);
        if holds {
            let outputs = self.machines.handle(number, Input::Resume, now);
            self.act(outputs, now);
        }
        let master = self.machines.machine(number).is_some_and(|machine| machine.state() == State::Master);
        if !master {
            self.act(vec![(number, Output::Release)], now);
            self.moved(number, State::Init, State::Backup, Why::Started);
        }
    }

    // ---- what is due ----

    fn timers(&mut self, now: u64) {
        let retries: Vec<_> = self
            .instances
            .iter_mut()
            .filter_map(|(number, instance)| instance.retry_at.take_if(|at| *at <= now).map(|_| *number))
            .collect();
        for number in retries {
            if let Some(instance) = self.instances.get_mut(&number) {
                instance.own.addresses = None;
            }
            self.evaluate(number, now);
        }
        let outputs = self.machines.timer(now);
        self.act(outputs, now);
    }

    // ---- what goes out ----

    fn act(&mut self, outputs: Outputs, now: u64) {
        let mut work = VecDeque::from(outputs);
        while let Some((number, output)) = work.pop_front() {
            match output {
                Output::Advertise(priority) => work.extend(self.advertise(number, priority)),
                Output::Hold => self.hold(number),
                Output::Release => self.release(number),
                Output::Announce => self.announce(number),
                Output::Moved { from, to, why } => self.moved(number, from, to, why),
                Output::Notice(notice) => self.notice(number, notice, now),
            }
        }
    }

    /// Sends an advertisement and, if it left, renews the lease from the moment before.
    fn advertise(&mut self, number: Number, priority: u8) -> Outputs {
        let (Some(instance), Some(machine)) = (self.instances.get_mut(&number), self.machines.machine(number)) else {
            return Outputs::new();
        };
        let at = clock::monotonic_ns();
        // Stopped between the wake-up and here for so long that another may be MASTER by now.
        if priority != RESIGN && machine.lease() <= at {
            return Outputs::new();
        }
        let socket = self.sockets.get(&(instance.setup.interface.clone(), instance.setup.ipv4));
        let sent = instance.send(socket, machine.source(), priority);
        let counters = &mut instance.counters.adverts;
        match sent {
            Ok(()) => {
                counters.sent += 1;
                counters.resignations_sent += u64::from(priority == RESIGN);
                if priority != RESIGN {
                    let lease = self.machines.sent(number, at);
                    instance.set_leases(&self.tables, lease);
                }
            }
            Err(error) => {
                counters.send_failures += 1;
                self.trouble(number, Trouble::CannotSend(error), at);
            }
        }
        self.claimed(number, at)
    }

    /// Whether another host has claimed an address since the last advertisement: one that is about to preempt us would
    /// have been heard by now.
    fn claimed(&mut self, number: Number, now: u64) -> Outputs {
        let Some(instance) = self.instances.get_mut(&number) else { return Outputs::new() };
        let claims = instance.new_claims(&self.tables);
        let mut outputs = Outputs::new();
        for (address, mac) in claims {
            self.trouble(number, Trouble::Claimed { address, mac }, now);
            outputs.extend(self.machines.handle(number, Input::Claimed, now));
        }
        outputs
    }

    fn hold(&mut self, number: Number) {
        let Some(instance) = self.instances.get_mut(&number) else { return };
        // Whatever was claimed before is no matter now.
        instance.new_claims(&self.tables);
        self.network.push_back(network::Order::Hold {
            instance: instance.setup.name.clone(),
            interface: instance.setup.interface.clone(),
            addresses: instance.setup.addresses.clone(),
        });
    }

    /// First the lease, which counts at once.
    fn release(&mut self, number: Number) {
        let Some(instance) = self.instances.get(&number) else { return };
        instance.set_leases(&self.tables, 0);
        self.network.push_back(network::Order::Release {
            interface: instance.setup.interface.clone(),
            addresses: instance.setup.addresses.iter().map(|address| address.addr()).collect(),
        });
    }

    fn announce(&mut self, number: Number) {
        let Some(instance) = self.instances.get_mut(&number) else { return };
        let Some(interface) = self.host.interfaces.get(&instance.setup.interface) else { return };
        let is_router = self.host.routers.contains(&interface.name);
        for _ in 0..instance.setup.garp_repeat {
            for address in &instance.setup.addresses {
                let frames = match address.addr() {
                    IpAddr::V4(ip) => vec![arp::request(interface.mac, ip), arp::reply(interface.mac, ip)],
                    IpAddr::V6(ip) => vec![nd::advertisement(interface.mac, ip, is_router)],
                };
                for frame in frames {
                    // One that finds no room is made good by the next of its kind.
                    let sent = self.frames.send(interface.ifindex, &frame).is_ok();
                    instance.counters.adverts.announcements += u64::from(sent);
                }
            }
        }
    }

    fn moved(&mut self, number: Number, from: State, to: State, why: Why) {
        let (Some(instance), Some(machine)) = (self.instances.get_mut(&number), self.machines.machine(number)) else {
            return;
        };
        instance.why = why;
        if let Some(known) = instance.remembered.take_if(|known| known.past.since == machine.since()) {
            // Another process has told it.
            instance.why = known.why;
            return;
        }
        // Whether it goes on as MASTER is about to be seen.
        if instance.resumes && (from, to) == (State::Init, State::Backup) {
            return;
        }
        let priority = machine.priority();
        let faults = instance.standing.faults.clone();
        let what = What::Moved { from, to, why, priority, faults };
        self.events.push_back(Event { instance: instance.setup.name.clone(), what });
    }

    fn notice(&mut self, number: Number, notice: Notice, now: u64) {
        let trouble = match notice {
            Notice::LowerMaster { from, priority } => {
                if let Some(instance) = self.instances.get_mut(&number) {
                    instance.counters.adverts.dual_master += 1;
                }
                Trouble::LowerMaster { from, priority }
            }
            Notice::SplitHealed => Trouble::SplitHealed,
            Notice::TwoOwners(other) => Trouble::TwoOwners(other),
            // Told already, with whose it was.
            Notice::Claimed => return,
        };
        self.trouble(number, trouble, now);
    }

    fn trouble(&mut self, number: Number, trouble: Trouble, now: u64) {
        let Some(instance) = self.instances.get(&number) else { return };
        let name = &instance.setup.name;
        if self.limit.lets_pass(name, &trouble, now) {
            self.events.push_back(Event { instance: name.clone(), what: What::Trouble(trouble) });
        }
    }

    /// What others are to know; without waiting for any of them.
    fn publish(&mut self) {
        let posted = [self.shared.events.try_post(&mut self.events), self.shared.network.try_post(&mut self.network)];
        let reports = || {
            let report =
                |(number, instance): (&Number, &Instance)| Some(instance.report(self.machines.machine(*number)?));
            Arc::new(self.instances.iter().filter_map(report).collect())
        };
        let shown = match self.shared.reports.try_lock() {
            Ok(mut place) => {
                *place = reports();
                true
            }
            Err(TryLockError::Poisoned(poisoned)) => {
                *poisoned.into_inner() = reports();
                true
            }
            Err(TryLockError::WouldBlock) => false,
        };
        if shown {
            // Who has not waited that long is gone.
            self.configured.drain(..).for_each(|done| _ = done.send(()));
        }
        self.again = !shown || posted.contains(&false);
    }

    /// The end. From here on it may wait: nobody is MASTER any more, or another process is about to be.
    fn end(mut self, hand_over: bool) {
        let now = clock::monotonic_ns();
        if !hand_over {
            self.host.moving.clear();
            let numbers: Vec<_> = self.instances.keys().copied().collect();
            numbers.into_iter().for_each(|number| self.remove(number, now));
        }
        self.events.drain(..).for_each(|event| _ = self.shared.events.post(event));
        self.network.push_back(network::Order::End);
        self.network.drain(..).for_each(|order| _ = self.shared.network.post(order));
        // Until the addresses are gone; where they are not in time, their leases stay, and nobody answers for them.
        _ = self.network_ended.recv_timeout(FAREWELL);
        for order in self.shared.orders.take() {
            if let Order::Fact(Fact::Released { addresses, result }) = order {
                self.released(&addresses, result, now);
            }
        }
        self.events.drain(..).for_each(|event| _ = self.shared.events.post(event));
    }
}

impl Drop for Thread {
    /// Whoever waits for news finds out that there will be none, however this thread has ended.
    fn drop(&mut self) {
        self.shared.events.ring();
    }
}
