//! One virtual router on one host: the state machine of RFC 9568 section 6.4 with keepalived's additions (FAULT,
//! nopreempt, preempt_delay, weights, groups), without I/O and without a clock.
//!
//! The contract of driving a [`Machine`]:
//! - whatever happens goes to [`handle`](Machine::handle), and its outputs are done in order;
//! - when [`deadline`](Machine::deadline) has come: [`Input::Timer`]. What waits in the sockets comes first: a router that
//!   was stopped for a while must hear of its successor before it speaks;
//! - when an advertisement has left: [`sent`](Machine::sent). The lease is counted from it.
//!
//! Times are CLOCK_MONOTONIC in nanoseconds. A MASTER that could not advertise for three intervals (stopped, starved, or
//! an interface that takes nothing) is none any more, for its peers have given it up: whatever it is woken by, it steps
//! down first.

mod state;

use std::net::IpAddr;

pub use state::{Past, State, Why};

use super::receive::Heard;
use crate::config::model::VrrpVersion;

/// The priority of the owner of the addresses; it is never changed by weights.
pub const OWNER: u8 = 255;
/// "I resign": the priority in the last advertisement of a MASTER that ends in order.
pub const RESIGN: u8 = 0;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
/// Intervals without an advertisement after which a MASTER counts as gone (section 6.1).
const DOWN_INTERVALS: u64 = 3;
/// How long after it has become BACKUP it waits for the connections of a lower MASTER, at most: a copy of 100,000 takes two
/// or three seconds.
const FLOWS: u64 = 10 * SECOND;
/// Two owners: how many advertisements the one with the higher address sends before it listens whether the other has
/// given in (keepalived).
const OWNER_ADVERTS: u32 = 2;

/// What is configured, in the machine's units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Version 2 counts the skew by seconds and learns no interval.
    pub version: VrrpVersion,
    /// `priority`
    pub priority: u8,
    /// `advert_interval` in nanoseconds.
    pub interval: u64,
    /// `preempt`
    pub preempt: bool,
    /// `preempt_delay` in nanoseconds.
    pub preempt_delay: u64,
    /// `garp_delay` in nanoseconds; 0: never.
    pub garp_delay: u64,
    /// `garp_refresh` in nanoseconds; 0: never.
    pub garp_refresh: u64,
}

/// What happens to it.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// The host can be a router, with this address of its own, or it cannot.
    Usable(Option<IpAddr>),
    /// The sum of the weights of everything that is tracked.
    Weight(i32),
    /// Whether another host may have connections that are not known here yet (flow sync).
    LacksFlows(bool),
    /// An advertisement that counts.
    Heard(Heard),
    /// The deadline has come.
    Timer,
    /// Another host has said that one of our addresses is its own.
    Claimed,
    /// An operator gives the mastership away.
    GiveAway,
    /// The whole group is ready.
    Promote,
    /// Another one of the group is MASTER no longer.
    StepDown,
    /// At the start: an earlier run was MASTER a moment ago and its lease still holds.
    Resume,
    /// The end, in order.
    End,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send an advertisement with this priority.
    Advertise(u8),
    /// Put the addresses on the interface.
    Hold,
    /// Take the addresses away. The lease ends at once.
    Release,
    /// Tell the segment where the addresses are, `garp_repeat` times.
    Announce,
    /// The state has changed.
    Moved {
        /// What it was.
        from: State,
        /// What it is.
        to: State,
        /// What made it so.
        why: Why,
    },
    /// For the operator.
    Notice(Notice),
}

/// Something that an operator should know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// We are MASTER and heard another one, who gives way if it hears us.
    LowerMaster {
        /// The other one.
        from: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// It was not heard any more: the split has healed.
    SplitHealed,
    /// Another host claims to have our address, by ARP or neighbour discovery.
    Claimed,
    /// Two routers are configured as owners of the addresses.
    TwoOwners(IpAddr),
}

/// The MASTER that is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Master {
    /// Its own address.
    pub address: IpAddr,
    /// Its priority.
    pub priority: u8,
    /// When it was heard last.
    pub heard: u64,
}

