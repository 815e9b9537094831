//! The state of a backend.

use serde::{Deserialize, Serialize};

/// Whether a backend gets new connections, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// It gets its full share.
    Up,
    /// Out, but one connection at a time may try it.
    Probing,
    /// Its share still grows after it came up.
    SlowStart,
    /// No new connections; the open ones stay.
    Draining,
    /// Taken out by an operator.
    Maint,
    /// Out by its health or by the configuration.
    Down,
}

impl BackendState {
    /// Every state there is.
    pub const ALL: &[BackendState] = &[
        BackendState::Up,
        BackendState::Probing,
        BackendState::SlowStart,
        BackendState::Draining,
        BackendState::Maint,
        BackendState::Down,
    ];
}

/// Why a backend is not simply up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendReason {
    /// A command of an operator.
    Admin,
    /// `down = true` in the configuration.
    Config,
    /// It refused connections.
    Refused,
    /// It did not answer a SYN in time.
    Timeout,
    /// A router or a firewall answered a SYN with an ICMP error.
    Unreachable,
    /// It stopped answering on established connections.
    Silent,
    /// It did not answer a probe in time.
    ProbeTimeout,
    /// It answered a probe with a status that is not expected.
    ProbeStatus,
    /// It speaks TLS, but a probe does not accept its certificate, or has no protocol in common.
    ProbeTls,
}

/// What an operator has ordered for a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminWord {
    /// No new connections.
    Drain,
    /// Out at once.
    Maint,
}
