//! One virtual router on one host: the state machine of RFC 9568 section 6.4 with keepalived's
//! additions (FAULT, nopreempt, preempt_delay, weights, groups), without I/O and without a clock.
//!
//! How to drive a [`Machine`]:
//! - pass everything that happens to [`handle`](Machine::handle) and carry out its outputs in
//!   order;
//! - when [`deadline`](Machine::deadline) has come, pass [`Input::Timer`], but read the sockets
//!   first: a router that was stopped for a while must hear of its successor before it speaks;
//! - when an advertisement has left, call [`sent`](Machine::sent). The lease is counted from there.
//!
//! A MASTER that could not advertise for three intervals (stopped, starved, or its interface takes
//! nothing) is no longer MASTER: its peers have taken over. On any wake-up it steps down first. Of a
//! sleep that the clock does not show, [`Input::Slept`] tells.
//!
//! RFC 9568 says Active where RFC 5798, keepalived and this program say MASTER. Sections are those
//! of RFC 9568 unless another RFC is named.

mod backup;
mod master;
mod state;

use std::{net::IpAddr, time::Duration};

use lb_common::time::Instant;

pub use backup::HeardMaster;
pub use state::{Past, Why};

use super::receive::Heard;
pub use crate::words::VrrpState as State;
use crate::words::{OWNER_PRIORITY as OWNER, VrrpVersion};
use backup::Backup;
use master::{Master, Spoken, Verdict};

/// "I resign": the priority in the last advertisement of a MASTER that ends in order.
pub const RESIGN: u8 = 0;
/// Intervals without an advertisement after which the MASTER counts as gone (section 6.1).
pub const DOWN_INTERVALS: u32 = 3;

/// The configuration, in the machine's units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Version 2 counts the skew in seconds and does not learn the MASTER's interval.
    pub version: VrrpVersion,
    /// `priority`
    pub priority: u8,
    /// `advert_interval`
    pub interval: Duration,
    /// `preempt`
    pub preempt: bool,
    /// `preempt_delay`; zero: none.
    pub preempt_delay: Duration,
    /// `garp_delay`; zero: never.
    pub garp_delay: Duration,
    /// `garp_refresh`; zero: never.
    pub garp_refresh: Duration,
}

impl Settings {
    /// For how long after an advertisement no peer takes over, if it hears nothing more.
    pub fn lease(&self) -> Duration {
        DOWN_INTERVALS * self.interval
    }
}

/// Something that happens to the machine.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// The host can be a router, with this address as its own; or it cannot.
    Usable(Option<IpAddr>),
    /// The sum of the weights of everything that is tracked.
    Weight(i32),
    /// Whether another host may have connections that are not known here yet (flow sync).
    LacksFlows(bool),
    /// An accepted advertisement.
    Heard(Heard),
    /// The deadline has come.
    Timer,
    /// The host stood still for this long, and the clock with it (a suspended or paused machine).
    Slept(Duration),
    /// Another host claims one of our addresses.
    Claimed,
    /// An operator gives the mastership away.
    GiveAway,
    /// The whole group is ready.
    Promote,
    /// Another member of the group is no longer MASTER.
    StepDown,
    /// At the start: an earlier run was MASTER a moment ago, and its lease still holds.
    Resume,
    /// The machine ends in order.
    End,
}

/// Something that the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send an advertisement with this priority.
    Advertise(u8),
    /// Send one more advertisement, though this host is no longer MASTER. It renews no lease.
    Concede {
        /// Its priority.
        priority: u8,
        /// Its interval: that of the better MASTER, which BACKUPs learn from it.
        interval: Duration,
    },
    /// Put the addresses on the interface.
    Hold,
    /// Take the addresses off the interface. The lease ends at once.
    Release,
    /// Tell the segment where the addresses are, `garp_repeat` times.
    Announce,
    /// The state has changed.
    Moved {
        /// The state before.
        from: State,
        /// The state now.
        to: State,
        /// What made it change.
        why: Why,
    },
    /// Another router contends for the addresses, or no longer does: for the operator.
    Contention(Contention),
}

