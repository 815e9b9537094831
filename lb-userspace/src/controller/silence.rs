//! Silent death, seen in the flows: a backend that sends no packet on any connection although it is
//! asked for one.
//!
//! Hearing nothing from a backend proves nothing: watches are idle. So a backend that is quiet
//! while something waits for it (a client has sent and got no answer, a SYN was not answered, its
//! host answers no ARP) is asked: some of its connections get what a keepalive of the client would
//! be, a segment with the sequence number before the next, which every TCP answers with an
//! acknowledgement (RFC 9293 section 3.10.7.4; RFC 1122 section 4.2.3.6). The kernel of a server
//! that is slow, full or hung answers too. Only a host that leaves several such questions on
//! several connections unanswered, for a whole connect_timeout, is silent.
//!
//! ```text
//! quiet ── something waits ──▶ asked ── no answer ──▶ asked again ─ ... ─▶ silent     ROUNDS of them, connect_timeout / ROUNDS apart
//!   ▲                            │                        │
//!   └──────── any packet ────────┴────────────────────────┘
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::{
    layout::HEARD_STEP,
    slot::Ctl,
    time::{Instant, Ticks},
};

use super::ownership::Ours;
use crate::tables::{FlowAt, Head, Tables};

/// Times a backend is asked before it is called silent.
const ROUNDS: u32 = 4;
/// Connections asked each time.
const ASKED: usize = 3;
/// Most slots looked at in one turn: a cache line each.
const SLOTS: u32 = 8_192;
/// Slots looked at in one go.
const PIECE: u32 = 256;
/// Between two turns while the slots are walked over.
const SOON: Duration = Duration::from_millis(10);
/// The least and the most time between two rounds.
const STEP: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// The longest time between two turns, and how long a backend about which nothing can be said is
/// left alone.
const PERIOD: Duration = Duration::from_secs(1);
/// A client's packet that is this much later than the backend's last one waits for an answer, and
/// is not the acknowledgement of what the backend has sent (at most 200 ms late in Linux).
const UNANSWERED: Duration = Duration::from_millis(250);
/// How far a stamp may lie ahead, in ticks: a minute.
const AHEAD: u32 = 1 << 16;
/// How far [`Tables::heard`] and [`Tables::sent`] may lie behind: the step of their stamps, and a
/// tick for the rounding.
const BEHIND: Duration = Ticks(0).age(Ticks(HEARD_STEP + 1));

/// A backend that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Which.
    pub backend: u16,
    /// Its pools.
    pub pools: Vec<u16>,
    /// How long it has to answer.
    pub connect_timeout: Duration,
}

/// What a turn has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Connections on which the backend is to be asked for a sign of life.
    pub ask: Vec<FlowAt>,
    /// Backends that are silent.
    pub silent: Vec<u16>,
}

/// What is known about one backend.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    /// Where the walk over its slots goes on: which of its pools, which slot.
    at: (usize, u32),
    /// Slots looked at since the walk began.
    walked: u32,
    /// Set while it is being asked.
    doubt: Option<Doubt>,
    /// It is not walked over before this time.
    rest_until: Instant,
    /// When clients had last sent as the walk began; `None` if that was so recent that more may
    /// have been sent without a stamp.
    sent: Option<Ticks>,
    /// Likewise for the last complete walk that found no waiting client.
    nobody_since: Option<Ticks>,
}

#[derive(Clone, Copy, Debug)]
struct Doubt {
    /// When it was last heard, before it was asked.
    heard: Ticks,
    rounds: u32,
    /// When the answer to the last question is due.
    due: Instant,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Silence {
    watches: BTreeMap<u16, Watch>,
    /// Backends that did not answer a SYN or an ARP request.
    pointed_at: BTreeSet<u16>,
    due: Instant,
}

impl Silence {
    /// Something was not answered by a backend.
    pub fn point_at(&mut self, backend: u16) {
        self.pointed_at.insert(backend);
        self.due = Instant::ZERO;
    }

