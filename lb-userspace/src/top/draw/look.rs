//! What the terminal can display: colours or not, Unicode or ASCII. Everything a colour says, a
//! word says as well.

use jiff::{Timestamp, tz::TimeZone};
use ratatui::{
    style::{Color, Modifier, Style},
    text::Span,
};

/// The look of the screen.
#[derive(Clone, Debug)]
pub struct Look {
    pub colour: bool,
    /// Whether bars, curves and lines may use other characters than ASCII.
    pub unicode: bool,
    /// The time zone of displayed times.
    pub zone: TimeZone,
}

/// The role of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    /// Explains something.
    Soft,
    Strong,
    Good,
    Mild,
    Bad,
    Title,
}

/// Eighths of a cell, from the left and from below.
const BARS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
const CURVE: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl Look {
    /// The look that the environment asks for: `NO_COLOR` (no-color.org) and the locale's character
    /// set, in POSIX's order.
    pub fn of_environment() -> Look {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_lowercase();
        Look {
            colour: set("NO_COLOR").is_none(),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
            zone: TimeZone::system(),
        }
    }

    /// The style of a role. It uses only the sixteen colours that every terminal themes itself, and
    /// no background except reverse video.
    pub fn style(&self, tone: Tone) -> Style {
        let plain = Style::new();
        let coloured = |colour| if self.colour { plain.fg(colour) } else { plain };
        match tone {
            Tone::Plain => plain,
            Tone::Soft => plain.add_modifier(Modifier::DIM),
            Tone::Strong => plain.add_modifier(Modifier::BOLD),
            Tone::Good => coloured(Color::Green),
            Tone::Mild => coloured(Color::Yellow).add_modifier(Modifier::BOLD),
            Tone::Bad => coloured(Color::Red).add_modifier(Modifier::BOLD),
            Tone::Title => plain.add_modifier(Modifier::REVERSED),
        }
    }

    pub fn text(&self, tone: Tone, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.style(tone))
    }

    /// Cuts or pads a text to `width` columns; `right` aligns it to the right.
    pub fn fit(&self, text: &str, width: usize, right: bool) -> String {
        let mut text = text.to_owned();
        if columns(&text) > width {
            while columns(&text) >= width.max(1) {
                text.pop();
            }
            text.push_str(if width == 0 {
                ""
            } else if self.unicode {
                "…"
            } else {
                "~"
            });
        }
        let fill = " ".repeat(width.saturating_sub(columns(&text)));
        if right { fill + &text } else { text + &fill }
    }

    /// A bar of `width` columns, filled by `share`.
    pub fn bar(&self, share: f64, width: usize) -> String {
        let share = share.clamp(0.0, 1.0);
        if !self.unicode {
            return "#".repeat((share * width as f64).round() as usize);
        }
        let eighths = (share * width as f64 * 8.0).round() as usize;
        let rest = (eighths % 8).checked_sub(1).map(|eighth| BARS[eighth]);
        "█".repeat(eighths / 8).chars().chain(rest).collect()
    }

    /// The newest values as a curve of `width` columns, the newest at the right end.
    pub fn curve<'a>(&self, values: impl DoubleEndedIterator<Item = &'a f64>, width: usize) -> String {
        let newest: Vec<f64> = values.rev().take(width).copied().collect();
        let most = newest.iter().copied().fold(0.0, f64::max);
        let level = |value: &f64| if most > 0.0 { (value / most * 7.0).round() as usize } else { 0 };
        let curve: String = newest.iter().rev().map(|value| CURVE[level(value).min(7)]).collect();
        if self.unicode { self.fit(&curve, width, true) } else { " ".repeat(width) }
    }

    /// `── text ─────` over the whole width.
    pub fn rule(&self, text: &str, width: usize) -> String {
        let line = if self.unicode { "─" } else { "-" };
        let head = format!("{line}{line} {} ", self.fit(text, columns(text).min(width.saturating_sub(4)), false));
        head.clone() + &line.repeat(width.saturating_sub(columns(&head)))
    }

    /// The time of day.
    pub fn clock(&self, time: Timestamp) -> String {
        time.to_zoned(self.zone.clone()).strftime("%T").to_string()
    }

    /// The time of day, with the date unless it is today.
    pub fn moment(&self, time: Timestamp, now: Timestamp) -> String {
        let (time, now) = (time.to_zoned(self.zone.clone()), now.to_zoned(self.zone.clone()));
        time.strftime(if time.date() == now.date() { "%T" } else { "%F %T" }).to_string()
    }
}

/// The width of a text in terminal columns.
pub fn columns(text: &str) -> usize {
    Span::raw(text).width()
}
