//! The table of backends, with as many columns as fit.

use ratatui::text::{Line, Span};

use super::{
    look::{Look, Tone, columns},
    number::{bytes_per_second, per_second, seconds_since},
};
use crate::{
    api::types::{Backend, ServiceStatus},
    client::units,
    controller::rebalance,
    top::state::{Sort, State},
    words::{BackendReason, BackendState},
};

/// The content of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Show {
    Name,
    Standing,
    Address,
    Weight,
    Active,
    Share,
    Curve,
    HalfOpen,
    New,
    In,
    Out,
    Connect,
    Slowest,
    Failures,
    Resets,
    Total,
}

/// A column, shown from a certain width of the terminal on.
struct Column {
    show: Show,
    title: &'static str,
    /// `None` for columns that share the remaining width.
    width: Option<usize>,
    from: usize,
    sort: Option<Sort>,
}

const fn column(show: Show, title: &'static str, width: usize, from: usize, sort: Option<Sort>) -> Column {
    Column { show, title, width: if width == 0 { None } else { Some(width) }, from, sort }
}

const COLUMNS: [Column; 16] = [
    column(Show::Name, "BACKEND", 0, 0, None),
    column(Show::Standing, "STATE", 0, 0, Some(Sort::State)),
    column(Show::Address, "ADDRESS", 21, 120, None),
    column(Show::Weight, "WEIGHT", 6, 180, None),
    column(Show::Active, "ACTIVE", 7, 0, Some(Sort::Active)),
    column(Show::Share, "", 6, 76, None),
    column(Show::Curve, "2 MIN", 0, 150, None),
    column(Show::HalfOpen, "HALF", 5, 132, None),
    column(Show::New, "NEW/s", 6, 0, Some(Sort::New)),
    column(Show::In, "IN/s", 8, 76, Some(Sort::Traffic)),
    column(Show::Out, "OUT/s", 8, 76, Some(Sort::Traffic)),
    column(Show::Connect, "CONNECT", 7, 60, Some(Sort::Connect)),
    column(Show::Slowest, "P99", 7, 120, None),
    column(Show::Failures, "FAILS", 6, 100, Some(Sort::Failures)),
    column(Show::Resets, "RESETS", 7, 132, None),
    column(Show::Total, "TOTAL", 9, 110, None),
];

/// Marks the selected row; other rows have blanks of the same width.
const MARK: &str = "> ";

/// The columns that fit, with their widths.
fn fitting(state: &State, width: usize) -> Vec<(&'static Column, usize)> {
    let shown: Vec<_> = COLUMNS.iter().filter(|column| column.from <= width).collect();
    let fixed: usize = shown.iter().map(|column| column.width.unwrap_or(0) + 1).sum::<usize>() + MARK.len() - 1;
    let rest = width.saturating_sub(fixed);
    let names = state.seen.status.services.iter().flat_map(|service| &service.backends);
    let longest = names.map(|backend| columns(&backend.name)).max().unwrap_or(0);
    let name = longest.clamp(7, 24).min(rest.saturating_sub(10).max(7));
    let has_curve = shown.iter().any(|column| column.show == Show::Curve);
    let standing = rest.saturating_sub(name);
    let standing = if has_curve { standing.min(26) } else { standing };
    let curve = rest.saturating_sub(name + standing);
    let width = |column: &Column| match column.show {
        Show::Name => name,
        Show::Standing => standing,
        Show::Curve => curve,
        _ => column.width.unwrap_or(0),
    };
    shown.into_iter().map(|column| (column, width(column))).collect()
}

/// The lines of the table, titles first, and the index of the selected backend's line.
pub fn lines(state: &State, look: &Look, width: usize) -> (Vec<Line<'static>>, usize) {
    let columns = fitting(state, width);
    let mut lines = vec![titles(state, look, &columns, width)];
    let mut selected_line = 0;
    let selected = state.selected();
    for service in &state.seen.status.services {
        lines.push(Line::from(look.text(Tone::Plain, look.rule(&about(service), width))));
        let most = service.backends.iter().map(|backend| backend.active).max().unwrap_or(0);
        for backend in state.sorted(service) {
            let is_selected = selected.is_some_and(|selected| std::ptr::eq(selected, backend));
            if is_selected {
                selected_line = lines.len();
            }
            lines.push(row(state, look, &columns, backend, most, is_selected));
        }
    }
    (lines, selected_line)
}

fn titles(state: &State, look: &Look, columns: &[(&Column, usize)], width: usize) -> Line<'static> {
    let title = |(column, width): &(&Column, usize)| {
        let mark = match column.sort {
            Some(sort) if sort == state.sort => ["*", "^"][usize::from(state.reversed)],
            _ => "",
        };
        look.fit(&format!("{mark}{}", column.title), *width, is_right(column.show))
    };
    let line = format!("  {}", columns.iter().map(title).collect::<Vec<_>>().join(" "));
    Line::from(look.text(Tone::Title, look.fit(&line, width, false)))
}

/// A service, its hooks and the imbalance of its backends.
fn about(service: &ServiceStatus) -> String {
    let listen: Vec<_> = service.listen.iter().map(ToString::to_string).collect();
    let hooks: Vec<_> = service.datapath.iter().map(|hook| format!("{} on {}", hook.mode, hook.interface)).collect();
    let hooks = if hooks.is_empty() { "DETACHED".into() } else { hooks.join(", ") };
    let up = service.backends.iter().filter(|backend| is_up(backend)).count();
    let all = service.backends.len();
    let spread = spread(service).map(|spread| format!(", spread {spread}")).unwrap_or_default();
    format!("{} {}, {up} of {all} up{spread}, {}, {hooks}", service.name, listen.join(" "), service.balance)
}

