//! Numbers formatted as on the command line.

use jiff::Timestamp;

use crate::client::units;

/// `0/s`, `7.2/s`, `1204/s`; `-` before the second sample.
pub fn per_second(rate: Option<f64>) -> String {
    match rate {
        None => "-".into(),
        Some(rate) if (0.05..9.95).contains(&rate) => format!("{rate:.1}/s"),
        Some(rate) => format!("{rate:.0}/s"),
    }
}

/// `12 KiB/s`
pub fn bytes_per_second(rate: Option<f64>) -> String {
    rate.map_or("-".into(), |rate| units::bytes(rate.round() as u64) + "/s")
}

/// The time since then, such as `2m5s`.
pub fn seconds_since(time: Timestamp, now: Timestamp) -> String {
    units::seconds(u64::try_from(now.as_second() - time.as_second()).unwrap_or(0))
}
