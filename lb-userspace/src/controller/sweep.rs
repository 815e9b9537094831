//! The walk over the slots, a share each second: idle flows are suspected and then closed, slots
//! held back are released, and nothing stays unconfirmed forever.
//!
//! An idle flow is put under suspicion first, by compare-and-swap; any packet clears it. One that
//! is still suspect a second later is closed, and both sides get a RST, at a limited rate because
//! thousands of watches may go idle at once. One that is not ours, and of which nobody tells, is
//! forgotten instead.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use lb_common::{flow::SlotAt, slot::State, time::Instant, verdict::Reason};

use super::{half_open::UNCONFIRMED, ownership::Ours};
use crate::tables::{FlowAt, Head};

/// How long a slot whose try failed is held back: as long as Linux keeps TIME_WAIT.
const HELD_BACK: Duration = Duration::from_secs(60);
/// How long a suspect has to show a sign of life.
const SUSPICION: Duration = Duration::from_secs(1);
/// A walk over all slots takes half the shortest idle_timeout, within these bounds.
const WALK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The longest time between two turns; a turn that comes later walks no further than this is worth.
const PERIOD: Duration = Duration::from_secs(1);
/// The time between two turns while suspects wait for their end.
const SOON: Duration = Duration::from_millis(100);

/// What the sweep needs to know about the service of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The service's number.
    pub service: u16,
    /// How long a flow may be without a packet.
    pub idle_timeout: Duration,
    /// How long a connection attempt can last, all tries together.
    pub connecting: Duration,
    /// Connections closed in a second.
    pub reset_rate: u32,
}

/// What is to be done to one flow, by compare-and-swap of its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Put it under suspicion.
    Suspect(FlowAt),
    /// Close it and reset both sides.
    Close(FlowAt, Reason),
    /// Held back long enough: its port is free again.
    Release(FlowAt),
    /// End it without a packet: it is another host's, if it still lives.
    Forget(FlowAt),
}

/// A suspect, and the time since when it is one.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    /// With the word it has while suspect.
    flow: FlowAt,
    since: Instant,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Where the walk goes on: pool and slot.
    next: (u16, u32),
    suspects: BTreeMap<SlotAt, Suspect>,
    turned_at: Option<Instant>,
}

impl Sweep {
    /// When the next turn is due: soon while suspects wait for their end, else in a second.
    pub fn deadline(&self, now: Instant) -> Instant {
        now + if self.suspects.is_empty() { PERIOD } else { SOON }
    }

    /// One turn: closes suspects of the turns before, and walks on by as many slots as the time
    /// since the last turn is worth. `limits` gives those of a backend's service;
    /// `shortest_idle_timeout` is that of all services.
    pub fn turn(
        &mut self,
        pools: &[u16],
        limits: &dyn Fn(u16) -> Limits,
        shortest_idle_timeout: Duration,
        ours: &Ours,
        now: Instant,
    ) -> Vec<Step> {
        let elapsed = self.turned_at.replace(now).unwrap_or(now).age(now).min(PERIOD);
        let mut steps = self.close_suspects(limits, ours, elapsed, now);
        let walk = (shortest_idle_timeout / 2).clamp(WALK.0, WALK.1);
        let all: u128 = pools.iter().map(|pool| u128::from(ours.slots(*pool))).sum();
        let share = (all * elapsed.as_nanos()).div_ceil(walk.as_nanos()) as u64;
        self.walk(pools, share, ours, &mut |sweep, pool, range| {
            for head in ours.heads(pool, range.clone()) {
                sweep.judge(&head, &limits(head.backend), ours, now, &mut steps);
            }
            let foreign = ours.foreign(pool, range);
            let left = foreign.filter(|head| is_left(head, &limits(head.backend), ours.is_told(), now));
            steps.extend(left.map(|head| Step::Forget(head.flow)));
        });
        steps
    }