    /// Whether a backend is being asked for a sign of life.
    pub fn is_in_doubt(&self, backend: u16) -> bool {
        self.watches.get(&backend).is_some_and(|watch| watch.doubt.is_some_and(|doubt| doubt.rounds > 0))
    }

    /// When the next turn is due.
    pub fn deadline(&self) -> Instant {
        self.due
    }

    /// One turn over all backends that may be called silent.
    pub fn turn(&mut self, subjects: &[Subject], ours: &Ours, now: Instant) -> Look {
        self.watches.retain(|backend, _| subjects.iter().any(|subject| subject.backend == *backend));
        let pointed_at = std::mem::take(&mut self.pointed_at);
        let mut turn = Turn { ours, now, budget: SLOTS, look: Look::default() };
        self.due = now + PERIOD;
        for subject in subjects {
            if ours.backend(subject.backend).active == 0 {
                self.watches.remove(&subject.backend);
                continue;
            }
            let watch = self.watches.entry(subject.backend).or_default();
            let next = watch.look(subject, pointed_at.contains(&subject.backend), &mut turn);
            self.due = self.due.min(next);
        }
        turn.look
    }
}

/// One turn: what it reads, how much it may still read, what it has found.
struct Turn<'a> {
    ours: &'a Ours<'a>,
    now: Instant,
    budget: u32,
    look: Look,
}

impl Watch {
    /// Looks at one backend; returns when the next look is due.
    fn look(&mut self, subject: &Subject, pointed_at: bool, turn: &mut Turn) -> Instant {
        let now = turn.now;
        let step = (subject.connect_timeout / ROUNDS).clamp(STEP.0, STEP.1);
        let Some(heard) = last_heard(subject, turn.ours, now) else { return now + PERIOD };
        if since(heard, now) < step || self.doubt.is_some_and(|doubt| doubt.heard != heard) {
            *self = Watch { at: self.at, ..Watch::default() };
            return now + step;
        }
        if self.doubt.is_none() && pointed_at {
            self.begin(heard, now);
        }
        match self.doubt {
            Some(doubt) if now < doubt.due => doubt.due,
            Some(doubt) if doubt.rounds == ROUNDS => {
                *self = Watch::default();
                turn.look.silent.push(subject.backend);
                now + step
            }
            Some(doubt) => self.ask(doubt, subject, step, turn),
            None => self.search(heard, subject, step, turn),
        }
    }

    fn begin(&mut self, heard: Ticks, now: Instant) {
        self.doubt = Some(Doubt { heard, rounds: 0, due: now });
        self.walked = 0;
    }

    /// Looks for a connection whose client waits for an answer, if there may be one: idle
    /// connections are not walked over.
    fn search(&mut self, heard: Ticks, subject: &Subject, step: Duration, turn: &mut Turn) -> Instant {
        let now = turn.now;
        if now < self.rest_until {
            return self.rest_until;
        }
        if self.walked == 0 {
            let sent = last_sent(subject, turn.ours, now);
            if !may_wait(sent, heard, now) || self.nobody_since == Some(sent) {
                return now + step;
            }
            self.sent = (since(sent, now) >= BEHIND).then_some(sent);
        }
        if !self.walk(subject, 1, turn, &|head| spoke_after(head.last_seen, heard, now)).is_empty() {
            self.begin(heard, now);
            return now;
        }
        if !self.is_round(subject, turn.ours) {
            return now + SOON;
        }
        self.walked = 0;
        self.nobody_since = self.sent;
        self.rest_until = now + step;
        self.rest_until
    }

    /// One round: asks on a few connections, other ones than the round before if there are any.
    fn ask(&mut self, doubt: Doubt, subject: &Subject, step: Duration, turn: &mut Turn) -> Instant {
        let flows = self.walk(subject, ASKED, turn, &|_| true);
        if flows.is_empty() && !self.is_round(subject, turn.ours) {
            return turn.now + SOON;
        }
        if flows.is_empty() {
            // It has no connection to ask on, or to reset.
            *self = Watch { rest_until: turn.now + PERIOD, ..Watch::default() };
            return self.rest_until;
        }
        turn.look.ask.extend(flows);
        self.walked = 0;
        let due = turn.now + step;
        self.doubt = Some(Doubt { rounds: doubt.rounds + 1, due, ..doubt });
        due
    }

