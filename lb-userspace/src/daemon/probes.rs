//! The active probes in the daemon: which backends are probed and how, and the findings' way to the
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

/// The probe of each service that has one, by the service's name.
pub type ByService = BTreeMap<Arc<str>, Arc<Probe>>;

/// The thread that probes, and the probes.
pub struct Probes {
    prober: Prober,
    by_service: ByService,
}

/// The probes of a configuration. The files that it names are read here: an error changes nothing.
pub fn prepare(config: &Config) -> Result<ByService> {
    let avoided: Vec<_> = config.services.iter().map(|service| service.snat_ports).collect();
    let probed = config.services.iter().filter_map(|service| Some((&service.name, service.health.as_ref()?)));
    let probe = |(name, health): (&Arc<str>, _)| {
        let probe = Probe::new(health, &avoided).with_context(|| format!("service {name}: [service.health]: ca"))?;
        Ok((name.clone(), Arc::new(probe)))
    };
    probed.map(probe).collect()
}

impl Probes {
    /// Starts the thread; nothing is probed yet.
    pub fn start(config: &Config) -> Result<(Probes, mpsc::Receiver<Finding>)> {
        let by_service = prepare(config)?;
        let (prober, findings) = Prober::start()?;
        Ok((Probes { prober, by_service }, findings))
    }

    /// Replaces the probes, from the next [`watch`](Self::watch) on.
    pub fn replace(&mut self, by_service: ByService) {
        self.by_service = by_service;
    }

    /// Probes every backend that is in the file and not `down`, including those that an operator
    /// has taken out: `ready` must not send clients to one that does not work.
    pub fn watch(&self, controller: &Controller) {
        let target = |(number, facts): (&u16, &crate::controller::BackendFacts)| {
            let probe = self.by_service.get(&facts.service).filter(|_| !facts.down)?.clone();
            Some(Target { backend: *number, address: SocketAddr::V4(facts.address), probe })
        };
        self.prober.watch(controller.backends().iter().filter_map(target).collect());
    }

    /// Probes a backend as soon as possible.
    pub fn hurry(&self, backend: u16) {
        self.prober.hurry(backend);
    }
}

impl Daemon {
    /// A probe has ended.
    pub(super) fn probed(&mut self, finding: &Finding) {
        let Finding { backend, address, outcome, detail, .. } = finding;
        let is_current = |facts: &crate::controller::BackendFacts| SocketAddr::V4(facts.address) == *address;
        if self.controller.backends().get(backend).is_some_and(is_current) {
            let actions = self.controller.probed(*backend, *outcome, detail, clock::monotonic());
            self.act(actions);
        }
    }
}