/// The machine. See the module's contract.
#[derive(Clone, Debug)]
pub struct Machine {
    settings: Settings,
    /// Whether it becomes MASTER only together with others.
    grouped: bool,
    state: State,
    since: u64,
    /// When this process has entered the state: later than `since` if another one was in it before.
    entered: u64,
    transitions: u64,
    past: Option<Past>,
    source: Option<IpAddr>,
    weight: i32,
    /// Its connections would be lost if a MASTER that is heard were preempted now.
    lacks_flows: bool,
    /// The other owner of the addresses did not give in: we count as 254 until we are configured anew.
    gave_in: bool,
    /// The mastership was given away: whoever has it keeps it, until it is gone.
    yields: bool,
    /// In BACKUP: the MASTER's interval, learnt from it (version 3).
    learnt: u64,
    master: Option<Master>,
    /// In BACKUP: when the MASTER counts as gone, and why that would be.
    down: Option<(u64, Why)>,
    /// The time has come, but the rest of the group is not ready.
    ready: bool,
    /// From when on a lower MASTER is preempted (`preempt_delay`).
    hold_until: Option<u64>,
    /// In MASTER: until when the peers wait for us.
    lease: u64,
    advert_at: Option<u64>,
    delayed_at: Option<u64>,
    refresh_at: Option<u64>,
    healed_at: Option<u64>,
    announced: u64,
    answered: u64,
    /// In MASTER: another host has claimed one of our addresses.
    disputed: bool,
    /// Two owners: until when to listen whether the other gives in.
    contest: Option<Contest>,
}

#[derive(Clone, Copy, Debug)]
struct Contest {
    sent: u32,
    over: u64,
}

