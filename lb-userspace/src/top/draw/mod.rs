//! The state as a picture. On a small terminal the most important parts remain.

mod backends;
mod header;
mod look;
mod number;
mod panels;
mod popup;
#[cfg(test)]
mod tests;

pub use look::Look;
use ratatui::{Frame, buffer::Buffer, layout::Position, text::Line};

use super::state::{Panel, State};
use panels::Room;

/// On a smaller terminal nothing would be readable.
const SMALLEST: (u16, u16) = (30, 6);
/// From this width on there are two panels side by side.
const TWO_PANELS: usize = 120;

/// Draws the whole screen.
pub fn draw(frame: &mut Frame, state: &State, look: &Look) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let needed = format!("needs {} x {}", SMALLEST.0, SMALLEST.1);
        return put(frame.buffer_mut(), 0, 0, usize::from(area.width), &[Line::from(needed)]);
    }
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let fixed = Fixed::new(state, look, width, height);
    let (table, selected) = backends::lines(state, look, width);
    let room = height.saturating_sub(fixed.height());
    let table = window(table, selected, room.saturating_sub(least_panel(height)).max(2));
    let rest = room.saturating_sub(table.len());
    let buffer = frame.buffer_mut();
    let mut y = 0;
    for lines in [&fixed.header, &table, &fixed.details, &fixed.pair, &fixed.stage] {
        put(buffer, 0, y, width, lines);
        y += lines.len();
    }
    if rest >= 2 {
        draw_panels(buffer, state, look, y, Room { width, height: rest });
    }
    put(buffer, 0, height - 1, width, &[header::footer(state, look, width)]);
    popup::draw(frame, state, look);
}

/// The parts around the table whose height does not depend on it.
struct Fixed {
    header: Vec<Line<'static>>,
    details: Vec<Line<'static>>,
    pair: Vec<Line<'static>>,
    stage: Vec<Line<'static>>,
}

impl Fixed {
    fn new(state: &State, look: &Look, width: usize, height: usize) -> Fixed {
        let mut pair = panels::pair(state, look, width);
        pair.truncate(if height < 14 { 0 } else { height / 8 });
        let stage = state.stage.as_ref().filter(|_| height >= 14);
        Fixed {
            header: header::lines(state, look, width, height < 10),
            details: if height < 20 { Vec::new() } else { backends::details(state, look, width) },
            pair,
            stage: stage.map(|it| panels::stage(it, look, width)).unwrap_or_default(),
        }
    }

    /// The height including the footer.
    fn height(&self) -> usize {
        self.header.len() + self.details.len() + self.pair.len() + self.stage.len() + 1
    }
}

/// Lines reserved for the panel, however many backends there are.
fn least_panel(height: usize) -> usize {
    match height {
        0..12 => 0,
        12..20 => 3,
        _ => height / 4,
    }
}

/// The lines that fit: the titles, and the rows around the selected one.
fn window(mut lines: Vec<Line<'static>>, selected: usize, room: usize) -> Vec<Line<'static>> {
    let Some(hidden) = lines.len().checked_sub(room).filter(|hidden| *hidden > 0) else { return lines };
    let rows = room - 1;
    let from = selected.saturating_sub(1 + rows / 2).min(hidden);
    lines.drain(1..1 + from);
    lines.truncate(room);
    lines
}

fn draw_panels(buffer: &mut Buffer, state: &State, look: &Look, y: usize, room: Room) {
    if room.width < TWO_PANELS {
        return put(buffer, 0, y, room.width, &panels::panel(state, look, state.panel, &panels::tabs(state), room));
    }
    // The second panel shows counters, or events if the first one shows counters.
    let beside = if state.panel == Panel::Counters { Panel::Events } else { Panel::Counters };
    let left = Room { width: room.width * 3 / 5 - 1, ..room };
    let right = Room { width: room.width - left.width - 2, ..room };
    put(buffer, 0, y, left.width, &panels::panel(state, look, state.panel, &panels::tabs(state), left));
    put(buffer, left.width + 2, y, right.width, &panels::panel(state, look, beside, beside.name(), right));
}

/// Writes lines one below the other; lines without room are left out.
fn put(buffer: &mut Buffer, x: usize, y: usize, width: usize, lines: &[Line]) {
    let small = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
    for (row, line) in lines.iter().enumerate() {
        let (x, y) = (small(x), small(y + row));
        if buffer.area().contains(Position { x, y }) {
            buffer.set_line(x, y, line, small(width));
        }
    }
}
