//! `[[service]]`

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

use ipnet::IpNet;
use lb_common::{clients::MOST, layout};
use toml::de::DeValue;

use super::{DAY, access_log, backend, check_interface, health, millis, seconds};
use crate::config::{
    cross::{Cross, Once},
    model::{Backend, Balance, Datapath, MssClamp, PortRange, Rule, Service, SynCookies},
    problem::Findings,
    raw::{At, Table, Value, describe, values},
    units,
};

/// Below Linux's ephemeral ports (32768-60999), so that the host's own address is safe as a SNAT
/// address.
const DEFAULT_SNAT_PORTS: PortRange = PortRange::new(10_240, 32_767).unwrap();

const DATAPATHS: &[(&str, Datapath)] =
    &[("auto", Datapath::Auto), ("xdp", Datapath::Xdp), ("xdp-generic", Datapath::XdpGeneric), ("tc", Datapath::Tc)];

const SYN_COOKIES: &[(&str, SynCookies)] =
    &[("auto", SynCookies::Auto), ("always", SynCookies::Always), ("off", SynCookies::Off)];
/// Most prefixes of `syn_cookies_exempt`.
const MAX_EXEMPT: usize = 256;

const MSS_CLAMPS: &[(&str, MssClamp)] = &[("off", MssClamp::Off), ("auto", MssClamp::Auto)];
/// From what every host takes (RFC 9293 section 3.7.1) to what fits into a jumbo frame.
const PAYLOAD: std::ops::RangeInclusive<u32> = 536..=8960;

/// Reads `[[service]]`.
pub fn service<'a>(mut table: Table<'a>, cross: &mut Cross<'a>) -> Option<Service> {
    let findings = table.findings;
    let name = table.required("name", "\"kube-apiserver\"", units::name);
    if let Some(name) = &name {
        cross.services.enter(name.value.to_owned(), name.pos, findings);
    }
    let listen = table.required_list("listen", "\"10.0.1.100:6443\"", units::socket_address);
    let interfaces = interfaces(&mut table);
    let datapath = table.or("datapath", Datapath::Auto, units::choice(DATAPATHS));
    let balance = table.or("balance", Balance::LeastConn, units::choice(Balance::NAMES));
    let connect_timeout = table.or("connect_timeout", seconds(2), units::duration(millis(10)..=seconds(60)));
    let idle_timeout = table.or("idle_timeout", seconds(600), units::duration(seconds(1)..=7 * DAY));
    let next_upstream = table.or("next_upstream", true, units::boolean);
    let next_upstream_tries = table.or("next_upstream_tries", 0, units::number(0..=layout::MAX_SERVICE_BACKENDS));
    let snat = snat(&mut table, &listen);
    let snat_ports = table.optional("snat_ports", ports).unwrap_or(At { value: DEFAULT_SNAT_PORTS, pos: table.pos });
    let rules = rules(&mut table);
    let reset_rate = table.or("reset_rate", 5000, units::number(1..=1_000_000));
    let max_half_open = table.or("max_half_open", 32_768, units::number(1..=65_536));
    let per_client_connections = table.or("per_client_connections", 0, units::number(0..=MOST));
    let (syn_cookies, syn_cookies_exempt) = syn_cookies(&mut table);
    let mss_clamp = table.or("mss_clamp", MssClamp::default(), mss_clamp);
    let access_log = table.table("access_log", "[service.access_log]").map(access_log::access_log);
    let health = table.table("health", "[service.health]").map(health::health);
    let backends = backends(&mut table, balance);
    table.finish();

    let addresses: Vec<_> = backends.iter().map(|read| read.address).collect();
    check_families(&listen, &snat, &addresses, findings);
    cross.service(&listen, &addresses, &snat, snat_ports, findings);
    Some(Service {
        name: name?.value.into(),
        listen: values(listen),
        interfaces,
        datapath,
        balance,
        connect_timeout,
        idle_timeout,
        next_upstream,
        next_upstream_tries,
        snat: values(snat),
        snat_ports: snat_ports.value,
        rules,
        reset_rate: NonZeroU32::new(reset_rate)?,
        max_half_open: NonZeroU32::new(max_half_open)?,
        per_client_connections,
        syn_cookies,
        syn_cookies_exempt,
        mss_clamp,
        access_log: access_log.flatten(),
        health: health.flatten(),
        backends: backends.into_iter().map(|read| read.backend).collect::<Vec<Backend>>(),
    })
}

