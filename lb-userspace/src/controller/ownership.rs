//! Whose flows are this host's to close. Of a pair that syncs its flows both hosts have them all, but only the one that has
//! a listener's address may suspect, reset or move them: the other one sees none of their packets, and every flow looks
//! idle to it.
//!
//! [`Ours`] shows the tables with the flows of other hosts left out. Whatever acts on flows looks through it; what only
//! counts them does not.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use lb_common::{
    clients::ClientCount,
    flow::Key,
    layout::{Backend, Opening, Slot},
    slot::{Ctl, State},
    time::{Instant, Ticks},
};

use super::view::{Head, Place, View};

/// The listeners whose flows are ours.
#[derive(Clone, Debug, Default)]
pub struct Territory {
    /// By number, and since when; nothing: there is no other host, all are.
    ours: Option<Arc<BTreeMap<u16, Instant>>>,
    /// How far the other host's news of a flow's last packet may lie behind.
    lag: Duration,
}

impl Territory {
    /// Beside another host. `ours` are the numbers of the listeners that are this host's, and since when; `lag` is how old the other host's news of an idle flow may get.
    pub fn beside_another(ours: BTreeMap<u16, Instant>, lag: Duration) -> Territory {
        Territory { ours: Some(Arc::new(ours)), lag }
    }

    /// Whether the flows of a listener are ours.
    pub fn holds(&self, listener: u16) -> bool {
        self.ours.as_ref().is_none_or(|ours| ours.contains_key(&listener))
    }

    /// When the flow was seen last, at the latest that it can have been. What was seen before the listener became ours is
    /// known from the other host, which does not tell of every packet.
    fn seen_by(&self, listener: u16, last_seen: Ticks) -> Ticks {
        let since = self.ours.as_ref().and_then(|ours| ours.get(&listener));
        let behind = since.map_or(0, |since| last_seen.age_in_ticks(since.ticks()));
        Ticks(last_seen.0.wrapping_add(behind.min(Ticks::of(self.lag))))
    }
}

/// The tables without the flows that are another host's.
pub struct Ours<'a, V> {
    territory: Territory,
    view: &'a V,
}

impl<'a, V: View> Ours<'a, V> {
    /// Looks at `view`.
    pub fn new(territory: &Territory, view: &'a V) -> Ours<'a, V> {
        Ours { territory: territory.clone(), view }
    }

    fn holds(&self, key: Key) -> bool {
        self.territory.holds(key.listener())
    }
}

impl<V: View> View for Ours<'_, V> {
    fn backend(&self, number: u16) -> Backend {
        self.view.backend(number)
    }

    fn slow_until(&self, backend: u16) -> Instant {
        self.view.slow_until(backend)
    }

    fn heard(&self, pool: u16) -> Ticks {
        self.view.heard(pool)
    }

    fn sent(&self, pool: u16) -> Ticks {
        self.view.sent(pool)
    }

    fn half_open_head(&self, service: u16) -> u32 {
        self.view.half_open_head(service)
    }

    fn half_open(&self, service: u16, each: &mut dyn FnMut(Place, u32)) {
        self.view.half_open(service, &mut |place, generation| {
            if self.view.slot(place).is_some_and(|(_, slot)| self.holds(slot.key)) {
                each(place, generation);
            }
        });
    }

    fn clients(&self, service: u16, each: &mut dyn FnMut(ClientCount)) {
        self.view.clients(service, each);
    }

    fn slots(&self, pool: u16) -> u32 {
        self.view.slots(pool)
    }

    /// A slot that is held back is nobody's flow.
    fn heads(&self, pool: u16, from: u32, to: u32, each: &mut dyn FnMut(Head)) {
        self.view.heads(pool, from, to, &mut |head| {
            if head.flow.ctl.state() == State::Abandoned || self.holds(head.key) {
                each(Head { last_seen: self.territory.seen_by(head.key.listener(), head.last_seen), ..head });
            }
        });
    }

    fn slot(&self, place: Place) -> Option<(Ctl, Slot)> {
        self.view.slot(place)
    }

    fn opening(&self, place: Place) -> Option<(Ctl, Opening)> {
        self.view.opening(place)
    }

    fn client(&self, place: Place) -> Option<SocketAddr> {
        self.view.client(place)
    }
}

#[cfg(test)]
mod tests;
