//! SYN cookies.

use serde::{Deserialize, Serialize};

/// When a service sends SYN cookies (`syn_cookies`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SynCookies {
    /// In a flood.
    #[default]
    Auto,
    Always,
    Off,
}

/// Why a service sends SYN cookies, or never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CookieReason {
    /// The configuration says `"always"` or `"off"`.
    Config,
    /// Very many connections were half-open.
    HalfOpen,
    /// So many that the kernel program had no room for more, and turned them on by itself.
    RingFull,
    /// They were on when the daemon started, or when the configuration said `"auto"` again.
    Kept,
}
