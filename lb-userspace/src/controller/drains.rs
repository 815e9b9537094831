//! Running drains: at the deadline the remaining connections are reset at the drain's rate, until
//! none is left.
//!
//! A reset job ends when it finds no more connections. A connection that was half-open then and is
//! established later is found by the next look, a second later.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{time::Instant, verdict::Reason};

use super::{
    admin_state::AdminState,
    resets::{Job, JobId, Only, Resets, Which},
};
use crate::tables::Tables;

/// The time between two looks, while anything is drained.
const PERIOD: Duration = Duration::from_secs(1);

/// What happened to a backend that is drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The deadline passed with this many connections open.
    Deadline(u32),
    /// Its last connection has ended.
    Empty,
}

#[derive(Clone, Copy, Debug, Default)]
struct Draining {
    job: Option<JobId>,
    told_deadline: bool,
    told_empty: bool,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Drains {
    by_backend: BTreeMap<u16, Draining>,
    /// When to look again.
    due: Instant,
}

impl Drains {
    /// When the next look is due; `NEVER` if no backend is being drained.
    pub fn deadline(&self) -> Instant {
        self.due
    }

    /// Something else was said about a backend: its resets end.
    pub fn forget(&mut self, backend: u16, resets: &mut Resets) {
        if let Some(job) = self.by_backend.remove(&backend).and_then(|draining| draining.job) {
            resets.cancel(job);
        }
        self.due = Instant::ZERO;
    }

    /// A look at all backends that are drained.
    pub fn turn(
        &mut self,
        admin_states: &[(u16, AdminState)],
        resets: &mut Resets,
        tables: &Tables,
        now: Instant,
    ) -> Vec<(u16, Happened)> {
        self.by_backend.retain(|backend, _| admin_states.iter().any(|(number, _)| number == backend));
        self.due = Instant::NEVER;
        let mut happened = Vec::new();
        for (backend, order) in admin_states {
            let AdminState::Drain { deadline, rate } = *order else { continue };
            let draining = self.by_backend.entry(*backend).or_default();
            let active = tables.active(*backend);
            if active == 0 && !draining.told_empty {
                draining.told_empty = true;
                happened.push((*backend, Happened::Empty));
            }
            let late = deadline.filter(|deadline| *deadline <= now);
            if late.is_some() && active > 0 {
                if !draining.told_deadline {
                    draining.told_deadline = true;
                    happened.push((*backend, Happened::Deadline(active)));
                }
                if draining.job.is_none_or(|job| resets.closed(job).is_none()) {
                    draining.job = Some(resets.push(job(*backend, rate, now)));
                }
            }
            let upcoming = deadline.filter(|deadline| *deadline > now).unwrap_or(Instant::NEVER);
            self.due = self.due.min(upcoming).min(now + PERIOD);
        }
        happened
    }
}

fn job(backend: u16, rate: u32, now: Instant) -> Job {
    Job {
        which: Which::Backend(backend),
        // Half-open ones are established or go on to another backend within connect_timeout.
        only: Only::Connected,
        reason: Reason::Drained,
        rate,
        not_before: now,
        begun_by: Instant::NEVER,
    }
}

#[cfg(test)]
mod tests;
