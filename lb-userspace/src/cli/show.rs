//! The daemon's answers as text for people.

use std::{fmt::Write, net::IpAddr};

use Column::{Left, Right};
use comfy_table::{Cell, Color};
use jiff::tz::TimeZone;
use lb_common::verdict::Reason;

use super::{
    args::Format,
    meaning,
    table::{Column, Style, Table, coloured},
};
use crate::{
    api::{
        admin::Rebalanced,
        types::{Backend, Conn, Counters, ServiceStatus, Status, VrrpStatus, meanings},
    },
    client::units,
    words::{AdvertRefusal, BackendState, Event, VrrpState},
};

/// `status`
pub fn status(status: &Status, format: Format, style: Style) -> String {
    let mut text = format!(
        "evenkeel {}, up {}\nconfiguration {}, generation {}, loaded {}\n",
        status.version,
        units::seconds(status.uptime_s),
        status.config.file,
        status.config.generation,
        status.config.loaded_at,
    );
    for shown in &status.services {
        text += &service(shown, format, style);
    }
    if !status.vrrp.is_empty() {
        text += "\n";
        text += &vrrp(&status.vrrp, style);
    }
    if let Some(sync) = &status.sync {
        text += "\n";
        text += &super::sync::status(sync, format, style);
    }
    if status.counters.values().any(|count| *count > 0) {
        text += "\n";
        text += &counters(&status.counters, Format::Table, style);
    }
    text
}

fn service(service: &ServiceStatus, format: Format, style: Style) -> String {
    let listen: Vec<_> = service.listen.iter().map(ToString::to_string).collect();
    let mut text = format!("\nservice {} on {}, {}\n", service.name, listen.join(", "), service.balance);
    for hook in &service.datapath {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "datapath {} on {}: {}", hook.mode, hook.interface, hook.reason);
        if !hook.behind.is_empty() {
            let _ = writeln!(text, "  behind {}", hook.behind.join(", "));
        }
    }
    let known: Vec<_> = service.datapath.iter().filter(|hook| hook.mtu != 0).collect();
    if known.iter().any(|hook| hook.mtu != known[0].mtu) {
        let each = known.iter().map(|hook| format!("{} on {}", hook.mtu, hook.interface));
        let _ = writeln!(text, "MTU {}", each.collect::<Vec<_>>().join(", "));
    }
    let connections = &service.connections;
    let _ = writeln!(
        text,
        "connections {} active, {} of them half-open; room for {}; {} in total",
        connections.active, connections.half_open, connections.capacity, connections.total
    );
    if let Some(cookies) = service.syn_cookies.as_ref().filter(|cookies| cookies.on) {
        let reason = cookies.reason.map_or("-".into(), |reason| reason.to_string());
        let _ = writeln!(text, "SYN cookies on since {}: {reason}", cookies.since);
    }
    text + &backends(&service.backends, format, style)
}

/// `backends`
pub fn backends(backends: &[Backend], format: Format, style: Style) -> String {
    let mut columns = vec![
        Left("SERVICE"),
        Left("BACKEND"),
        Left("ADDRESS"),
        Left("STATE"),
        Left("REASON"),
        Right("WEIGHT"),
        Right("ACTIVE"),
        Right("TOTAL"),
        Right("FAILURES"),
        Right("CONNECT"),
        Right("IN"),
        Right("OUT"),
    ];
    let wide = format == Format::Wide;
    if wide {
        columns.extend([Right("P99"), Right("HALF-OPEN"), Right("RESETS"), Left("BACKUP"), Left("LAST CHANGE")]);
    }
    let mut table = Table::new(&columns, style);
    for backend in backends {
        table.row(backend_row(backend, wide));
    }
    table.lines()
}

fn backend_row(backend: &Backend, wide: bool) -> Vec<Cell> {
    let reason = backend.reason.map_or("-".into(), |reason| reason.to_string());
    let mut row = vec![
        Cell::new(&backend.service),
        Cell::new(&backend.name),
        Cell::new(backend.address),
        coloured(&backend.state.to_string(), state_colour(backend.state)),
        Cell::new(reason),
        Cell::new(backend.weight),
        Cell::new(backend.active),
        Cell::new(backend.total),
        Cell::new(backend.connect_failures),
        Cell::new(units::milliseconds(backend.connect_time_ms.p50)),
        Cell::new(units::bytes(backend.bytes_in)),
        Cell::new(units::bytes(backend.bytes_out)),
    ];
    if wide {
        row.extend([
            Cell::new(units::milliseconds(backend.connect_time_ms.p99)),
            Cell::new(backend.half_open),
            Cell::new(backend.resets),
            Cell::new(if backend.backup { "yes" } else { "no" }),
            Cell::new(backend.last_change),
        ]);
    }
    row
}

fn state_colour(state: BackendState) -> Color {
    match state {
        BackendState::Up => Color::Green,
        BackendState::Down => Color::Red,
        _ => Color::Yellow,
    }
}

