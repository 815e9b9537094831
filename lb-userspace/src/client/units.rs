//! Numbers written for people. JSON has them raw.

/// Bytes with a binary unit and three digits: `999 B`, `1.21 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 999.5 would round to four digits: use the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Seconds as their two largest units: `45s`, `2m5s`, `3d4h`.
pub fn seconds(seconds: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let first = UNITS.iter().position(|(_, unit)| seconds >= *unit).unwrap_or(UNITS.len() - 1);
    let (name, unit) = UNITS[first];
    let larger = format!("{}{name}", seconds / unit);
    match UNITS.get(first + 1) {
        Some((name, smaller)) if seconds % unit >= *smaller => format!("{larger}{}{name}", seconds % unit / smaller),
        _ => larger,
    }
}

/// Milliseconds with a unit: `0.25ms`, `12ms`, `1.50s`; `-` for `None`.
pub fn milliseconds(milliseconds: Option<f64>) -> String {
    match milliseconds {
        None => "-".into(),
        Some(ms) if ms >= 1000.0 => format!("{:.2}s", ms / 1000.0),
        Some(ms) if ms >= 10.0 => format!("{ms:.0}ms"),
        Some(ms) => format!("{ms:.2}ms"),
    }
}
