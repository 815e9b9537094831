//! Connections that are to be closed and reset on both sides, at a limited rate: those of a backend
//! that died, is drained or in maintenance, those that an operator kills, those that a rebalancing
//! moves.
//!
//! A [`Job`] says which. The walk over the slots goes on in pieces, a few milliseconds apart, so
//! that nothing else waits for it; each piece yields as many steps as the job's rate allows. A step
//! is a compare-and-swap of the slot's word: if the swap fails, the next walk meets the flow again.
//! A job is over when a whole walk found nothing more. It ignores flows that began after
//! `begun_by`, so it ends however many new ones arrive.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use lb_common::{
    flow::SlotAt,
    slot::{Ctl, State},
    time::Instant,
    verdict::Reason,
};

use super::{ownership::Ours, sweep::Step};
use crate::tables::{Flow, FlowAt, Head, Installed};

/// Between two turns: 5,000 resets a second are 25 a turn.
const PERIOD: Duration = Duration::from_millis(5);
/// Most steps of one turn, all jobs together: a step is a swap and two to four frames, some ten
/// microseconds.
const STEPS: usize = 250;
/// Most slots looked at in one turn, all jobs together: a cache line each.
const SLOTS: u32 = 16_384;
/// Slots looked at in one go.
const PIECE: u32 = 256;
/// How far a job that was kept waiting may catch up at once.
const BURST: Duration = Duration::from_millis(50);
/// Walks after which a job gives up on flows whose words change before every swap.
const WALKS: u32 = 8;

/// Whose flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those of a backend.
    Backend(u16),
    /// Those of a client's address, whatever the port.
    Client(IpAddr),
    /// These, in this order, as long as their words are what they were.
    Flows(VecDeque<FlowAt>),
}

/// In which state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// Every open flow. A half-open one is refused to its client.
    Open,
    /// Those that were connected: half-open ones go on to the next backend by themselves.
    Connected,
    /// Those that neither side has begun to close.
    Established,
}

impl Only {
    pub(super) fn takes(self, ctl: Ctl) -> bool {
        let state = if ctl.state() == State::Suspect { ctl.previous() } else { ctl.state() };
        match self {
            Only::Open => state.is_active(),
            Only::Connected => state.is_active() && !state.is_unconfirmed(),
            Only::Established => state == State::Established,
        }
    }
}

/// What is to be closed, why, and how fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Whose flows.
    pub which: Which,
    /// In which state.
    pub only: Only,
    /// How they end.
    pub reason: Reason,
    /// Flows a second; 0 counts as 1.
    pub rate: u32,
    /// When it begins.
    pub not_before: Instant,
    /// Flows whose first SYN came later are left alone. It has no meaning for `Flows`.
    pub begun_by: Instant,
}

/// Names a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

/// A job that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// Which job.
    pub id: JobId,
    /// What it was; of `Flows` none are left.
    pub job: Job,
    /// Flows that were closed for it.
    pub closed: u64,
}

/// What a turn returns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Each a `Step::Close`.
    pub steps: Vec<Step>,
    /// Jobs that ended with this turn.
    pub over: Vec<Over>,
}

/// A job under way.
#[derive(Debug)]
struct Running {
    job: Job,
    /// When the rate allows the next flow.
    next: Instant,
    /// When the next turn for it is due.
    due: Instant,
    closed: u64,
    /// Where the walk goes on: pools that it has not finished, and the slot in the first of them.
    pools: VecDeque<u16>,
    slot: u32,
    /// Flows met in this walk.
    met: u64,
    walks: u32,
}

/// How far one job may go in one turn.
struct Budget {
    steps: usize,
    slots: u32,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Resets {
    jobs: BTreeMap<JobId, Running>,
    next: u64,
    /// The steps of the last turn, and for which job each was.
    handed_out: BTreeMap<SlotAt, JobId>,
}

impl Resets {
    /// Takes a job on. It gets its first turn at `not_before`.
    pub fn push(&mut self, job: Job) -> JobId {
        let id = JobId(self.next);
        self.next += 1;
        let (next, due) = (job.not_before, job.not_before);
        let running = Running { job, next, due, closed: 0, pools: VecDeque::new(), slot: 0, met: 0, walks: 0 };
        self.jobs.insert(id, running);
        id
    }

    /// Drops a job; the flows it has not closed stay. True if the job was still running.
    pub fn cancel(&mut self, id: JobId) -> bool {
        self.jobs.remove(&id).is_some()
    }

    /// A step of the last turn closed nothing: the flow had changed by then.
    pub fn not_closed(&mut self, at: SlotAt) {
        let running = self.handed_out.remove(&at).and_then(|id| self.jobs.get_mut(&id));
        if let Some(running) = running {
            running.closed -= 1;
        }
    }

    /// How many flows were closed for a job so far; `None` when it is over.
    pub fn closed(&self, id: JobId) -> Option<u64> {
        self.jobs.get(&id).map(|running| running.closed)
    }

    /// When the next turn is due; `NEVER` without jobs.
    pub fn deadline(&self) -> Instant {
        self.jobs.values().map(|running| running.due).min().unwrap_or(Instant::NEVER)
    }

