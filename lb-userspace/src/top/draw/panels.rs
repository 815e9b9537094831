//! The lower part: events, counters, VRRP, and the lab's additions.

use lb_common::verdict::Reason;
use ratatui::text::{Line, Span};

use super::{
    look::{Look, Tone, columns},
    number::seconds_since,
};
use crate::{
    api::types::{SyncPeer, VrrpStatus},
    client::units,
    top::state::{Panel, Stage, State},
    words::{Event, EventLevel, SyncState, VrrpState},
};

/// The size of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub width: usize,
    /// Including the title.
    pub height: usize,
}

/// A panel with its title, cut to the height.
pub fn panel(state: &State, look: &Look, panel: Panel, title: &str, room: Room) -> Vec<Line<'static>> {
    let height = room.height.saturating_sub(1);
    let mut rows = match panel {
        Panel::Events => events(state, look, room.width),
        Panel::Counters => counters(state, look, room.width),
        Panel::Vrrp => vrrp(state, look, room.width),
    };
    let scroll = if panel == state.panel { state.scroll.min(rows.len().saturating_sub(height)) } else { 0 };
    rows.drain(..scroll);
    rows.truncate(height);
    let title = if scroll > 0 { format!("{title} +{scroll}") } else { title.to_owned() };
    rows.insert(0, Line::from(look.text(Tone::Plain, look.rule(&title, room.width))));
    rows
}

/// The names of all panels, the current one in brackets.
pub fn tabs(state: &State) -> String {
    let name = |panel: &Panel| {
        if *panel == state.panel { format!("[{}]", panel.name()) } else { panel.name().to_owned() }
    };
    Panel::ALL.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// The events, newest first: what just happened is where the eye looks.
fn events(state: &State, look: &Look, width: usize) -> Vec<Line<'static>> {
    state.seen.events.iter().rev().map(|it| event(state, look, it, width)).collect()
}

fn event(state: &State, look: &Look, event: &Event, width: usize) -> Line<'static> {
    let (word, tone) = match event.level {
        EventLevel::Info => ("", Tone::Plain),
        EventLevel::Warn => ("warn ", Tone::Mild),
        EventLevel::Error => ("ERROR ", Tone::Bad),
    };
    let time = format!("{} ", look.moment(event.time, state.now.time));
    let subject = subject(state, event);
    // The text of a configuration error may have several lines.
    let text = event.text.replace('\n', "; ");
    let room = width.saturating_sub(columns(&time) + columns(word) + columns(&subject));
    Line::from(vec![
        look.text(Tone::Soft, time),
        look.text(tone, word),
        look.text(Tone::Strong, subject),
        Span::raw(look.fit(&text, room, false)),
    ])
}

/// The subject of an event, as short as is clear. The texts of events with a subject begin with a
/// verb.
fn subject(state: &State, event: &Event) -> String {
    let service = event.service.as_deref().filter(|_| state.seen.status.services.len() > 1 || event.backend.is_none());
    let names = [service, event.backend.as_deref(), event.instance.as_deref()];
    let subject = names.into_iter().flatten().collect::<Vec<_>>().join("/");
    if subject.is_empty() { subject } else { subject + " " }
}

fn counters(state: &State, look: &Look, width: usize) -> Vec<Line<'static>> {
    let rows = state.counters.moved(&state.seen.status.counters);
    let longest = rows.iter().map(|row| columns(row.reason)).max().unwrap_or(0).min(width / 2);
    let line = |row: &crate::top::past::Moved| {
        let meaning = Reason::ALL.iter().find(|it| it.name() == row.reason).map_or("", |it| it.meaning());
        let lately = if row.lately > 0 { format!("+{}", row.lately) } else { String::new() };
        let head = format!("{} {:>9} {:>8}  ", look.fit(row.reason, longest, false), row.all, lately);
        let room = width.saturating_sub(columns(&head));
        let tone = if row.lately > 0 { Tone::Strong } else { Tone::Plain };
        Line::from(vec![look.text(tone, head), look.text(Tone::Soft, look.fit(meaning, room, false))])
    };
    rows.iter().map(line).collect()
}

/// An instance in one line.
pub fn instance(state: &State, look: &Look, instance: &VrrpStatus, width: usize) -> Line<'static> {
    let tone = match instance.state {
        VrrpState::Master => Tone::Good,
        VrrpState::Fault => Tone::Bad,
        VrrpState::Backup | VrrpState::Init => Tone::Mild,
    };
    let base = match instance.priority == instance.base_priority {
        true => String::new(),
        false => format!(" of {}", instance.base_priority),
    };
    let master = match (instance.state, instance.master) {
        (VrrpState::Master, _) => String::new(),
        (_, Some(master)) => format!(", master {master}"),
        (_, None) => ", master unknown".into(),
    };
    let head = format!("vrrp {} ", instance.name);
    let word = instance.state.to_string();
    let rest = format!(
        " for {}, priority {}{base}, {}{master}: {}",
        seconds_since(instance.since, state.now.time),
        instance.priority,
        instance.addresses.join(" "),
        instance.reason,
    );
    let room = width.saturating_sub(columns(&head) + columns(&word));
    Line::from(vec![look.text(Tone::Plain, head), look.text(tone, word), Span::raw(look.fit(&rest, room, false))])
}

