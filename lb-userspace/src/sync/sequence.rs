//! Datagrams in the order in which they were sent: one that arrives before its predecessors waits
//! for them, because a flow's end means nothing before its beginning, and a copy's end nothing
//! before its flows. It waits for half a second; what has not come by then is lost.
//!
//! The same numbers show what was received before.

use std::{collections::BTreeMap, time::Duration};

use lb_common::time::Instant;

/// How long a datagram waits for those before it.
const PATIENCE: Duration = Duration::from_millis(500);
/// The most datagrams that wait.
const WAITING: usize = 1024;

/// What has arrived too early, by number.
#[derive(Debug)]
pub struct Sequence<T> {
    /// The number that comes next.
    next: u64,
    waiting: BTreeMap<u64, (Instant, T)>,
}

/// Something in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InTurn<T> {
    /// How many before it are lost.
    pub missing: u64,
    /// What it is.
    pub item: T,
}

impl<T> Sequence<T> {
    /// A sequence that goes on after this number.
    pub fn after(number: u64) -> Sequence<T> {
        Sequence { next: number.saturating_add(1), waiting: BTreeMap::new() }
    }

    /// Whether nothing of this number has arrived or was given up.
    pub fn is_new(&self, number: u64) -> bool {
        number >= self.next && !self.waiting.contains_key(&number)
    }

    /// Takes in what has arrived, if it [`is_new`](Self::is_new).
    pub fn take_in(&mut self, number: u64, item: T, now: Instant) {
        if self.is_new(number) {
            self.waiting.insert(number, (now, item));
        }
    }

    /// The next one whose turn has come, or whose predecessors are given up.
    pub fn pop(&mut self, now: Instant) -> Option<InTurn<T>> {
        let (number, (since, _)) = self.waiting.first_key_value()?;
        if *number != self.next && since.age(now) < PATIENCE && self.waiting.len() < WAITING {
            return None;
        }
        self.pop_first()
    }

    /// The first one that waits, whatever is missing before it.
    pub fn pop_first(&mut self) -> Option<InTurn<T>> {
        let (number, (_, item)) = self.waiting.pop_first()?;
        let missing = number - self.next;
        self.next = number.saturating_add(1);
        Some(InTurn { missing, item })
    }
}

#[cfg(test)]
mod tests;
