//! Passive health of one backend: from tries that failed to whether it gets connections.
//!
//! ```text
//!          max_fails failures within fail_timeout
//!      up ──────────────────────────────────────▶ out until retry_at ─┐
//!       ▲                                            │       ▲        │ the kernel program gives it one
//!       └──── a trial connection is answered ────────┘       └────────┘ connection from retry_at on; it fails
//! ```
//! nginx's rule as it is documented ("the number of unsuccessful attempts ... that should happen in the duration set by
//! the fail_timeout parameter"), not as it behaves: there failures add up until a connection succeeds that was picked
//! `fail_timeout` after the last one, so that three failures a minute apart take a backend out. Here a failure is
//! forgotten after `fail_timeout`, and a success in between forgives nothing.
//!
//! The trial is the kernel program's: it moves `retry_at` forward by compare-and-swap, so there is one trial at a time
//! in the whole system; it swaps `OUT` for `UP` when the trial is answered. When every backend is out it gives them
//! connections all the same; that needs nothing from here.

use std::collections::VecDeque;

use lb_common::{
    layout::{Backend, OUT, UP},
    verdict::Reason,
};

/// What the configuration says about one backend. Times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Failures that take it out; 0: none do.
    pub max_fails: u32,
    /// Within how long, and for how long.
    pub fail_timeout: u64,
    /// How long a try lasted that ended in `ConnectTimeout`.
    pub connect_timeout: u64,
}

/// Whether a backend gets its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It does.
    Up,
    /// Not before `retry_at` (CLOCK_MONOTONIC, nanoseconds), and then one trial connection.
    Out {
        /// The earliest trial, as this machine has set it; the kernel program moves the word in the map.
        retry_at: u64,
        /// `Refused` or `ConnectTimeout`; unknown if an earlier version took it out.
        reason: Option<Reason>,
    },
}

/// What is to be done after an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// Take it out until then.
    TakenOut {
        /// For the map.
        retry_at: u64,
    },
    /// A trial failed: out for longer.
    StaysOut {
        /// For the map.
        retry_at: u64,
    },
    /// It is up again.
    Recovered,
}

/// A trial is told from a connection begun before its backend went out by when it began, which is known from the coarse
/// clock: 4 to 10 ms a step.
const CLOCK_STEP: u64 = 20_000_000;

/// The most failure times kept; `max_fails` above it counts as this many.
const MAX_KEPT: u32 = 1024;

/// The machine. Times are CLOCK_MONOTONIC in nanoseconds.
#[derive(Clone, Debug)]
pub struct Health {
    state: State,
    /// The last failures while up, `max_fails` at most.
    failures: VecDeque<u64>,
    changed_at: u64,
}

impl Health {
    /// A backend nothing is known about gets connections.
    pub fn new(now: u64) -> Health {
        Health { state: State::Up, failures: VecDeque::new(), changed_at: now }
    }

    /// As the map has it, after a restart of the controller.
    pub fn adopted(record: &Backend, now: u64) -> Health {
        let reason = u8::try_from(record.out_reason).ok().filter(|number| *number != 0).and_then(Reason::from_number);
        let is_out = record.admission == OUT;
        // While nobody watched, the kernel program may have taken it in again without a word about when.
        let known = (1..=now).contains(&record.changed_at) && (is_out || record.out_reason == 0);
        let mut health = Health::new(if known { record.changed_at } else { now });
        if is_out {
            health.state = State::Out { retry_at: record.retry_at, reason };
        }
        health
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// When the state last changed.
    pub fn changed_at(&self) -> u64 {
        self.changed_at
    }

    /// A try that began before failed at `at` for `reason`.
    pub fn failed(&mut self, settings: &Settings, reason: Reason, at: u64) -> Change {
        if settings.max_fails == 0 {
            return Change::Nothing;
        }
        let began = if reason == Reason::ConnectTimeout { at.saturating_sub(settings.connect_timeout) } else { at };
        match self.state {
            State::Up => self.counted(settings, reason, at),
            // Begun while it was up, or because every backend was out: no trial, and no news. The kernel program has put
            // the next trial off all the same; before its time that can be taken back without a second trial beside one.
            State::Out { retry_at, .. } if at < retry_at => Change::StaysOut { retry_at },
            State::Out { retry_at, .. } if began + CLOCK_STEP < retry_at => Change::Nothing,
            // From the beginning of the trial, so that a backend that is back is used within fail_timeout.
            State::Out { .. } => {
                let retry_at = (began + settings.fail_timeout).max(at);
                self.state = State::Out { retry_at, reason: Some(reason) };
                Change::StaysOut { retry_at }
            }
        }
    }

    fn counted(&mut self, settings: &Settings, reason: Reason, at: u64) -> Change {
        let most = settings.max_fails.min(MAX_KEPT) as usize;
        self.failures.push_back(at);
        while self.failures.len() > most {
            self.failures.pop_front();
        }
        let oldest = self.failures.front().copied().unwrap_or(at);
        if self.failures.len() < most || at.saturating_sub(oldest) > settings.fail_timeout {
            return Change::Nothing;
        }
        self.failures.clear();
        let retry_at = at + settings.fail_timeout;
        self.state = State::Out { retry_at, reason: Some(reason) };
        self.changed_at = at;
        Change::TakenOut { retry_at }
    }

    /// A connection was answered while the backend was out.
    pub fn recovered(&mut self, at: u64) -> Change {
        match self.state {
            State::Up => Change::Nothing,
            State::Out { .. } => {
                self.state = State::Up;
                self.failures.clear();
                self.changed_at = at;
                Change::Recovered
            }
        }
    }

    /// The host answers ARP again after a silence: the next connection may try it.
    pub fn reachable(&mut self, now: u64) -> Change {
        match self.state {
            State::Out { retry_at, reason } if retry_at > now => {
                self.state = State::Out { retry_at: now, reason };
                Change::StaysOut { retry_at: now }
            }
            _ => Change::Nothing,
        }
    }

    /// New settings: with `max_fails = 0` nothing keeps it out.
    pub fn configured(&mut self, settings: &Settings, now: u64) -> Change {
        if settings.max_fails == 0 { self.recovered(now) } else { Change::Nothing }
    }

    /// Compares with the map, where the kernel program may have swapped `OUT` for `UP` without the event reaching us.
    pub fn compared(&mut self, admission: u32, now: u64) -> Change {
        if admission == UP { self.recovered(now) } else { Change::Nothing }
    }
}

#[cfg(test)]
mod tests;
