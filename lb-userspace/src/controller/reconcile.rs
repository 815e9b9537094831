//! least_conn's counters against the slots: a backend's `active` must equal the number of its open
//! flows.
//!
//! Slots are read one after the other while connections come and go, so a difference means
//! something only beyond what can have changed in between; and a claim is counted an instant before
//! its slot says so. Hence a drift is believed, and corrected, when two counts in a row find the
//! same one.

use lb_common::layout::Backend;

use crate::tables::{Installed, Tables};

/// A drift that was believed: `active` is this much too high (too low if negative).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The backend.
    pub backend: u16,
    /// How far off.
    pub by: i32,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Reconcile {
    next: u16,
    suspected: Option<Drift>,
    /// Corrections so far, in connections: the metric, which must stay 0.
    corrected: u64,
}

impl Reconcile {
    /// The sum of all corrections since the start.
    pub fn corrected(&self) -> u64 {
        self.corrected
    }

    /// One turn, meant for once a second: counts one backend.
    pub fn turn(&mut self, installed: &Installed, tables: &Tables) -> Option<Drift> {
        let backends = || installed.backends.keys().copied();
        let again = self.suspected.map(|drift| drift.backend);
        let chosen = match again {
            Some(number) => backends().find(|other| *other == number),
            None => backends().find(|number| *number >= self.next).or_else(|| backends().next()),
        };
        let before = self.suspected.take();
        let number = chosen?;
        self.next = number + 1;
        let found = count(number, &installed.pools_of(number), tables);
        if found.is_none() || found != before {
            self.suspected = found;
            return None;
        }
        self.corrected += u64::from(found?.by.unsigned_abs());
        found
    }
}

fn count(number: u16, pools: &[u16], tables: &Tables) -> Option<Drift> {
    let before = tables.backend(number);
    let mut open = 0_i64;
    for pool in pools {
        tables.heads(*pool, 0..tables.slots(*pool)).for_each(|head| {
            open += i64::from(head.backend == number && head.flow.ctl.state().is_active());
        });
    }
    let after = tables.backend(number);
    let off = i64::from(after.active) - open;
    if off.abs() <= moved(&before, &after) {
        return None;
    }
    Some(Drift { backend: number, by: i32::try_from(off).ok()? })
}

/// How many connections opened and closed between two looks.
fn moved(before: &Backend, after: &Backend) -> i64 {
    let opened = after.opened.wrapping_sub(before.opened) as i64;
    let closed = opened - (i64::from(after.active) - i64::from(before.active));
    opened + closed.abs()
}

#[cfg(test)]
mod tests;
