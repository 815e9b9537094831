//! A running rebalancing: the resets that [`rebalance`](super::rebalance) has found, one second's
//! worth at a time. Each batch takes the flows that are idlest at that moment, and none from a
//! backend that has come down to its share meanwhile, because its clients may leave by themselves.

use std::{collections::VecDeque, time::Duration};

use lb_common::{slot::State, time::Instant};

use super::{ownership::Ours, rebalance::Share, resets::JobId};
use crate::tables::{FlowAt, Installed};

/// A backend that has too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Donor {
    backend: u16,
    /// How many are still to be taken, at most.
    left: u32,
    /// How many it keeps.
    keeps: u32,
}

/// The machine.
#[derive(Debug)]
pub struct Rebalancing {
    service: u16,
    donors: Vec<Donor>,
    rate: u32,
    /// When the next batch may begin.
    next: Instant,
    /// The batch under way.
    pub job: Option<JobId>,
}

impl Rebalancing {
    /// Makes one from what was found, with `rate` resets a second.
    pub fn new(service: u16, shares: &[Share], rate: u32, now: Instant) -> Rebalancing {
        let donor = |share: &Share| Donor { backend: share.load.backend, left: share.resets, keeps: share.after };
        let donors = shares.iter().filter(|share| share.resets > 0).map(donor).collect();
        Rebalancing { service, donors, rate: rate.max(1), next: now, job: None }
    }

    /// Which service it belongs to.
    pub fn service(&self) -> u16 {
        self.service
    }

    /// Resets a second.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// When there is something to do; `None` while a batch is under way.
    pub fn deadline(&self) -> Option<Instant> {
        self.job.is_none().then_some(self.next)
    }

    /// The next second's flows, in order. Empty: it is over.
    pub fn batch(&mut self, installed: &Installed, ours: &Ours, now: Instant) -> VecDeque<FlowAt> {
        let mut excess: Vec<u32> = Vec::new();
        for donor in &self.donors {
            excess.push(ours.backend(donor.backend).active.saturating_sub(donor.keeps).min(donor.left));
        }
        let taken = take_from_largest(&excess, self.rate);
        let mut batches = Vec::new();
        for ((donor, count), excess) in self.donors.iter_mut().zip(taken).zip(excess) {
            let flows = idlest(donor.backend, count, installed, ours, now);
            // Connections that are gone, or that it cannot give, are not asked for again.
            donor.left = excess - count;
            batches.push(flows.into_iter());
        }
        let batch = in_turns(batches);
        self.next = now + Duration::from_secs(batch.len() as u64) / self.rate;
        batch
    }
}

/// Takes `count` in all, each from the backend that has most left. Returns how many are taken from
/// each.
fn take_from_largest(left: &[u32], count: u32) -> Vec<u32> {
    let mut taken = vec![0; left.len()];
    for _ in 0..count {
        let most = (0..left.len()).max_by_key(|place| left[*place] - taken[*place]);
        match most.filter(|place| left[*place] > taken[*place]) {
            Some(place) => taken[place] += 1,
            None => break,
        }
    }
    taken
}

/// The `count` established flows of a backend that have been without a packet for longest, the
/// idlest first.
fn idlest(backend: u16, count: u32, installed: &Installed, ours: &Ours, now: Instant) -> Vec<FlowAt> {
    let mut flows = Vec::new();
    for pool in installed.pools_of(backend) {
        ours.heads(pool, 0..ours.slots(pool)).for_each(|head| {
            let ctl = head.flow.ctl;
            let state = if ctl.state() == State::Suspect { ctl.previous() } else { ctl.state() };
            if head.backend == backend && state == State::Established {
                flows.push((head.last_seen.age_in_ticks(now.ticks()), head.flow));
            }
        });
    }
    flows.sort_by_key(|(idle, flow)| (std::cmp::Reverse(*idle), flow.at));
    flows.into_iter().take(count as usize).map(|(_, flow)| flow).collect()
}

/// One of each, as long as there are any.
fn in_turns(mut batches: Vec<impl Iterator<Item = FlowAt>>) -> VecDeque<FlowAt> {
    let mut mixed = VecDeque::new();
    loop {
        let before = mixed.len();
        mixed.extend(batches.iter_mut().filter_map(Iterator::next));
        if mixed.len() == before {
            return mixed;
        }
    }
}

#[cfg(test)]
mod tests;
