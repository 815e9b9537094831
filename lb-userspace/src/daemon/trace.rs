//! `trace`: what the attached program says about a client's SYN, put into words. An open connection
//! is found by the program's own look-up, so no table is searched, however many connections there
//! are.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    clients::ClientCount,
    layout::{COOKIES_ON, Hop},
    schedule::CHOSEN,
    slot::{COUNTED, FIN_BACKEND, FIN_CLIENT, State},
    time::{Instant, Micros},
    verdict::Reason,
};

use super::{Daemon, report};
use crate::{
    api::{
        trace::{
            Candidate, ClientLimit, Connection, DecidingRule, Elsewhere, Foretold, Side, Trace, TraceQuery, Verdict,
        },
        types::{ConnState, Refused},
    },
    config::model::Service,
    dataplane::Answer,
    sys::{clock, netdev},
    tables::{
        Flow,
        rows::{self, listener_address},
    },
    vrrp::report::InstanceReport,
    words::VrrpState,
};

fn refused(what: String) -> Refused {
    Refused { errors: vec![what] }
}

impl Daemon {
    /// Asks about every listen address of the services in question.
    pub(super) fn trace(&self, query: &TraceQuery) -> Result<Trace, Refused> {
        if query.client.is_ipv6() {
            return Err(refused(format!("{}: IPv6 is not balanced yet", query.client)));
        }
        if let Some(name) = &query.service {
            self.controller.find_service(name).map_err(refused)?;
        }
        let meant = |service: &&Service| query.service.as_deref().is_none_or(|name| name == &*service.name);
        let mut trace = Trace { client: query.client, connections: Vec::new(), new: Vec::new() };
        for service in self.config.services.iter().filter(meant) {
            for listen in &service.listen {
                self.trace_one(query.client, service, *listen, &mut trace)?;
            }
        }
        if !trace.connections.is_empty() {
            trace.new.clear();
        }
        Ok(trace)
    }

    fn trace_one(
        &self,
        client: SocketAddr,
        service: &Service,
        listen: SocketAddr,
        trace: &mut Trace,
    ) -> Result<(), Refused> {
        let mut listeners = self.controller.installed().listeners.iter();
        let found = listeners.find(|(_, record)| SocketAddr::V4(listener_address(record)) == listen);
        let (number, record) = found.ok_or_else(|| refused(format!("{listen} is not installed")))?;
        let used = |name: &str| self.wanted.of_service.get(&service.name).is_some_and(|names| names.contains(name));
        let answer = match self.dataplane.attached().into_iter().find(|attached| used(&attached.interface)) {
            Some(attached) => self.dataplane.foretell(attached.ifindex, client, *number),
            None => Ok(Answer::NotOurs),
        };
        let answer = answer.map_err(|error| refused(format!("service {}, {listen}: {error:#}", service.name)))?;
        match answer {
            Answer::Known { at, generation } => {
                let flow = self.dataplane.tables().flow(at);
                let same = |flow: &Flow| flow.ctl.generation() == generation && flow.ctl.state().is_active();
                // It may have ended at this moment.
                if let Some(flow) = flow.filter(same) {
                    trace.connections.extend(self.connection(service, listen, &flow));
                }
            }
            answer => trace.new.push(self.foretold(client.ip(), service, listen, record.service, answer)),
        }
        Ok(())
    }

    fn connection(&self, service: &Service, listen: SocketAddr, flow: &Flow) -> Option<Connection> {
        let facts = self.controller.backends().get(&flow.backend())?;
        let pool = self.dataplane.tables().pool(flow.at.pool());
        let (record, flags) = (&flow.record, flow.ctl.flags());
        let now = clock::monotonic();
        let half_open = flow.ctl.state() == State::HalfOpen;
        let unconfirmed = flow.ctl.state().is_unconfirmed();
        let idle_s = flow.idle_ms(now.0) as f64 / 1e3;
        let sent_us = flow.opening.connect_us;
        let waited_s = Micros(sent_us).age(now).as_secs_f64();
        let answered = |number: u32| flow.is_answered().then_some(number);
        let end_client = record.end_client as u32;
        Some(Connection {
            service: service.name.clone(),
            listen,
            backend: facts.name.clone(),
            address: facts.address.into(),
            snat: SocketAddr::new(rows::pool_snat(&pool).into(), pool.first_port.wrapping_add(flow.at.slot())),
            state: ConnState::of(flow.ctl.state())?,
            balance: service.balance.name().into(),
            chosen: chosen(record.attempt.how()),
            tries: flow.opening.tries,
            failed: self.controller.failed_tries(flow.client(), flow.listener(), Instant(flow.started_ns())),
            ports_left: record.attempt.port_retries(),
            counted: flags & COUNTED != 0,
            pool: flow.at.pool(),
            slot: flow.at.slot(),
            generation: flow.ctl.generation(),
            client_side: Side {
                isn: Some(flow.opening.isn_client),
                end: Some(end_client),
                acknowledged: answered(record.ack_client),
                fin: flags & FIN_CLIENT != 0,
                way: record.hop.is_known().then(|| way(record.hop).to_owned()),
                ..self.side(record.hop)
            },
            backend_side: Side {
                isn: answered(flow.opening.isn_backend),
                end: answered(record.end_backend as u32),
                acknowledged: answered(record.ack_backend),
                fin: flags & FIN_BACKEND != 0,
                ..self.side(pool.hop)
            },
            age_s: Instant(flow.started_ns()).age(now).as_secs_f64(),
            idle_s,
            idle_left_s: (!unconfirmed).then(|| (service.idle_timeout.as_secs_f64() - idle_s).max(0.0)),
            connect_left_s: half_open.then(|| (service.connect_timeout.as_secs_f64() - waited_s).max(0.0)),
            connect_ms: answered(sent_us).map(|microseconds| f64::from(microseconds) / 1e3),
            bytes_in: flow.bytes_in(),
            bytes_out: flow.bytes_out(),
        })
    }

