//! Words that several rooms share: states, reasons, events, counters, exactly as the JSON spells
//! them. They are plain values with serde on them; this room knows no other one, so every room may
//! use it.

mod backend;
mod cookies;
mod duration;
mod event;
mod near;
mod sync;
mod task;
mod vrrp;

pub use backend::{AdminWord, BackendReason, BackendState};
pub use cookies::{CookieReason, SynCookies};
pub use duration::{parse_duration, serialize_duration, write_duration};
pub use event::{Event, EventKind, EventLevel};
pub use near::did_you_mean;
pub use sync::{RefusedDatagrams, SyncCounts, SyncState};
pub use task::{Task, TaskState};
pub use vrrp::{AdvertCounts, AdvertRefusal, OWNER_PRIORITY, VrrpState, VrrpVersion};

/// Displays an enum as the word that its JSON has.
macro_rules! shown_as_in_json {
    ($($type:ty),* $(,)?) => {$(
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                serde::Serialize::serialize(self, f)
            }
        }
    )*};
}
pub(crate) use shown_as_in_json;

shown_as_in_json!(AdminWord, BackendReason, BackendState, CookieReason, EventKind, EventLevel, SyncState, VrrpState);
