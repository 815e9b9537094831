//! The active probes in the daemon: which backends are probed and how, and the findings' way to the
//! controller.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use anyhow::{Context, Result};
use lb_common::layout::Pool;
use tokio::sync::mpsc;

use super::Daemon;
use crate::{
    config::model::{Config, PortRange},
    controller::Controller,
    probe::{Finding, Probe, Prober, Target},
    sys::clock,
    tables::{Installed, rows::pool_slots},
};

/// The probe of each service that has one, by the service's name.
pub type ByService = BTreeMap<Arc<str>, Arc<Probe>>;

/// The thread that probes, and the probes.
pub struct Probes {
    prober: Prober,
    by_service: ByService,
}

/// The probes of a configuration. The files that it names are read here: an error changes nothing.
/// Connections may still have ports of before.
pub fn prepare(config: &Config, installed: &Installed) -> Result<ByService> {
    let avoided: Vec<_> = config.services.iter().map(|service| service.snat_ports).collect();
    let older: Vec<_> = installed.pools.values().flat_map(ports_with_slots).collect();
    let probed = config.services.iter().filter_map(|service| Some((&service.name, service.health.as_ref()?)));
    let probe = |(name, health): (&Arc<str>, _)| {
        let probe = Probe::new(health, &avoided, &older);
        let probe = probe.with_context(|| format!("service {name}: [service.health]: ca"))?;
        Ok((name.clone(), Arc::new(probe)))
    };
    probed.map(probe).collect()
}

/// The ports that a pool has a slot for; they go round at 65,535.
fn ports_with_slots(pool: &Pool) -> impl Iterator<Item = PortRange> {
    let first = u32::from(pool.first_port);
    let end = first + pool_slots(pool);
    let top = 1 << 16;
    let ranges = [(first, end.min(top)), (PortRange::LOWEST.into(), end.saturating_sub(top))];
    let range = |(first, end): (u32, u32)| PortRange::new(first as u16, end.checked_sub(1)? as u16);
    ranges.into_iter().filter_map(range)
}

impl Probes {
    /// Starts the thread; nothing is probed yet.
    pub fn start(config: &Config) -> Result<(Probes, mpsc::Receiver<Finding>)> {
        let by_service = prepare(config, &Installed::default())?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_of_a_pool_s_slots_are_told_also_if_they_go_round() {
        let ranges = |first_port, ports| {
            let pool = Pool { first_port, ports, ..Pool::default() };
            ports_with_slots(&pool).map(|range| (range.first(), range.last())).collect::<Vec<_>>()
        };
        assert_eq!(ranges(10_240, 64), [(10_240, 10_303)]);
        assert_eq!(ranges(65_000, 536), [(65_000, 65_535)]);
        assert_eq!(ranges(65_000, 1_000), [(65_000, 65_535)], "all others are below the lowest");
        assert_eq!(ranges(65_000, 2_000), [(65_000, 65_535), (1_024, 1_463)]);
        assert_eq!(ranges(40_000, u16::MAX), [(40_000, 65_535), (1_024, 39_999)]);
        assert_eq!(ranges(10_240, 0), []);
    }
}