    /// The way to one side, without its sequence numbers.
    fn side(&self, hop: Hop) -> Side {
        let interface = self.dataplane.tables().interface(hop.interface());
        let known = hop.is_known() && interface.ifindex != 0;
        Side {
            isn: None,
            end: None,
            acknowledged: None,
            mac: known.then(|| mac(hop.mac())),
            interface: known.then(|| netdev::name_of(interface.ifindex).ok()).flatten(),
            way: None,
            own_mac: known.then(|| mac(interface.mac)),
            fin: false,
        }
    }

    fn foretold(&self, client: IpAddr, service: &Service, listen: SocketAddr, number: u16, answer: Answer) -> Foretold {
        let rule = |rule: Option<usize>| {
            let number = rule?;
            Some(DecidingRule { number: number + 1, text: service.rules.get(number)?.to_string() })
        };
        let refused = |verdict, reason: Option<Reason>, decides| Foretold {
            service: service.name.clone(),
            listen,
            verdict,
            syn_cookie: self.sends_cookie(client, service, number),
            makes_room: false,
            reason: reason.map(|reason| reason.name().into()),
            meaning: reason.map(|reason| reason.meaning().into()),
            rule: rule(decides),
            client_limit: self.client_limit(client, service, number),
            balance: service.balance.name().into(),
            chosen: None,
            backend: None,
            address: None,
            snat: None,
            mac: None,
            interface: None,
            backends: self.candidates(service),
            elsewhere: self.elsewhere(listen.ip()),
        };
        match answer {
            // A known connection is not a forecast; the caller lists it.
            Answer::NotOurs | Answer::Known { .. } => refused(Verdict::NotOurs, Some(Reason::NotOurs), None),
            Answer::TurnedAway { reason: Reason::NoSlot, rule } if self.dataplane.tables().has_unconfirmed(number) => {
                Foretold { makes_room: true, ..refused(Verdict::Forwarded, None, rule) }
            }
            Answer::TurnedAway { reason, rule } => refused(Verdict::Refused, Some(reason), rule),
            Answer::Opens { at, position, how, rule, .. } => {
                let tables = self.dataplane.tables();
                let record = tables.pool(at.pool());
                let side = self.side(record.hop);
                let backend = tables.service(number).backends.get(position as usize).copied();
                let facts = backend.and_then(|backend| self.controller.backends().get(&backend));
                let snat = rows::pool_snat(&record).into();
                Foretold {
                    chosen: Some(chosen(how)),
                    backend: facts.map(|facts| facts.name.clone()),
                    address: Some(rows::pool_backend(&record).into()),
                    snat: Some(SocketAddr::new(snat, record.first_port.wrapping_add(at.slot()))),
                    mac: side.mac,
                    interface: side.interface,
                    ..refused(Verdict::Forwarded, None, rule)
                }
            }
        }
    }

    fn sends_cookie(&self, client: IpAddr, service: &Service, number: u16) -> bool {
        let is_exempt = service.syn_cookies_exempt.iter().any(|exempt| exempt.contains(&client));
        self.dataplane.tables().cookies(number) == COOKIES_ON && !is_exempt
    }

    fn candidates(&self, service: &Service) -> Vec<Candidate> {
        let views = service.backends.iter().filter_map(|backend| self.backend_view(service, backend));
        let candidate = |view: report::BackendView| {
            let record = self.dataplane.tables().backend(view.number);
            Candidate {
                backend: view.name,
                address: view.address,
                state: view.state,
                reason: view.reason,
                backup: view.backup,
                weight: record.weight,
                active: record.active,
                max_conns: record.max_conns,
            }
        };
        views.map(candidate).collect()
    }

    /// Whether a VRRP instance has given the address to another host.
    fn elsewhere(&self, address: IpAddr) -> Option<Elsewhere> {
        let reports = self.vrrp.reports();
        let carries = |report: &&InstanceReport| report.addresses.iter().any(|it| it.addr() == address);
        let report = reports.iter().find(carries)?;
        let InstanceReport { state, master, .. } = *report;
        (state != VrrpState::Master).then(|| Elsewhere { instance: report.name.to_string(), state, master })
    }

    fn client_limit(&self, client: IpAddr, service: &Service, number: u16) -> Option<ClientLimit> {
        let IpAddr::V4(client) = client else { return None };
        let word = u32::from_ne_bytes(client.octets());
        let limit = Some(service.per_client_connections).filter(|limit| *limit > 0)?;
        let words = self.dataplane.tables().clients(number);
        let open = words.into_iter().filter(|count| count.is_of(word)).map(ClientCount::count).sum();
        Some(ClientLimit { limit, open })
    }
}

fn chosen(how: u32) -> String {
    CHOSEN.get(how as usize).copied().unwrap_or("unknown").into()
}

fn way(hop: Hop) -> &'static str {
    if hop.is_of_neighbour() { "neighbour" } else { "frame" }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
