//! What the configuration asks of the maps: names resolved to addresses, words to numbers.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use lb_common::{
    address::to_mapped,
    layout::Rule,
    rules::{ALLOW, DENY},
    schedule,
};

use super::probe_count::Tries;
use crate::{
    config::model,
    tables::{ServiceRow, rows::Ports, way_key},
    words::SynCookies,
};

/// Every service of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// In the order of the file.
    pub services: Vec<DesiredService>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    /// Its name, unique.
    pub name: Arc<str>,
    /// Where clients connect to.
    pub listen: Vec<SocketAddrV4>,
    /// How it balances, as it is written to the tables; its backends are not in it yet.
    pub row: ServiceRow,
    /// How long a connection may be without a packet before it is reset.
    pub idle_timeout: Duration,
    /// The addresses that backends see.
    pub snat: Vec<Ipv4Addr>,
    /// The SNAT ports.
    pub ports: Ports,
    /// When it sends SYN cookies.
    pub syn_cookies: SynCookies,
    /// How much payload the segments of its connections may have.
    pub mss_clamp: model::MssClamp,
    /// How many connections are closed per second, when many must be.
    pub reset_rate: u32,
    /// How many probes in a row bring a backend up or take it down, if it is probed.
    pub probe: Option<Tries>,
    /// In the order of the file.
    pub backends: Vec<DesiredBackend>,
}

/// One backend of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredBackend {
    /// Its name, unique in the service.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddrV4,
    /// Share of new connections; at least 1.
    pub weight: u32,
    /// Most active connections; 0: no limit.
    pub max_conns: u32,
    /// Failed tries within `fail_timeout` that take it out; 0: nothing does.
    pub max_fails: u32,
    /// How long it is out, and within how long the failures have to come.
    pub fail_timeout: Duration,
    /// How long it gets less than its share after it has come back.
    pub slow_start: Duration,
    /// Used only when no other backend is up.
    pub backup: bool,
    /// Gets no connections.
    pub down: bool,
}

impl Desired {
    /// Translates a validated configuration. It refuses IPv6, so every address is IPv4; one that is
    /// not would be named here all the same.
    pub fn new(config: &model::Config) -> Result<Desired, Vec<String>> {
        let mut errors = Vec::new();
        let synced = config.sync.is_some();
        let services = config.services.iter().filter_map(|service| translate(service, synced, &mut errors)).collect();
        if errors.is_empty() { Ok(Desired { services }) } else { Err(errors) }
    }

    /// Whether clients connect to an address, at any service.
    pub fn is_listened(&self, address: Ipv4Addr) -> bool {
        let mut all = self.services.iter().flat_map(|service| &service.listen);
        all.any(|listen| *listen.ip() == address)
    }
}

fn translate(service: &model::Service, synced: bool, errors: &mut Vec<String>) -> Option<DesiredService> {
    let mut v4 = |address: SocketAddr| match address {
        SocketAddr::V4(address) => Some(address),
        SocketAddr::V6(address) => {
            errors.push(format!("service {}: {address}: IPv6 is not supported yet", service.name));
            None
        }
    };
    let listen: Option<Vec<_>> = service.listen.iter().map(|address| v4(*address)).collect();
    let snat: Option<Vec<_>> =
        service.snat.iter().map(|address| v4(SocketAddr::new(*address, 0)).map(|address| *address.ip())).collect();
    let backends: Option<Vec<_>> = service
        .backends
        .iter()
        .map(|backend| {
            Some(DesiredBackend {
                name: backend.name.clone(),
                address: v4(backend.address)?,
                weight: backend.weight.get(),
                max_conns: backend.max_conns,
                max_fails: backend.max_fails,
                fail_timeout: backend.fail_timeout,
                slow_start: backend.slow_start,
                backup: backend.backup,
                down: backend.down,
            })
        })
        .collect();
    Some(DesiredService {
        name: service.name.clone(),
        listen: listen?,
        row: row(service, synced),
        idle_timeout: service.idle_timeout,
        snat: snat?,
        ports: Ports { first: service.snat_ports.first(), count: service.snat_ports.count() },
        syn_cookies: service.syn_cookies,
        mss_clamp: service.mss_clamp,
        reset_rate: service.reset_rate.get(),
        probe: service.health.as_ref().map(tries),
        backends: backends?,
    })
}

fn row(service: &model::Service, synced: bool) -> ServiceRow {
    ServiceRow {
        connect_timeout: service.connect_timeout,
        balance: balance(service.balance),
        tries: service.tries().max(1),
        half_open_cells: service.max_half_open.get(),
        // Flow sync depends on these events too.
        log: service.access_log.is_some() || synced,
        rules: service.rules.iter().map(rule).collect(),
        client_limit: service.per_client_connections,
        exempt: service
            .syn_cookies_exempt
            .iter()
            .copied()
            .filter(|net| matches!(net, IpNet::V4(_)))
            .map(way_key)
            .collect(),
        backends: Vec::new(),
    }
}

fn tries(health: &model::Health) -> Tries {
    Tries { rise: health.rise.get(), fall: health.fall.get() }
}

fn balance(balance: model::Balance) -> u32 {
    match balance {
        model::Balance::LeastConn => schedule::LEAST_CONN,
        model::Balance::RoundRobin => schedule::ROUND_ROBIN,
        model::Balance::RandomTwo => schedule::RANDOM_TWO,
        model::Balance::Hash => schedule::HASH,
    }
}

fn rule(rule: &model::Rule) -> Rule {
    let verdict = if rule.allow { ALLOW } else { DENY };
    match rule.clients {
        None => Rule::all(verdict),
        Some(IpNet::V4(network)) => Rule::v4(verdict, to_mapped(network.network()), network.prefix_len()),
        Some(IpNet::V6(network)) => Rule::v6(verdict, network.network().octets(), network.prefix_len()),
    }
}
