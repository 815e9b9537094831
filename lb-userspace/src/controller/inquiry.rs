//! Whether the established connections of a backend are dead: its kernel is asked.
//!
//! A backend that refuses new connections says nothing about those it has: an API server that shuts
//! down closes its listener first and lets requests finish; one that was killed has had its
//! connections ended by its kernel; only after a reboot nothing of them is left. So each gets what a
//! keepalive of the client would be (see [`silence`](super::silence)). A kernel that knows the
//! connection acknowledges, and it stays. One that does not answers with a RST, which the kernel
//! program takes like any other. Where neither comes, because a firewall in front of the new kernel
//! drops what it does not know, the connection is dead too: asked twice without an answer, it is
//! reset.
//!
//! The same is asked when a backend that was out is back, for whatever reason it was out.
//!
//! ```text
//! asked ── no answer in WAIT ──▶ asked again ── no answer in WAIT ──▶ reset, if the guard lets it
//!   └── RST: over; any answer: alive
//! ```
//! A client that speaks just then is taken for an answer unless its data waits for one. So if any
//! connection was dead, all that are left are asked once more.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use lb_common::{
    flow::SlotAt,
    time::{Instant, Ticks},
};

use super::{ownership::Ours, reset_guard::Spared, resets::Only};
use crate::tables::{Flow, FlowAt, Installed};

/// How long a backend has to answer.
const WAIT: Duration = Duration::from_secs(1);
/// How often a connection is asked.
const TIMES: u8 = 2;
/// Between two turns while there is something to do.
const PERIOD: Duration = Duration::from_millis(10);
/// Between two looks at whether connections may be reset, while they may not.
const AGAIN: Duration = Duration::from_secs(1);
/// Most slots looked at in one turn: a cache line each.
const SLOTS: u32 = 8_192;
/// Slots looked at in one go.
const PIECE: u32 = 256;
/// How far one that was kept waiting may catch up at once.
const BURST: Duration = Duration::from_millis(50);
/// Walks after which it is over, whatever they found.
const WALKS: u32 = 8;

/// What a turn returns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Connections to be asked.
    pub ask: Vec<FlowAt>,
    /// Connections that are dead, and of which backend.
    pub dead: Vec<(FlowAt, u16)>,
    /// Backends whose connections would be reset if the guard let them; reported once.
    pub spared: Vec<(u16, Spared)>,
    /// Backends about which all is known, and how many of their connections were reset.
    pub over: Vec<(u16, u64)>,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Inquiry {
    cases: BTreeMap<u16, Case>,
    /// The dead ones of the last turn, by backend.
    handed_out: BTreeMap<SlotAt, u16>,
}

/// One backend.
#[derive(Debug)]
struct Case {
    /// Connections that began later are alive.
    begun_by: Instant,
    due: Instant,
    /// When the rate allows the next question.
    next: Instant,
    /// Where the walk goes on: pools that it has not finished, and the slot in the first of them.
    pools: VecDeque<u16>,
    slot: u32,
    /// Asked, in the order in which the answers are due.
    asked: VecDeque<Asked>,
    /// Walks that may still begin; the last one was the last if it found nothing dead.
    walks: u32,
    found_dead: bool,
    reset: u64,
    spared: bool,
}

/// A connection as it was when it was asked.
#[derive(Clone, Copy, Debug)]
struct Asked {
    flow: FlowAt,
    due: Instant,
    times: u8,
    last_seen: Ticks,
    ack_backend: u32,
    end_backend: u64,
}

impl Asked {
    fn new(flow: &Flow, times: u8, now: Instant) -> Asked {
        let record = &flow.record;
        let (last_seen, ack_backend, end_backend) = (record.last_seen, record.ack_backend, record.end_backend);
        Asked { flow: flow.seen(), due: now + WAIT, times, last_seen, ack_backend, end_backend }
    }

    /// Whether the backend has answered since: it has acknowledged or sent something new; or
    /// something was seen, and it is not only a client that waits.
    fn is_answered(&self, now: &Flow) -> bool {
        let record = &now.record;
        let moved = (record.ack_backend, record.end_backend) != (self.ack_backend, self.end_backend);
        let client_waits = record.end_client as u32 != record.ack_backend;
        moved || record.last_seen != self.last_seen && !client_waits
    }

    /// The connection now, if it is still the same and open.
    fn still_open(&self, ours: &Ours) -> Option<Flow> {
        let same = |flow: &Flow| flow.ctl.generation() == self.flow.ctl.generation() && is_meant(flow);
        ours.flow(self.flow.at).filter(same)
    }
}

fn is_meant(flow: &Flow) -> bool {
    Only::Connected.takes(flow.ctl)
}

/// What a turn needs of the rest of the controller.
pub struct Surroundings<'a> {
    /// What the tables hold.
    pub installed: &'a Installed,
    /// Connections a second that may be asked, for a backend.
    pub rate: &'a dyn Fn(u16) -> u32,
    /// Whether and why a backend's connections may not be reset.
    pub spared: &'a dyn Fn(u16) -> Option<Spared>,
    /// The flows of this host.
    pub ours: &'a Ours<'a>,
}

