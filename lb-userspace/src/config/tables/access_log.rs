//! `[service.access_log]`

use std::time::Duration;

use super::{DAY, seconds};
use crate::{
    access_log::Format,
    config::{
        model::{AccessLog, LogTarget},
        raw::{At, Table, Value},
        units,
    },
};

/// Reads `[service.access_log]`.
pub fn access_log(mut table: Table) -> Option<AccessLog> {
    let findings = table.findings;
    let target = table.required("path", "\"/var/log/evenkeel/access.log\"", target);
    if let Some(At { value: LogTarget::File(file), pos }) = &target
        && let Some(folder) = file.parent().filter(|folder| !folder.is_dir())
    {
        findings.here(pos.problem(format!("path: there is no folder {}: create it", folder.display())));
    }
    let interval = table.optional("interval", interval);
    let format = match table.optional("format", units::text) {
        None => Some(Format::default()),
        Some(at) => format(at).map_err(|problem| findings.error(problem)).ok(),
    };
    table.finish();
    Some(AccessLog { target: target?.value, interval: interval.map_or(Duration::ZERO, |at| at.value), format: format? })
}

fn target(value: Value) -> Result<LogTarget, String> {
    match units::text(value)? {
        "stdout" => Ok(LogTarget::Stdout),
        "journald" => Ok(LogTarget::Journald),
        text if text.starts_with('/') => Ok(LogTarget::File(text.into())),
        text => Err(format!("\"{text}\" is not a valid target: write an absolute path, \"stdout\" or \"journald\"")),
    }
}

fn interval(value: Value) -> Result<Duration, String> {
    let interval = units::duration(Duration::ZERO..=DAY)(value)?;
    if interval > Duration::ZERO && interval < seconds(1) {
        return Err("less than a second would fill the disk: write \"0s\" for never, or \"1s\" and more".into());
    }
    Ok(interval)
}

/// Parses the format. An error points at the variable itself if the string has no escapes.
fn format(at: At<&str>) -> Result<Format, crate::config::problem::Problem> {
    Format::parse(at.value).map_err(|wrong| {
        let literal = &at.pos.source.text[at.pos.offset..];
        let quotes = literal.len() - literal.trim_start_matches(['\'', '"']).len();
        let as_written = literal[quotes..].starts_with(at.value);
        let offset = if as_written { quotes + wrong.offset } else { 0 };
        at.pos.source.at(at.pos.offset + offset).problem(format!("format: {}", wrong.what))
    })
}
