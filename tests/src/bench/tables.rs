//! Tables in Markdown.

use super::statistics::Summary;

/// A table with a head and rows of as many cells.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<_> = head.iter().map(ToString::to_string).collect();
    let rule = format!("|{}\n", "---|".repeat(head.len()));
    rows.iter().fold(line(&head) + &rule, |text, row| text + &line(row))
}

/// A median with its spread, `12.3 (11.9 to 13.0)`; a dash if there is none.
pub fn spread(summary: Option<Summary>) -> String {
    summary.map_or_else(dash, |summary| {
        let Summary { median, low, high } = summary;
        format!("{} ({} to {})", number(median), number(low), number(high))
    })
}

/// A median without its spread.
pub fn middle(summary: Option<Summary>) -> String {
    summary.map_or_else(dash, |summary| number(summary.median))
}

fn dash() -> String {
    "–".to_owned()
}

/// Three significant digits.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 {
        thousands(value.round() as i64)
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn thousands(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    format!("{}{}", if value < 0 { "-" } else { "" }, groups.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits_and_separated_thousands() {
        let shown = [0.0, 0.126, 9.994, 12.34, 99.94, 123.4, 1234.5, -1_234_567.0].map(number);
        assert_eq!(shown, ["0.00", "0.13", "9.99", "12.3", "99.9", "123", "1,235", "-1,234,567"]);
    }

    #[test]
    fn a_table_has_a_rule_below_its_head_and_one_line_per_row() {
        let rows = [vec!["1".to_owned(), spread(Summary::of(&[1.0, 2.0, 4.0]))], vec!["2".to_owned(), spread(None)]];
        let text = table(&["a", "b"], &rows);
        assert_eq!(text, "| a | b |\n|---|---|\n| 1 | 2.00 (1.00 to 4.00) |\n| 2 | – |\n");
    }
}
