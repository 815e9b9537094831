//! The access logs: one writer a service that has one.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    access_log::{Record, Writer},
    config::model::{AccessLog, Config},
};

/// The writers by service.
#[derive(Default)]
pub struct Logs {
    open: BTreeMap<Arc<str>, Log>,
    /// Lines lost and left out by writers that are gone.
    gone: (u64, u64),
}

struct Log {
    settings: AccessLog,
    writer: Writer,
    /// When open connections are logged next.
    next: Instant,
}

/// Writers of a new configuration, opened but not in use yet.
pub struct Prepared(BTreeMap<Arc<str>, Log>);

impl Logs {
    /// Opens what a new configuration needs and is not open yet. An error changes nothing.
    pub fn prepare(&self, config: &Config) -> Result<Prepared> {
        let mut prepared = BTreeMap::new();
        for service in &config.services {
            let Some(settings) = &service.access_log else { continue };
            if self.open.get(&service.name).is_some_and(|log| log.settings == *settings) {
                continue;
            }
            let writer = Writer::start(settings).with_context(|| format!("service {}: access_log", service.name))?;
            let next = Instant::now() + settings.interval;
            prepared.insert(service.name.clone(), Log { settings: settings.clone(), writer, next });
        }
        Ok(Prepared(prepared))
    }

    /// Takes the prepared ones into use and ends those that the configuration does not have any more.
    pub fn commit(&mut self, config: &Config, prepared: Prepared) {
        for (service, log) in prepared.0 {
            match self.open.entry(service) {
                Entry::Occupied(mut old) => self.gone = add(self.gone, old.insert(log).losses()),
                Entry::Vacant(place) => _ = place.insert(log),
            }
        }
        let keep = |name: &Arc<str>| {
            config.services.iter().any(|service| service.name == *name && service.access_log.is_some())
        };
        let ended: Vec<_> = self.open.keys().filter(|name| !keep(name)).cloned().collect();
        for name in ended {
            if let Some(log) = self.open.remove(&name) {
                self.gone = add(self.gone, log.losses());
            }
        }
    }

    /// Queues a line.
    pub fn write(&mut self, record: Record, now: Instant) {
        if let Some(log) = self.open.get_mut(&record.service) {
            log.writer.write(record, now);
        }
    }

    /// SIGUSR1.
    pub fn reopen(&self) {
        self.open.values().for_each(|log| log.writer.reopen());
    }

    /// Services whose open connections are to be logged now (`interval`).
    pub fn due(&mut self, now: Instant) -> Vec<Arc<str>> {
        let due = self.open.iter_mut().filter(|(_, log)| log.settings.interval > Duration::ZERO && log.next <= now);
        due.map(|(name, log)| {
            log.next = now + log.settings.interval;
            name.clone()
        })
        .collect()
    }

    /// Lines lost, and lines left out by the limit of lines a second.
    pub fn losses(&self) -> (u64, u64) {
        self.open.values().map(Log::losses).fold(self.gone, add)
    }
}

impl Log {
    fn losses(&self) -> (u64, u64) {
        (self.writer.lost(), self.writer.suppressed())
    }
}

fn add(a: (u64, u64), b: (u64, u64)) -> (u64, u64) {
    (a.0 + b.0, a.1 + b.1)
}
