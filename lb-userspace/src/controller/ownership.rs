//! Which flows this host may close: those of the listeners whose address it holds. It sees none of
//! the others' packets, so every other flow looks idle to it, and may live on another host: the
//! tables are full of such flows while flow sync runs, and still when it has ended.
//!
//! [`Ours`] shows the tables with the flows of other hosts left out. Whatever acts on flows looks
//! through it; what only counts them does not. Without flow sync nobody says when a flow of another
//! host ends: such a flow is forgotten, without a packet, when its idle timeout is over. One that
//! is not confirmed is told of by nobody in any case. It began here, with a SYN that came when the
//! address had moved, its backend answers to the other host, and it is forgotten soon.
//!
//! An address that no interface has may be routed to this host, or be another host's. Of its flows
//! those are ours that began here, or went on here.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, Range},
    sync::Arc,
    time::Duration,
};

use lb_common::{
    flow::{HalfOpenCell, SlotAt},
    slot::{Ctl, LOOSE, State},
    time::{Instant, Ticks},
};

use crate::tables::{Flow, Head, Tables};

/// The listeners whose flows are ours.
#[derive(Clone, Debug, Default)]
pub struct Ownership {
    /// By number, with the time since when (`ZERO`: ever since); `None`: all of them.
    ours: Option<Arc<BTreeMap<u16, Instant>>>,
    /// Those whose packets may be routed here.
    routed: Arc<BTreeSet<u16>>,
    /// How far the news of a flow's last packet may be behind from before that.
    lag: Duration,
    /// Whether another host tells when its flows end.
    is_told: bool,
}

impl Ownership {
    /// With another host. `ours` are the numbers of the listeners that are this host's, and since
    /// when; `lag` is how old the other host's news of an idle flow may be.
    pub fn beside_another(ours: BTreeMap<u16, Instant>, lag: Duration) -> Ownership {
        Ownership { ours: Some(Arc::new(ours)), routed: Arc::default(), lag, is_told: true }
    }

    /// Without flow sync: another host may have had a listener before it was ours, and nothing is
    /// known of what it saw. `routed` are the listeners whose address no interface has.
    pub fn alone(ours: BTreeMap<u16, Instant>, routed: BTreeSet<u16>) -> Ownership {
        Ownership { ours: Some(Arc::new(ours)), routed: Arc::new(routed), lag: Duration::MAX, is_told: false }
    }

    /// Whether flows of a listener are ours.
    pub fn holds(&self, listener: u16) -> bool {
        self.has(listener) || self.routed.contains(&listener)
    }

    fn has(&self, listener: u16) -> bool {
        self.ours.as_ref().is_none_or(|ours| ours.contains_key(&listener))
    }

    /// Whether a flow is ours. What another host has told of one, and no packet has shown here, is
    /// marked.
    pub fn holds_flow(&self, listener: u16, ctl: Ctl) -> bool {
        self.has(listener) || self.routed.contains(&listener) && ctl.flags() & LOOSE == 0
    }

    /// The latest time at which the flow can have been seen last. What was seen before the listener
    /// became ours is known from the other host, which does not report every packet.
    fn seen_by(&self, listener: u16, last_seen: Ticks) -> Ticks {
        let since = self.ours.as_ref().and_then(|ours| ours.get(&listener)).filter(|since| **since != Instant::ZERO);
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

    /// The cells of a service's ring of half-open flows, as [`Tables::half_open`].
    pub fn half_open(&self, service: u16) -> impl Iterator<Item = HalfOpenCell> {
        let is_ours = |cell: &HalfOpenCell| {
            self.flow(cell.at()).is_some_and(|flow| self.ownership.holds_flow(flow.listener(), flow.ctl))
        };
        self.tables.half_open(service).into_iter().filter(is_ours)
    }

    /// The slots of a range of a pool, as [`Tables::heads`]. A slot that is held back holds no
    /// host's flow.
    pub fn heads(&self, pool: u16, range: Range<u32>) -> impl Iterator<Item = Head> {
        let heads = self.tables.heads(pool, range);
        let is_ours = |head: &Head| self.ownership.holds_flow(head.listener(), head.flow.ctl);
        let heads = heads.filter(move |head| head.flow.ctl.state() == State::Abandoned || is_ours(head));
        heads.map(|head| Head { last_seen: self.ownership.seen_by(head.listener(), head.last_seen), ..head })
    }

    /// The flows of a range of a pool that are not ours.
    pub fn foreign(&self, pool: u16, range: Range<u32>) -> impl Iterator<Item = Head> {
        let is_ours = |head: &Head| self.ownership.holds_flow(head.listener(), head.flow.ctl);
        self.tables.heads(pool, range).filter(move |head| head.flow.ctl.state().is_active() && !is_ours(head))
    }

    /// What a slot holds, as [`Tables::flow`], if it is ours.
    pub fn own_flow(&self, at: SlotAt) -> Option<Flow> {
        self.tables.flow(at).filter(|flow| self.ownership.holds_flow(flow.listener(), flow.ctl))
    }

    /// Whether another host says when a flow of its own ends.
    pub fn is_told(&self) -> bool {
        self.ownership.is_told
    }
}

#[cfg(test)]
mod tests;
