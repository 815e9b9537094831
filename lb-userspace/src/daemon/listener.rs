//! The listener of `[api]`, which reloads enable, disable or move.

use std::net::SocketAddr;

use crate::api::{self, Listener};

/// The open listener, if there is one, and a count over all of them.
#[derive(Default)]
pub struct ApiListener {
    open: Option<Listener>,
    /// Connections refused by earlier listeners.
    gone: u64,
}

impl ApiListener {
    /// Listens on an address, or on none. Returns a warning if the address is not available yet:
    /// the listener tries again until it is.
    pub fn set(&mut self, address: Option<SocketAddr>, daemon: &api::Daemon) -> Option<String> {
        if self.open.as_ref().map(Listener::address) == address {
            return None;
        }
        // The old one closes first: the new address may be the same port on more or fewer
        // interfaces.
        self.gone = self.refused();
        self.open = None;
        let (listener, warning) = Listener::start(address?, daemon.for_anybody());
        self.open = Some(listener);
        warning
    }

    /// Connections refused because there were too many.
    pub fn refused(&self) -> u64 {
        self.gone + self.open.as_ref().map_or(0, Listener::refused)
    }
}