fn interfaces(table: &mut Table) -> Vec<String> {
    let interfaces = table.list("interface", units::interface).unwrap_or_default();
    interfaces.iter().for_each(|at| check_interface(at, table.findings));
    let mut once = Once::new("interface");
    for at in &interfaces {
        once.enter(at.value.clone(), at.pos, table.findings);
    }
    values(interfaces)
}

/// The SNAT addresses; by default the addresses of `listen`. Which of them a connection gets follows
/// the listener that its client came by, see `lb_common::layout::LISTENED`.
fn snat<'a>(table: &mut Table<'a>, listen: &[At<'a, SocketAddr>]) -> Vec<At<'a, IpAddr>> {
    let listed = table.list("snat", units::address).filter(|list| !list.is_empty());
    let candidates =
        listed.unwrap_or_else(|| listen.iter().map(|at| At { value: at.value.ip(), pos: at.pos }).collect());
    let mut snat: Vec<At<IpAddr>> = Vec::new();
    for at in candidates {
        if !snat.iter().any(|other| other.value == at.value) {
            snat.push(at);
        }
    }
    if let Some(over) = snat.get(layout::MAX_SNAT as usize) {
        let what = format!("snat: {} addresses, the maximum is {}", snat.len(), layout::MAX_SNAT);
        table.findings.error(over.pos.problem(what));
    }
    snat
}

fn ports(value: Value) -> Result<PortRange, String> {
    let text = units::text(value)?;
    let right = "write \"first-last\" within \"1024-65535\", such as \"10240-32767\"";
    let (first, last) = text.split_once('-').ok_or_else(|| format!("\"{text}\" is not a port range: {right}"))?;
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) => PortRange::new(first, last),
        _ => None,
    }
    .ok_or_else(|| format!("\"{text}\" is not a port range: {right}"))
}

fn rules(table: &mut Table) -> Vec<Rule> {
    let rules = table.list("rules", rule).unwrap_or_default();
    if let Some(over) = rules.get(layout::MAX_RULES as usize) {
        let what = format!("rules: {} rules, the maximum is {}", rules.len(), layout::MAX_RULES);
        table.findings.error(over.pos.problem(what));
    }
    values(rules)
}

fn rule(value: Value) -> Result<Rule, String> {
    let text = units::text(value)?;
    let wrong = || {
        format!(
            "\"{text}\" is not a rule: write \"allow NETWORK\", \"deny NETWORK\" or \"deny all\", such as \"allow 10.0.0.0/8\""
        )
    };
    let (verb, clients) = text.trim().split_once(char::is_whitespace).ok_or_else(wrong)?;
    let allow = match verb {
        "allow" => true,
        "deny" => false,
        _ => return Err(wrong()),
    };
    let clients = match clients.trim() {
        "all" => None,
        clients => {
            let network = network(clients).ok_or_else(wrong)?;
            if network.trunc() != network {
                let right = network.trunc();
                return Err(format!("\"{text}\": {network} has host bits set: write \"{verb} {right}\""));
            }
            Some(network)
        }
    };
    Ok(Rule { allow, clients })
}

/// A prefix, or one address.
fn network(text: &str) -> Option<IpNet> {
    let host = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(|_| host()).ok()
}

/// `syn_cookies` and `syn_cookies_exempt`.
fn syn_cookies(table: &mut Table) -> (SynCookies, Vec<IpNet>) {
    let cookies = table.or("syn_cookies", SynCookies::Auto, units::choice(SYN_COOKIES));
    let mut exempt: Vec<At<IpNet>> = Vec::new();
    for at in table.list("syn_cookies_exempt", exempt_clients).unwrap_or_default() {
        if !exempt.iter().any(|other| other.value == at.value) {
            exempt.push(at);
        }
    }
    if let Some(over) = exempt.get(MAX_EXEMPT) {
        let what = format!("syn_cookies_exempt: {} prefixes, the maximum is {MAX_EXEMPT}", exempt.len());
        table.findings.error(over.pos.problem(what));
    }
    if let Some(first) = exempt.first().filter(|_| cookies == SynCookies::Off) {
        let what = "syn_cookies_exempt has no effect with syn_cookies = \"off\"";
        table.findings.warning(first.pos.problem(what));
    }
    if let Some(first) = exempt.iter().find(|at| matches!(at.value, IpNet::V6(_))) {
        let what = "syn_cookies_exempt: IPv6 clients have no effect, because services have IPv4 addresses only";
        table.findings.warning(first.pos.problem(what));
    }
    (cookies, values(exempt))
}

