//! Resets that an operator has asked for and can watch: kills, a maintenance with `--reset`,
//! rebalancings. A number names each; those that are over are remembered for a while.

use std::collections::BTreeMap;

use lb_common::time::Instant;

use super::{rebalancing::Rebalancing, resets::JobId};
use crate::words::{Task, TaskState};

/// Most tasks that are over and still remembered.
const REMEMBERED: usize = 64;

/// What a task consists of.
#[derive(Debug)]
pub enum Work {
    /// One job.
    Job(JobId),
    /// Jobs of a second each, one after the other.
    Rebalancing(Rebalancing),
}

#[derive(Debug)]
struct Entry {
    shown: Task,
    /// `None`: it is over.
    work: Option<Work>,
}

/// The machine.
#[derive(Debug, Default)]
pub struct Tasks {
    next: u64,
    tasks: BTreeMap<u64, Entry>,
}

impl Tasks {
    /// Takes one on.
    pub fn begin(&mut self, total: u64, rate: u32, work: Work) -> Task {
        self.next += 1;
        let shown = Task { id: self.next, state: TaskState::Running, total, reset: 0, rate };
        self.tasks.insert(self.next, Entry { shown: shown.clone(), work: Some(work) });
        let over: Vec<_> = self.tasks.iter().filter(|(_, entry)| entry.work.is_none()).map(|(id, _)| *id).collect();
        for id in over.iter().take(over.len().saturating_sub(REMEMBERED)) {
            self.tasks.remove(id);
        }
        shown
    }

    /// How far one has got. `closed_by` says what a job that is still running has closed so far.
    pub fn get(&self, id: u64, closed_by: impl Fn(JobId) -> Option<u64>) -> Option<Task> {
        let entry = self.tasks.get(&id)?;
        let job = entry.work.as_ref().and_then(Work::job);
        let running = job.and_then(closed_by).unwrap_or(0);
        Some(Task { reset: entry.shown.reset + running, ..entry.shown.clone() })
    }

    /// A job is over.
    pub fn job_over(&mut self, job: JobId, closed: u64) {
        let of_job = |entry: &&mut Entry| entry.work.as_ref().and_then(Work::job) == Some(job);
        let Some(entry) = self.tasks.values_mut().find(of_job) else { return };
        entry.shown.reset += closed;
        match &mut entry.work {
            Some(Work::Rebalancing(rebalancing)) => rebalancing.job = None,
            _ => entry.end(TaskState::Done),
        }
    }

    /// Whether one goes on in a service.
    pub fn is_rebalancing(&self, service: u16) -> bool {
        let of = |entry: &Entry| match &entry.work {
            Some(Work::Rebalancing(rebalancing)) => rebalancing.service() == service,
            _ => false,
        };
        self.tasks.values().any(of)
    }

    /// When a rebalancing goes on with its next job; `NEVER` if none does.
    pub fn deadline(&self) -> Instant {
        let next = |entry: &Entry| match &entry.work {
            Some(Work::Rebalancing(rebalancing)) => rebalancing.deadline(),
            _ => None,
        };
        self.tasks.values().filter_map(next).min().unwrap_or(Instant::NEVER)
    }

    /// Those that go on with a job that they make themselves.
    pub fn rebalancings(&mut self) -> impl Iterator<Item = (u64, &mut Rebalancing)> {
        self.tasks.iter_mut().filter_map(|(id, entry)| match &mut entry.work {
            Some(Work::Rebalancing(rebalancing)) => Some((*id, rebalancing)),
            _ => None,
        })
    }

    /// Ends one; returns the job that is to be called off, of which `closed` were handed out.
    pub fn end(&mut self, id: u64, state: TaskState, closed_by: impl Fn(JobId) -> Option<u64>) -> Option<JobId> {
        let entry = self.tasks.get_mut(&id)?;
        let job = entry.work.as_ref().and_then(Work::job);
        entry.shown.reset += job.and_then(closed_by).unwrap_or(0);
        if entry.work.is_some() {
            entry.end(state);
        }
        job
    }
}

impl Entry {
    fn end(&mut self, state: TaskState) {
        self.shown.state = state;
        self.work = None;
    }
}

impl Work {
    fn job(&self) -> Option<JobId> {
        match self {
            Work::Job(id) => Some(*id),
            Work::Rebalancing(rebalancing) => rebalancing.job,
        }
    }
}

#[cfg(test)]
mod tests;
