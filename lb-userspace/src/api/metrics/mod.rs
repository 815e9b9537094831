//! `/metrics`: a report in Prometheus' text format. Nothing is counted here: every number comes
//! from the tables and survives a restart of the daemon, except where the help text says otherwise.

mod families;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use lb_common::{
    layout::{CONNECT_TIME_BUCKETS, connect_time_bound},
    verdict::Reason,
};
use prometheus::{TextEncoder, core::Collector, process_collector::ProcessCollector};

use super::{
    report::{Connects, Report},
    types::{Backend, ServiceStatus, SyncPeer, VrrpStatus},
};
use crate::words::{BackendState, SyncState, VrrpState};
use families::*;

/// The content type of the answer.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What is kept from one answer to the next.
#[derive(Debug, Default)]
pub struct Metrics {
    payload: Mutex<BTreeMap<(Arc<str>, SocketAddr), Payload>>,
}

/// The payload that was last reported, and the number of connections then.
#[derive(Clone, Copy, Debug, Default)]
struct Payload {
    connections: u64,
    received: u64,
    sent: u64,
}

impl Metrics {
    /// The whole answer as text.
    pub fn render(&self, report: &Report) -> Result<String> {
        let mut families = Families::default();
        general(&mut families, report);
        let mut connects = report.connects.iter();
        for service in &report.status.services {
            of_service(&mut families, service);
            for backend in &service.backends {
                self.of_backend(&mut families, backend);
                if let Some(connects) = connects.next() {
                    connect_times(&mut families, &[&service.name, &backend.name], connects);
                }
            }
        }
        report.status.vrrp.iter().for_each(|instance| of_instance(&mut families, instance));
        report.status.sync.iter().flat_map(|sync| &sync.peers).for_each(|peer| of_peer(&mut families, peer));
        reasons(&mut families, report);
        self.forget_removed(report);
        let mut all = families.finish();
        all.extend(ProcessCollector::for_self().collect());
        Ok(TextEncoder::new().encode_to_string(&all)?)
    }

    fn forget_removed(&self, report: &Report) {
        let is_there = |(service, address): &(Arc<str>, SocketAddr)| {
            let mut all = report.status.services.iter().flat_map(|service| &service.backends);
            all.any(|backend| backend.service == *service && backend.address == *address)
        };
        self.payload.lock().unwrap_or_else(PoisonError::into_inner).retain(|backend, _| is_there(backend));
    }

    fn of_backend(&self, families: &mut Families, backend: &Backend) {
        let labels = [&*backend.service, &*backend.name];
        let payload = self.payload(backend);
        let address = backend.address.to_string();
        families.set(&BACKEND_INFO, &[&backend.service, &backend.name, &address], 1.0);
        families.set_state(&BACKEND_STATE, &labels, &words(BackendState::ALL), &backend.state.to_string());
        for (metric, value) in [
            (&BACKEND_WEIGHT, u64::from(backend.weight)),
            (&BACKEND_ACTIVE, backend.active),
            (&BACKEND_HALF_OPEN, backend.half_open),
            (&BACKEND_TOTAL, backend.total),
            (&BACKEND_FAILURES, backend.connect_failures),
            (&BACKEND_RESETS, backend.resets),
            (&BACKEND_RECEIVED, payload.received),
            (&BACKEND_SENT, payload.sent),
        ] {
            families.set(metric, &labels, value as f64);
        }
        families.set(&BACKEND_CHANGED, &labels, seconds(backend.last_change));
    }

    /// The payload of a backend, never less than before: a connection that ends while the slots are
    /// read may be missed once, and Prometheus takes a falling counter for one that was restarted.
    fn payload(&self, backend: &Backend) -> Payload {
        let read = Payload { connections: backend.total, received: backend.bytes_in, sent: backend.bytes_out };
        let mut all = self.payload.lock().unwrap_or_else(PoisonError::into_inner);
        let last = all.entry((backend.service.clone(), backend.address)).or_default();
        // Fewer connections mean that it was removed and added again: then it has really restarted.
        *last = if read.connections < last.connections {
            read
        } else {
            Payload { received: read.received.max(last.received), sent: read.sent.max(last.sent), ..read }
        };
        *last
    }
}

fn general(families: &mut Families, report: &Report) {
    let config = &report.status.config;
    families.set(&BUILD_INFO, &[&report.status.version], 1.0);
    families.set(&CONFIG_GENERATION, &[], config.generation as f64);
    families.set(&CONFIG_LOADED, &[], seconds(config.loaded_at));
    families.set(&CONFIG_RELOADED, &[], f64::from(u8::from(report.reloaded)));
    families.set(&CAPACITY, &[], report.capacity as f64);
    for pool in &report.pools {
        let labels = [&*pool.backend.to_string(), &*pool.snat.to_string()];
        families.set(&SNAT_PORTS, &labels, pool.ports as f64);
        families.set(&SNAT_PORTS_USED, &labels, pool.used as f64);
    }
}

