//! Medians of rounds, and how far the rounds are apart.

/// A summary of several rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The lowest round.
    pub low: f64,
    /// The highest round.
    pub high: f64,
}

impl Summary {
    /// `None` if there was no round.
    pub fn of(rounds: &[f64]) -> Option<Summary> {
        let low = rounds.iter().copied().min_by(f64::total_cmp)?;
        let high = rounds.iter().copied().max_by(f64::total_cmp)?;
        Some(Summary { median: median(rounds)?, low, high })
    }

    /// How far the rounds are apart, as a share of the median.
    pub fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.high - self.low) / self.median.abs() }
    }
}

/// The middle value, or the mean of the two middle values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len().is_multiple_of(2) { Some((sorted[middle - 1] + upper) / 2.0) } else { Some(upper) }
}

/// The value below which this share of the sorted values lies (nearest rank).
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// `a - b`, round by round: what drifts from round to round is in both and cancels out.
pub fn differences(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// `a / b`, round by round, without the rounds in which `b` is not above zero.
pub fn ratios(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).filter(|(_, b)| **b > 0.0).map(|(a, b)| a / b).collect()
}

#[cfg(test)]
mod tests;
