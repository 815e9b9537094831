//! The states that operators give to backends: drained, or in maintenance. A state holds through
//! reloads and restarts until it is taken back. It is kept by the names of service and backend and
//! ends when the backend leaves the configuration.
//!
//! Both hosts of a pair hold the states that were set on either; the later one prevails. So a state
//! that was taken back is remembered too, with its time.

use std::{collections::BTreeMap, sync::Arc};

use lb_common::time::Instant;

use super::admission::Admin;

mod merge;

pub use merge::{Heard, HeardState};

/// A backend by the names in the file: its service's and its own.
pub type Name = (Arc<str>, Arc<str>);

/// A state that an operator sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminState {
    /// No new connections; those it has go on, until the deadline.
    Drain {
        /// When the rest is reset; `None`: never.
        deadline: Option<Instant>,
        /// Resets a second, from then on.
        rate: u32,
    },
    /// Out at once.
    Maint,
}

impl AdminState {
    /// For the admission.
    pub fn admin(self) -> Admin {
        match self {
            AdminState::Drain { .. } => Admin::Drain,
            AdminState::Maint => Admin::Maint,
        }
    }
}

/// A state, the time it was set, and who set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminEntry {
    /// The state.
    pub order: AdminState,
    /// When it was set.
    pub since: Instant,
    /// As the log names them.
    pub by: Arc<str>,
}

/// All states in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminStates {
    by_name: BTreeMap<Name, AdminEntry>,
    /// When the last word about a backend was said, taking it back included; milliseconds since
    /// 1970. A word is later than every one that was known when it was said, whatever the clocks of
    /// the hosts show.
    decided: BTreeMap<Name, u64>,
}

impl AdminStates {
    /// The state of one backend; `None`: in service.
    pub fn get(&self, name: &Name) -> Option<&AdminEntry> {
        self.by_name.get(name)
    }

    /// For the admission of one backend.
    pub fn admin(&self, name: &Name) -> Admin {
        self.get(name).map_or(Admin::None, |said| said.order.admin())
    }

    /// Sets a state and returns the one before. `wall` in milliseconds since 1970.
    pub fn say(&mut self, name: Name, said: AdminEntry, wall: u64) -> Option<AdminEntry> {
        self.decide(&name, wall);
        self.by_name.insert(name, said)
    }

    /// Takes a state back and returns it.
    pub fn take_back(&mut self, name: &Name, wall: u64) -> Option<AdminEntry> {
        self.decide(name, wall);
        self.by_name.remove(name)
    }

    fn decide(&mut self, name: &Name, wall: u64) {
        let known = self.decided.get(name).map_or(0, |known| known.saturating_add(1));
        self.decided.insert(name.clone(), wall.max(known));
    }

    /// When the last word about a backend was said, in milliseconds since 1970; 0: never.
    pub fn decided_at(&self, name: &Name) -> u64 {
        self.decided.get(name).copied().unwrap_or(0)
    }

    /// The backends about which anything was ever said, and when; also if it was taken back.
    pub fn decided(&self) -> impl Iterator<Item = (&Name, u64)> {
        self.decided.iter().map(|(name, at)| (name, *at))
    }

    /// All of them, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &AdminEntry)> {
        self.by_name.iter()
    }

    /// Forgets those of backends that are gone.
    pub fn retain(&mut self, is_there: impl Fn(&Name) -> bool) {
        self.by_name.retain(|name, _| is_there(name));
        self.decided.retain(|name, _| is_there(name));
    }
}