    /// Continues over the slots until it has found `most` connections of the backend that `takes`
    /// accepts, the turn's budget is used up, or all slots have been visited.
    fn walk(&mut self, subject: &Subject, most: usize, turn: &mut Turn, takes: &dyn Fn(&Head) -> bool) -> Vec<FlowAt> {
        let mut found = Vec::new();
        while turn.budget > 0 && found.len() < most && !self.is_round(subject, turn.ours) {
            let pool = subject.pools[self.at.0 % subject.pools.len()];
            let slots = turn.ours.slots(pool);
            let from = self.at.1.min(slots);
            let to = slots.min(from + PIECE.min(turn.budget));
            turn.ours.heads(pool, from..to).for_each(|head| {
                let ours = head.backend == subject.backend && is_connected(head.flow.ctl);
                if found.len() < most && ours && takes(&head) {
                    found.push(head.flow);
                }
            });
            let looked_at = (to - from).max(1);
            turn.budget = turn.budget.saturating_sub(looked_at);
            self.walked += looked_at;
            // Behind the last one found: the next round asks others.
            let last = found.last().filter(|_| found.len() == most).map(|flow| u32::from(flow.at.slot()) + 1);
            let to = last.unwrap_or(to);
            self.at = if to >= slots { ((self.at.0 + 1) % subject.pools.len(), 0) } else { (self.at.0, to) };
        }
        found
    }

    fn is_round(&self, subject: &Subject, tables: &Tables) -> bool {
        let all: u32 = subject.pools.iter().map(|pool| tables.slots(*pool).max(1)).sum();
        self.walked >= all
    }
}

fn is_connected(ctl: Ctl) -> bool {
    ctl.state().is_active() && !ctl.state().is_unconfirmed()
}

/// When anything came from the backend last.
fn last_heard(subject: &Subject, tables: &Tables, now: Instant) -> Option<Ticks> {
    subject.pools.iter().map(|pool| tables.heard(*pool)).min_by_key(|heard| since(*heard, now))
}

/// When a client's segment was sent on to the backend last.
fn last_sent(subject: &Subject, tables: &Tables, now: Instant) -> Ticks {
    subject.pools.iter().map(|pool| tables.sent(*pool)).min_by_key(|sent| since(*sent, now)).unwrap_or_default()
}

/// Whether the last segment that was sent on can be one that [`spoke_after`] the backend; its time
/// is up to `HEARD_STEP` behind.
fn may_wait(sent: Ticks, heard: Ticks, now: Instant) -> bool {
    since(heard, now) >= since(sent, now) + UNANSWERED.saturating_sub(BEHIND)
}

/// When anything came from any of `pools` last.
pub fn heard_at(pools: &[u16], tables: &Tables, now: Instant) -> Instant {
    pools.iter().map(|pool| now - since(tables.heard(*pool), now)).max().unwrap_or_default()
}

/// How long ago a stamp was. Not [`Ticks::age`], which takes a stamp that is older than 26 days for
/// one that lies ahead: a standby host may hear nothing for weeks, and its stamps must count as old
/// when it takes over. So only a minute counts as ahead.
fn since(stamp: Ticks, now: Instant) -> Duration {
    if now.ticks().0.wrapping_sub(stamp.0) > u32::MAX - AHEAD {
        return Duration::ZERO;
    }
    Duration::from_nanos(u64::from(now.ticks().0.wrapping_sub(stamp.0)) << 20)
}

fn spoke_after(last_seen: Ticks, heard: Ticks, now: Instant) -> bool {
    since(heard, now) >= since(last_seen, now) + UNANSWERED
}

#[cfg(test)]
mod tests;
