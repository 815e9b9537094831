//! The listener of `[api]` as reloads turn it on, off and elsewhere.

use std::net::SocketAddr;

use crate::api::{self, Listener};

/// The one in use, if there is one.
#[derive(Default)]
pub struct ApiListener {
    open: Option<Listener>,
    /// Connections turned away by those that are gone.
    gone: u64,
}

impl ApiListener {
    /// Listens there, or nowhere. A warning if the address cannot be had yet: it is tried again
    /// until it can.
    pub fn set(&mut self, address: Option<SocketAddr>, daemon: &api::Daemon) -> Option<String> {
        if self.open.as_ref().map(Listener::address) == address {
            return None;
        }
        // First of all the old one: the new address may be the same port on more or fewer
        // interfaces.
        self.gone = self.refused();
        self.open = None;
        let (listener, warning) = Listener::start(address?, daemon.for_anybody());
        self.open = Some(listener);
        warning
    }

    /// Connections that were turned away because there were too many.
    pub fn refused(&self) -> u64 {
        self.gone + self.open.as_ref().map_or(0, Listener::refused)
    }
}
