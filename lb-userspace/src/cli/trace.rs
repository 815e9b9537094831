//! `trace`, for people: one connection, or what would happen to a new one.

use std::{fmt::Display, net::SocketAddr};

use super::{args::Format, output, query, raw};
use crate::{
    api::trace::{Candidate, Connection, Elsewhere, Foretold, Side, Trace, TraceQuery, Verdict},
    client::{Client, Failure, units},
};

pub fn trace(client: &Client, about: SocketAddr, service: Option<String>, format: Format) -> Result<(), Failure> {
    let answer = client.get(&format!("/api/v1/trace?{}", query(&TraceQuery { client: about, service })?))?;
    match format {
        Format::Json => raw(&answer),
        _ => output::print(&told(&answer.read()?)),
    }
}

/// The whole answer, one fact per line.
pub fn told(trace: &Trace) -> String {
    let mut text = trace.connections.iter().map(|it| tell_connection(trace.client, it)).collect::<String>();
    if trace.connections.is_empty() {
        text += &format!("{} has no connection. A SYN from it now would do this:\n", trace.client);
    }
    text + &trace.new.iter().map(tell_foretold).collect::<String>()
}

fn line(name: &str, value: impl Display) -> String {
    format!("  {name:<12} {value}\n")
}

fn tell_connection(client: SocketAddr, it: &Connection) -> String {
    let failed: Vec<_> = it.failed.iter().map(ToString::to_string).collect();
    let failed = if failed.is_empty() { String::new() } else { format!("; failed before: {}", failed.join(", ")) };
    let ports_left = match it.ports_left {
        0 => String::new(),
        left => format!("; {left} ports skipped, as the backend still holds older connections on them"),
    };
    let mut text = format!("{client} to {} (service {}): {}\n", it.listen, it.service, it.state);
    text += &line("backend", format_args!("{} ({}), which sees it as {}", it.backend, it.address, it.snat));
    text += &line("chosen", chosen(&it.balance, &it.chosen));
    text += &line("tries", format_args!("{}{failed}{ports_left}", it.tries));
    text += &line("slot", format_args!("pool {}, slot {}, generation {}", it.pool, it.slot, it.generation));
    text += &line("client side", side(&it.client_side));
    text += &line("backend side", side(&it.backend_side));
    text += &line("connect", units::milliseconds(it.connect_ms));
    text += &line("age", format_args!("{:.1}s, idle {:.1}s", it.age_s, it.idle_s));
    if let Some(left) = it.idle_left_s {
        text += &line("idle_timeout", format_args!("in {}: both sides are reset", units::seconds(left as u64)));
    }
    if let Some(left) = it.connect_left_s {
        text += &line("timeout", format_args!("in {left:.1}s: the next backend is tried (connect_timeout)"));
    }
    text + &line("bytes", format_args!("{} in, {} out", units::bytes(it.bytes_in), units::bytes(it.bytes_out)))
}

fn chosen(balance: &str, how: &str) -> String {
    let why = match how {
        "up" => "it is up",
        "backup" => "a backup, as no other backend is up",
        "fail_open" => "no backend is up, so all are tried (fail open)",
        "trial" => "it is out, and this connection tests whether it is back",
        other => other,
    };
    format!("by {balance}; {why}")
}

fn side(side: &Side) -> String {
    let number = |number: Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
    let hop = match (&side.mac, &side.interface, &side.own_mac) {
        (Some(mac), Some(interface), Some(own)) => {
            let way = match side.way.as_deref() {
                Some("neighbour") => ", as this host's neighbours say",
                Some(_) => ", as its frames come",
                None => "",
            };
            format!("via {interface} ({own}) to {mac}{way}")
        }
        _ => "next hop unknown".into(),
    };
    let fin = if side.fin { ", closed (FIN)" } else { "" };
    let (isn, end, acknowledged) = (number(side.isn), number(side.end), number(side.acknowledged));
    format!("{hop}; isn {isn}, sent up to {end}, acknowledged up to {acknowledged}{fin}")
}

fn tell_foretold(it: &Foretold) -> String {
    let verdict = match (it.verdict, &it.backend) {
        (Verdict::Forwarded, Some(backend)) => format!("goes to {backend}"),
        (Verdict::Forwarded, None) => "is forwarded".into(),
        (Verdict::Refused, _) => "is refused (RST)".into(),
        (Verdict::NotOurs, _) => "goes to this host itself: the program is on no interface of the service".into(),
    };
    let mut text = format!("to {} (service {}): {verdict}\n", it.listen, it.service);
    if it.syn_cookie {
        text += &line("but first", "it is answered with a SYN cookie: this is what its client meets if it answers");
    }
    if it.makes_room {
        text += &line("room", "no port is free: the oldest connection that its client has not confirmed gives way");
    }
    if let Some(elsewhere) = &it.elsewhere {
        text += &line("but", it_is_elsewhere(elsewhere));
    }
    if let (Some(reason), Some(meaning)) = (&it.reason, &it.meaning) {
        text += &line("reason", format_args!("{reason}: {meaning}"));
    }
    if let Some(rule) = &it.rule {
        text += &line("rule", format_args!("{}: \"{}\"", rule.number, rule.text));
    }
    if let Some(limit) = it.client_limit {
        text += &line("client", format_args!("has {} of {} connections", limit.open, limit.limit));
    }
    if let Some(how) = &it.chosen {
        text += &line("chosen", chosen(&it.balance, how));
    }
    if let (Some(address), Some(snat)) = (it.address, it.snat) {
        text += &line("sent", format_args!("to {address}, from {snat}"));
    }
    if let (Some(mac), Some(interface)) = (&it.mac, &it.interface) {
        text += &line("next hop", format_args!("{mac} via {interface}"));
    }
    let width = it.backends.iter().map(|it| it.backend.len()).max().unwrap_or(0);
    for (position, of) in it.backends.iter().enumerate() {
        let name = if position == 0 { "backends" } else { "" };
        text += &line(name, format_args!("{:<width$}  {}", of.backend, standing(of)));
    }
    text
}

fn standing(it: &Candidate) -> String {
    let reason = it.reason.map_or(String::new(), |reason| format!(" ({reason})"));
    let backup = if it.backup { ", backup" } else { "" };
    let limit = if it.max_conns == 0 { String::new() } else { format!(" of {}", it.max_conns) };
    format!("{}{reason}{backup}, weight {}, {}{limit} active", it.state, it.weight, it.active)
}

fn it_is_elsewhere(it: &Elsewhere) -> String {
    let Elsewhere { instance, state, master } = it;
    match master {
        Some(master) => format!("this host is {state} of {instance}: SYNs go to {master}, which holds the address"),
        None => format!("this host is {state} of {instance} and does not hold the address, so no SYN arrives here"),
    }
}
