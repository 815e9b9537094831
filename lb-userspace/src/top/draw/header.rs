//! The top and bottom lines: the daemon, the totals and the keys.

use ratatui::text::Line;

use super::{
    look::{Look, Tone, columns},
    number::{bytes_per_second, per_second, seconds_since},
};
use crate::{client::units, top::state::State};

/// Two lines, or one on a small terminal; one more while the daemon does not answer.
pub fn lines(state: &State, look: &Look, width: usize, brief: bool) -> Vec<Line<'static>> {
    let mut lines = vec![first(state, look, width)];
    if let Some(silence) = &state.silence {
        let why = silence.why.lines().next().unwrap_or_default();
        lines.push(Line::from(look.text(Tone::Soft, look.fit(&format!("{why}; retrying"), width, false))));
    }
    if !brief {
        lines.push(sums(state, look, width));
    }
    lines
}

fn first(state: &State, look: &Look, width: usize) -> Line<'static> {
    let status = &state.seen.status;
    let (right, tone) = match &state.silence {
        None => (format!("live {}", look.clock(state.now.time)), Tone::Good),
        Some(silence) => {
            let since = look.moment(silence.since, state.now.time);
            (format!("no answer since {since} ({})", seconds_since(silence.since, state.now.time)), Tone::Bad)
        }
    };
    let name = format!("evenkeel {}", status.version);
    let about = format!(
        "  up {}  configuration {} of {}",
        units::seconds(status.uptime_s),
        status.config.generation,
        look.moment(status.config.loaded_at, state.now.time),
    );
    let room = width.saturating_sub(columns(&right) + 1);
    let name = look.fit(&name, columns(&name).min(room), false);
    let about = look.fit(&about, room.saturating_sub(columns(&name)), false);
    Line::from(vec![
        look.text(Tone::Strong, name),
        look.text(Tone::Soft, about),
        look.text(Tone::Plain, " "),
        look.text(tone, right),
    ])
}

/// The totals of all services, the most important first; what does not fit is left out.
fn sums(state: &State, look: &Look, width: usize) -> Line<'static> {
    let services = &state.seen.status.services;
    let sum =
        |of: fn(&crate::api::types::Connections) -> u64| services.iter().map(|it| of(&it.connections)).sum::<u64>();
    let (active, capacity) = (sum(|it| it.active), sum(|it| it.capacity));
    let cookies = services.iter().any(|it| it.syn_cookies.as_ref().is_some_and(|cookies| cookies.on));
    let cookies = if cookies { ", SYN cookies" } else { "" };
    let rates = state.all.rates;
    let curve = |values| look.curve(values, if width >= WITH_CURVES && look.unicode { 12 } else { 0 });
    let mut parts = vec![
        ("open", format!("{active}/{capacity} {}", curve(state.all.active.iter()))),
        ("new", format!("{} {}", per_second(rates.map(|it| it.opened)), curve(state.all.opened.iter()))),
        ("failed", per_second(rates.map(|it| it.failed))),
        ("in", bytes_per_second(rates.map(|it| it.bytes_in))),
        ("out", bytes_per_second(rates.map(|it| it.bytes_out))),
        ("half-open", format!("{}{cookies}", sum(|it| it.half_open))),
    ];
    let length = |parts: &[(&str, String)]| {
        parts.iter().map(|(name, value)| columns(name) + columns(value.trim_end()) + 3).sum::<usize>()
    };
    while length(&parts) > width + 2 {
        parts.pop();
    }
    let spans = parts.into_iter().flat_map(|(name, value)| {
        [
            look.text(Tone::Soft, format!("{name} ")),
            look.text(Tone::Strong, value.trim_end()),
            look.text(Tone::Plain, "  "),
        ]
    });
    Line::from_iter(spans)
}

/// From this width on the totals have curves.
const WITH_CURVES: usize = 110;

/// A notice if there is one, otherwise the keys.
pub fn footer(state: &State, look: &Look, width: usize) -> Line<'static> {
    if let Some(notice) = state.notice() {
        return Line::from(look.text(Tone::Strong, look.fit(notice, width, false)));
    }
    let stage = state.stage.as_ref().map(|stage| stage.hint.as_str()).filter(|hint| !hint.is_empty());
    let own = ["q quit", "? help", "d drain", "m maint", "r ready", "s sort", "Tab panel", "arrows select"];
    let mut keys: Vec<&str> = own[..2].iter().copied().chain(stage).chain(own[2..].iter().copied()).collect();
    while keys.iter().map(|key| columns(key) + 2).sum::<usize>() > width + 2 && keys.len() > 1 {
        keys.pop();
    }
    Line::from(look.text(Tone::Soft, look.fit(&keys.join("  "), width, false)))
}
