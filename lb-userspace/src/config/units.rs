//! Readers that turn a value of the file into a value of the model: durations, numbers, names,
//! addresses. Every error says what would be right.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use toml::de::DeValue;

use super::raw::{Value, describe};
use crate::words::did_you_mean;
pub use crate::words::{parse_duration, write_duration};

/// Reads a string.
pub fn text<'a>(value: Value<'a>) -> Result<&'a str, String> {
    match value.toml {
        DeValue::String(text) => Ok(text),
        other => Err(format!("found {}, expected a string", describe(other))),
    }
}

/// Reads `true` or `false`.
pub fn boolean(value: Value) -> Result<bool, String> {
    match value.toml {
        DeValue::Boolean(value) => Ok(*value),
        other => Err(format!("found {}, expected true or false", describe(other))),
    }
}

/// Reads a whole number within `range`.
pub fn number<T>(range: RangeInclusive<T>) -> impl Fn(Value) -> Result<T, String>
where
    T: TryFrom<i64> + PartialOrd + Display,
{
    move |value| {
        let (low, high) = (range.start(), range.end());
        let DeValue::Integer(number) = value.toml else {
            return Err(format!("found {}, expected a whole number from {low} to {high}", describe(value.toml)));
        };
        let parsed = i64::from_str_radix(number.as_str(), number.radix());
        let within = parsed.clone().ok().and_then(|parsed| T::try_from(parsed).ok()).filter(|it| range.contains(it));
        let shown = || parsed.map_or(number.as_str().to_owned(), |parsed| parsed.to_string());
        within.ok_or_else(|| format!("{} is out of range: must be {low} to {high}", shown()))
    }
}

/// Reads a duration within `range`, written like `"2s"`.
pub fn duration(range: RangeInclusive<Duration>) -> impl Fn(Value) -> Result<Duration, String> {
    move |value| {
        let DeValue::String(text) = value.toml else {
            return Err(format!("found {}, expected a time with its unit, such as \"2s\"", describe(value.toml)));
        };
        let duration = parse_duration(text)?;
        if !range.contains(&duration) {
            let (low, high) = (write_duration(*range.start()), write_duration(*range.end()));
            return Err(format!("\"{text}\" is out of range: must be \"{low}\" to \"{high}\""));
        }
        Ok(duration)
    }
}

/// Reads one of the given words.
pub fn choice<T: Copy>(words: &[(&'static str, T)]) -> impl Fn(Value) -> Result<T, String> {
    move |value| {
        let all = || words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let DeValue::String(text) = value.toml else {
            return Err(format!("found {}, expected one of: {}", describe(value.toml), all()));
        };
        if let Some((_, found)) = words.iter().find(|(word, _)| word == text) {
            return Ok(*found);
        }
        match did_you_mean(text, words.iter().map(|(word, _)| *word)) {
            Some(near) => Err(format!("unknown word \"{text}\": did you mean \"{near}\"? Known words are {}", all())),
            None => Err(format!("unknown word \"{text}\": known words are {}", all())),
        }
    }
}

/// Reads `address:port`; IPv6 is written `[address]:port`.
pub fn socket_address(value: Value) -> Result<SocketAddr, String> {
    let text = text(value)?;
    let address: SocketAddr = text.parse().map_err(|_| {
        let right = "write address:port, such as \"10.0.1.10:6443\" or \"[fd00::10]:6443\"";
        match text.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => format!("\"{text}\" lacks the port: \"{text}:6443\""),
            Ok(IpAddr::V6(_)) => format!("\"{text}\" lacks the port: \"[{text}]:6443\""),
            Err(_) if text.contains(|c: char| c.is_ascii_alphabetic()) => {
                format!("\"{text}\" is not an address (names are not resolved, because a changing address must not move connections): {right}")
            }
            Err(_) => format!("\"{text}\" is not an address with a port: {right}"),
        }
    })?;
    if address.port() == 0 {
        return Err(format!("\"{text}\": port 0 is not allowed"));
    }
    usable(address.ip()).map(|()| address)
}

/// Reads the address of one host.
pub fn address(value: Value) -> Result<IpAddr, String> {
    let text = text(value)?;
    let address = text.parse().map_err(|_| format!("\"{text}\" is not an IP address: write it like \"10.0.1.100\""))?;
    usable(address).map(|()| address)
}

/// Refuses an address that no single host can have.
pub fn usable(address: IpAddr) -> Result<(), String> {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(format!("{address} is not the address of one host"));
    }
    Ok(())
}

/// Reads the name of a service, backend or instance, which appears in commands, logs and labels.
pub fn name<'a>(value: Value<'a>) -> Result<&'a str, String> {
    let text = text(value)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.is_empty() || text.len() > 63 || !text.chars().all(allowed) {
        return Err(format!("\"{text}\" is not a valid name: use 1 to 63 letters, digits, `.`, `_` and `-`"));
    }
    Ok(text)
}

/// Reads the name of a network interface.
pub fn interface(value: Value) -> Result<String, String> {
    let text = text(value)?;
    // The kernel's dev_valid_name().
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(forbidden) {
        return Err(format!("\"{text}\" is not a valid interface name: use 1 to 15 characters, such as \"eth0\""));
    }
    Ok(text.into())
}

/// Reads an absolute path.
pub fn absolute_path(value: Value) -> Result<PathBuf, String> {
    let text = text(value)?;
    if !text.starts_with('/') || text.contains('\0') {
        return Err(format!("\"{text}\" is not an absolute path: it must begin with `/`"));
    }
    Ok(text.into())
}