fn exempt_clients(value: Value) -> Result<IpNet, String> {
    let text = units::text(value)?;
    let wrong = || format!("\"{text}\" is not a prefix or an address: write \"10.9.0.0/16\" or \"10.9.1.7\"");
    let network = network(text.trim()).ok_or_else(wrong)?;
    if network.trunc() != network {
        return Err(format!("\"{text}\" has host bits set: write \"{}\"", network.trunc()));
    }
    Ok(network)
}

fn mss_clamp(value: Value) -> Result<MssClamp, String> {
    match value.toml {
        DeValue::Integer(_) => units::number(PAYLOAD)(value).map(MssClamp::Bytes),
        DeValue::String(_) => units::choice(MSS_CLAMPS)(value),
        other => {
            let (low, high) = (PAYLOAD.start(), PAYLOAD.end());
            Err(format!("found {}, expected \"off\", \"auto\" or {low} to {high} bytes of payload", describe(other)))
        }
    }
}

fn backends<'a>(table: &mut Table<'a>, balance: Balance) -> Vec<backend::Read<'a>> {
    let findings = table.findings;
    let tables = table.tables("backend", "[[service.backend]]");
    if tables.is_empty() {
        findings.error(table.pos.problem("[[service]] has no backend: add [[service.backend]] with name and address"));
    }
    if let Some(over) = tables.get(layout::MAX_SERVICE_BACKENDS as usize) {
        let what = format!("{} backends in one service, the maximum is {}", tables.len(), layout::MAX_SERVICE_BACKENDS);
        findings.error(over.pos.problem(what));
    }
    let mut seen = backend::Seen { names: Once::new("backend"), addresses: Once::new("backend address") };
    let backends: Vec<_> = tables.into_iter().filter_map(|table| backend::backend(table, &mut seen)).collect();
    if balance == Balance::Hash {
        for backup in backends.iter().filter_map(|read| read.backup) {
            let what = "backup: balance = \"hash\" spreads clients over all backends and has no backups: \
                        remove `backup` or use another balance";
            findings.error(backup.pos.problem(what));
        }
    }
    backends
}

/// Nothing is translated between IPv4 and IPv6: listen addresses, SNAT addresses and backends must
/// match by family.
fn check_families(listen: &[At<SocketAddr>], snat: &[At<IpAddr>], backends: &[At<SocketAddr>], findings: &Findings) {
    let family = |ipv4: bool| if ipv4 { "IPv4" } else { "IPv6" };
    if backends.is_empty() || listen.is_empty() {
        return; // reported already
    }
    let of_no_backend = |address: IpAddr| !backends.iter().any(|backend| backend.value.is_ipv4() == address.is_ipv4());
    let useless: Vec<_> = snat.iter().filter(|at| of_no_backend(at.value)).collect();
    for at in &useless {
        let is = family(at.value.is_ipv4());
        findings.error(at.pos.problem(format!("snat: {} is {is}, but no backend of this service is", at.value)));
    }
    let unreachable = |at: &&At<SocketAddr>| !snat.iter().any(|snat| snat.value.is_ipv4() == at.value.is_ipv4());
    for at in backends.iter().filter(unreachable).filter(|_| useless.is_empty()) {
        let is = family(at.value.is_ipv4());
        let what = format!("address: {} is {is}, but no SNAT address of this service is: add one to `snat`", at.value);
        findings.error(at.pos.problem(what));
    }
    for at in listen.iter().filter(|at| of_no_backend(at.value.ip())) {
        let is = family(at.value.is_ipv4());
        findings.error(at.pos.problem(format!("listen: {} is {is}, but no backend of this service is", at.value)));
    }
    for at in listen.iter().chain(backends).filter(|at| at.value.is_ipv6()) {
        findings.error(at.pos.problem(format!("{} is IPv6, which is not balanced yet: use an IPv4 address", at.value)));
    }
}
