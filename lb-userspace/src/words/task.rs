//! Resets that go on in the background.

use serde::{Deserialize, Serialize};

/// Resets that are carried out at a given rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its number, for `/api/v1/tasks/ID`.
    pub id: u64,
    /// Whether it goes on.
    pub state: TaskState,
    /// Connections that were to be reset when it began.
    pub total: u64,
    /// Connections reset so far. The others ended by themselves.
    pub reset: u64,
    /// Resets per second.
    pub rate: u32,
}

/// How far a task has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Connections are still to be reset.
    Running,
    /// No connection is left to reset.
    Done,
    /// Ended by `tasks/ID/stop`.
    Stopped,
}