/// More than one router takes the addresses for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contention {
    /// We are MASTER and heard another MASTER, which gives way if it hears us.
    LowerMaster {
        /// The other MASTER.
        from: IpAddr,
        /// Its priority.
        priority: u8,
    },
    /// The other MASTER has fallen silent: the split has healed.
    SplitHealed,
    /// Another host claims one of our addresses, by ARP or neighbour discovery.
    Claimed,
    /// Two routers are configured as owners of the addresses.
    TwoOwners(IpAddr),
}

/// The state machine of one virtual router. The module's documentation says how to drive it.
///
/// ```text
///   Usable(Some) ┌────────┐ End, from every state
///        ┌───────│  INIT  │◀──────────────────────────────────────────────┐
///        │       └────────┘                                               │
///        │            │ Usable(None)                                      │
///        │            ▼                                                   │
///        │       ┌────────┐                      Usable(None): resigns    │
///        │       │ FAULT  │◀────────────────────────────────────────┐     │
///        │       └────────┘                                         │     │
///        │          │  ▲                                            │     │
///        │          │  │ Usable(None)                               │     │
///        ▼          ▼  │                                            │     │
///   ┌───────────────────┐ 6.4.2: the Active_Down_Timer fires  ┌────────────────┐
///   │                   │────────────────────────────────────▶│                │
///   │      BACKUP       │ owner, Promote, Resume              │     MASTER     │
///   │                   │◀────────────────────────────────────│                │
///   └───────────────────┘ 6.4.3: a better MASTER is heard;    └────────────────┘
///                         lease lapsed, GiveAway, StepDown
/// ```
/// Two edges differ from section 6.4: the owner of the addresses passes through BACKUP, without
/// waiting there, and FAULT is keepalived's.
#[derive(Clone, Debug)]
pub struct Machine {
    candidate: Candidate,
    phase: Phase,
    /// Becomes MASTER only together with the other members of its group.
    grouped: bool,
    /// When the state was entered, by this process or by the one before it.
    since: Instant,
    transitions: u64,
    past: Option<Past>,
    /// What the last mastership has said to lower MASTERs and to the segment.
    spoken: Spoken,
}

/// The state, with the timers and facts that exist in it and end with it.
#[derive(Clone, Debug)]
enum Phase {
    Init,
    Backup(Backup),
    Master(Master),
    Fault,
}

/// What this host brings to the election, in every phase.
#[derive(Clone, Debug)]
struct Candidate {
    settings: Settings,
    /// The host's own address. It outlives the address itself: a resignation in FAULT still comes
    /// from it.
    source: Option<IpAddr>,
    weight: i32,
    /// Preempting a MASTER now would lose its connections.
    lacks_flows: bool,
    /// The mastership was given away: whichever router has it keeps it until it is gone.
    yields: bool,
    /// The other owner of the addresses did not give in: this host's priority counts as 254 until
    /// it is configured again.
    gave_in: bool,
}

impl Candidate {
    /// The priority with all weights; 1 to 254, or 255 for the owner.
    fn priority(&self) -> u8 {
        match self.settings.priority {
            OWNER if self.gave_in => OWNER - 1,
            OWNER => OWNER,
            base => (i32::from(base) + self.weight).clamp(1, i32::from(OWNER) - 1) as u8,
        }
    }
}

impl Machine {
    /// A machine in INIT, until [`Input::Usable`] says whether the host can be a router.
    pub fn new(settings: Settings) -> Machine {
        Machine {
            candidate: Candidate {
                settings,
                source: None,
                weight: 0,
                lacks_flows: false,
                yields: false,
                gave_in: false,
            },
            phase: Phase::Init,
            grouped: false,
            since: Instant::ZERO,
            transitions: 0,
            past: None,
            spoken: Spoken::default(),
        }
    }

    // ---- questions ----

