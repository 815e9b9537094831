//! `mss_clamp`: how much payload the segments of a service's connections may have.

use lb_common::layout::CLAMP_TO_WAYS;

use super::Daemon;
use crate::config::model::MssClamp;

impl Daemon {
    /// Writes it for every service. It bounds connections that are opened from now on.
    pub(super) fn clamp_payload(&self) {
        for service in &self.controller.desired().services {
            let mut known = self.controller.services().iter();
            if let Some((number, _)) = known.find(|(_, facts)| facts.name == service.name) {
                self.dataplane.tables().set_mss_clamp(*number, word(service.mss_clamp));
            }
        }
    }
}

/// As the kernel program reads it.
const fn word(wanted: MssClamp) -> u32 {
    match wanted {
        MssClamp::Off => 0,
        MssClamp::Bytes(bytes) => bytes,
        MssClamp::Auto => CLAMP_TO_WAYS,
    }
}
