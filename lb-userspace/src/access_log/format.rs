//! The format of a line: text and variables, taken apart once.

use super::record::{Record, Status, Try};
use jiff::tz::TimeZone;
use serde::{Serialize, Serializer};
use std::fmt::Write;
use std::time::Duration;

/// nginx's usual format for `stream`.
const DEFAULT: &str = "$remote_addr [$time_local] $protocol $status $bytes_sent $bytes_received $session_time \
                       \"$upstream_addr\" \"$upstream_connect_time\"";

/// A format that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Variable(Variable),
}

/// What is wrong with a format, and at which byte of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub offset: usize,
    pub what: String,
}

macro_rules! variables {
    ($($name:literal $variant:ident,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Variable { $($variant,)* }

        const VARIABLES: &[(&str, Variable)] = &[$(($name, Variable::$variant),)*];
    };
}

variables! {
    "remote_addr" RemoteAddr,
    "remote_port" RemotePort,
    "server_addr" ServerAddr,
    "server_port" ServerPort,
    "time_local" TimeLocal,
    "time_iso8601" TimeIso8601,
    "msec" Msec,
    "protocol" Protocol,
    "status" Status,
    "bytes_sent" BytesSent,
    "bytes_received" BytesReceived,
    "session_time" SessionTime,
    "upstream_addr" UpstreamAddr,
    "upstream_connect_time" UpstreamConnectTime,
    "upstream_bytes_sent" UpstreamBytesSent,
    "upstream_bytes_received" UpstreamBytesReceived,
    "connection" Connection,
    "hostname" Hostname,
    "pid" Pid,
    "service" Service,
    "backend" Backend,
    "reason" Reason,
    "snat_addr" SnatAddr,
}

impl Default for Format {
    fn default() -> Self {
        Format::parse(DEFAULT).expect("the default format has known variables only")
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// What is the same in every line of a process.
pub struct Surroundings {
    zone: TimeZone,
    hostname: String,
    pid: u32,
}

impl Surroundings {
    /// The host's name is the only value that may hold any character: names in the configuration
    /// may not, and everything else is made of numbers.
    pub fn new(zone: TimeZone, hostname: &str, pid: u32) -> Surroundings {
        Surroundings { zone, hostname: escaped(hostname), pid }
    }
}

/// nginx's `escape=default`: `"`, `\` and bytes below 32 or above 126 become `\xXX`.
fn escaped(value: &str) -> String {
    value.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'"' | b'\\' | ..b' ' | 0x7f.. => text.push_str(&format!("\\x{byte:02X}")),
            plain => text.push(plain.into()),
        }
        text
    })
}

impl Format {
    /// Takes a format apart: `$name` or `${name}` is a variable, all else text, as in nginx.
    pub fn parse(text: &str) -> Result<Format, Wrong> {
        if let Some(offset) = text.find(|c: char| c.is_control() && c != '\t') {
            return Err(Wrong { offset, what: "a line cannot hold control characters".into() });
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            if dollar > 0 {
                parts.push(Part::Text(rest[..dollar].into()));
            }
            let offset = text.len() - rest.len() + dollar;
            let (name, after) = variable_name(&rest[dollar + 1..])
                .ok_or_else(|| Wrong { offset, what: "a `$` begins a variable: $name or ${name}".into() })?;
            parts.push(Part::Variable(variable(name).map_err(|what| Wrong { offset, what })?));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Format { text: text.into(), parts })
    }

    /// Appends the record's line to `line`, with a newline at its end.
    pub fn write(&self, record: &Record, surroundings: &Surroundings, line: &mut String) {
        for part in &self.parts {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Variable(variable) => {
                    write_variable(*variable, record, surroundings, line).expect("a String takes everything");
                }
            }
        }
        line.push('\n');
    }
}

/// The name behind a `$`, and what follows it.
fn variable_name(text: &str) -> Option<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (name, after) = match text.strip_prefix('{') {
        Some(braced) => braced.split_once('}')?,
        None => text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len())),
    };
    (!name.is_empty() && name.chars().all(is_name)).then_some((name, after))
}

