//! What the configuration says about the access log of a service.

use std::{path::PathBuf, time::Duration};

use serde::{Serialize, Serializer};

use super::format::Format;
use crate::words::serialize_duration;

/// `[service.access_log]`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AccessLog {
    #[serde(rename = "path")]
    pub target: LogTarget,
    /// 0: one line per connection, at its end; otherwise 1 s to 1 day.
    #[serde(serialize_with = "serialize_duration")]
    pub interval: Duration,
    pub format: Format,
}

/// Where the lines are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    File(PathBuf),
    Stdout,
    Journald,
}

impl Serialize for LogTarget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            LogTarget::File(path) => path.serialize(serializer),
            LogTarget::Stdout => serializer.serialize_str("stdout"),
            LogTarget::Journald => serializer.serialize_str("journald"),
        }
    }
}
