//! Totals over time, and the rates between them.

use std::{collections::VecDeque, time::Instant};

use crate::api::types::{Backend, Counters};

/// Samples per curve: two minutes with one per second.
pub const SAMPLES: usize = 120;
/// Samples a rate is averaged over, because a single second fluctuates too much.
const SMOOTH: usize = 3;
/// How far back changes of counters are shown, in seconds.
const BACK_S: u64 = 120;
/// Time between two stored counters, in seconds.
const EVERY_S: u64 = 10;

/// The totals of a backend, or of all backends together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub active: u64,
    pub opened: u64,
    pub failed: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Totals {
    pub fn of(backend: &Backend) -> Totals {
        Totals {
            active: backend.active,
            opened: backend.total,
            failed: backend.connect_failures,
            bytes_in: backend.bytes_in,
            bytes_out: backend.bytes_out,
        }
    }

    pub fn plus(self, other: Totals) -> Totals {
        Totals {
            active: self.active + other.active,
            opened: self.opened + other.opened,
            failed: self.failed + other.failed,
            bytes_in: self.bytes_in + other.bytes_in,
            bytes_out: self.bytes_out + other.bytes_out,
        }
    }
}

/// Totals per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub opened: f64,
    pub failed: f64,
    pub bytes_in: f64,
    pub bytes_out: f64,
}

/// The history of one backend, or of all together.
#[derive(Clone, Debug, Default)]
pub struct Past {
    seen: VecDeque<(Instant, Totals)>,
    /// `None` before the second sample.
    pub rates: Option<Rates>,
    /// Open connections, the newest last.
    pub active: VecDeque<f64>,
    /// New connections per second, the newest last.
    pub opened: VecDeque<f64>,
}

impl Past {
    pub fn add(&mut self, now: Instant, totals: Totals) {
        self.rates = self
            .seen
            .front()
            .and_then(|(then, before)| rates(now.duration_since(*then).as_secs_f64(), before, &totals));
        push(&mut self.active, totals.active as f64, SAMPLES);
        push(&mut self.opened, self.rates.unwrap_or_default().opened, SAMPLES);
        push(&mut self.seen, (now, totals), SMOOTH);
    }
}

/// The rates between two samples. A total that fell has restarted, because the daemon's tables were
/// created again: its rate is zero.
fn rates(seconds: f64, before: &Totals, now: &Totals) -> Option<Rates> {
    let rate = |of: fn(&Totals) -> u64| of(now).saturating_sub(of(before)) as f64 / seconds;
    (seconds > 0.0).then(|| Rates {
        opened: rate(|totals| totals.opened),
        failed: rate(|totals| totals.failed),
        bytes_in: rate(|totals| totals.bytes_in),
        bytes_out: rate(|totals| totals.bytes_out),
    })
}

fn push<T>(into: &mut VecDeque<T>, value: T, most: usize) {
    if into.len() == most {
        into.pop_front();
    }
    into.push_back(value);
}

/// The counters of the last two minutes.
#[derive(Clone, Debug, Default)]
pub struct PastCounters {
    kept: VecDeque<(Instant, Counters)>,
}

/// A reason with its counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved<'a> {
    pub reason: &'a str,
    /// In the last two minutes, or since the screen started.
    pub lately: u64,
    pub all: u64,
}

impl PastCounters {
    pub fn add(&mut self, now: Instant, counters: &Counters) {
        let age = |then: &Instant| now.duration_since(*then).as_secs();
        if self.kept.back().is_none_or(|(then, _)| age(then) >= EVERY_S) {
            self.kept.push_back((now, counters.clone()));
        }
        // The oldest entry is the one at the start of the last two minutes.
        while self.kept.get(1).is_some_and(|(then, _)| age(then) >= BACK_S) {
            self.kept.pop_front();
        }
    }

    /// The counters that are not 0, those that changed most first.
    pub fn moved<'a>(&self, counters: &'a Counters) -> Vec<Moved<'a>> {
        let before = |reason: &str| self.kept.front().and_then(|(_, counters)| counters.get(reason)).copied();
        let moved = |(reason, all): (&'a String, &'a u64)| Moved {
            reason,
            lately: all.saturating_sub(before(reason).unwrap_or(0)),
            all: *all,
        };
        let mut rows: Vec<_> = counters.iter().filter(|(_, all)| **all > 0).map(moved).collect();
        rows.sort_by(|a, b| b.lately.cmp(&a.lately).then(b.all.cmp(&a.all)));
        rows
    }
}
