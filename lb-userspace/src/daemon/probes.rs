//! The active probes in the daemon: whom to probe and how, and what they find on its way to the
//! controller.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use tokio::sync::mpsc;

use super::Daemon;
use crate::{
    config::model::Config,
    controller::Controller,
    probe::{Finding, Probe, Prober, Target},
    sys::clock,
};

/// How each service that has a probe is probed, by its name.
pub type ByService = BTreeMap<Arc<str>, Arc<Probe>>;

/// The thread that probes, and how.
pub struct Probes {
    prober: Prober,
    by_service: ByService,
}

/// What a configuration wants. The files it names are read here: an error changes nothing.
pub fn prepare(config: &Config) -> Result<ByService> {
    let probed = config.services.iter().filter_map(|service| Some((&service.name, service.health.as_ref()?)));
    let probe = |(name, health): (&Arc<str>, _)| {
        let probe = Probe::new(health).with_context(|| format!("service {name}: [service.health]: ca"))?;
        Ok((name.clone(), Arc::new(probe)))
    };
    probed.map(probe).collect()
}

impl Probes {
    /// Starts the thread; nobody is probed yet.
    pub fn start(config: &Config) -> Result<(Probes, mpsc::Receiver<Finding>)> {
        let by_service = prepare(config)?;
        let (prober, findings) = Prober::start()?;
        Ok((Probes { prober, by_service }, findings))
    }

    /// From the next [`watch`](Self::watch) on.
    pub fn replace(&mut self, by_service: ByService) {
        self.by_service = by_service;
    }

    /// Probes every backend that is in the file and not `down`, also those that an operator has
    /// taken out: `ready` shall not send clients to one that is not.
    pub fn watch(&self, controller: &Controller) {
        let target = |(number, facts): (&u16, &crate::controller::BackendFacts)| {
            let probe = self.by_service.get(&facts.service).filter(|_| !facts.down)?.clone();
            Some(Target { backend: *number, address: SocketAddr::V4(facts.address), probe })
        };
        self.prober.watch(controller.backends().iter().filter_map(target).collect());
    }

    /// One of them sooner.
    pub fn hurry(&self, backend: u16) {
        self.prober.hurry(backend);
    }
}

impl Daemon {
    /// A probe has come to an end.
    pub(super) fn probed(&mut self, finding: &Finding) {
        let Finding { backend, address, outcome, detail, .. } = finding;
        let is_current = |facts: &crate::controller::BackendFacts| SocketAddr::V4(facts.address) == *address;
        if self.controller.backends().get(backend).is_some_and(is_current) {
            let actions = self.controller.probed(*backend, *outcome, detail, clock::monotonic_ns());
            self.act(actions);
        }
    }
}