    /// Visits the next `share` slots, pool by pool, and starts over after the last one.
    fn walk(&mut self, pools: &[u16], mut share: u64, ours: &Ours, visit: &mut dyn FnMut(&mut Sweep, u16, Range<u32>)) {
        while share > 0 && !pools.is_empty() {
            let Some(pool) = pools.iter().copied().find(|pool| *pool >= self.next.0) else {
                self.next = (0, 0);
                continue;
            };
            let from = if pool == self.next.0 { self.next.1 } else { 0 };
            let slots = ours.slots(pool);
            let to = u64::from(slots).min(u64::from(from) + share) as u32;
            visit(self, pool, from..to);
            // An empty pool costs one, so that the loop ends.
            share -= u64::from(to.saturating_sub(from)).clamp(1, share);
            self.next = if to >= slots { (pool + 1, 0) } else { (pool, to) };
        }
    }

    fn judge(&mut self, head: &Head, limits: &Limits, ours: &Ours, now: Instant, steps: &mut Vec<Step>) {
        let idle = head.last_seen.age(now.ticks());
        match head.flow.ctl.state() {
            // No more suspects than can be closed in a few seconds; the next walk finds the others.
            State::Established | State::ClosingClient | State::ClosingBackend
                if idle >= limits.idle_timeout && self.suspects.len() < 4 * limits.reset_rate as usize =>
            {
                self.suspect(FlowAt { ctl: head.flow.ctl.suspected(), ..head.flow }, now);
                steps.push(Step::Suspect(head.flow));
            }
            // Suspected by a controller that was killed since.
            State::Suspect if !self.suspects.contains_key(&head.flow.at) => self.suspect(head.flow, now),
            State::Abandoned if idle >= HELD_BACK => steps.push(Step::Release(head.flow)),
            State::Answered if idle >= 2 * UNCONFIRMED => steps.push(Step::Close(head.flow, Reason::Unconfirmed)),
            State::HalfOpen => {
                let began = ours.flow(head.flow.at).filter(|flow| flow.ctl == head.flow.ctl);
                if began.is_some_and(|flow| flow.opening.started.age(now) > limits.connecting + HELD_BACK) {
                    steps.push(Step::Close(head.flow, Reason::ConnectTimeout));
                }
            }
            _ => {}
        }
    }

    fn suspect(&mut self, flow: FlowAt, since: Instant) {
        self.suspects.insert(flow.at, Suspect { flow, since });
    }

    /// The suspects whose second is over, as many as the rate of each service allows. A flow that
    /// has shown a sign of life since then has another word, and the swap fails.
    fn close_suspects(
        &mut self,
        limits: &dyn Fn(u16) -> Limits,
        ours: &Ours,
        elapsed: Duration,
        now: Instant,
    ) -> Vec<Step> {
        let mut closed = BTreeMap::new();
        let mut steps = Vec::new();
        self.suspects.retain(|at, suspect| {
            if suspect.since.age(now) < SUSPICION {
                return true;
            }
            // The address may have moved since.
            let Some(flow) = ours.own_flow(*at).filter(|flow| flow.ctl == suspect.flow.ctl) else { return false };
            let limits = limits(flow.backend());
            let count = closed.entry(limits.service).or_insert(0_u64);
            let allowed = (elapsed * limits.reset_rate).as_secs().max(1);
            if *count >= allowed {
                return true;
            }
            *count += 1;
            steps.push(Step::Close(flow.seen(), Reason::IdleTimeout));
            false
        });
        steps
    }
}

/// Whether a flow that is not ours is over, though nobody says so.
fn is_left(head: &Head, limits: &Limits, is_told: bool, now: Instant) -> bool {
    let idle = head.last_seen.age(now.ticks());
    match head.flow.ctl.state() {
        State::HalfOpen | State::Answered => idle >= limits.connecting + UNCONFIRMED,
        _ => !is_told && idle >= limits.idle_timeout,
    }
}

#[cfg(test)]
mod tests;
