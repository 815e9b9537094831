//! A terminal's screen as an HTML page, so that a browser can take a picture of it.

use std::fmt::Write;

use vt100::{Cell, Color, Screen};

/// The sixteen colours of a terminal, black to bright white.
const COLORS: [&str; 16] = [
    "#24292f", "#f47067", "#8ddb8c", "#f2cc60", "#6cb6ff", "#dcbdfb", "#76e3ea", "#d0d7de", "#768390", "#ff938a",
    "#b4f1b4", "#ffdf8e", "#96d0ff", "#eedcff", "#b3f0ff", "#ffffff",
];
const FOREGROUND: &str = COLORS[7];
const BACKGROUND: &str = "#1c2128";

/// The page: one element for each cell, so that every character is in its column, whatever the
/// font.
pub fn page(screen: &Screen) -> String {
    let (rows, columns) = screen.size();
    let mut page = format!(
        "<style>body{{margin:0;padding:12px;background:{BACKGROUND};color:{FOREGROUND};font:15px/18px \"DejaVu Sans \
         Mono\",monospace}}div{{height:18px;white-space:pre}}span{{display:inline-block;width:9px;height:18px}}</style>"
    );
    for row in 0..rows.get() {
        page += "<div>";
        for cell in (0..columns.get()).filter_map(|column| screen.cell(row, column)) {
            _ = write!(page, "<span style=\"{}\">{}</span>", style(cell), text(cell));
        }
        page += "</div>";
    }
    page
}

fn style(cell: &Cell) -> String {
    let (mut front, mut back) = (color(cell.fgcolor(), FOREGROUND), color(cell.bgcolor(), BACKGROUND));
    if cell.inverse() {
        (front, back) = (back, front);
    }
    let weight = if cell.bold() { ";font-weight:bold" } else { "" };
    let dim = if cell.dim() { ";opacity:.6" } else { "" };
    format!("color:{front};background:{back}{weight}{dim}")
}

fn color(color: Color, default: &str) -> String {
    match color {
        Color::Idx(number) => COLORS.get(usize::from(number)).unwrap_or(&default).to_string(),
        Color::Rgb(red, green, blue) => format!("rgb({red},{green},{blue})"),
        _ => default.to_owned(),
    }
}

fn text(cell: &Cell) -> String {
    match cell.contents() {
        "" => " ".to_owned(),
        text => text.replace('&', "&amp;").replace('<', "&lt;"),
    }
}

#[cfg(test)]
mod tests {
    use vt100::Parser;

    use super::*;

    #[test]
    fn a_screen_becomes_a_page_with_its_colours_and_characters() {
        let size = |cells| std::num::NonZeroU16::new(cells).unwrap();
        let mut parser = Parser::new(size(1), size(4), 0);
        parser.process(b"\x1b[31ma\x1b[0;7m<\x1b[0;1m&");
        let page = page(parser.screen());
        assert!(page.contains(&format!("color:{};background:{BACKGROUND}\">a<", COLORS[1])), "{page}");
        assert!(page.contains(&format!("color:{BACKGROUND};background:{FOREGROUND}\">&lt;<")), "{page}");
        assert!(page.contains(";font-weight:bold\">&amp;<"), "{page}");
        assert_eq!(page.matches("<span").count(), 4);
    }
}
