//! `--against FILE`: what has changed since an earlier run.

use super::{
    results::{Figure, Results},
    statistics::Summary,
    tables::{middle, number, table},
};

/// How a figure has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// By this factor, and the rounds of the two runs do not overlap.
    By(f64),
    /// By this factor, but the rounds of the two runs overlap: it may be noise.
    Unclear(f64),
}

/// Compares the rounds of a figure. `None`: one of the two was not measured or is not above zero.
pub fn change(before: &[f64], after: &[f64]) -> Option<Change> {
    let (before, after) = (Summary::of(before)?, Summary::of(after)?);
    if before.median <= 0.0 || after.median <= 0.0 {
        return None;
    }
    let factor = after.median / before.median;
    let apart = after.low > before.high || after.high < before.low;
    Some(if apart { Change::By(factor) } else { Change::Unclear(factor) })
}

/// A table of all figures that both runs have, certain changes first.
pub fn report(before: &Results, after: &Results) -> String {
    let compared = |figure: &Figure| Some((figure.clone(), change(before.rounds(&figure.name), &figure.rounds)?));
    let mut rows: Vec<_> = after.figures.iter().filter_map(compared).collect();
    let distance = |change: &Change| match change {
        Change::By(factor) => (0, -factor.ln().abs()),
        Change::Unclear(factor) => (1, -factor.ln().abs()),
    };
    rows.sort_by(|(_, a), (_, b)| {
        let (a, b) = (distance(a), distance(b));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    });
    let cells = |(figure, change): &(Figure, Change)| {
        let told = match change {
            Change::By(factor) => format!("× {}", number(*factor)),
            Change::Unclear(factor) => format!("× {}, within the spread", number(*factor)),
        };
        let old = middle(before.summary(&figure.name));
        vec![figure.name.clone(), old, middle(after.summary(&figure.name)), figure.unit.clone(), told]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let table = table(&["figure", "before", "after", "unit", "change"], &rows);
    format!("before: {}\nafter:  {}\n\n{table}", before.machine.line(), after.machine.line())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::machine::Machine;

    #[test]
    fn a_change_counts_only_if_the_rounds_do_not_overlap() {
        assert_eq!(change(&[10.0, 11.0, 9.0], &[5.0, 6.0, 5.0]), Some(Change::By(0.5)));
        assert_eq!(change(&[10.0, 11.0, 9.0], &[12.0, 9.5, 12.0]), Some(Change::Unclear(1.2)));
        assert_eq!(change(&[], &[1.0]), None);
        assert_eq!(change(&[0.0], &[1.0]), None, "nothing grows from zero");
    }

    #[test]
    fn certain_changes_come_first_and_what_only_one_run_has_is_left_out() {
        let run = |figures: &[(&str, &[f64])]| {
            let mut results = Results { machine: Machine::default(), command: String::new(), figures: Vec::new() };
            for (name, rounds) in figures {
                rounds.iter().for_each(|value| results.add(name, "ns", *value));
            }
            results
        };
        let before = run(&[("noise", &[10.0, 30.0]), ("faster", &[10.0, 10.0]), ("gone", &[1.0])]);
        let after = run(&[("noise", &[20.0, 40.0]), ("faster", &[4.0, 4.0]), ("fresh", &[1.0])]);
        let text = report(&before, &after);
        let rows: Vec<_> = text.lines().filter(|line| line.contains(" ns ")).collect();
        assert_eq!(
            rows,
            ["| faster | 10.0 | 4.00 | ns | × 0.40 |", "| noise | 20.0 | 30.0 | ns | × 1.50, within the spread |"]
        );
    }
}
