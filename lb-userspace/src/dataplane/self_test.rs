//! Whether the datapath would do its work now: the program is on every interface it was put on, and
//! answers a packet.

use lb_common::layout::{ACTIVE, CLOSING};

use super::{Attached, Dataplane, pins::Hook};
use crate::{sys::bpf, tables::frames};

impl Dataplane {
    /// Looks at every interface and runs a test packet through the program there. The error is for
    /// an operator. What hangs on clsact is not looked for here: see [`clsact`](Self::clsact).
    pub fn self_test(&self) -> Result<(), String> {
        for attached in self.attached.values() {
            self.is_attached(attached)?;
            self.answers(attached)?;
        }
        self.every_way_out_takes_frames()
    }

    /// The interfaces on which the program is a filter of clsact, with the filter's priority and
    /// handle: it has no link, so only netlink shows whether it is still there.
    pub fn clsact(&self) -> Vec<(Attached, (u16, u32))> {
        let is_clsact = |attached: &&Attached| self.pins.link(attached.ifindex, Hook::Clsact).exists();
        self.attached.values().filter(is_clsact).map(|it| (it.clone(), super::attach::FILTER)).collect()
    }

    fn is_attached(&self, attached: &Attached) -> Result<(), String> {
        let name = &attached.interface;
        for hook in [Hook::Xdp, Hook::Generic, Hook::Tcx] {
            let path = self.pins.link(attached.ifindex, hook);
            if !path.exists() {
                continue;
            }
            let link =
                bpf::pinned_link(&path).map_err(|error| format!("the link on {name} cannot be read: {error}"))?;
            if link.ifindex != attached.ifindex {
                return Err(format!("the program was taken from {name}: restart evenkeel"));
            }
            let programs = [self.programs.xdp.info(), self.programs.tc.info()];
            if !programs.into_iter().flatten().any(|program| program.id() == link.program) {
                return Err(format!("the program on {name} is not this evenkeel's: restart it"));
            }
            return Ok(());
        }
        if self.pins.link(attached.ifindex, Hook::Clsact).exists() {
            return Ok(());
        }
        Err(format!("the pin of the link on {name} is gone: restart evenkeel"))
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
