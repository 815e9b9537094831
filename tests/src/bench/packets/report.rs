//! The tables of the packet benchmark.

use crate::bench::results::Results;

/// As text, for now.
pub fn report(results: &Results) -> String {
    let mut text = String::new();
    for figure in &results.figures {
        if let Some(summary) = results.summary(&figure.name) {
            text += &format!(
                "{:48} {:8.1} {} ({:.1} to {:.1})\n",
                figure.name, summary.median, figure.unit, summary.low, summary.high
            );
        }
    }
    text
}