fn variable(name: &str) -> Result<Variable, String> {
    if let Some((_, variable)) = VARIABLES.iter().find(|(known, _)| *known == name) {
        return Ok(*variable);
    }
    let known = VARIABLES.iter().map(|(known, _)| *known);
    match crate::words::did_you_mean(name, known.clone()) {
        Some(near) => Err(format!("unknown variable `${name}`: did you mean `${near}`?")),
        None => Err(format!("unknown variable `${name}`: there are ${}", known.collect::<Vec<_>>().join(" $"))),
    }
}

fn write_variable(
    variable: Variable,
    record: &Record,
    surroundings: &Surroundings,
    line: &mut String,
) -> std::fmt::Result {
    let local = || record.ended.to_zoned(surroundings.zone.clone());
    match variable {
        Variable::RemoteAddr => write!(line, "{}", record.client.ip()),
        Variable::RemotePort => write!(line, "{}", record.client.port()),
        Variable::ServerAddr => write!(line, "{}", record.server.ip()),
        Variable::ServerPort => write!(line, "{}", record.server.port()),
        Variable::TimeLocal => write!(line, "{}", local().strftime("%d/%b/%Y:%H:%M:%S %z")),
        Variable::TimeIso8601 => write!(line, "{}", local().strftime("%Y-%m-%dT%H:%M:%S%:z")),
        Variable::Msec => {
            let since_epoch = record.ended.as_millisecond().max(0);
            write!(line, "{}.{:03}", since_epoch / 1000, since_epoch % 1000)
        }
        Variable::Protocol => write!(line, "TCP"),
        Variable::Status => write!(line, "{}", record.status.code()),
        Variable::BytesSent => write!(line, "{}", record.bytes_sent),
        Variable::BytesReceived => write!(line, "{}", record.bytes_received),
        Variable::SessionTime => write_seconds(record.session, line),
        // nginx writes the group's name when no server of it could be chosen; a client that was
        // denied or over a limit does not get that far.
        Variable::UpstreamAddr if record.tries.is_empty() && record.status == Status::NoBackend => {
            write!(line, "{}", record.service)
        }
        Variable::UpstreamAddr => write_tries(record, line, |tried, _, line| write!(line, "{}", tried.address)),
        Variable::UpstreamConnectTime => write_tries(record, line, |tried, _, line| match tried.connected_in {
            Some(time) => write_seconds(time, line),
            None => write!(line, "-"),
        }),
        Variable::UpstreamBytesSent => write_tries(record, line, |tried, last, line| {
            write!(line, "{}", served(record.bytes_received, tried, last))
        }),
        Variable::UpstreamBytesReceived => {
            write_tries(record, line, |tried, last, line| write!(line, "{}", served(record.bytes_sent, tried, last)))
        }
        Variable::Connection => write!(line, "{}", record.connection),
        Variable::Hostname => write!(line, "{}", surroundings.hostname),
        Variable::Pid => write!(line, "{}", surroundings.pid),
        Variable::Service => write!(line, "{}", record.service),
        Variable::Backend => write!(line, "{}", record.backend.as_deref().unwrap_or("-")),
        Variable::Reason => write!(line, "{}", record.reason.map_or("-", |reason| reason.name())),
        Variable::SnatAddr => match record.snat {
            Some(snat) => write!(line, "{snat}"),
            None => write!(line, "-"),
        },
    }
}

/// nginx's list of tries: `a, b`; `-` if there were none.
fn write_tries(
    record: &Record,
    line: &mut String,
    write_one: impl Fn(&Try, bool, &mut String) -> std::fmt::Result,
) -> std::fmt::Result {
    if record.tries.is_empty() {
        return write!(line, "-");
    }
    for (number, tried) in record.tries.iter().enumerate() {
        if number > 0 {
            line.push_str(", ");
        }
        write_one(tried, number + 1 == record.tries.len(), line)?;
    }
    Ok(())
}

/// Only the backend that was connected, the last one, has had any of the bytes.
fn served(bytes: u64, tried: &Try, last: bool) -> u64 {
    if last && tried.connected_in.is_some() { bytes } else { 0 }
}

/// Seconds with three decimals, cut off as in nginx.
fn write_seconds(time: Duration, line: &mut String) -> std::fmt::Result {
    write!(line, "{}.{:03}", time.as_secs(), time.subsec_millis())
}