fn of_service(families: &mut Families, service: &ServiceStatus) {
    for hook in &service.datapath {
        families.set(&DATAPATH_INFO, &[&service.name, &hook.interface, &hook.mode.to_string()], 1.0);
    }
    let connections = &service.connections;
    families.set(&SERVICE_CONNECTIONS, &[&service.name], connections.active as f64);
    families.set(&SERVICE_HALF_OPEN, &[&service.name], connections.half_open as f64);
    if let Some(cookies) = &service.syn_cookies {
        families.set(&SERVICE_COOKIES, &[&service.name], f64::from(u8::from(cookies.on)));
    }
    families.set(&SERVICE_CAPACITY, &[&service.name], connections.capacity as f64);
}

/// Every fourth bucket of the map, the powers of two from 64 µs to 2.1 s: enough for a histogram.
fn connect_times(families: &mut Families, labels: &[&str], connects: &Connects) {
    let mut count = 0;
    let mut cumulative = Vec::with_capacity(CONNECT_TIME_BUCKETS / 4);
    for (bucket, connects) in (0..).zip(&connects.times) {
        count += u64::from(*connects);
        if let Some(bound) = connect_time_bound(bucket).filter(|_| bucket % 4 == 0) {
            cumulative.push((f64::from(bound) / 1e6, count));
        }
    }
    families.observe(&BACKEND_CONNECT, labels, &cumulative, count, connects.sum_us as f64 / 1e6);
}

fn of_instance(families: &mut Families, instance: &VrrpStatus) {
    let labels = [&*instance.name];
    families.set_state(&VRRP_STATE, &labels, &words(VrrpState::ALL), &instance.state.to_string());
    families.set(&VRRP_PRIORITY, &labels, f64::from(instance.priority));
    families.set(&VRRP_SINCE, &labels, seconds(instance.since));
    families.set(&VRRP_TRANSITIONS, &labels, instance.transitions as f64);
    let adverts = &instance.adverts;
    families.set(&VRRP_SENT, &labels, adverts.counts.sent as f64);
    families.set(&VRRP_SEND_FAILURES, &labels, adverts.counts.send_failures as f64);
    families.set(&VRRP_RECEIVED, &labels, adverts.counts.received as f64);
    families.set(&VRRP_TWO_MASTERS, &labels, adverts.counts.dual_master as f64);
    families.set(&VRRP_CLAIMS, &labels, adverts.counts.claims as f64);
    for (reason, count) in &adverts.refused {
        families.set(&VRRP_REFUSED, &[&*instance.name, reason], *count as f64);
    }
}

fn of_peer(families: &mut Families, peer: &SyncPeer) {
    let address = peer.address.to_string();
    let labels = [&*address];
    let counts = &peer.counts;
    families.set_state(&SYNC_STATE, &labels, &words(SyncState::ALL), &peer.state.to_string());
    families.set(&SYNC_LAG, &labels, peer.lag_ms as f64 / 1000.0);
    if let Some(silent) = peer.silent_ms {
        families.set(&SYNC_SILENT, &labels, silent as f64 / 1000.0);
    }
    for (metric, value) in [
        (&SYNC_WAITING, peer.waiting),
        (&SYNC_LOST, counts.lost),
        (&SYNC_DROPPED, counts.dropped),
        (&SYNC_SENT, counts.flows_sent),
        (&SYNC_RECEIVED, counts.flows_received),
        (&SYNC_COPIES, counts.copies_received),
        (&SYNC_CONFLICTS, counts.conflicts),
        (&SYNC_UNKNOWN, counts.unknown),
    ] {
        families.set(metric, &labels, value as f64);
    }
    for (reason, count) in counts.refused.by_reason() {
        families.set(&SYNC_REFUSED, &[&*address, reason], count as f64);
    }
}

fn reasons(families: &mut Families, report: &Report) {
    let counted = |name: &str| report.status.counters.get(name).copied();
    for reason in Reason::ALL {
        if let Some(count) = counted(reason.name()) {
            families.set(of_group(reason.group()), &[reason.name()], count as f64);
        }
    }
    if let Some(drift) = counted("least_conn_drift") {
        families.set(&DRIFT, &[], drift as f64);
    }
    if let Some(drift) = counted("client_count_drift") {
        families.set(&CLIENT_DRIFT, &[], drift as f64);
    }
}

fn words<T: ToString>(all: &[T]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn seconds(time: jiff::Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}
