//! The listener of `[api]`, which reloads enable, disable or move.

use crate::{
    api::{self, Hosts, Listener},
    config::model::Api,
    sys::host,
};

/// The open listener, if there is one, and a count over all of them.
#[derive(Default)]
pub struct ApiListener {
    open: Option<(Api, Listener)>,
    /// Connections refused by earlier listeners.
    gone: u64,
}

impl ApiListener {
    /// Listens as `[api]` says, or not at all. Returns a warning if the address is not available yet:
    /// the listener tries again until it is.
    pub fn set(&mut self, wanted: Option<&Api>, daemon: &api::Daemon) -> Option<String> {
        if self.open.as_ref().map(|(api, _)| api) == wanted {
            return None;
        }
        // The old one closes first: the new address may be the same port on more or fewer
        // interfaces.
        self.gone = self.refused();
        self.open = None;
        let wanted = wanted?;
        let hosts = Hosts::new(host::name(), &wanted.hosts);
        let (listener, warning) = Listener::start(wanted.listen, hosts, daemon.for_anybody());
        self.open = Some((wanted.clone(), listener));
        warning
    }

    /// Connections refused because there were too many.
    pub fn refused(&self) -> u64 {
        self.gone + self.open.as_ref().map_or(0, |(_, listener)| listener.refused())
    }
}