/// The VRRP table of `status`.
fn vrrp(instances: &[VrrpStatus], style: Style) -> String {
    let columns = [
        Left("VRRP"),
        Left("STATE"),
        Right("PRIORITY"),
        Right("BASE"),
        Left("ADDRESSES"),
        Left("SINCE"),
        Right("CHANGES"),
        Left("MASTER"),
    ];
    let mut table = Table::new(&columns, style);
    for instance in instances {
        table.row(vec![
            Cell::new(&instance.name),
            vrrp_state(instance.state),
            Cell::new(instance.priority),
            Cell::new(instance.base_priority),
            Cell::new(instance.addresses.join(", ")),
            Cell::new(instance.since),
            Cell::new(instance.transitions),
            Cell::new(address(instance.master)),
        ]);
    }
    table.lines()
}

fn vrrp_state(state: VrrpState) -> Cell {
    let colour = match state {
        VrrpState::Master => Color::Green,
        VrrpState::Fault => Color::Red,
        VrrpState::Backup | VrrpState::Init => Color::Yellow,
    };
    coloured(&state.to_string(), colour)
}

fn address(address: Option<IpAddr>) -> String {
    address.map_or("-".into(), |address| address.to_string())
}

/// `vrrp`: the table, and below it what has no room in a row.
pub fn instances(instances: &[VrrpStatus], format: Format, style: Style) -> String {
    let mut columns = vec![
        Left("VRRP"),
        Left("STATE"),
        Left("SINCE"),
        Right("PRIORITY"),
        Left("INTERFACE"),
        Right("ROUTER ID"),
        Left("ADDRESSES"),
        Left("MASTER"),
        Right("SENT"),
        Right("HEARD"),
        Right("REFUSED"),
    ];
    let wide = format == Format::Wide;
    if wide {
        columns.extend([
            Right("VERSION"),
            Left("SOURCE"),
            Right("CHANGES"),
            Right("LEASE"),
            Right("SEND FAILURES"),
            Right("TWO MASTERS"),
            Right("CLAIMS"),
            Right("ANNOUNCED"),
        ]);
    }
    let mut table = Table::new(&columns, style);
    for instance in instances {
        table.row(instance_row(instance, wide));
    }
    table.lines() + &instances.iter().map(details).collect::<String>()
}

fn instance_row(instance: &VrrpStatus, wide: bool) -> Vec<Cell> {
    let adverts = &instance.adverts;
    let mut row = vec![
        Cell::new(&instance.name),
        vrrp_state(instance.state),
        Cell::new(instance.since),
        Cell::new(instance.priority),
        Cell::new(&instance.interface),
        Cell::new(instance.virtual_router_id),
        Cell::new(instance.addresses.join(", ")),
        Cell::new(address(instance.master)),
        Cell::new(adverts.counts.sent),
        Cell::new(adverts.counts.received),
        Cell::new(adverts.refused.values().sum::<u64>()),
    ];
    if wide {
        row.extend([
            Cell::new(instance.version),
            Cell::new(address(instance.source)),
            Cell::new(instance.transitions),
            Cell::new(units::milliseconds((instance.lease_ms > 0).then_some(instance.lease_ms as f64))),
            Cell::new(adverts.counts.send_failures),
            Cell::new(adverts.counts.dual_master),
            Cell::new(adverts.counts.claims),
            Cell::new(adverts.counts.announcements),
        ]);
    }
    row
}

/// Why an instance has its state, which routers it heard, and which advertisements it refused.
fn details(instance: &VrrpStatus) -> String {
    let name = &instance.name;
    let mut text = format!("\n{name} is {}: {}\n", instance.state, instance.reason);
    if instance.priority != instance.base_priority || !instance.weights.is_empty() {
        let weights: Vec<_> = instance.weights.iter().map(|it| format!("{:+} {}", it.weight, it.what)).collect();
        // Writing to a String cannot fail, here and below.
        _ = writeln!(text, "  priority {} of {}: {}", instance.priority, instance.base_priority, weights.join(", "));
    }
    if instance.waits_for_flow_sync {
        _ = writeln!(text, "  waits for flow sync: it does not know all connections of the MASTER yet");
    }
    for fault in &instance.faults {
        _ = writeln!(text, "  fault: {fault}");
    }
    for peer in &instance.peers {
        _ = writeln!(text, "  heard {} with priority {} at {}", peer.address, peer.priority, peer.last_heard);
    }
    for (why, count) in instance.adverts.refused.iter().filter(|(_, count)| **count > 0) {
        let known = AdvertRefusal::ALL.iter().find(|refusal| refusal.name() == why);
        let meaning = known.map_or("", |known| known.advice().unwrap_or(known.meaning()));
        _ = writeln!(text, "  refused {count} ({why}): {meaning}");
    }
    let adverts = &instance.adverts;
    let seen = [
        (
            adverts.counts.dual_master,
            "advertisements of another master while this host was master: let protocol 112 into that host",
        ),
        (
            adverts.counts.claims,
            "claims to its addresses by ARP or ND: a master that this host does not hear, or a host that uses them",
        ),
        (
            adverts.counts.address_mismatches,
            "advertisements with other addresses: configure the same `addresses`, or another virtual_router_id",
        ),
    ];
    for (count, what) in seen.into_iter().filter(|(count, _)| *count > 0) {
        _ = writeln!(text, "  seen {count} {what}");
    }
    text
}

