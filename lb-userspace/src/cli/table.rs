//! Tables: boxes and colour on a terminal, plain columns for everything else.

use std::io::IsTerminal;

use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ContentArrangement,
    presets::{NOTHING, UTF8_FULL_CONDENSED},
};

/// A column's name and the alignment of its values.
#[derive(Clone, Copy)]
pub enum Column {
    Left(&'static str),
    Right(&'static str),
}

/// What the output can display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A terminal: boxes and colour.
    Boxes,
    /// A pipe or a file.
    Plain,
}

impl Style {
    /// The style for standard output.
    pub fn of_stdout() -> Style {
        if std::io::stdout().is_terminal() { Style::Boxes } else { Style::Plain }
    }
}

/// On a terminal narrower than this many characters, cells are not wrapped.
const NARROWEST: u16 = 60;

/// Columns and rows of cells.
pub struct Table {
    inner: comfy_table::Table,
}

impl Table {
    pub fn new(columns: &[Column], style: Style) -> Table {
        let mut inner = comfy_table::Table::new();
        let header = columns.iter().map(|column| {
            let (Column::Left(name) | Column::Right(name)) = column;
            Cell::new(name).add_attribute(Attribute::Bold)
        });
        inner.set_header(header);
        match style {
            Style::Boxes => {
                // A terminal that does not know its width reports 0.
                let narrow = inner.width().is_none_or(|width| width < NARROWEST);
                let fit = if narrow { ContentArrangement::Disabled } else { ContentArrangement::Dynamic };
                inner.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(fit)
            }
            Style::Plain => {
                inner.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).force_no_tty()
            }
        };
        for (column, made) in columns.iter().zip(inner.column_iter_mut()) {
            if style == Style::Plain {
                made.set_padding((0, 2));
            }
            if matches!(column, Column::Right(_)) {
                made.set_cell_alignment(CellAlignment::Right);
            }
        }
        Table { inner }
    }

    pub fn row(&mut self, cells: Vec<Cell>) {
        self.inner.add_row(cells);
    }

    /// The lines, each with its newline.
    pub fn lines(&self) -> String {
        self.inner.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

/// A cell in the colour of its state; without colour if `NO_COLOR` is set.
pub fn coloured(text: &str, colour: Color) -> Cell {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain { Cell::new(text) } else { Cell::new(text).fg(colour) }
}
