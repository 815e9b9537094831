//! The thread that must not be late. Each turn: wait; read the sockets; take the orders from the
//! mailbox; do what is due; publish. In this order, so that a host that was stopped hears of its
//! successor before it speaks.
//!
//! This file has the loop and what comes in; [`configure`] brings the instances in line with the
//! configuration and with the host, and [`carry_out`] does what the machines and the holdings
//! order.

mod carry_out;
mod configure;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    os::fd::AsFd,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::{Context, Result};
use lb_common::time::Instant;
use tokio::sync::oneshot;

use super::{FAREWELL, Fact, Shared, ThreadOrder, instance::Instance, network::NetworkOrder, packet_of};
use crate::{
    sys::{
        clock,
        netlink::{Found, Interface},
        packet_socket::PacketSocket,
        raw_ip::RawIp,
        realtime, wake,
    },
    tables::Tables,
    vrrp::{
        group::{InstanceId, Machines},
        holdings::{HELD_WITHIN, Holdings},
        machine::{Input, RESIGN},
        messages::{InstanceEvent, Occurrence, Trouble, TroubleLimit},
        overheard::{described, under_another_number},
        receive::{Agreement, Heard, backlog, router_of},
        report::Remembered,
        tracking::HostFacts,
        wire::Packet,
    },
};

/// How soon a mailbox whose lock was taken is tried again.
const AGAIN: Duration = Duration::from_millis(1);
/// How soon putting addresses on the interface, and being MASTER, is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Packets of one socket in one turn: far more than arrive while the host is well, and few enough
/// to be handled at once.
const PACKETS: usize = 1024;
/// The shortest sleep that counts: two clocks are not read at one moment.
const NAP: Duration = Duration::from_millis(50);
/// The longest packet, in bytes.
const PACKET: usize = 2048;

/// A socket's interface, and whether it is for IPv4.
type SocketKey = (String, bool);

