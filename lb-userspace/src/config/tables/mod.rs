//! One file per table of the configuration: its keys, their defaults, and the rules within the
//! table.

pub mod access_log;
pub mod backend;
pub mod daemon;
pub mod health;
pub mod service;
pub mod vrrp;

use std::time::Duration;

use super::{problem::Findings, raw::At};

/// Notes an interface that this host does not have.
fn check_interface(at: &At<String>, findings: &Findings) {
    if nix::net::if_::if_nametoindex(at.value.as_str()).is_err() {
        findings.here(at.pos.problem(format!("interface: this host has no interface {}", at.value)));
    }
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const HOUR: Duration = seconds(3600);
const DAY: Duration = seconds(86_400);
