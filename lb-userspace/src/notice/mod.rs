//! What an operator should hear of. It all goes through one door, [`History::tell`], which writes
//! it to the daemon's log and keeps it for `evenkeel events`. The core says such things as actions;
//! nothing else may log what belongs here.
//!
//! A [`Notice`] is a sentence in two parts: what it is about, and what is to be said. The log shows
//! `backend cp01 of service kube-apiserver is up`, `evenkeel events` shows the parts in columns.

mod history;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use log::Level;

pub use crate::words::EventKind as Kind;
pub use history::{History, KEPT};

/// One thing to be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How bad it is. `Level::Info` is no cause for worry.
    pub level: Level,
    /// What it belongs to.
    pub kind: Kind,
    /// What it is about.
    pub subject: Subject,
    /// What is to be said; begins with the verb, unless it is about the daemon.
    pub text: String,
}

/// What a notice is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The daemon, or nothing in particular.
    Daemon,
    /// A service, by name.
    Service(Arc<str>),
    /// A backend.
    Backend {
        /// The name of its service.
        service: Arc<str>,
        /// Its own name.
        backend: Arc<str>,
    },
    /// A VRRP instance, by name.
    Instance(Arc<str>),
}

impl Notice {
    /// About the daemon itself.
    pub fn daemon(level: Level, kind: Kind, text: impl Into<String>) -> Notice {
        Notice { level, kind, subject: Subject::Daemon, text: text.into() }
    }

    /// About the health of a backend.
    pub fn health(level: Level, service: &Arc<str>, backend: &Arc<str>, text: impl Into<String>) -> Notice {
        let subject = Subject::Backend { service: service.clone(), backend: backend.clone() };
        Notice { level, kind: Kind::Health, subject, text: text.into() }
    }
}

impl fmt::Display for Notice {
    /// As the log shows it.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.subject {
            Subject::Daemon => {}
            Subject::Service(name) => write!(f, "service {name} ")?,
            Subject::Backend { service, backend } => write!(f, "backend {backend} of service {service} ")?,
            Subject::Instance(name) => write!(f, "VRRP instance {name} ")?,
        }
        f.write_str(&self.text)
    }
}
