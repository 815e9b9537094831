//! Popups: the help, and the question before a command.

use ratatui::{
    Frame,
    layout::Rect,
    text::{Line, Text},
    widgets::{Block, Clear, Padding, Paragraph, Wrap},
};

use super::look::{Look, Tone};
use crate::{
    api::types::Backend,
    top::state::{Order, Popup, State, Verb},
};

const HELP: &str = "\
arrows, j, k     select a backend
d  drain         no new connections, existing ones continue
m  maint         out at once, existing connections stay
r  ready         ends drain and maint
   each asks for confirmation first
s, S             sort by the next column; reverse the order
Tab              events, counters, vrrp
PgUp, PgDn       scroll; Home: the newest
Ctrl-L           redraw
q, Ctrl-C        quit (changes nothing else); Ctrl-Z: suspend

ACTIVE: open connections, half-open ones included; the bar compares
them with the busiest backend. NEW/s, IN/s (from clients), OUT/s:
average of the last 3 seconds. CONNECT: median connect time.
* marks the sorted column. counters: total, last two minutes.";

pub fn draw(frame: &mut Frame, state: &State, look: &Look) {
    match &state.popup {
        Popup::None => {}
        Popup::Help => show(frame, look, "help: any key closes it", HELP.lines().map(Line::from).collect()),
        Popup::Confirm(order) => {
            let backend = state.selected().filter(|it| it.name == order.backend && it.service == order.service);
            show(frame, look, "please confirm", question(order, backend, look));
        }
    }
}

fn question(order: &Order, backend: Option<&Backend>, look: &Look) -> Vec<Line<'static>> {
    let (title, what) = match order.verb {
        Verb::Drain => ("Drain", "It gets no new connections; existing ones stay until they end."),
        Verb::Maint => ("Maintenance for", "It is out at once; existing connections stay."),
        Verb::Ready => ("Make ready:", "Ends drain and maint; what health checks found stays."),
    };
    let stands = backend.map(|it| format!("Now {}, {} open connections.", it.state, it.active)).unwrap_or_default();
    vec![
        Line::from(look.text(Tone::Strong, format!("{title} {} of {}?", order.backend, order.service))),
        Line::from(stands),
        Line::from(what),
        Line::default(),
        Line::from(look.text(Tone::Strong, "y: yes      any other key: no")),
    ]
}

/// Draws a box in the middle, as large as its content.
fn show(frame: &mut Frame, look: &Look, title: &str, lines: Vec<Line<'static>>) {
    let all = frame.area();
    let longest = lines.iter().map(Line::width).max().unwrap_or(0).max(title.len() + 2);
    let width = u16::try_from(longest + 4).unwrap_or(u16::MAX).min(all.width);
    let inside = usize::from(width.saturating_sub(4)).max(1);
    let height: usize = lines.iter().map(|line| line.width().div_ceil(inside).max(1)).sum::<usize>() + 2;
    let height = u16::try_from(height).unwrap_or(u16::MAX).min(all.height);
    let area = Rect { x: (all.width - width) / 2, y: (all.height - height) / 2, width, height };
    let block = Block::bordered().padding(Padding::horizontal(1)).title(look.text(Tone::Strong, format!(" {title} ")));
    let block = if look.unicode { block } else { block.border_set(ASCII) };
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(Text::from(lines)).wrap(Wrap { trim: false }).block(block), area);
}

const ASCII: ratatui::symbols::border::Set = ratatui::symbols::border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};
