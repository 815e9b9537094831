//! The machines of a host. The members of a group move together: they become MASTER when all of
//! them are ready, and when one is no longer MASTER, none is.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::time::Instant;

use super::machine::{Input, Machine, Output, Past, Settings, State};

/// Identifies an instance in this process; never used twice.
pub type InstanceId = usize;

/// The machines, and which of them belong together.
#[derive(Clone, Debug, Default)]
pub struct Machines {
    members: BTreeMap<InstanceId, Member>,
}

#[derive(Clone, Debug)]
struct Member {
    machine: Machine,
    group: Option<String>,
    usable: Usable,
}

/// What the host has said about one member, without regard to its group.
#[derive(Clone, Copy, Debug)]
enum Usable {
    /// Nothing yet.
    Unknown,
    /// It can be a router, with this address; or it cannot.
    Known(Option<IpAddr>),
}

impl Usable {
    fn source(self) -> Option<IpAddr> {
        match self {
            Usable::Unknown => None,
            Usable::Known(source) => source,
        }
    }
}

/// Outputs, each with the instance that it is for.
pub type Outputs = Vec<(InstanceId, Output)>;

impl Machines {
    /// Adds a machine, in INIT.
    pub fn add(&mut self, id: InstanceId, settings: Settings, group: Option<&str>) {
        let group = group.map(str::to_owned);
        self.members.insert(id, Member { machine: Machine::new(settings), group, usable: Usable::Unknown });
        self.mark_groups(Instant::ZERO);
    }

    /// Forgets a machine that has ended.
    pub fn remove(&mut self, id: InstanceId, now: Instant) -> Outputs {
        self.members.remove(&id);
        self.mark_groups(now)
    }

    /// Applies new settings.
    pub fn configure(&mut self, id: InstanceId, settings: Settings, group: Option<&str>, now: Instant) -> Outputs {
        let Some(member) = self.members.get_mut(&id) else { return Vec::new() };
        member.group = group.map(str::to_owned);
        let mut all = tagged(id, member.machine.configure(settings, now));
        all.extend(self.mark_groups(now));
        all
    }

    /// Tells every machine whether it has to wait for others. A group of one does not count.
    fn mark_groups(&mut self, now: Instant) -> Outputs {
        let groups: Vec<_> = self.members.values().filter_map(|member| member.group.clone()).collect();
        let mut all = Vec::new();
        for (id, member) in &mut self.members {
            let size = groups.iter().filter(|group| member.group.as_ref() == Some(*group)).count();
            all.extend(tagged(*id, member.machine.set_grouped(size > 1, now)));
        }
        all
    }

    /// See [`Machine::recall`].
    pub fn recall(&mut self, id: InstanceId, past: Past) {
        if let Some(member) = self.members.get_mut(&id) {
            member.machine.recall(past);
        }
    }

    /// The machine of an instance.
    pub fn machine(&self, id: InstanceId) -> Option<&Machine> {
        self.members.get(&id).map(|member| &member.machine)
    }

    /// Whether an instance is MASTER.
    pub fn is_master(&self, id: InstanceId) -> bool {
        self.machine(id).is_some_and(|machine| machine.state() == State::Master)
    }

    /// See [`Machine::sent`].
    pub fn sent(&mut self, id: InstanceId, now: Instant) -> Instant {
        self.members.get_mut(&id).map_or(Instant::ZERO, |member| member.machine.sent(now))
    }

    /// The earliest deadline of all machines.
    pub fn deadline(&self) -> Option<Instant> {
        self.members.values().filter_map(|member| member.machine.deadline()).min()
    }

    /// Passes [`Input::Timer`] to every machine whose deadline has come.
    pub fn timer(&mut self, now: Instant) -> Outputs {
        let due = |member: &Member| member.machine.deadline().is_some_and(|at| at <= now);
        let ids: Vec<_> = self.members.iter().filter(|(_, member)| due(member)).map(|(id, _)| *id).collect();
        ids.into_iter().flat_map(|id| self.handle(id, Input::Timer, now)).collect()
    }

    /// Passes one input to a machine, and its consequences to its group.
    pub fn handle(&mut self, id: InstanceId, input: Input, now: Instant) -> Outputs {
        let Some(member) = self.members.get_mut(&id) else { return Vec::new() };
        let was_master = member.machine.state() == State::Master;
        if let Input::Usable(source) = input {
            member.usable = Usable::Known(source);
            return self.usable(id, now);
        }
        let mut all = tagged(id, member.machine.handle(input, now));
        let (is_master, is_ready) = (member.machine.state() == State::Master, member.machine.is_ready());
        let given_away = matches!(input, Input::GiveAway);
        if was_master && !is_master {
            all.extend(self.step_down(id, given_away, now));
        } else if is_ready {
            all.extend(self.promote(id, now));
        }
        all
    }

    fn others(&self, id: InstanceId) -> Vec<InstanceId> {
        let group = self.members.get(&id).and_then(|member| member.group.clone());
        let same = |member: &Member| group.is_some() && member.group == group;
        self.members.iter().filter(|(other, member)| **other != id && same(member)).map(|(other, _)| *other).collect()
    }

    /// A group is usable only as a whole, and begins as a whole.
    fn usable(&mut self, id: InstanceId, now: Instant) -> Outputs {
        let mut group = self.others(id);
        group.push(id);
        if group.iter().any(|id| matches!(self.members[id].usable, Usable::Unknown)) {
            return Vec::new();
        }
        let usable = group.iter().all(|id| self.members[id].usable.source().is_some());
        let mut all = Vec::new();
        for id in group {
            let Some(member) = self.members.get_mut(&id) else { continue };
            let input = Input::Usable(member.usable.source().filter(|_| usable));
            all.extend(tagged(id, member.machine.handle(input, now)));
        }
        all.extend(self.promote(id, now));
        all
    }

    fn step_down(&mut self, id: InstanceId, given_away: bool, now: Instant) -> Outputs {
        // Given away, every member has to say so; otherwise the peers have heard a better MASTER.
        let input = if given_away { Input::GiveAway } else { Input::StepDown };
        let others = self.others(id);
        let step = |id| Some(tagged(id, self.members.get_mut(&id)?.machine.handle(input, now)));
        others.into_iter().filter_map(step).flatten().collect()
    }

    fn promote(&mut self, id: InstanceId, now: Instant) -> Outputs {
        let mut group = self.others(id);
        group.push(id);
        let stands = |id: &InstanceId| {
            let machine = &self.members[id].machine;
            machine.is_ready() || machine.state() == State::Master
        };
        if !group.iter().all(stands) {
            return Vec::new();
        }
        group.sort_unstable();
        let promote = |id| {
            let machine = &mut self.members.get_mut(&id)?.machine;
            machine.is_ready().then(|| tagged(id, machine.handle(Input::Promote, now)))
        };
        group.into_iter().filter_map(promote).flatten().collect()
    }
}

fn tagged(id: InstanceId, outputs: Vec<Output>) -> Outputs {
    outputs.into_iter().map(|output| (id, output)).collect()
}

#[cfg(test)]
mod tests;