/// A peer of flow sync in one line.
pub fn peer(look: &Look, peer: &SyncPeer, width: usize) -> Line<'static> {
    let tone = match peer.state {
        SyncState::Synced => Tone::Good,
        SyncState::Lost => Tone::Bad,
        SyncState::Connecting | SyncState::Copying => Tone::Mild,
    };
    let head = format!("sync {} ", peer.address);
    let word = peer.state.to_string();
    let heard = match peer.silent_ms {
        None => "never heard".into(),
        Some(silent) => format!("heard {} ago", units::milliseconds(Some(silent as f64))),
    };
    let rest = format!(
        ", {heard}, {} ms behind, {} waiting, {} lost, {} not applied",
        peer.lag_ms,
        peer.waiting,
        peer.counts.lost,
        peer.counts.unknown + peer.counts.conflicts,
    );
    let room = width.saturating_sub(columns(&head) + columns(&word));
    Line::from(vec![look.text(Tone::Plain, head), look.text(tone, word), Span::raw(look.fit(&rest, room, false))])
}

/// The VRRP instances and the peers of flow sync, one line each.
pub fn pair(state: &State, look: &Look, width: usize) -> Vec<Line<'static>> {
    let status = &state.seen.status;
    let instances = status.vrrp.iter().map(|it| instance(state, look, it, width));
    let peers = status.sync.iter().flat_map(|sync| &sync.peers).map(|it| peer(look, it, width));
    let error = status.sync.as_ref().and_then(|sync| sync.error.as_ref());
    let error = error.map(|why| Line::from(look.text(Tone::Bad, look.fit(&format!("sync: {why}"), width, false))));
    instances.chain(error).chain(peers).collect()
}

/// The same lines, with details below them.
fn vrrp(state: &State, look: &Look, width: usize) -> Vec<Line<'static>> {
    let instances = &state.seen.status.vrrp;
    let sync = &state.seen.status.sync;
    if instances.is_empty() && sync.is_none() {
        let none = "neither [[vrrp]] nor [sync] is configured";
        return vec![Line::from(look.text(Tone::Soft, look.fit(none, width, false)))];
    }
    let details = |it: &VrrpStatus| {
        let weights = it.weights.iter().map(|weight| format!("priority {:+}: {}", weight.weight, weight.what));
        let faults = it.faults.iter().map(|fault| format!("fault: {fault}"));
        let peers = it.peers.iter().map(|peer| {
            format!(
                "heard {} with priority {} at {}",
                peer.address,
                peer.priority,
                look.moment(peer.last_heard, state.now.time)
            )
        });
        let refused: u64 = it.adverts.refused.values().sum();
        let adverts = format!(
            "adverts: {} sent, {} heard, {refused} refused; {} changes of state; two masters: {}",
            it.adverts.counts.sent, it.adverts.counts.received, it.transitions, it.adverts.counts.dual_master
        );
        faults.chain(weights).chain(peers).chain([adverts]).collect::<Vec<_>>()
    };
    let copies = |it: &SyncPeer| {
        format!(
            "connections: {} sent, {} received; full copies: {} sent, {} received; {} datagrams refused",
            it.counts.flows_sent,
            it.counts.flows_received,
            it.counts.copies_sent,
            it.counts.copies_received,
            it.counts.refused.total()
        )
    };
    let indented = |text: String| Line::from(look.text(Tone::Plain, look.fit(&format!("  {text}"), width, false)));
    let peers = sync.iter().flat_map(|sync| &sync.peers);
    let peers = peers.flat_map(|it| [peer(look, it, width), indented(copies(it))]);
    let instances = instances
        .iter()
        .flat_map(|it| std::iter::once(instance(state, look, it, width)).chain(details(it).into_iter().map(indented)));
    instances.chain(peers).collect()
}

pub fn stage(stage: &Stage, look: &Look, width: usize) -> Vec<Line<'static>> {
    let title = Line::from(look.text(Tone::Plain, look.rule(&stage.title, width)));
    let lines = stage.lines.iter().map(|line| Line::from(Span::raw(look.fit(line, width, false))));
    std::iter::once(title).chain(lines).collect()
}
