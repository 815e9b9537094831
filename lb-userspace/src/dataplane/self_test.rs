//! Whether the datapath would do its work now: the program answers a packet on every interface.

use lb_common::layout::{ACTIVE, CLOSING};

use super::{Attached, Dataplane};
use crate::{sys::netdev, tables::frames};

impl Dataplane {
    /// Runs a test packet through the program of every interface. The error is for an operator.
    /// Whether frames get there is seen by who looks at the hooks: see [`mend`](Self::mend).
    pub fn self_test(&self) -> Result<(), String> {
        // One that is gone will be reported as such.
        let there = |attached: &&Attached| netdev::name_of(attached.ifindex).is_ok();
        for attached in self.attached.values().filter(there) {
            self.answers(attached)?;
        }
        self.every_way_out_takes_frames()
    }

    fn answers(&self, attached: &Attached) -> Result<(), String> {
        let listeners = self.tables.listeners().into_iter().map(|(_, listener)| listener);
        let Some(listener) = listeners.into_iter().find(|listener| matches!(listener.state, ACTIVE | CLOSING)) else {
            // Nothing to balance.
            return Ok(());
        };
        let number = self.meta.seed as u32;
        let Some(frame) = frames::self_test(&listener, self.tables.interface(attached.number).mac, number) else {
            return Ok(());
        };
        let name = &attached.interface;
        let out =
            self.inject(attached.ifindex, &frame).map_err(|error| format!("no test packet on {name}: {error:#}"))?;
        if out.sent && frames::answers_self_test(&out.frame, &listener) {
            return Ok(());
        }
        Err(format!("the program on {name} does not answer the test packet (verdict {})", out.verdict))
    }
}
