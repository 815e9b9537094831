//! All instances of a host. Those of one group move together: they become MASTER when every one of them is ready, and
//! when one is MASTER no longer, none is.

use std::collections::BTreeMap;

use super::machine::{Input, Machine, Output, Past, Settings, State};

/// The number of an instance, its place in the shell's list.
pub type Number = usize;

/// The machines, and which of them belong together.
#[derive(Clone, Debug, Default)]
pub struct Instances {
    members: BTreeMap<Number, Member>,
}

#[derive(Clone, Debug)]
struct Member {
    machine: Machine,
    group: Option<String>,
    /// What the host says, without a look at the group; nothing before it has said something.
    usable: Option<Option<std::net::IpAddr>>,
}

/// What to do, for which instance.
pub type Outputs = Vec<(Number, Output)>;

impl Instances {
    /// Adds an instance, in INIT.
    pub fn add(&mut self, number: Number, settings: Settings, group: Option<&str>) {
        let member = Member { machine: Machine::new(settings), group: group.map(str::to_owned), usable: None };
        self.members.insert(number, member);
        self.mark_groups(0);
    }

    /// Forgets an instance, which has ended.
    pub fn remove(&mut self, number: Number, now: u64) -> Outputs {
        self.members.remove(&number);
        self.mark_groups(now)
    }

    /// Other settings of an instance.
    pub fn configure(&mut self, number: Number, settings: Settings, group: Option<&str>, now: u64) -> Outputs {
        let Some(member) = self.members.get_mut(&number) else { return Vec::new() };
        member.group = group.map(str::to_owned);
        let mut all = tagged(number, member.machine.configure(settings, now));
        all.extend(self.mark_groups(now));
        all
    }

    /// A group of one is none.
    fn mark_groups(&mut self, now: u64) -> Outputs {
        let groups: Vec<_> = self.members.values().filter_map(|member| member.group.clone()).collect();
        let mut all = Vec::new();
        for (number, member) in &mut self.members {
            let size = groups.iter().filter(|group| member.group.as_ref() == Some(*group)).count();
            all.extend(tagged(*number, member.machine.set_grouped(size > 1, now)));
        }
        all
    }

    /// See [`Machine::recall`].
    pub fn recall(&mut self, number: Number, past: Past) {
        if let Some(member) = self.members.get_mut(&number) {
            member.machine.recall(past);
        }
    }

    /// The machine of an instance.
    pub fn machine(&self, number: Number) -> Option<&Machine> {
        self.members.get(&number).map(|member| &member.machine)
    }

    /// See [`Machine::sent`].
    pub fn sent(&mut self, number: Number, now: u64) -> u64 {
        self.members.get_mut(&number).map_or(0, |member| member.machine.sent(now))
    }

    /// The next deadline of any.
    pub fn deadline(&self) -> Option<u64> {
        self.members.values().filter_map(|member| member.machine.deadline()).min()
    }

    /// [`Input::Timer`] for every instance whose deadline has come.
    pub fn timer(&mut self, now: u64) -> Outputs {
        let due = |member: &Member| member.machine.deadline().is_some_and(|at| at <= now);
        let numbers: Vec<_> =
            self.members.iter().filter(|(_, member)| due(member)).map(|(number, _)| *number).collect();
        numbers.into_iter().flat_map(|number| self.handle(number, Input::Timer, now)).collect()
    }

    /// One input of one instance, and what it means for its group.
    pub fn handle(&mut self, number: Number, input: Input, now: u64) -> Outputs {
        let Some(member) = self.members.get_mut(&number) else { return Vec::new() };
        let was_master = member.machine.state() == State::Master;
        if let Input::Usable(usable) = input {
            member.usable = Some(usable);
            return self.usable(number, now);
        }
        let mut all = tagged(number, member.machine.handle(input, now));
        let (is_master, is_ready) = (member.machine.state() == State::Master, member.machine.is_ready());
        let given_away = matches!(input, Input::GiveAway);
        if was_master && !is_master {
            all.extend(self.step_down(number, given_away, now));
        } else if is_ready {
            all.extend(self.promote(number, now));
        }
        all
    }

    fn others(&self, number: Number) -> Vec<Number> {
        let group = self.members.get(&number).and_then(|member| member.group.clone());
        let same = |member: &Member| group.is_some() && member.group == group;
        self.members
            .iter()
            .filter(|(other, member)| **other != number && same(member))
            .map(|(other, _)| *other)
            .collect()
    }

    /// A group is of use only as a whole, and begins as a whole.
    fn usable(&mut self, number: Number, now: u64) -> Outputs {
        let mut group = self.others(number);
        group.push(number);
        if group.iter().any(|number| self.members[number].usable.is_none()) {
            return Vec::new();
        }
        let usable = group.iter().all(|number| self.members[number].usable.flatten().is_some());
        let mut all = Vec::new();
        for number in group {
            let Some(member) = self.members.get_mut(&number) else { continue };
            let input = Input::Usable(member.usable.flatten().filter(|_| usable));
            all.extend(tagged(number, member.machine.handle(input, now)));
        }
        all.extend(self.promote(number, now));
        all
    }

    fn step_down(&mut self, number: Number, given_away: bool, now: u64) -> Outputs {
        // Given away, each of them has to say so; else the peers have heard somebody better already.
        let input = if given_away { Input::GiveAway } else { Input::StepDown };
        let others = self.others(number);
        let step = |number| Some(tagged(number, self.members.get_mut(&number)?.machine.handle(input, now)));
        others.into_iter().filter_map(step).flatten().collect()
    }

    fn promote(&mut self, number: Number, now: u64) -> Outputs {
        let mut group = self.others(number);
        group.push(number);
        let stands = |number: &Number| {
            let machine = &self.members[number].machine;
            machine.is_ready() || machine.state() == State::Master
        };
        if !group.iter().all(stands) {
            return Vec::new();
        }
        group.sort_unstable();
        let promote = |number| {
            let machine = &mut self.members.get_mut(&number)?.machine;
            machine.is_ready().then(|| tagged(number, machine.handle(Input::Promote, now)))
        };
        group.into_iter().filter_map(promote).flatten().collect()
    }
}

fn tagged(number: Number, outputs: Vec<Output>) -> Outputs {
    outputs.into_iter().map(|output| (number, output)).collect()
}

#[cfg(test)]
mod tests;
