//! `connect_timeout` without waiting for the client to send its SYN again, and the end of flows that
//! were answered and that no client confirms: which unconfirmed flows are due, and when to look
//! next.
//!
//! A SYN costs user space nothing, so no event announces a half-open flow. Their ring is read every
//! [`period`], which is well below connect_timeout, and while it holds any, when the oldest is due.
//! The SYN of a flow that is due goes through the kernel program once more, which moves the flow to
//! another backend or refuses it: one engine decides. A flow that was answered [`UNCONFIRMED`] ago
//! is closed, and its backend gets a RST: its own kernel would wait for the client for a minute.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{
    slot::State,
    time::{Instant, Micros},
};

use super::ownership::Ours;
use crate::tables::FlowAt;

/// How long a client has to acknowledge the backend's answer. Linux repeats a SYN-ACK after one
/// second and after three; a client that got none of the first two is not waited for.
pub const UNCONFIRMED: Duration = Duration::from_secs(3);
/// Most flows of a service handed on in one look, unless there are very many; the rest are due at the next one.
const MOST: usize = 256;
/// If there are very many: this part of them.
const PORTION: usize = 8;
/// The shortest time between two looks, and per flow that was seen: both bound the load that a flood
/// of half-open flows can make.
const AT_LEAST: Duration = Duration::from_millis(10);
const PER_FLOW: Duration = Duration::from_micros(5);
/// While so many flows are half-open, this is the longest time between two looks: a flood is seen soon.
const MANY: u32 = 256;
const OFTEN: Duration = Duration::from_millis(250);
/// The longest time between two looks otherwise.
const AT_MOST: Duration = Duration::from_secs(1);

/// What a look found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Flows whose backend has not answered in time.
    pub due: Vec<FlowAt>,
    /// Flows whose client has not confirmed them in time.
    pub unconfirmed: Vec<FlowAt>,
    /// When to look again.
    pub next: Instant,
}

/// What the last look at a service's ring saw.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    head: u32,
    open: u32,
}

/// The machine; one for all services.
#[derive(Debug, Default)]
pub struct HalfOpen {
    seen: BTreeMap<u16, Seen>,
}

impl HalfOpen {
    /// How many flows of a service were half-open at the last look.
    pub fn open(&self, service: u16) -> u32 {
        self.seen.get(&service).map_or(0, |seen| seen.open)
    }

    /// Forgets what was seen: the next look sees everything.
    pub fn forget(&mut self) {
        self.seen.clear();
    }

    /// Looks at the rings of `services`, each with its connect_timeout.
    pub fn look(&mut self, services: &[(u16, Duration)], ours: &Ours, now: Instant) -> Look {
        let mut look = Look { next: now + period(services), ..Look::default() };
        let mut all = 0;
        self.seen.retain(|service, _| services.iter().any(|(number, _)| number == service));
        for (service, connect_timeout) in services {
            let head = ours.service(*service).half_open;
            let seen = self.seen.entry(*service).or_insert(Seen { head: head.wrapping_sub(1), open: 0 });
            if seen.head == head && seen.open == 0 {
                continue;
            }
            // Each service has its own portion: a flood at one is no matter of another.
            let (mut open, mut handed_on, before) = (0, 0, seen.open as usize);
            for cell in ours.half_open(*service) {
                let Some(flow) = ours.flow(cell.at()) else { continue };
                if !flow.ctl.is_of_low31(cell.generation()) {
                    continue;
                }
                let (due, over) = match flow.ctl.state() {
                    State::HalfOpen => (due_at(flow.opening.connect_us, *connect_timeout, now), &mut look.due),
                    State::Answered => {
                        (now + UNCONFIRMED - flow.record.last_seen.age(now.ticks()), &mut look.unconfirmed)
                    }
                    _ => continue,
                };
                open += 1;
                if due > now {
                    look.next = look.next.min(due);
                } else if handed_on < MOST.max(before / PORTION) {
                    handed_on += 1;
                    over.push(flow.seen());
                }
            }
            all += open;
            *seen = Seen { head, open };
        }
        if !(look.due.is_empty() && look.unconfirmed.is_empty()) {
            look.next = now;
        }
        if all >= MANY {
            look.next = look.next.min(now + OFTEN);
        }
        look.next = look.next.max(now + AT_LEAST.max(PER_FLOW * all));
        look
    }
}

/// How long the rings may go unseen: a flow that opens right after a look is seen before it is due.
fn period(services: &[(u16, Duration)]) -> Duration {
    let shortest = services.iter().map(|(_, connect_timeout)| *connect_timeout).min().unwrap_or(AT_MOST);
    (shortest / 2).clamp(AT_LEAST, AT_MOST)
}

/// When a try whose SYN was sent at `stamp` is over.
fn due_at(stamp: u32, connect_timeout: Duration, now: Instant) -> Instant {
    now + connect_timeout - Micros(stamp).age(now)
}

#[cfg(test)]
mod tests;