/// Everything that the thread owns.
pub struct Thread {
    shared: Arc<Shared>,
    tables: Arc<Tables>,
    /// Hears when vrrp-net has ended.
    network_ended: mpsc::Receiver<()>,
    /// For ARP and neighbour discovery.
    frames: PacketSocket,
    machines: Machines,
    instances: BTreeMap<InstanceId, Instance>,
    holdings: Holdings,
    next: InstanceId,
    sockets: BTreeMap<SocketKey, RawIp>,
    host: HostFacts,
    /// The interfaces have been read: one that is not known does not exist.
    interfaces_known: bool,
    /// What another process of this daemon has left of instances that have not begun yet.
    remembered: Vec<Remembered>,
    limit: TroubleLimit,
    events: VecDeque<InstanceEvent>,
    network: VecDeque<NetworkOrder>,
    /// How long the host had been suspended at the last look.
    suspended: Duration,
    /// Notifies the daemon that the reports are about the instances that were configured.
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
            machines: Machines::default(),
            instances: BTreeMap::new(),
            holdings: Holdings::default(),
            next: 0,
            sockets: BTreeMap::new(),
            host: HostFacts::default(),
            interfaces_known: false,
            remembered,
            limit: TroubleLimit::default(),
            events: VecDeque::new(),
            network: VecDeque::new(),
            suspended: clock::suspended(),
            configured: Vec::new(),
            again: false,
        })
    }

    /// Runs until the end.
    pub fn run(mut self) {
        self.protect();
        let mut buffer = vec![0; PACKET];
        loop {
            let ready = self.wait();
            let now = monotonic();
            self.look_for_sleep(now);
            self.read_sockets(&ready, &mut buffer, now);
            if let Turn::End { hand_over } = self.take_orders(now) {
                return self.end(hand_over);
            }
            self.timers(now);
            self.publish();
            // Without it no address is put on or taken off: the daemon ends, and another begins.
            if !matches!(self.network_ended.try_recv(), Err(mpsc::TryRecvError::Empty)) {
                return self.end(false);
            }
        }
    }

    /// Takes real-time priority and locked memory where they are permitted. VRRP works without
    /// them, but a busy host may then be late.
    fn protect(&mut self) {
        let schedule = realtime::schedule().err().map(|error| format!("no real-time priority for VRRP: {error}"));
        let memory = realtime::lock_memory().err().map(|error| format!("VRRP's memory is not locked: {error}"));
        for what in [schedule, memory].into_iter().flatten() {
            let trouble = Trouble::Unprotected(format!("{what}; a busy host may be late with advertisements"));
            self.events.push_back(InstanceEvent { instance: "-".into(), what: Occurrence::Trouble(trouble) });
        }
    }

    /// Waits, and says which sockets can be read. The mailbox is read in any case.
    fn wait(&self) -> Vec<bool> {
        let retries = self.instances.values().filter_map(|instance| instance.retry_at);
        let due = self.machines.deadline().into_iter().chain(retries).chain(self.holdings.deadline()).min();
        let now = monotonic();
        let again = self.again.then_some(now + AGAIN);
        let time = due.into_iter().chain(again).min().map(|at| at.left(now));
        let sockets = self.sockets.values().map(AsFd::as_fd);
        let all: Vec<_> = sockets.chain([self.shared.orders.as_fd()]).collect();
        // After a failure (no memory in the kernel) everything is tried: nothing is lost, and
        // nothing waits.
        wake::wait(&all, time).unwrap_or_else(|_| vec![true; all.len()])
    }

    // ---- what comes in ----

    /// CLOCK_MONOTONIC stands still while the host is suspended, and the leases' time with it.
    fn look_for_sleep(&mut self, now: Instant) {
        let suspended = clock::suspended();
        let slept = suspended.saturating_sub(self.suspended);
        if slept < NAP {
            return;
        }
        self.suspended = suspended;
        let ids: Vec<_> = self.instances.keys().copied().collect();
        for id in ids {
            self.input(id, Input::Slept(slept), now);
            self.renew_leases(id);
        }
    }

    /// All that has arrived is looked at before the first advertisement is acted on: many of one
    /// sender tell of a sleep that no clock shows.
    fn read_sockets(&mut self, ready: &[bool], buffer: &mut [u8], now: Instant) {
        let mut all = Vec::new();
        let keys: Vec<_> =
            self.sockets.keys().zip(ready).filter(|(_, ready)| **ready).map(|(key, _)| key.clone()).collect();
        for (interface, is_ipv4) in keys {
            for _ in 0..PACKETS {
                let Some(socket) = self.sockets.get(&(interface.clone(), is_ipv4)) else { break };
                let Ok(Some(received)) = socket.receive(buffer) else { break };
                let packet = packet_of(received, buffer);
                all.extend(packet.and_then(|packet| self.packet(&interface, is_ipv4, &packet, now)));
            }
        }
        for (id, time) in backlog(&all) {
            self.input(id, Input::Slept(time), now);
        }
        for (id, heard) in all {
            self.input(id, Input::Heard(heard), now);
        }
    }

    /// The instance that a packet is for, and what it says, if that counts.
    fn packet(&mut self, interface: &str, is_ipv4: bool, packet: &Packet, now: Instant) -> Option<(InstanceId, Heard)> {
        let router = router_of(packet)?;
        let is_ours = |instance: &Instance| {
            let setup = &instance.setup;
            setup.router() == router && setup.ipv4 == is_ipv4 && setup.interface == interface
        };
        let Some((id, instance)) = self.instances.iter_mut().find(|(_, instance)| is_ours(instance)) else {
            self.of_another_router(interface, is_ipv4, packet, now);
            return None;
        };
        let id = *id;
        match instance.setup.expectation.judge(packet) {
            Ok(heard) => {
                instance.counters.adverts.received += 1;
                instance.counters.adverts.resignations_received += u64::from(heard.priority == RESIGN);
                instance.heard(heard.source, heard.priority, now);
                if heard.agreement != Agreement::Same {
                    instance.counters.adverts.address_mismatches += 1;
                    let trouble = Trouble::Disagrees { from: heard.source, said: described(packet, is_ipv4) };
                    self.trouble(id, trouble, now);
                }
                Some((id, heard))
            }
            Err(refused) => {
                instance.counters.refuse(refused.why);
                let (why, agreement) = (refused.why, refused.agreement);
                let trouble =
                    Trouble::Refused { why, from: packet.source, agreement, said: described(packet, is_ipv4) };
                self.trouble(id, trouble, now);
                None
            }
        }
    }

    /// Its addresses should not be ours.
    fn of_another_router(&mut self, interface: &str, is_ipv4: bool, packet: &Packet, now: Instant) {
        let beside = self
            .instances
            .iter()
            .filter(|(_, instance)| instance.setup.ipv4 == is_ipv4 && instance.setup.interface == interface);
        let found = beside.filter_map(|(id, instance)| Some((*id, under_another_number(&instance.setup, packet)?)));
        for (id, address) in found.collect::<Vec<_>>() {
            let trouble = Trouble::OtherNumber { from: packet.source, address, said: described(packet, is_ipv4) };
            self.trouble(id, trouble, now);
        }
    }

    fn take_orders(&mut self, now: Instant) -> Turn {
        let Some(orders) = self.shared.orders.try_take() else {
            self.again = true;
            return Turn::Go;
        };
        for order in orders {
            match order {
                ThreadOrder::Configure(setups, done) => {
                    self.configure(setups, now);
                    self.configured.push(done);
                }
                ThreadOrder::Fact(fact) => self.fact(fact, now),
                ThreadOrder::GiveAway(name) => {
                    if let Some(id) = self.id_of(&name) {
                        self.input(id, Input::GiveAway, now);
                    }
                }
                ThreadOrder::End { hand_over } => return Turn::End { hand_over },
            }
        }
        Turn::Go
    }

    fn id_of(&self, name: &str) -> Option<InstanceId> {
        self.instances.iter().find(|(_, instance)| *instance.setup.name == *name).map(|(id, _)| *id)
    }

    fn input(&mut self, id: InstanceId, input: Input, now: Instant) {
        let outputs = self.machines.handle(id, input, now);
        self.act(outputs, now);
    }

    fn fact(&mut self, fact: Fact, now: Instant) {
        match fact {
            Fact::Interfaces { found, routers } => self.interfaces(found, routers),
            Fact::Socket { interface, ipv4, socket } => self.socket((interface, ipv4), socket),
            Fact::Datapath(why) => self.host.datapath = why,
            Fact::NoBackend(none) => self.host.no_backend = none,
            Fact::LacksFlows(lacks) => self.host.lacks_flows = lacks,
            Fact::Script { instance, number, passed } => self.script(&instance, number, passed),
            Fact::Held { id, result } => {
                self.holdings.answered(id, result.is_ok());
                let Err(error) = result else { return };
                self.cannot_hold(id, error, now);
            }
            // It may have given them up by now.
            Fact::NotRenewed { id, error } if self.machines.is_master(id) => self.cannot_hold(id, error, now),
            Fact::NotRenewed { .. } => return,
            Fact::Released { addresses, result } => self.released(&addresses, result, now),
        }
        self.evaluate_all(now);
    }

    fn cannot_hold(&mut self, id: InstanceId, why: String, now: Instant) {
        self.trouble(id, Trouble::Addresses(why.clone()), now);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.facts.addresses = Some(why);
            instance.retry_at = Some(now + RETRY);
        }
    }

    fn interfaces(&mut self, found: Found, routers: BTreeSet<String>) {
        let by_name = found.interfaces.into_iter().map(|interface| (interface.name.clone(), interface));
        let before = std::mem::replace(&mut self.host.interfaces, by_name.collect());
        self.host.routers = routers;
        self.host.own = found.own;
        self.interfaces_known = true;
        self.leave_own_addresses();
        self.tie_leases();
        self.announce_new_macs(&before);
    }

    /// The segment sends to the MAC address that it was told.
    fn announce_new_macs(&mut self, before: &BTreeMap<String, Interface>) {
        let has_another = |name: &str| {
            let macs = [before, &self.host.interfaces].map(|all| all.get(name).map(|interface| interface.mac));
            macs.iter().all(Option::is_some) && macs[0] != macs[1]
        };
        let moved = self.instances.iter().filter(|(_, instance)| has_another(&instance.setup.interface));
        let moved: Vec<_> = moved.map(|(id, _)| *id).collect();
        moved.into_iter().for_each(|id| self.announce(id));
    }

    fn socket(&mut self, key: SocketKey, socket: Result<RawIp, String>) {
        let error = socket.as_ref().err().cloned();
        for instance in self.instances.values_mut() {
            if instance.setup.interface == key.0 && instance.setup.ipv4 == key.1 {
                instance.facts.socket = error.clone();
            }
        }
        if let Ok(socket) = socket
            && let Some(old) = self.sockets.insert(key, socket)
        {
            self.network.push_back(NetworkOrder::Close(old));
        }
    }

    fn script(&mut self, instance: &str, number: usize, passed: bool) {
        let instance = self.id_of(instance).and_then(|id| self.instances.get_mut(&id));
        if let Some(Instance { setup, facts, .. }) = instance
            && let (Some(streak), Some(script)) = (facts.scripts.get_mut(number), setup.tracked.scripts.get(number))
        {
            streak.result(passed, script);
        }
    }

    /// The kernel has taken addresses off an interface, or could not.
    fn released(&mut self, addresses: &[IpAddr], result: Result<(), String>, now: Instant) {
        match result {
            Ok(()) => {
                self.holdings.released(addresses);
                self.forget_strangers();
            }
            Err(error) => {
                if let Some(id) = self.holdings.holder_of(addresses) {
                    self.trouble(id, Trouble::Addresses(error), now);
                }
            }
        }
    }

    // ---- what is due ----

    fn timers(&mut self, now: Instant) {
        let due = |(id, instance): (&InstanceId, &mut Instance)| {
            instance.retry_at.take_if(|at| *at <= now)?;
            instance.facts.addresses = None;
            instance.facts.mute = None;
            Some(*id)
        };
        let retries: Vec<_> = self.instances.iter_mut().filter_map(due).collect();
        retries.into_iter().for_each(|id| self.evaluate(id, now));
        for id in self.holdings.overdue(now) {
            let why = format!("the kernel has not put its addresses on the interface within {HELD_WITHIN:?}");
            self.cannot_hold(id, why, now);
            self.evaluate(id, now);
        }
        let outputs = self.machines.timer(now);
        self.act(outputs, now);
    }

    /// The end. From here on it may wait: this host is no longer MASTER, or another process is
    /// about to take over.
    fn end(mut self, hand_over: bool) {
        let now = monotonic();
        if !hand_over {
            self.configured_addresses(&[]);
            let ids: Vec<_> = self.instances.keys().copied().collect();
            ids.into_iter().for_each(|id| self.remove(id, now));
        }
        self.events.drain(..).for_each(|event| _ = self.shared.events.post(event));
        self.network.push_back(NetworkOrder::End);
        self.network.drain(..).for_each(|order| _ = self.shared.network.post(order));
        // Until the addresses are off the interfaces. Where that takes too long their leases stay,
        // and no host answers for them.
        _ = self.network_ended.recv_timeout(FAREWELL);
        for order in self.shared.orders.take() {
            if let ThreadOrder::Fact(Fact::Released { addresses, result }) = order {
                self.released(&addresses, result, now);
            }
        }
        self.events.drain(..).for_each(|event| _ = self.shared.events.post(event));
    }
}

impl Drop for Thread {
    /// However this thread has ended: the daemon, which waits for events, learns that there will be
    /// none.
    fn drop(&mut self) {
        self.shared.events.ring();
    }
}

fn monotonic() -> Instant {
    clock::monotonic()
}
