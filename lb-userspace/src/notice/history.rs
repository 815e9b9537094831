//! The last notices, in memory: readers on any thread take what they have not seen yet, and can
//! wait for more.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use log::log;
use tokio::sync::watch;

use super::{Notice, Subject};
use crate::words::Event;

/// How many are kept: the newest. They end with the process.
pub const KEPT: usize = 1000;
/// Bytes of a text that are kept; the log has it whole.
const TEXT: usize = 1000;
/// What [`History::latest`] says when there will be no more.
const CLOSED: u64 = u64::MAX;

/// The history. One number after the other, beginning with 1: a gap is what a reader was too slow
/// for.
#[derive(Debug)]
pub struct History {
    kept: Mutex<VecDeque<Arc<Event>>>,
    latest: watch::Sender<u64>,
}

impl Default for History {
    fn default() -> Self {
        History { kept: Mutex::default(), latest: watch::Sender::new(0) }
    }
}

impl History {
    /// The door: says it in the log and keeps it.
    pub fn tell(&self, notice: Notice, time: Timestamp) {
        log!(notice.level, "{notice}");
        let mut kept = self.kept();
        let number = kept.back().map_or(1, |last| last.number + 1);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::new(event(notice, number, time)));
        drop(kept);
        self.latest.send_if_modified(|latest| {
            let open = *latest != CLOSED;
            *latest = if open { number } else { CLOSED };
            open
        });
    }

    /// Continues the history of an earlier daemon.
    pub fn go_on(&self, events: Vec<Event>) {
        let mut kept = self.kept();
        let surplus = events.len().saturating_sub(KEPT);
        *kept = events.into_iter().skip(surplus).map(Arc::new).collect();
        drop(kept);
        self.reopen();
    }

    /// There will be more after all.
    pub fn reopen(&self) {
        let last = self.kept().back().map_or(0, |last| last.number);
        self.latest.send_replace(last);
    }

    /// Those after a number, oldest first.
    pub fn after(&self, number: u64) -> Vec<Arc<Event>> {
        let kept = self.kept();
        let seen = kept.partition_point(|event| event.number <= number);
        kept.range(seen..).cloned().collect()
    }

    /// Waits for any after a number; none when there will be no more.
    pub async fn wait(&self, number: u64) -> Option<Vec<Arc<Event>>> {
        let mut latest = self.latest.subscribe();
        let latest = *latest.wait_for(|latest| *latest > number).await.ok()?;
        let new = self.after(number);
        (latest != CLOSED || !new.is_empty()).then_some(new)
    }

    /// Ends the history: readers that wait learn it once they have read the last events.
    pub fn close(&self) {
        self.latest.send_replace(CLOSED);
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        // Consistent even if a thread panicked while holding the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn event(notice: Notice, number: u64, time: Timestamp) -> Event {
    let (service, backend, instance) = match notice.subject {
        Subject::Daemon => (None, None, None),
        Subject::Service(service) => (Some(service), None, None),
        Subject::Backend { service, backend } => (Some(service), Some(backend), None),
        Subject::Instance(instance) => (None, None, Some(instance)),
    };
    let mut text = notice.text;
    text.truncate(text.floor_char_boundary(TEXT));
    Event { number, time, level: notice.level.into(), kind: notice.kind, service, backend, instance, text }
}
