//! `[service.health]`

use std::num::NonZeroU32;

use super::{HOUR, millis, seconds};
use crate::config::{
    authorities,
    model::{Health, Probe},
    raw::{Table, Value},
    units,
};

/// The default of `expect`. 401 and 403 count as ready: the API server is alive, only anonymous
/// access is off.
const EXPECT: [u16; 3] = [200, 401, 403];

/// Reads `[service.health]`.
pub fn health(mut table: Table) -> Option<Health> {
    let findings = table.findings;
    let probe = table.or("probe", Probe::Https, units::choice(&[("tcp", Probe::Tcp), ("https", Probe::Https)]));
    let path = table.or("path", "/readyz".into(), request_path);
    let interval = table.or("interval", seconds(2), units::duration(millis(100)..=HOUR));
    let timeout = table.optional("timeout", units::duration(millis(10)..=HOUR));
    if let Some(timeout) = timeout.filter(|timeout| timeout.value > interval) {
        let (timeout_text, interval_text) = (units::write_duration(timeout.value), units::write_duration(interval));
        findings.error(timeout.pos.problem(format!(
            "timeout: \"{timeout_text}\" is above the interval of \"{interval_text}\": a probe must end before the next one starts"
        )));
    }
    let rise = table.or("rise", 2, units::number(1..=1000));
    let fall = table.or("fall", 3, units::number(1..=1000));
    let ca = table.optional("ca", units::absolute_path);
    if let Some(ca) = &ca {
        if let Err(error) = std::fs::File::open(&ca.value) {
            findings.here(ca.pos.problem(format!("ca: {} cannot be read: {error}", ca.value.display())));
        } else if let Err(error) = authorities(&ca.value) {
            findings.error(ca.pos.problem(format!("ca: {error:#}")));
        }
    }
    let expect = match table.list("expect", units::number(100..=599)) {
        None => EXPECT.to_vec(),
        Some(list) => list.into_iter().map(|at| at.value).collect(),
    };
    if table.is_empty_list("expect") {
        findings.error(
            table.pos.problem("[service.health]: `expect` is empty, so no backend could ever be up: expect = [200]"),
        );
    }
    table.finish();
    Some(Health {
        probe,
        path,
        interval,
        timeout: timeout.map_or(seconds(1).min(interval), |at| at.value),
        rise: NonZeroU32::new(rise)?,
        fall: NonZeroU32::new(fall)?,
        ca: ca.map(|at| at.value),
        expect,
    })
}

fn request_path(value: Value) -> Result<String, String> {
    let text = units::text(value)?;
    if !text.starts_with('/') || !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!("\"{text}\" is not a valid request path: it must begin with `/`, such as \"/readyz\""));
    }
    Ok(text.into())
}