impl Machine {
    /// In INIT, until [`Input::Usable`] says whether the host can be a router.
    pub fn new(settings: Settings) -> Machine {
        Machine {
            learnt: settings.interval,
            settings,
            grouped: false,
            state: State::Init,
            since: 0,
            entered: 0,
            transitions: 0,
            past: None,
            source: None,
            weight: 0,
            lacks_flows: false,
            gave_in: false,
            yields: false,
            master: None,
            down: None,
            ready: false,
            hold_until: None,
            lease: 0,
            advert_at: None,
            delayed_at: None,
            refresh_at: None,
            healed_at: None,
            announced: 0,
            disputed: false,
            answered: 0,
            contest: None,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// How often it has changed between BACKUP, MASTER and FAULT.
    pub fn transitions(&self) -> u64 {
        self.transitions
    }

    /// For the process that goes on with it.
    pub fn past(&self) -> Past {
        let Machine { state, since, transitions, yields, .. } = *self;
        Past { state, since, transitions, yields }
    }

    /// Another process was here before. What it has left counts if this one comes into the same state: at once, or by
    /// [`Input::Resume`].
    pub fn recall(&mut self, past: Past) {
        self.past = Some(past).filter(|past| past.state != State::Init);
    }

    /// Whether it would be MASTER if the rest of its group were ready.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// The host's own address.
    pub fn source(&self) -> Option<IpAddr> {
        self.source
    }

    /// The MASTER that is heard, while we are not.
    pub fn master(&self) -> Option<Master> {
        self.master
    }

    /// The priority with all weights; 1 to 254, or 255 for the owner.
    pub fn priority(&self) -> u8 {
        match self.settings.priority {
            OWNER if self.gave_in => OWNER - 1,
            OWNER => OWNER,
            base => (i32::from(base) + self.weight).clamp(1, i32::from(OWNER) - 1) as u8,
        }
    }

    /// Until when nobody else takes over if nothing is heard of us any more. 0 while we are not MASTER.
    pub fn lease(&self) -> u64 {
        if self.state == State::Master { self.lease } else { 0 }
    }

    /// When [`Input::Timer`] is due; never if there is nothing to wait for.
    pub fn deadline(&self) -> Option<u64> {
        let master = self.state == State::Master;
        let contest = self.contest.map(|contest| contest.over);
        [self.down.map(|(at, _)| at), self.advert_at, self.delayed_at, self.refresh_at, self.healed_at, contest]
            .into_iter()
            .chain([master.then_some(self.lease)])
            .flatten()
            .min()
    }

    /// An advertisement left at `now`. Gives the new end of the lease.
    pub fn sent(&mut self, now: u64) -> u64 {
        if self.state == State::Master {
            self.lease = now + DOWN_INTERVALS * self.settings.interval;
        }
        self.lease()
    }

    /// Other settings of the same virtual router.
    pub fn configure(&mut self, settings: Settings, now: u64) -> Vec<Output> {
        if settings == self.settings {
            return Vec::new();
        }
        let mut out = Vec::new();
        self.settings = settings;
        self.gave_in = false;
        match self.state {
            State::Master => {
                out.push(Output::Advertise(self.priority()));
                self.advert_at = Some(now + self.settings.interval);
                self.schedule_announcements(now);
            }
            State::Backup => {
                // The interval of a MASTER that is heard still counts.
                if self.master.is_none() {
                    self.learnt = self.settings.interval;
                }
                self.wait(Why::Silence, now);
            }
            State::Init | State::Fault => {}
        }
        out
    }

    /// Whether it waits for others to be ready. One that has waited and need not any more goes on at once.
    pub fn set_grouped(&mut self, grouped: bool, now: u64) -> Vec<Output> {
        self.grouped = grouped;
        if grouped || !self.ready { Vec::new() } else { self.handle(Input::Promote, now) }
    }

    /// One input, at `now`.
    pub fn handle(&mut self, input: Input, now: u64) -> Vec<Output> {
        let mut out = Vec::new();
        if self.state == State::Master && now >= self.lease && !matches!(input, Input::End) {
            self.leave_master(State::Backup, Why::LeaseLapsed, now, &mut out);
        }
        match input {
            Input::Usable(source) => self.usable(source, now, &mut out),
            Input::Weight(weight) => self.weight = weight,
            Input::LacksFlows(lacks) => self.lacks_flows = lacks,
            Input::Heard(heard) => self.heard(heard, now, &mut out),
            Input::Timer => self.timer(now, &mut out),
            Input::Claimed if self.state == State::Master => self.claimed(now, &mut out),
            Input::GiveAway if self.state == State::Master => {
                self.resign(Why::GivenAway, now, &mut out);
                self.yields = true;
            }
            Input::StepDown if self.state == State::Master => {
                self.leave_master(State::Backup, Why::Group, now, &mut out);
            }
            // A member that was ready by itself has waited for its group for its own reason.
            Input::Promote if self.state == State::Backup => {
                let why = self.down.map_or(Why::Group, |(_, why)| why);
                self.promote(why, now, &mut out);
            }
            Input::Resume if self.state == State::Backup => self.resume(now, &mut out),
            Input::End => self.end(now, &mut out),
            Input::Claimed | Input::GiveAway | Input::StepDown | Input::Promote | Input::Resume => {}
        }
        out
    }

    // ---- what comes in ----

    fn usable(&mut self, source: Option<IpAddr>, now: u64, out: &mut Vec<Output>) {
        // The last word in FAULT still comes from the address that was there.
        self.source = source.or(self.source);
        match (self.state, source) {
            (State::Init, Some(_)) => {
                self.start(Why::Started, now, out);
                self.go_on();
            }
            (State::Fault, Some(_)) => self.start(Why::Recovered, now, out),
            (State::Master, None) => {
                out.push(Output::Advertise(RESIGN));
                self.leave_master(State::Fault, Why::Fault, now, out);
            }
            (State::Init, None) => {
                self.enter(State::Fault, Why::Fault, now, out);
                self.go_on();
            }
            (State::Backup, None) => self.enter(State::Fault, Why::Fault, now, out),
            (State::Fault, None) | (State::Backup | State::Master, Some(_)) => {}
        }
    }

    /// Section 6.4.1.
    fn start(&mut self, why: Why, now: u64, out: &mut Vec<Output>) {
        self.enter(State::Backup, why, now, out);
        if self.priority() == OWNER {
            self.down = Some((now, Why::Owner));
            self.expired(Why::Owner, now, out);
        }
    }

    /// Where another process was before: it is as if there had been one, or the state has changed once more in between.
    fn go_on(&mut self) {
        let Some(past) = self.past else { return };
        self.transitions = past.transitions + u64::from(past.state != self.state);
        if past.state == self.state {
            (self.since, self.yields, self.past) = (past.since, past.yields, None);
        }
    }

    fn heard(&mut self, heard: Heard, now: u64, out: &mut Vec<Output>) {
        match self.state {
            State::Backup => self.heard_in_backup(heard, now),
            State::Master => self.heard_in_master(heard, now, out),
            State::Init | State::Fault => {}
        }
    }

    /// Section 6.4.2.
    fn heard_in_backup(&mut self, heard: Heard, now: u64) {
        let ours = self.priority();
        if heard.priority == RESIGN {
            self.down = Some((now + self.skew(), Why::Resigned));
            self.master = None;
            return;
        }
        self.master = Some(Master { address: heard.source, priority: heard.priority, heard: now });
        let preempts = (self.settings.preempt || ours == OWNER) && !self.yields;
        if preempts && heard.priority < ours && !self.is_held(now) {
            // Time goes on: at its end the lower one is preempted.
            if let Some((_, why)) = &mut self.down {
                *why = Why::Preempts(heard.source);
            }
            return;
        }
        if heard.priority >= ours {
            self.hold_until = None;
        }
        if self.settings.version == VrrpVersion::V3 {
            self.learnt = heard.interval_ms * MILLISECOND;
        }
        self.wait(Why::Silence, now);
    }

    /// Whether a lower MASTER is to be left in peace for now: `preempt_delay`, and until its connections are known here.
    fn is_held(&mut self, now: u64) -> bool {
        let delay = self.settings.preempt_delay;
        let delayed = delay > 0 && now < *self.hold_until.get_or_insert(now + delay);
        delayed || self.lacks_flows && now < self.entered + FLOWS
    }

    /// Section 6.4.3.
    fn heard_in_master(&mut self, heard: Heard, now: u64, out: &mut Vec<Output>) {
        let ours = self.priority();
        if heard.priority == RESIGN {
            // Another MASTER was here, and who listened to it has to learn where we are.
            self.advert_at = Some(now + self.settings.interval);
            return self.lower_heard(heard, now, out);
        }
        let higher_address = self.source.is_some_and(|own| heard.source > own);
        if heard.priority == OWNER && ours == OWNER {
            return self.two_owners(heard, higher_address, now, out);
        }
        if heard.priority > ours || (heard.priority == ours && higher_address) {
            return self.outranked(heard, now, out);
        }
        self.lower_heard(heard, now, out);
    }

    /// If there were two for a while the better one may never have heard of us: our last word lets it tell the segment.
    fn outranked(&mut self, heard: Heard, now: u64, out: &mut Vec<Output>) {
        if self.disputed {
            out.push(Output::Advertise(RESIGN));
        }
        self.leave_master(State::Backup, Why::Outranked(heard.source), now, out);
        self.heard_in_backup(heard, now);
    }

    /// It has to hear of us at once (RFC 9568 section 6.4.3), and who listened to it has to learn where we are: now, and
    /// again when it has fallen silent.
    fn lower_heard(&mut self, heard: Heard, now: u64, out: &mut Vec<Output>) {
        let pause = self.settings.interval.clamp(SECOND / 10, SECOND / 2);
        // A storm of them is not answered with a storm.
        if now >= self.answered + 10 * MILLISECOND {
            self.answered = now;
            out.push(Output::Advertise(self.priority()));
        }
        if now >= self.announced + SECOND / 10 {
            self.announce(now, out);
        }
        self.healed_at = Some(now + pause);
        out.push(Output::Notice(Notice::LowerMaster { from: heard.source, priority: heard.priority }));
    }

    /// keepalived's way: the one with the lower address stays; the other sends two more advertisements, and if it still
    /// hears the first, which then does not know the rule, it gives in.
    fn two_owners(&mut self, heard: Heard, higher: bool, now: u64, out: &mut Vec<Output>) {
        out.push(Output::Notice(Notice::TwoOwners(heard.source)));
        if higher {
            return;
        }
        let longer = self.settings.interval.max(heard.interval_ms * MILLISECOND);
        match self.contest {
            None => self.contest = Some(Contest { sent: 0, over: now + 2 * longer + longer / 5 + longer }),
            Some(contest) if contest.sent >= OWNER_ADVERTS => {
                self.gave_in = true;
                self.outranked(heard, now, out);
            }
            Some(_) => {}
        }
    }

    fn claimed(&mut self, now: u64, out: &mut Vec<Output>) {
        self.disputed = true;
        out.push(Output::Notice(Notice::Claimed));
        if now >= self.announced + SECOND {
            self.announce(now, out);
        }
    }

    fn timer(&mut self, now: u64, out: &mut Vec<Output>) {
        if let Some((at, why)) = self.down
            && at <= now
        {
            self.expired(why, now, out);
        }
        if self.state != State::Master {
            return;
        }
        if self.advert_at.is_some_and(|at| at <= now) {
            out.push(Output::Advertise(self.priority()));
            self.advert_at = Some(self.next_advert(now));
            if let Some(contest) = &mut self.contest {
                contest.sent += 1;
            }
        }
        if take_due(&mut self.healed_at, now) {
            out.push(Output::Notice(Notice::SplitHealed));
            self.announce(now, out);
        }
        if take_due(&mut self.delayed_at, now) {
            self.announce(now, out);
        }
        if take_due(&mut self.refresh_at, now) {
            self.announce(now, out);
            self.refresh_at = Some(now + self.settings.garp_refresh);
        }
        if self.contest.is_some_and(|contest| contest.over <= now) {
            self.contest = None;
        }
    }

    /// Advertisements keep their beat, unless one was late by a whole interval.
    fn next_advert(&self, now: u64) -> u64 {
        let interval = self.settings.interval;
        let beat = self.advert_at.unwrap_or(now) + interval;
        if beat > now { beat } else { now + interval }
    }

    /// The MASTER counts as gone.
    fn expired(&mut self, why: Why, now: u64, out: &mut Vec<Output>) {
        if self.grouped {
            self.ready = true;
            // Kept for the reason; ready is what counts from now on.
            self.down = Some((u64::MAX, why));
            return;
        }
        self.promote(why, now, out);
    }

    fn end(&mut self, now: u64, out: &mut Vec<Output>) {
        if self.state == State::Master {
            out.push(Output::Advertise(RESIGN));
            self.leave_master(State::Init, Why::Ended, now, out);
        } else if self.state != State::Init {
            self.enter(State::Init, Why::Ended, now, out);
        }
    }

    // ---- transitions ----

    fn promote(&mut self, why: Why, now: u64, out: &mut Vec<Output>) {
        self.enter(State::Master, why, now, &mut Vec::new());
        self.lease = now + DOWN_INTERVALS * self.settings.interval;
        out.push(Output::Advertise(self.priority()));
        out.push(Output::Hold);
        self.announce(now, out);
        self.advert_at = Some(now + self.settings.interval);
        self.schedule_announcements(now);
        out.push(Output::Moved { from: State::Backup, to: State::Master, why });
    }

    /// Nobody has noticed that there was another process: nothing is told anew but the advertisement.
    fn resume(&mut self, now: u64, out: &mut Vec<Output>) {
        self.enter(State::Master, Why::Resumed, now, &mut Vec::new());
        self.go_on();
        self.lease = now + DOWN_INTERVALS * self.settings.interval;
        out.extend([Output::Advertise(self.priority()), Output::Hold]);
        self.advert_at = Some(now + self.settings.interval);
        self.schedule_announcements(now);
        out.push(Output::Moved { from: State::Backup, to: State::Master, why: Why::Resumed });
    }

    fn resign(&mut self, why: Why, now: u64, out: &mut Vec<Output>) {
        out.push(Output::Advertise(RESIGN));
        self.leave_master(State::Backup, why, now, out);
    }

    fn leave_master(&mut self, to: State, why: Why, now: u64, out: &mut Vec<Output>) {
        out.push(Output::Release);
        self.enter(to, why, now, out);
    }

    /// Every state begins with the timers that are its own and no others.
    fn enter(&mut self, to: State, why: Why, now: u64, out: &mut Vec<Output>) {
        let from = std::mem::replace(&mut self.state, to);
        (self.since, self.entered) = (now, now);
        self.transitions += u64::from(from != State::Init && to != State::Init);
        (self.advert_at, self.delayed_at, self.refresh_at, self.healed_at) = (None, None, None, None);
        (self.contest, self.master, self.down, self.hold_until) = (None, None, None, None);
        (self.ready, self.yields, self.disputed) = (false, false, false);
        if to == State::Backup {
            self.learnt = self.settings.interval;
            self.wait(Why::Silence, now);
        }
        out.push(Output::Moved { from, to, why });
    }

    /// The MASTER has the whole time from now on.
    fn wait(&mut self, why: Why, now: u64) {
        self.ready = false;
        self.down = Some((now + DOWN_INTERVALS * self.master_interval() + self.skew(), why));
    }

    /// Section 6.1; version 2 does not learn (RFC 3768 section 6.1).
    fn master_interval(&self) -> u64 {
        match self.settings.version {
            VrrpVersion::V2 => self.settings.interval,
            VrrpVersion::V3 => self.learnt,
        }
    }

    /// The lower the priority, the longer the wait: so the best of the others comes first.
    fn skew(&self) -> u64 {
        let unit = match self.settings.version {
            VrrpVersion::V2 => SECOND,
            VrrpVersion::V3 => self.learnt,
        };
        unit * (256 - u64::from(self.priority())) / 256
    }

    fn announce(&mut self, now: u64, out: &mut Vec<Output>) {
        self.announced = now;
        out.push(Output::Announce);
    }

    fn schedule_announcements(&mut self, now: u64) {
        let after = |pause: u64| (pause > 0).then(|| now + pause);
        self.delayed_at = after(self.settings.garp_delay);
        self.refresh_at = after(self.settings.garp_refresh);
    }
}

/// Whether a time has come; if so it is past.
fn take_due(at: &mut Option<u64>, now: u64) -> bool {
    at.take_if(|at| *at <= now).is_some()
}

#[cfg(test)]
mod tests;
