//! Whether our programs stand where they were put, and first: looked at once a second, and mended.

use std::collections::BTreeSet;

use anyhow::Result;
use log::warn;
use tokio::sync::mpsc;

use super::{
    Daemon,
    interfaces::{self, notice},
};
use crate::dataplane::{Look, Looker};

/// How many different errors are told.
const ERRORS: usize = 64;

/// What is known of the hooks.
pub struct HookWatch {
    looker: Looker,
    /// What could not be mended.
    failing: Option<String>,
    /// It could not be mended at the last look, and is tried again before anybody is told.
    doubted: bool,
    /// What is missing since the last attempt, and since the one before.
    missing: [Option<String>; 2],
    /// What could not be found out, told once.
    unknown: BTreeSet<String>,
}

impl HookWatch {
    /// Starts the thread that looks.
    pub fn start() -> Result<(HookWatch, mpsc::Receiver<Look>)> {
        let (looker, looks) = Looker::start()?;
        let unknown = BTreeSet::new();
        Ok((HookWatch { looker, failing: None, doubted: false, missing: [None, None], unknown }, looks))
    }

    /// Why the datapath does not do its work.
    pub fn fault(&self) -> Option<String> {
        let [now, before] = &self.missing;
        // An interface may be on its way in or out.
        self.failing.clone().or_else(|| now.clone().filter(|_| before.is_some()))
    }
}

impl Daemon {
    /// The answer comes to [`looked`](Self::looked).
    pub(super) fn look_at_hooks(&self) {
        self.hooks.looker.ask(self.dataplane.question());
    }

    /// What could not be put on an interface when it came is tried again.
    pub(super) fn attach_missing(&mut self) {
        let Daemon { dataplane, wanted, .. } = self;
        let before = dataplane.attached();
        let attached = interfaces::attach_missing(dataplane, wanted, self.process.options.clsact);
        let [now, earlier] = &mut self.hooks.missing;
        *earlier = std::mem::replace(now, attached.err());
        if self.dataplane.attached() == before {
            return;
        }
        if let Err(error) = self.hops.renew(self.dataplane.tables()) {
            warn!("{error:#}");
        }
        self.compare_interfaces(&before);
        self.write_hops();
    }

    pub(super) fn looked(&mut self, look: &Look) {
        let mended = self.dataplane.mend(look);
        let at_start = mended.as_ref().and_then(|mended| mended.error.as_ref());
        for error in look.errors.iter().chain(at_start) {
            if self.hooks.unknown.len() < ERRORS && self.hooks.unknown.insert(error.clone()) {
                warn!("the hooks: {error}");
            }
        }
        let Some(mended) = mended else { return };
        for (level, interface, text) in &mended.told {
            self.tell(notice(*level, interface, text));
        }
        let was_doubted = std::mem::replace(&mut self.hooks.doubted, mended.failing.is_some());
        if mended.failing.is_some() && !was_doubted {
            return self.look_at_hooks();
        }
        if self.hooks.failing != mended.failing {
            self.hooks.failing = mended.failing;
            self.check_dependencies();
        }
    }
}
