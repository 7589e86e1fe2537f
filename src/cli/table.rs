//! Tables for people: fitted to the terminal, and whole where there is none.

use std::io;

use comfy_table::{
    ColumnConstraint, ColumnConstraint::LowerBoundary, ContentArrangement, Row, Width::Fixed,
    presets::NOTHING,
};
use terminal_size::{Width, terminal_size_of};

use super::{Exit, complain, print, show::visible};

/// What happens to a column when the terminal is too narrow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// Stays whole, so that it can be copied.
    Whole,
    /// Is cut.
    Cut,
}

/// What is left of a column that is cut, with the gap after it. On a terminal that is too narrow even for that, lines are broken.
const SHORTEST: u16 = 8;

/// A headline and rows.
pub(super) struct Table(comfy_table::Table);

impl Table {
    pub(super) fn new<const N: usize>(columns: [(&str, Fit); N]) -> Self {
        let mut table = comfy_table::Table::new();
        table
            .load_style(NOTHING)
            .set_truncation_indicator("…")
            .set_header(one_line(columns.map(|(name, _)| name.to_owned())));
        for (column, (_, fit)) in table.column_iter_mut().zip(columns) {
            column.set_padding((0, 2));
            column.set_constraint(match fit {
                Fit::Whole => ColumnConstraint::ContentWidth,
                Fit::Cut => LowerBoundary(Fixed(SHORTEST)),
            });
        }
        Self(table)
    }

    /// One line, whatever the texts are.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let cells = cells.map(|cell| visible(&cell, |_| false));
        self.0.add_row(one_line(cells));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes it to standard output, or says that there is nothing in it.
    pub(super) fn print_or(self, nothing: &str) -> Result<(), Exit> {
        if self.is_empty() {
            complain(nothing);
            return Ok(());
        }
        self.print()
    }

    /// Writes it to standard output.
    pub(super) fn print(self) -> Result<(), Exit> {
        let width = terminal_size_of(io::stdout()).map(|(Width(width), _)| width);
        print(&self.fitted(width))
    }

    fn fitted(mut self, width: Option<u16>) -> String {
        if let Some(width) = width {
            self.0
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width);
        } else {
            self.0.set_content_arrangement(ContentArrangement::Disabled);
        }
        let mut text = self.0.trim_fmt();
        text.push('\n');
        text
    }
}

fn one_line<const N: usize>(cells: [String; N]) -> Row {
    let mut row = Row::from(cells);
    row.max_height(1);
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0193a3c4-1c2d-7000-8000-0123456789ab";

    fn table() -> Table {
        let mut table = Table::new([("ID", Fit::Whole), ("QUEUE", Fit::Cut), ("ERROR", Fit::Cut)]);
        let error = "Declined: card\n4711 was declined by a bank that says a lot";
        table.row([ID.to_owned(), "orders".to_owned(), error.to_owned()]);
        table
    }

    #[test]
    fn a_terminal_gets_lines_of_its_width_with_whole_ids() {
        let text = table().fitted(Some(80));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[1].starts_with(&format!("{ID}  orders  Declined: ")),
            "{text}"
        );
        assert!(lines[1].ends_with('…'), "{text}");
        assert!(lines[1].chars().count() <= 80, "{text}");
    }

    #[test]
    fn a_narrow_terminal_leaves_something_of_each_column() {
        let text = table().fitted(Some(40));
        assert_eq!(
            text,
            format!("{0:<36}  QUEUE   ERROR\n{ID}  orders  Decli…\n", "ID")
        );
    }

    #[test]
    fn elsewhere_nothing_is_cut_and_a_row_is_a_line() {
        let text = table().fitted(None);
        assert!(
            text.ends_with("card\\n4711 was declined by a bank that says a lot\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