/// `conns`
pub fn conns(conns: &[Conn], format: Format, style: Style) -> String {
    let wide = format == Format::Wide;
    let snat = if wide { Left("SNAT") } else { Right("SNAT PORT") };
    let columns = [
        Left("CLIENT"),
        Left("SERVICE"),
        Left("BACKEND"),
        snat,
        Left("STATE"),
        Right("AGE"),
        Right("IDLE"),
        Right("IN"),
        Right("OUT"),
    ];
    let mut table = Table::new(&columns, style);
    for conn in conns {
        table.row(vec![
            Cell::new(conn.client),
            Cell::new(&conn.service),
            Cell::new(&conn.backend),
            if wide { Cell::new(conn.snat) } else { Cell::new(conn.snat.port()) },
            Cell::new(conn.state),
            Cell::new(units::seconds(conn.age_s)),
            Cell::new(units::seconds(conn.idle_s)),
            Cell::new(units::bytes(conn.bytes_in)),
            Cell::new(units::bytes(conn.bytes_out)),
        ]);
    }
    table.lines()
}

/// `counters`: reasons that occurred, the largest first; with `-o wide` all of them.
pub fn counters(counters: &Counters, format: Format, style: Style) -> String {
    let shown = |count: u64| count > 0 || format == Format::Wide;
    let mut rows: Vec<_> = counters.iter().filter(|(_, count)| shown(**count)).collect();
    rows.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
    let mut table = Table::new(&[Left("REASON"), Right("COUNT"), Left("MEANING")], style);
    for (name, count) in rows {
        table.row(vec![Cell::new(name), Cell::new(count), Cell::new(meaning(name))]);
    }
    table.lines()
}

/// `events`: lines, not a table, because with `-f` there is no last row.
pub fn events(events: &[Event], format: Format) -> String {
    let header = event_line(format, "NUMBER", "TIME", "LEVEL", "KIND", "SUBJECT", "EVENT");
    events.iter().fold(header, |text, shown| text + &event(shown, format))
}

/// One line of `events`. The time is local; in wide lines RFC 3339.
pub fn event(event: &Event, format: Format) -> String {
    let time = match format {
        Format::Wide => event.time.to_string(),
        _ => event.time.to_zoned(TimeZone::system()).strftime("%F %T").to_string(),
    };
    let subject = [&event.service, &event.backend, &event.instance];
    let subject = subject.into_iter().flatten().map(|name| &**name).collect::<Vec<_>>().join("/");
    let subject = if subject.is_empty() { "-" } else { &subject };
    let [level, kind] = [event.level.to_string(), event.kind.to_string()];
    event_line(format, &event.number.to_string(), &time, &level, &kind, subject, &event.text)
}

fn event_line(format: Format, number: &str, time: &str, level: &str, kind: &str, subject: &str, text: &str) -> String {
    // The text of a configuration error may have several lines.
    let text = text.replace('\n', "; ");
    match format {
        Format::Wide => format!("{number:>6}  {time:<30}  {level:<5}  {kind:<9}  {subject:<24}  {text}\n"),
        _ => format!("{time:<19}  {level:<5}  {kind:<9}  {subject:<24}  {text}\n"),
    }
}

/// `rebalance`
pub fn rebalanced(found: &Rebalanced, format: Format, style: Style) -> String {
    let columns = [Left("SERVICE"), Left("BACKEND"), Right("WEIGHT"), Right("ACTIVE"), Right("RESETS"), Right("AFTER")];
    let mut table = Table::new(&columns, style);
    let mut notes = String::new();
    for service in &found.services {
        for backend in &service.backends {
            table.row(vec![
                Cell::new(&service.service),
                Cell::new(&backend.backend),
                Cell::new(backend.weight),
                Cell::new(backend.active),
                Cell::new(backend.resets),
                Cell::new(backend.after),
            ]);
        }
        // Writing to a String cannot fail.
        let _ = match &service.skipped {
            Some(why) => writeln!(notes, "{}: skipped: {why}", service.service),
            None if format == Format::Wide || service.spread != service.spread_after => {
                writeln!(notes, "{}: spread {}, {} afterwards", service.service, service.spread, service.spread_after)
            }
            None => Ok(()),
        };
    }
    table.lines() + &notes
}

/// `counters --list`
pub fn reasons(format: Format, style: Style) -> String {
    if format == Format::Json {
        return format!("{}\n", serde_json::json!(meanings()));
    }
    let mut table = Table::new(&[Left("REASON"), Left("MEANING")], style);
    for reason in Reason::ALL {
        table.row(vec![Cell::new(reason.name()), Cell::new(reason.meaning())]);
    }
    table.lines()
}
