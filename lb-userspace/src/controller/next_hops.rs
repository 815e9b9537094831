//! Which pools have a known next hop. A host that does not answer ARP gets no connections (the
//! kernel program skips it, so no client waits for a connect_timeout), is shown as down, and is
//! tried at once when it answers again.

use std::{collections::BTreeMap, time::Duration};

use lb_common::time::Instant;

/// How long the first answer may take before the operator hears of it: three ARP requests a second
/// apart (the kernel's mcast_solicit and retrans_time).
const PATIENCE: Duration = Duration::from_millis(3500);

#[derive(Clone, Copy, Debug)]
struct Hop {
    known: bool,
    since: Instant,
    told: bool,
}

/// The machine.
#[derive(Debug, Default)]
pub struct NextHops {
    pools: BTreeMap<u16, Hop>,
}

impl NextHops {
    /// Notes whether a pool's next hop is known. True if this ends a silence that
    /// [`silent`](Self::silent) has reported.
    pub fn heard(&mut self, pool: u16, known: bool, now: Instant) -> bool {
        let hop = self.pools.entry(pool).or_insert(Hop { known: !known, since: now, told: false });
        if hop.known == known {
            return false;
        }
        let returned = known && hop.told;
        *hop = Hop { known, since: now, told: false };
        returned
    }

    /// Pools that have been without a next hop for a while; each silence is reported once.
    pub fn silent(&mut self, now: Instant) -> Vec<u16> {
        let late = |hop: &Hop| !hop.known && !hop.told && hop.since.age(now) >= PATIENCE;
        let silent = self.pools.iter_mut().filter(|(_, hop)| late(hop));
        silent
            .map(|(pool, hop)| {
                hop.told = true;
                *pool
            })
            .collect()
    }

    /// Whether the next hop is known, as far as anything was reported.
    pub fn is_known(&self, pool: u16) -> bool {
        self.pools.get(&pool).is_none_or(|hop| hop.known)
    }

    /// Forgets pools that are gone.
    pub fn retain(&mut self, keep: impl Fn(u16) -> bool) {
        self.pools.retain(|pool, _| keep(*pool));
    }
}
