//! Whether our programs stand where they were put, and first: looked at once a second, and mended.

use std::collections::BTreeSet;

use anyhow::Result;
use log::warn;
use tokio::sync::mpsc;

use super::{Daemon, interfaces::notice};
use crate::dataplane::{Look, Looker};

/// How many different errors are told.
const ERRORS: usize = 64;

/// What is known of the hooks.
pub struct HookWatch {
    looker: Looker,
    /// What could not be mended.
    pub failing: Option<String>,
    /// It could not be mended at the last look, and is tried again before anybody is told.
    doubted: bool,
    /// What could not be found out, told once.
    unknown: BTreeSet<String>,
}

impl HookWatch {
    /// Starts the thread that looks.
    pub fn start() -> Result<(HookWatch, mpsc::Receiver<Look>)> {
        let (looker, looks) = Looker::start()?;
        Ok((HookWatch { looker, failing: None, doubted: false, unknown: BTreeSet::new() }, looks))
    }
}

impl Daemon {
    /// The answer comes to [`looked`](Self::looked).
    pub(super) fn look_at_hooks(&self) {
        self.hooks.looker.ask(self.dataplane.question());
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