    /// One turn for every job that is due.
    pub fn turn(&mut self, installed: &Installed, ours: &Ours, now: Instant) -> Turn {
        let mut turn = Turn::default();
        let due = self.jobs.values().filter(|running| running.due <= now).count().max(1);
        let (steps, slots) = ((STEPS / due).max(1), (SLOTS / due as u32).max(PIECE));
        let handed_out = &mut self.handed_out;
        handed_out.clear();
        self.jobs.retain(|id, running| {
            if running.due > now {
                return true;
            }
            let mut budget = Budget { steps, slots };
            let before = turn.steps.len();
            let goes_on = running.advance(&mut budget, installed, ours, now, &mut turn.steps);
            handed_out.extend(turn.steps[before..].iter().map(|step| (flow_of(step).at, *id)));
            if !goes_on {
                turn.over.push(Over { id: *id, job: running.job.clone(), closed: running.closed });
            }
            goes_on
        });
        turn
    }
}

impl Running {
    /// Hands out what the rate allows by now, within the budget. False: the job is over.
    fn advance(
        &mut self,
        budget: &mut Budget,
        installed: &Installed,
        ours: &Ours,
        now: Instant,
        steps: &mut Vec<Step>,
    ) -> bool {
        let gap = Duration::from_secs(1) / self.job.rate.max(1);
        // It does not get later what it could not use in time, except for a small part.
        self.next = self.next.max(now - BURST.max(gap));
        let waited = self.next.age(now).as_nanos().checked_div(gap.as_nanos());
        let allowed = waited.map_or(budget.steps, |gaps| gaps as usize + 1);
        budget.steps = budget.steps.min(allowed);
        let before = steps.len();
        let goes_on = self.collect(budget, installed, ours, steps);
        let found = steps.len() - before;
        self.closed += found as u64;
        self.next += found as u32 * gap;
        // Without a step left it waits for the rate, else it goes on walking.
        self.due = if budget.steps == 0 { self.next.max(now + PERIOD) } else { now + PERIOD };
        goes_on
    }

    /// What was handed out is not carried out before the turn is over and still looks open: no flow
    /// is met twice in a turn, and a job ends only in a turn without a step.
    fn collect(&mut self, budget: &mut Budget, installed: &Installed, ours: &Ours, steps: &mut Vec<Step>) -> bool {
        let before = steps.len();
        if let Which::Flows(flows) = &mut self.job.which {
            while budget.steps > 0
                && let Some(flow) = flows.pop_front()
            {
                if self.job.only.takes(flow.ctl) && !is_handed_out(steps, flow.at) {
                    budget.steps -= 1;
                    steps.push(Step::Close(flow, self.job.reason));
                }
            }
            return !flows.is_empty() || steps.len() > before;
        }
        while budget.steps > 0 && budget.slots > 0 {
            let Some(pool) = self.pools.front().copied() else {
                if steps.len() > before {
                    return true;
                }
                if !self.begin_walk(installed) {
                    return false;
                }
                continue;
            };
            self.look_at_piece(pool, budget, ours, steps);
        }
        true
    }

    /// Begins the next walk. False: the last one found nothing, or there is nothing to walk over.
    fn begin_walk(&mut self, installed: &Installed) -> bool {
        let met = std::mem::take(&mut self.met);
        if self.walks > 0 && met == 0 || self.walks >= WALKS {
            return false;
        }
        self.walks += 1;
        self.slot = 0;
        self.pools = match &self.job.which {
            Which::Backend(number) => installed.pools_of(*number).into(),
            _ => installed.pools.keys().copied().collect(),
        };
        !self.pools.is_empty()
    }

    fn look_at_piece(&mut self, pool: u16, budget: &mut Budget, ours: &Ours, steps: &mut Vec<Step>) {
        let slots = ours.slots(pool);
        let to = slots.min(self.slot + PIECE.min(budget.slots));
        // An empty pool costs one, so that the loop ends.
        budget.slots -= to.saturating_sub(self.slot).clamp(1, budget.slots);
        let (job, mut left, mut met, mut stopped) = (&self.job, budget.steps, self.met, None);
        ours.heads(pool, self.slot..to).for_each(|head| {
            if stopped.is_some() || !job.takes(&head, ours) {
                return;
            }
            if left == 0 {
                stopped = Some(u32::from(head.flow.at.slot()));
                return;
            }
            met += 1;
            if !is_handed_out(steps, head.flow.at) {
                left -= 1;
                steps.push(Step::Close(head.flow, job.reason));
            }
        });
        budget.steps = left;
        self.met = met;
        self.slot = stopped.unwrap_or(to);
        if self.slot >= slots {
            self.pools.pop_front();
            self.slot = 0;
        }
    }
}

/// Whether a flow was handed out in this turn: for another job.
fn is_handed_out(steps: &[Step], at: SlotAt) -> bool {
    steps.iter().any(|step| flow_of(step).at == at)
}

fn flow_of(step: &Step) -> FlowAt {
    match step {
        Step::Suspect(flow) | Step::Close(flow, _) | Step::Release(flow) | Step::Forget(flow) => *flow,
    }
}

impl Job {
    fn takes(&self, head: &Head, ours: &Ours) -> bool {
        let by_head = match self.which {
            Which::Backend(number) => head.backend == number,
            _ => true,
        };
        let by_client = || match self.which {
            Which::Client(address) => {
                ours.flow(head.flow.at).map(|flow| flow.client()).is_some_and(|client| client.ip() == address)
            }
            _ => true,
        };
        let began = |flow: Flow| flow.ctl == head.flow.ctl && flow.opening.started <= self.begun_by;
        by_head && self.only.takes(head.flow.ctl) && by_client() && ours.flow(head.flow.at).is_some_and(began)
    }
}

#[cfg(test)]
mod tests;
