//! Answers to the control socket, and the snapshot from which longer answers are made.

use std::net::SocketAddr;

use jiff::Timestamp;
use lb_common::verdict::Reason;
use log::error;

use super::{
    Daemon, End,
    flow_sync::stranded_listener,
    report::{self, BackendView, ServiceView, Snapshot},
};
use crate::{
    api::{
        Reply, Request,
        types::{Counters, Refused},
    },
    config::model::{Backend, OnExit, Service},
    controller::cookies::Standing,
    sys::clock,
    tables::Tables,
};

impl Daemon {
    /// Answers a request or passes it on; some end the daemon.
    pub(super) async fn request(&mut self, request: Request) -> Option<End> {
        match request {
            Request::Report(reply) => self.answer(reply, report::report),
            Request::Conns(filter, reply) => {
                match filter.backend.as_deref().map_or(Ok(()), |name| self.controller.knows_backend(name)) {
                    Ok(()) => self.answer(reply, move |snapshot, tables| Ok(report::conns(snapshot, tables, &filter))),
                    Err(unknown) => _ = reply.send(Err(Refused { errors: vec![unknown] })),
                }
            }
            // The requester may have hung up, here and below.
            Request::Ping(reply) => _ = reply.send(()),
            Request::Vrrp(reply) => _ = reply.send(report::vrrp::instances(&self.snapshot())),
            Request::Counters(reply) => _ = reply.send(self.counters()),
            Request::Trace(query, reply) => _ = reply.send(self.trace(&query)),
            Request::InForce(reply) => _ = reply.send(self.in_force()),
            Request::Task(id, reply) => _ = reply.send(self.task(id)),
            Request::Order(order, peer) => self.carry_out(order, &peer),
            Request::Reload(reply) => {
                _ = reply.send(self.reload().await.map_err(|errors| Refused { errors }));
            }
            Request::Upgrade(reply) => self.upgrade(Some(reply)),
            Request::Stop { detach, reply } => {
                let detach = detach || self.config.daemon.on_exit == OnExit::Detach;
                return Some(End::Stop { detach, reply: Some(reply) });
            }
        }
        None
    }

    /// Builds an answer on another thread.
    fn answer<T: Send + 'static>(
        &self,
        reply: Reply<T>,
        report: impl FnOnce(&Snapshot, &Tables) -> T + Send + 'static,
    ) {
        let (snapshot, tables) = (self.snapshot(), self.dataplane.tables().clone());
        tokio::task::spawn_blocking(move || _ = reply.send(report(&snapshot, &tables)));
    }

    fn counters(&self) -> Counters {
        let counters = self.dataplane.tables().counters().unwrap_or_else(|error| {
            error!("the counters cannot be read: {error:#}");
            Vec::new()
        });
        let mut counters: Counters =
            counters.into_iter().map(|(reason, count)| (reason.name().to_owned(), count)).collect();
        let (lost, suppressed) = self.logs.losses();
        counters.insert("access_log_lost".into(), lost);
        *counters.entry("access_log_suppressed".into()).or_default() += suppressed;
        counters.insert(Reason::ApiRefused.name().into(), self.doors.listener.refused());
        counters.insert("least_conn_drift".into(), self.controller.drift());
        counters.insert("client_count_drift".into(), self.controller.client_drift());
        counters
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let names = self.controller.backends().iter().map(|(number, facts)| {
            (*number, (facts.service.clone(), facts.name.clone(), SocketAddr::V4(facts.address)))
        });
        Snapshot {
            now: clock::monotonic(),
            wall: Timestamp::now(),
            uptime: self.process.started.elapsed(),
            file: self.process.options.config.clone(),
            loaded_at: self.load.at,
            generation: self.load.generation,
            reloaded: self.load.is_current,
            stranded: self.stranded.iter().map(stranded_listener).collect(),
            capacity: u64::from(self.dataplane.max_connections()),
            services: self.service_views(),
            names: names.collect(),
            installed: self.controller.installed().clone(),
            counters: self.counters(),
            vrrp: self.vrrp.reports(),
            sync: self.sync_status(),
            floors: self.floors.clone(),
        }
    }

    fn service_views(&self) -> Vec<ServiceView> {
        let (attached, tables) = (self.dataplane.attached(), self.dataplane.tables());
        let view = |service: &Service| {
            let used = |name: &str| self.wanted.of_service.get(&service.name).is_some_and(|names| names.contains(name));
            ServiceView {
                name: service.name.clone(),
                listen: service.listen.clone(),
                balance: service.balance.name(),
                capacity: service.capacity().min(u64::from(self.dataplane.max_connections())),
                datapath: report::datapath(&attached, |ifindex| self.dataplane.behind(ifindex), tables, used),
                cookies: self.cookies_of(&service.name),
                backends: service.backends.iter().filter_map(|backend| self.backend_view(service, backend)).collect(),
            }
        };
        self.config.services.iter().map(view).collect()
    }

    fn cookies_of(&self, service: &str) -> Option<Standing> {
        let mut known = self.controller.services().iter();
        let (number, _) = known.find(|(_, facts)| &*facts.name == service)?;
        self.controller.cookies(*number)
    }

    pub(super) fn backend_view(&self, service: &Service, backend: &Backend) -> Option<BackendView> {
        let mut known = self.controller.backends().iter();
        let (number, _) = known
            .find(|(_, facts)| facts.service == service.name && SocketAddr::V4(facts.address) == backend.address)?;
        let slow_until = self.dataplane.tables().slow_start(*number).until;
        let standing = self.controller.standing(*number, slow_until, clock::monotonic());
        let changed = self.controller.changed_at(*number);
        Some(BackendView {
            number: *number,
            name: backend.name.clone(),
            address: backend.address,
            weight: self.controller.installed().backends.get(number)?.weight,
            backup: backend.backup,
            state: standing.state,
            reason: standing.reason,
            changed_at: changed.unwrap_or(self.load.monotonic),
        })
    }
}
