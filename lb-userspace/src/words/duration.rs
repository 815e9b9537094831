//! Durations as the configuration and the command line write them.

use std::time::Duration;

use serde::Serializer;

/// Units of time, largest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Parses `"500ms"`, `"2s"`, `"1m30s"`: the sum of whole numbers with units, in any order.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("\"{text}\" is not a time: write a whole number and ms, s, m, h or d, such as \"2s\" or \"1m30s\"");
    let mut rest = text;
    let mut total = 0_u64;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let after = &rest[digits..];
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &after[..letters]).ok_or_else(wrong)?;
        let amount =
            rest[..digits].parse::<u64>().ok().and_then(|amount| amount.checked_mul(*unit)).ok_or_else(wrong)?;
        total = total.checked_add(amount).ok_or_else(wrong)?;
        rest = &after[letters..];
        if rest.is_empty() {
            return Ok(Duration::from_millis(total));
        }
    }
}

/// The shortest text that [`parse_duration`] reads as this duration, in whole milliseconds.
pub fn write_duration(duration: Duration) -> String {
    let mut rest = duration.as_millis() as u64;
    if rest == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (name, unit) in UNITS {
        if rest >= unit {
            text += &format!("{}{name}", rest / unit);
            rest %= unit;
        }
    }
    text
}

/// Serializes a duration as its text, for fields of the configuration.
pub fn serialize_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&write_duration(*duration))
}