    /// The state.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Init => State::Init,
            Phase::Backup(_) => State::Backup,
            Phase::Master(_) => State::Master,
            Phase::Fault => State::Fault,
        }
    }

    /// When the state was entered.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Changes between BACKUP, MASTER and FAULT.
    pub fn transitions(&self) -> u64 {
        self.transitions
    }

    /// What the next process needs in order to go on; see [`recall`](Self::recall).
    pub fn past(&self) -> Past {
        let yields = self.candidate.yields;
        Past { state: self.state(), since: self.since, transitions: self.transitions, yields }
    }

    /// Whether it would be MASTER if the rest of its group were ready.
    pub fn is_ready(&self) -> bool {
        matches!(&self.phase, Phase::Backup(backup) if backup.is_ready())
    }

    /// The host's own address.
    pub fn source(&self) -> Option<IpAddr> {
        self.candidate.source
    }

    /// The MASTER that is heard while this host is BACKUP.
    pub fn master(&self) -> Option<HeardMaster> {
        match &self.phase {
            Phase::Backup(backup) => backup.master,
            Phase::Init | Phase::Master(_) | Phase::Fault => None,
        }
    }

    /// The priority with all weights; 1 to 254, or 255 for the owner.
    pub fn priority(&self) -> u8 {
        self.candidate.priority()
    }

    /// The moment before which no peer takes over, even if it hears nothing more from this host;
    /// zero while this host is not MASTER.
    pub fn lease(&self) -> Instant {
        match &self.phase {
            Phase::Master(master) => master.lease,
            Phase::Init | Phase::Backup(_) | Phase::Fault => Instant::ZERO,
        }
    }

    /// Whether an advertisement of this mastership has left. Before that the segment must not be told
    /// where the addresses are: nobody may know that this host is MASTER.
    pub fn has_spoken(&self) -> bool {
        matches!(&self.phase, Phase::Master(master) if master.has_spoken)
    }

    /// Whether it leaves a lower MASTER in peace because flow sync does not know all of its
    /// connections yet.
    pub fn waits_for_flows(&self, now: Instant) -> bool {
        matches!(&self.phase, Phase::Backup(backup) if backup.waits_for_flows(&self.candidate, now))
    }

    /// When [`Input::Timer`] is due; `None`: there is nothing to wait for.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Backup(backup) => backup.deadline(),
            Phase::Master(master) => Some(master.deadline()),
            Phase::Init | Phase::Fault => None,
        }
    }

    // ---- what comes in ----

    /// Another process ran this router before. What it has left counts once this machine reaches
    /// the same state: at once, or by [`Input::Resume`]. That it was given away counts in any case.
    pub fn recall(&mut self, past: Past) {
        self.candidate.yields = past.yields;
        self.past = Some(past).filter(|past| past.state != State::Init);
    }

    /// An advertisement left at `now`. Returns the new end of the lease.
    pub fn sent(&mut self, now: Instant) -> Instant {
        if let Phase::Master(master) = &mut self.phase {
            master.lease = now + self.candidate.settings.lease();
            master.has_spoken = true;
        }
        self.lease()
    }

    /// Applies new settings of the same virtual router.
    pub fn configure(&mut self, settings: Settings, now: Instant) -> Vec<Output> {
        if settings == self.candidate.settings {
            return Vec::new();
        }
        self.candidate.settings = settings;
        self.candidate.gave_in = false;
        match &mut self.phase {
            Phase::Master(master) => {
                master.configure(&self.candidate.settings, now);
                vec![Output::Advertise(self.candidate.priority())]
            }
            Phase::Backup(backup) => {
                backup.configure(&self.candidate, now);
                Vec::new()
            }
            Phase::Init | Phase::Fault => Vec::new(),
        }
    }

    /// Says whether it has to wait for other members of a group. One that has waited and no longer
    /// has to goes on at once.
    pub fn set_grouped(&mut self, grouped: bool, now: Instant) -> Vec<Output> {
        self.grouped = grouped;
        if grouped || !self.is_ready() { Vec::new() } else { self.handle(Input::Promote, now) }
    }

    /// Handles one input at `now`.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Output> {
        let mut out = Vec::new();
        if let Input::Slept(time) = input {
            self.slept(time, now);
        }
        if matches!(&self.phase, Phase::Master(master) if now >= master.lease) && !matches!(input, Input::End) {
            self.leave_master(State::Backup, Why::LeaseLapsed, now, &mut out);
        }
        match (input, &mut self.phase) {
            (Input::Usable(source), _) => self.usable(source, now, &mut out),
            (Input::Weight(weight), _) => self.candidate.weight = weight,
            (Input::LacksFlows(lacks), _) => self.candidate.lacks_flows = lacks,
            (Input::Heard(heard), _) => self.heard(heard, now, &mut out),
            (Input::Timer, _) => self.timer(now, &mut out),
            (Input::Claimed, Phase::Master(master)) => master.claimed(now, &mut out),
            (Input::GiveAway, Phase::Master(_)) => self.give_away(now, &mut out),
            (Input::StepDown, Phase::Master(_)) => self.leave_master(State::Backup, Why::Group, now, &mut out),
            // A member that was ready by itself has waited for its group for its own reason.
            (Input::Promote, Phase::Backup(backup)) => {
                let why = backup.why();
                self.promote(why, now, &mut out);
            }
            (Input::Resume, Phase::Backup(_)) => self.resume(now, &mut out),
            (Input::End, _) => self.end(now, &mut out),
            (Input::Claimed | Input::GiveAway | Input::StepDown | Input::Promote | Input::Resume, _)
            | (Input::Slept(_), _) => {}
        }
        out
    }

    /// The peers' time has gone on: they wait for a MASTER by their own clocks, and what this host
    /// had heard before says nothing about now.
    fn slept(&mut self, time: Duration, now: Instant) {
        match &mut self.phase {
            Phase::Master(master) => master.lease = master.lease - time,
            Phase::Backup(backup) => backup.wait_anew(&self.candidate, now),
            Phase::Init | Phase::Fault => {}
        }
    }

    fn usable(&mut self, source: Option<IpAddr>, now: Instant, out: &mut Vec<Output>) {
        self.candidate.source = source.or(self.candidate.source);
        match (&self.phase, source) {
            (Phase::Init, Some(_)) => {
                self.start(Why::Started, now, out);
                self.continue_past();
            }
            (Phase::Fault, Some(_)) => self.start(Why::Recovered, now, out),
            (Phase::Master(_), None) => {
                out.push(Output::Advertise(RESIGN));
                self.leave_master(State::Fault, Why::Fault, now, out);
            }
            (Phase::Init, None) => {
                out.push(self.enter(State::Fault, Why::Fault, now));
                self.continue_past();
            }
            (Phase::Backup(_), None) => out.push(self.enter(State::Fault, Why::Fault, now)),
            (Phase::Fault, None) | (Phase::Backup(_) | Phase::Master(_), Some(_)) => {}
        }
    }

    /// Section 6.4.1: "If a Startup event is received". The owner does not wait, unless an operator
    /// has given its mastership away, or another MASTER may have connections that are not known here:
    /// then it listens first, as any other.
    fn start(&mut self, why: Why, now: Instant, out: &mut Vec<Output>) {
        out.push(self.enter(State::Backup, why, now));
        if self.priority() == OWNER && !self.candidate.yields && !self.candidate.lacks_flows {
            self.master_down(Why::Owner, now, out);
        }
    }

    fn heard(&mut self, heard: Heard, now: Instant, out: &mut Vec<Output>) {
        let verdict = match &mut self.phase {
            Phase::Backup(backup) => return backup.heard(heard, &self.candidate, now),
            Phase::Master(master) => master.heard(heard, &self.candidate, now, out),
            Phase::Init | Phase::Fault => return,
        };
        match verdict {
            Verdict::Stay => {}
            Verdict::GiveWay => self.give_way(heard, now, out),
            Verdict::GiveIn => {
                self.candidate.gave_in = true;
                self.give_way(heard, now, out);
            }
        }
    }

    fn timer(&mut self, now: Instant, out: &mut Vec<Output>) {
        match &mut self.phase {
            Phase::Backup(backup) => {
                if let Some(why) = backup.expired(now) {
                    self.master_down(why, now, out);
                }
            }
            Phase::Master(master) => master.timer(&self.candidate, now, out),
            Phase::Init | Phase::Fault => {}
        }
    }

    /// Section 6.4.2: "If the Active_Down_Timer fires". A member of a group waits for the others.
    fn master_down(&mut self, why: Why, now: Instant, out: &mut Vec<Output>) {
        match &mut self.phase {
            Phase::Backup(backup) if self.grouped => backup.wait_for_group(why),
            _ => self.promote(why, now, out),
        }
    }

    fn give_away(&mut self, now: Instant, out: &mut Vec<Output>) {
        out.push(Output::Advertise(RESIGN));
        self.leave_master(State::Backup, Why::GivenAway, now, out);
        self.candidate.yields = true;
    }

    /// To a better MASTER, which may never have heard of us, while other hosts have: what they send
    /// comes here. One more advertisement lets it tell the segment where the addresses are, as with
    /// keepalived's vrrp_higher_prio_send_advert. A resignation would let a third router take over
    /// that hears us before it hears the better one.
    fn give_way(&mut self, heard: Heard, now: Instant, out: &mut Vec<Output>) {
        if self.has_spoken() {
            out.push(Output::Concede { priority: self.priority(), interval: heard.interval });
        }
        self.leave_master(State::Backup, Why::Outranked(heard.source), now, out);
        if let Phase::Backup(backup) = &mut self.phase {
            backup.heard(heard, &self.candidate, now);
        }
    }

    /// Section 6.4.2 and 6.4.3: "If a Shutdown event is received"; a MASTER advertises priority 0.
    fn end(&mut self, now: Instant, out: &mut Vec<Output>) {
        match self.phase {
            Phase::Init => {}
            Phase::Backup(_) | Phase::Fault => out.push(self.enter(State::Init, Why::Ended, now)),
            Phase::Master(_) => {
                out.push(Output::Advertise(RESIGN));
                self.leave_master(State::Init, Why::Ended, now, out);
            }
        }
    }

    // ---- transitions ----

    fn promote(&mut self, why: Why, now: Instant, out: &mut Vec<Output>) {
        let moved = self.enter(State::Master, why, now);
        out.extend([Output::Advertise(self.priority()), Output::Hold]);
        if let Phase::Master(master) = &mut self.phase {
            master.announce(now, out);
        }
        out.push(moved);
    }

    /// No host has noticed that the process has changed, so nothing is announced to the segment
    /// again.
    fn resume(&mut self, now: Instant, out: &mut Vec<Output>) {
        let moved = self.enter(State::Master, Why::Resumed, now);
        self.continue_past();
        out.extend([Output::Advertise(self.priority()), Output::Hold, moved]);
    }

    fn leave_master(&mut self, to: State, why: Why, now: Instant, out: &mut Vec<Output>) {
        out.extend([Output::Release, self.enter(to, why, now)]);
    }

    /// Every phase begins with its own timers. Returns the change for the shell.
    fn enter(&mut self, to: State, why: Why, now: Instant) -> Output {
        let from = self.state();
        if let Phase::Master(master) = &self.phase {
            self.spoken = master.spoken;
        }
        self.phase = match to {
            State::Init => Phase::Init,
            State::Backup => Phase::Backup(Backup::new(&self.candidate, now)),
            State::Master => {
                self.candidate.yields = false;
                Phase::Master(Master::new(&self.candidate.settings, self.spoken, now))
            }
            State::Fault => Phase::Fault,
        };
        self.since = now;
        self.transitions += u64::from(from != State::Init && to != State::Init);
        Output::Moved { from, to, why }
    }

    /// In the state that the process before was in, it is as if there had been one process only;
    /// in another one, the state has changed once more in between.
    fn continue_past(&mut self) {
        let Some(past) = self.past else { return };
        self.transitions = past.transitions + u64::from(past.state != self.state());
        if past.state == self.state() {
            self.since = past.since;
            self.past = None;
        }
    }
}

#[cfg(test)]
pub mod tests;