fn is_up(backend: &Backend) -> bool {
    matches!(backend.state, BackendState::Up | BackendState::SlowStart)
}

/// The imbalance of the backends that get connections, as in `rebalance`; `None` for fewer than
/// two.
fn spread(service: &ServiceStatus) -> Option<u32> {
    let loads = service.backends.iter().filter(|backend| is_up(backend) && !backend.backup);
    let loads = loads.map(|backend| (u32::try_from(backend.active).unwrap_or(u32::MAX), backend.weight.max(1)));
    (loads.clone().count() > 1).then(|| rebalance::spread(loads))
}

fn row(
    state: &State,
    look: &Look,
    columns: &[(&Column, usize)],
    backend: &Backend,
    most: u64,
    is_selected: bool,
) -> Line<'static> {
    let mark = if is_selected { MARK } else { "  " };
    let mut spans = vec![look.text(Tone::Strong, mark)];
    for (column, width) in columns {
        let text = cell(state, look, column.show, *width, backend, most);
        let tone = match column.show {
            Show::Standing => tone(backend.state),
            Show::Name if is_selected => Tone::Strong,
            Show::Address | Show::Curve | Show::Share => Tone::Soft,
            _ => Tone::Plain,
        };
        spans.push(look.text(tone, look.fit(&text, *width, is_right(column.show))));
        spans.push(Span::raw(" "));
    }
    spans.pop();
    Line::from(spans)
}

fn is_right(show: Show) -> bool {
    !matches!(show, Show::Name | Show::Standing | Show::Address | Show::Share | Show::Curve)
}

fn cell(state: &State, look: &Look, show: Show, width: usize, backend: &Backend, most: u64) -> String {
    let past = state.past(backend);
    let rates = past.and_then(|past| past.rates);
    let without_unit = |text: String| text.trim_end_matches("/s").to_owned();
    match show {
        Show::Name => backend.name.to_string(),
        Show::Standing => standing(state, backend, width),
        Show::Address => backend.address.to_string(),
        Show::Weight => backend.weight.to_string(),
        Show::Active => backend.active.to_string(),
        Show::Share => look.bar(if most > 0 { backend.active as f64 / most as f64 } else { 0.0 }, width),
        Show::Curve => past.map(|past| look.curve(past.active.iter(), width)).unwrap_or_default(),
        Show::HalfOpen => backend.half_open.to_string(),
        Show::New => without_unit(per_second(rates.map(|it| it.opened))),
        Show::In => without_unit(bytes_per_second(rates.map(|it| it.bytes_in))),
        Show::Out => without_unit(bytes_per_second(rates.map(|it| it.bytes_out))),
        Show::Connect => units::milliseconds(backend.connect_time_ms.p50),
        Show::Slowest => units::milliseconds(backend.connect_time_ms.p99),
        Show::Failures => backend.connect_failures.to_string(),
        Show::Resets => backend.resets.to_string(),
        Show::Total => backend.total.to_string(),
    }
}

/// The state, its reason and its age, as far as they fit.
fn standing(state: &State, backend: &Backend, width: usize) -> String {
    let reason = backend.reason.map(|reason| reason.to_string());
    let parts = [Some(backend.state.to_string()), reason, Some(seconds_since(backend.last_change, state.now.time))];
    let mut text = String::new();
    for part in parts.into_iter().flatten() {
        let more = if text.is_empty() { part } else { format!("{text} {part}") };
        if !text.is_empty() && columns(&more) > width {
            break;
        }
        text = more;
    }
    text
}

pub fn tone(state: BackendState) -> Tone {
    match state {
        BackendState::Up => Tone::Good,
        BackendState::Down => Tone::Bad,
        _ => Tone::Mild,
    }
}

/// Details of the selected backend that may have no column.
pub fn details(state: &State, look: &Look, width: usize) -> Vec<Line<'static>> {
    let Some(backend) = state.selected() else { return Vec::new() };
    let reason = backend.reason.map(|reason| format!(": {}", meaning(reason))).unwrap_or_default();
    let kind = if backend.backup { ", backup" } else { "" };
    let standing = format!(
        "{} {}, weight {}{kind}, {}{reason}, since {}",
        backend.name,
        backend.address,
        backend.weight,
        backend.state,
        look.moment(backend.last_change, state.now.time),
    );
    let numbers = format!(
        "{} total, {} failed, {} reset, p99 {}, {} in, {} out, {} half-open",
        backend.total,
        backend.connect_failures,
        backend.resets,
        units::milliseconds(backend.connect_time_ms.p99),
        units::bytes(backend.bytes_in),
        units::bytes(backend.bytes_out),
        backend.half_open,
    );
    let line = |text: String| Line::from(look.text(Tone::Soft, look.fit(&text, width, false)));
    vec![line(standing), line(numbers)]
}

fn meaning(reason: BackendReason) -> &'static str {
    match reason {
        BackendReason::Admin => "by an operator",
        BackendReason::Config => "in the configuration",
        BackendReason::Refused => "refuses connections",
        BackendReason::Timeout => "does not answer SYNs",
        BackendReason::Unreachable => "cannot be reached",
        BackendReason::Silent => "is silent",
        BackendReason::ProbeTimeout => "does not answer the probe",
        BackendReason::ProbeStatus => "reports not ready",
        BackendReason::ProbeTls => "is not trusted by the probe",
    }
}
