//! Events: what an operator should hear of.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A row of `/api/v1/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Consecutive, from 1 at the daemon's start.
    pub number: u64,
    /// When it happened.
    pub time: jiff::Timestamp,
    /// How serious it is.
    pub level: EventLevel,
    /// What it belongs to.
    pub kind: EventKind,
    /// The service it is about, if it is about one.
    pub service: Option<Arc<str>>,
    /// The backend it is about, if it is about one.
    pub backend: Option<Arc<str>>,
    /// The VRRP instance it is about, if it is about one.
    pub instance: Option<Arc<str>>,
    /// What happened; begins with the verb if it is about one of the above.
    pub text: String,
}

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventLevel {
    /// Nothing to worry about.
    Info,
    /// Something does not work as it should.
    Warn,
    /// Something does not work.
    Error,
}

impl From<log::Level> for EventLevel {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Error => EventLevel::Error,
            log::Level::Warn => EventLevel::Warn,
            _ => EventLevel::Info,
        }
    }
}

/// What an event belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A backend went out or came back.
    Health,
    /// A VRRP instance changed its state, or could not.
    Vrrp,
    /// Flow sync with the other host.
    Sync,
    /// The configuration was read again.
    Reload,
    /// An operator's command.
    Admin,
    /// Hooks, interfaces, tables.
    Datapath,
    /// The daemon's start and end.
    Lifecycle,
}
