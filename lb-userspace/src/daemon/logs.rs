//! The access logs: one writer per service that has one.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    access_log::{Record, Targets, Writer},
    config::model::{AccessLog, Config},
    notice::History,
};

/// The writers by service, and their targets.
pub struct Logs {
    // Dropped in this order: the targets end when no writer is left.
    open: BTreeMap<Arc<str>, Log>,
    targets: Targets,
}

struct Log {
    settings: AccessLog,
    writer: Writer,
    /// When open connections are logged next (`interval`).
    next: Instant,
}

/// The writers of a new configuration, open but not in use yet.
pub struct Prepared(BTreeMap<Arc<str>, Log>);

impl Logs {
    /// Begins without any. Failures of targets are reported to `history`.
    pub fn new(history: Arc<History>) -> Logs {
        Logs { open: BTreeMap::new(), targets: Targets::new(history) }
    }

    /// Opens the logs that a new configuration adds or changes. An error changes nothing.
    pub fn prepare(&mut self, config: &Config) -> Result<Prepared> {
        let mut prepared = BTreeMap::new();
        for service in &config.services {
            let Some(settings) = &service.access_log else { continue };
            if self.open.get(&service.name).is_some_and(|log| log.settings == *settings) {
                continue;
            }
            let writer =
                self.targets.writer(settings).with_context(|| format!("service {}: access_log", service.name))?;
            let next = Instant::now() + settings.interval;
            prepared.insert(service.name.clone(), Log { settings: settings.clone(), writer, next });
        }
        Ok(Prepared(prepared))
    }

    /// Puts the prepared writers into use, and ends those that the configuration no longer has.
    pub fn commit(&mut self, config: &Config, prepared: Prepared) {
        self.open.extend(prepared.0);
        self.open.retain(|name, _| {
            config.services.iter().any(|service| service.name == *name && service.access_log.is_some())
        });
    }

    /// Queues a line for its service's log.
    pub fn write(&mut self, record: Record, now: Instant) {
        if let Some(log) = self.open.get_mut(&record.service) {
            log.writer.write(record, now);
        }
    }

    /// Opens the files again (SIGUSR1).
    pub fn reopen(&self) {
        self.targets.reopen();
    }

    /// The services whose open connections are to be logged now (`interval`).
    pub fn due(&self, now: Instant) -> Vec<Arc<str>> {
        let is_due = |log: &Log| log.settings.interval > Duration::ZERO && log.next <= now;
        self.open.iter().filter(|(_, log)| is_due(log)).map(|(name, _)| name.clone()).collect()
    }

    /// Has a line written for each of a service's open connections. If the lines of the last time
    /// are not written yet, a later turn tries again.
    pub fn list(&mut self, service: &str, records: impl Iterator<Item = Record> + Send + 'static, now: Instant) {
        if let Some(log) = self.open.get_mut(service)
            && log.writer.list(records)
        {
            log.next = now + log.settings.interval;
        }
    }

    /// The numbers of lines lost, and of lines suppressed by the limit of lines per second.
    pub fn losses(&self) -> (u64, u64) {
        self.targets.losses()
    }
}
