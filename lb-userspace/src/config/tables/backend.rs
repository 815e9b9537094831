//! `[[service.backend]]`

use std::{net::SocketAddr, time::Duration};

use super::{HOUR, millis, seconds};
use crate::config::{
    cross::Once,
    model::{Backend, Weight},
    raw::{At, Table, Value},
    units,
};

/// Names and addresses of one service's backends.
pub struct Seen<'a> {
    pub names: Once<'a, String>,
    pub addresses: Once<'a, SocketAddr>,
}

/// A backend and the positions that later checks point at.
pub struct Read<'a> {
    pub backend: Backend,
    pub address: At<'a, SocketAddr>,
    /// Where `backup = true` is written.
    pub backup: Option<At<'a, bool>>,
}

/// Reads `[[service.backend]]`.
pub fn backend<'a>(mut table: Table<'a>, seen: &mut Seen<'a>) -> Option<Read<'a>> {
    let findings = table.findings;
    let name = table.required("name", "\"cp01\"", units::name);
    let address = table.required("address", "\"10.0.1.10:6443\"", units::socket_address);
    if let Some(name) = &name {
        seen.names.enter(name.value.to_owned(), name.pos, findings);
    }
    if let Some(address) = &address {
        seen.addresses.enter(address.value, address.pos, findings);
    }
    let weight = table.or("weight", Weight::new(1)?, weight);
    let max_fails = table.or("max_fails", 3, units::number(0..=1000));
    let fail_timeout = table.or("fail_timeout", seconds(10), units::duration(millis(100)..=HOUR));
    let max_conns = table.or("max_conns", 0, units::number(0..=u32::MAX));
    let backup = table.optional("backup", units::boolean);
    let down = table.or("down", false, units::boolean);
    let slow_start = table.or("slow_start", Duration::ZERO, units::duration(Duration::ZERO..=HOUR));
    table.finish();

    let address = address?;
    let backup = backup.filter(|at| at.value);
    let backend = Backend {
        name: name?.value.into(),
        address: address.value,
        weight,
        max_fails,
        fail_timeout,
        max_conns,
        backup: backup.is_some(),
        down,
        slow_start,
    };
    Some(Read { backend, address, backup })
}

fn weight(value: Value) -> Result<Weight, String> {
    let weight = units::number(0..=Weight::MAX)(value)?;
    Weight::new(weight)
        .ok_or_else(|| format!("must be 1 to {}; to send a backend no connections, set down = true", Weight::MAX))
}