impl Inquiry {
    /// Has all connections that a backend has at `now` asked, also if that is under way.
    pub fn begin(&mut self, backend: u16, now: Instant) {
        let before = self.cases.remove(&backend);
        let (reset, spared) = before.map_or((0, false), |case| (case.reset, case.spared));
        let case = Case {
            begun_by: now,
            due: now,
            next: now,
            pools: VecDeque::new(),
            slot: 0,
            asked: VecDeque::new(),
            walks: WALKS,
            found_dead: true,
            reset,
            spared,
        };
        self.cases.insert(backend, case);
    }

    /// A backend is out for a reason about which the guard decides alone.
    pub fn end(&mut self, backend: u16) {
        self.cases.remove(&backend);
    }

    /// Forgets backends that are gone.
    pub fn retain(&mut self, keep: impl Fn(u16) -> bool) {
        self.cases.retain(|backend, _| keep(*backend));
    }

    /// Whether a backend has connections that would be reset if the guard let them.
    pub fn is_spared(&self, backend: u16) -> bool {
        self.cases.get(&backend).is_some_and(|case| case.spared)
    }

    /// A connection of the last turn was not closed after all: it had changed by then.
    pub fn not_closed(&mut self, at: SlotAt) {
        let case = self.handed_out.remove(&at).and_then(|backend| self.cases.get_mut(&backend));
        if let Some(case) = case {
            case.reset -= 1;
        }
    }

    /// When the next turn is due; `NEVER` if there is nothing to ask.
    pub fn deadline(&self) -> Instant {
        self.cases.values().map(|case| case.due).min().unwrap_or(Instant::NEVER)
    }

    /// One turn for every backend that is due.
    pub fn turn(&mut self, around: &Surroundings, now: Instant) -> Turn {
        let mut turn = Turn::default();
        let due = self.cases.values().filter(|case| case.due <= now).count().max(1);
        let slots = (SLOTS / due as u32).max(PIECE);
        self.cases.retain(|backend, case| {
            if case.due > now {
                return true;
            }
            let goes_on = case.advance(*backend, slots, around, &mut turn, now);
            if !goes_on {
                turn.over.push((*backend, case.reset));
            }
            goes_on
        });
        self.handed_out = turn.dead.iter().map(|(flow, backend)| (flow.at, *backend)).collect();
        turn
    }
}

impl Case {
    /// False: all is known.
    fn advance(&mut self, backend: u16, slots: u32, around: &Surroundings, turn: &mut Turn, now: Instant) -> bool {
        if self.spared && (around.spared)(backend).is_some() {
            self.due = now + AGAIN;
            return true;
        }
        self.spared = false;
        self.due = now + PERIOD;
        if let Some(why) = self.hear(backend, around, turn, now) {
            turn.spared.push((backend, why));
            // All are asked anew when they may be reset.
            *self = Case {
                due: now + AGAIN,
                pools: VecDeque::new(),
                asked: VecDeque::new(),
                found_dead: true,
                spared: true,
                walks: WALKS,
                ..*self
            };
            return true;
        }
        if self.pools.is_empty() {
            if let Some(asked) = self.asked.front() {
                self.due = asked.due;
                return true;
            }
            // What is dead looks open until this turn is over, and is counted then.
            if turn.dead.iter().any(|(_, of)| *of == backend) {
                return true;
            }
            let pools = around.installed.pools_of(backend);
            if !std::mem::take(&mut self.found_dead) || self.walks == 0 || pools.is_empty() {
                return false;
            }
            self.walks -= 1;
            self.pools = pools.into();
            self.slot = 0;
        }
        self.walk(backend, slots, around, turn, now);
        true
    }

    /// Looks at the answers that are due. `Some`: there is a dead connection that may not be reset.
    fn hear(&mut self, backend: u16, around: &Surroundings, turn: &mut Turn, now: Instant) -> Option<Spared> {
        while let Some(asked) = self.asked.pop_front_if(|asked| asked.due <= now) {
            let Some(flow) = asked.still_open(around.ours) else { continue };
            if asked.is_answered(&flow) {
                continue;
            }
            if asked.times < TIMES {
                self.asked.push_back(Asked::new(&flow, asked.times + 1, now));
                turn.ask.push(flow.seen());
                continue;
            }
            if let Some(why) = (around.spared)(backend) {
                return Some(why);
            }
            self.found_dead = true;
            self.reset += 1;
            turn.dead.push((flow.seen(), backend));
        }
        None
    }

    /// Asks as many as the rate allows.
    fn walk(&mut self, backend: u16, mut slots: u32, around: &Surroundings, turn: &mut Turn, now: Instant) {
        let gap = Duration::from_secs(1) / (around.rate)(backend).max(1);
        self.next = self.next.max(now - BURST.max(gap));
        while slots > 0
            && let Some(pool) = self.pools.front().copied()
        {
            let all = around.ours.slots(pool);
            let to = all.min(self.slot + PIECE.min(slots));
            slots -= to.saturating_sub(self.slot).clamp(1, slots);
            for head in around.ours.heads(pool, self.slot..to) {
                if head.backend != backend {
                    continue;
                }
                let flow = around.ours.flow(head.flow.at);
                let Some(flow) = flow.filter(|flow| is_meant(flow) && flow.opening.started <= self.begun_by) else {
                    continue;
                };
                if self.next > now {
                    self.slot = u32::from(head.flow.at.slot());
                    return;
                }
                self.next += gap;
                self.asked.push_back(Asked::new(&flow, 1, now));
                turn.ask.push(flow.seen());
            }
            self.slot = to;
            if to >= all {
                self.pools.pop_front();
                self.slot = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests;
