//! Which flows this host may close. In a pair with flow sync both hosts have all flows, but only
//! the host that holds a listener's address may suspect, reset or move them: the other one sees
//! none of their packets, so every flow looks idle to it.
//!
//! [`Ours`] shows the tables with the flows of other hosts left out. Whatever acts on flows looks
//! through it; what only counts them does not.

use std::{
    collections::BTreeMap,
    ops::{Deref, Range},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    flow::{HalfOpenCell, Key},
    slot::State,
    time::{Instant, Ticks},
};

use crate::tables::{Head, Tables};

/// The listeners whose flows are ours.
#[derive(Clone, Debug, Default)]
pub struct Ownership {
    /// By number, with the time since when; `None`: there is no other host, all listeners are ours.
    ours: Option<Arc<BTreeMap<u16, Instant>>>,
    /// How far the other host's news of a flow's last packet may be behind.
    lag: Duration,
}

impl Ownership {
    /// With another host. `ours` are the numbers of the listeners that are this host's, and since
    /// when; `lag` is how old the other host's news of an idle flow may be.
    pub fn beside_another(ours: BTreeMap<u16, Instant>, lag: Duration) -> Ownership {
        Ownership { ours: Some(Arc::new(ours)), lag }
    }

    /// Whether the flows of a listener are ours.
    pub fn holds(&self, listener: u16) -> bool {
        self.ours.as_ref().is_none_or(|ours| ours.contains_key(&listener))
    }

    /// The latest time at which the flow can have been seen last. What was seen before the listener
    /// became ours is known from the other host, which does not report every packet.
    fn seen_by(&self, listener: u16, last_seen: Ticks) -> Ticks {
        let since = self.ours.as_ref().and_then(|ours| ours.get(&listener));
        let behind = since.map_or(0, |since| last_seen.age_in_ticks(since.ticks()));
        Ticks(last_seen.0.wrapping_add(behind.min(Ticks::of(self.lag))))
    }
}

/// The tables without the flows that are another host's. Everything else is read as it is.
pub struct Ours<'a> {
    ownership: Ownership,
    tables: &'a Tables,
}

impl Deref for Ours<'_> {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        self.tables
    }
}

impl<'a> Ours<'a> {
    /// Looks at `tables`.
    pub fn new(ownership: &Ownership, tables: &'a Tables) -> Ours<'a> {
        Ours { ownership: ownership.clone(), tables }
    }

    fn holds(&self, key: Key) -> bool {
        self.ownership.holds(key.listener())
    }

    /// The cells of a service's ring of half-open flows, as [`Tables::half_open`].
    pub fn half_open(&self, service: u16) -> impl Iterator<Item = HalfOpenCell> {
        let is_ours = |cell: &HalfOpenCell| self.flow(cell.at()).is_some_and(|flow| self.holds(flow.record.key));
        self.tables.half_open(service).into_iter().filter(is_ours)
    }

    /// The slots of a range of a pool, as [`Tables::heads`]. A slot that is held back holds no
    /// host's flow.
    pub fn heads(&self, pool: u16, range: Range<u32>) -> impl Iterator<Item = Head> {
        let heads = self.tables.heads(pool, range);
        let heads = heads.filter(|head| head.flow.ctl.state() == State::Abandoned || self.holds(head.key));
        heads.map(|head| Head { last_seen: self.ownership.seen_by(head.listener(), head.last_seen), ..head })
    }
}

#[cfg(test)]
mod tests;
