//! Our programs on their hooks, first and pinned: what is missing is put back, and what others have
//! put in front of ours is overtaken, once.

use std::collections::BTreeSet;

use log::Level;

use super::{
    Attached, Dataplane, Mode,
    attach::{Hooks, Requested},
    pins::Hook,
    rivals::{Met, Rivals},
    standing::{Found, Look, Place, Question, place},
};
use crate::sys::netdev;

/// What was found and done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// For an operator: how grave, the interface, and what.
    pub told: Vec<(Level, String, String)>,
    /// What could not be mended: the datapath does not do its work.
    pub failing: Option<String>,
    /// What could not be mended, and matters at the next start.
    pub error: Option<String>,
}

/// The program that frames meet on their way in, or the guard on their way out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    In,
    Out,
}

impl Dataplane {
    /// What to ask the [`Looker`](super::Looker).
    pub fn question(&self) -> Question {
        let interfaces: BTreeSet<_> = self.attached.keys().chain(&self.guarded).copied().collect();
        Question { changes: self.changes, interfaces: interfaces.into_iter().collect() }
    }

    /// Takes in what was found. An answer from before the last change of our own says nothing.
    pub fn mend(&mut self, look: &Look) -> Option<Mended> {
        if look.changes != self.changes {
            return None;
        }
        let mut mended = Mended::default();
        if let Err(error) = self.pin_again() {
            mended.error = Some(format!("the pins cannot be put back: {error:#}"));
        }
        let attached: Vec<_> = self.attached.values().cloned().collect();
        for it in &attached {
            self.mend_one(it, Side::In, look, &mut mended);
            if self.guarded.contains(&it.ifindex) {
                self.mend_one(it, Side::Out, look, &mut mended);
            }
        }
        Some(mended)
    }

    fn mend_one(&mut self, attached: &Attached, side: Side, look: &Look, mended: &mut Mended) {
        let Some(standing) = look.standing.get(&attached.ifindex) else { return };
        let info = match (side, attached.mode) {
            (Side::Out, _) => self.programs.out.info(),
            (Side::In, Mode::Tc) => self.programs.tc.info(),
            (Side::In, _) => self.programs.xdp.info(),
        };
        let Ok(wanted) = info.map(|info| info.id()) else { return };
        let line = if side == Side::In { &standing.inward } else { &standing.outward };
        let ours = self.own_programs();
        let what = if side == Side::In { "the program" } else { "the guard" };
        let name = attached.interface.clone();
        match place(line, wanted, &ours) {
            Place::On(hook, before) if self.pins.link(attached.ifindex, hook).exists() => {
                self.overtake(attached, side, hook, &before, mended);
            }
            found => {
                let was = if found == Place::Nowhere { "was taken away" } else { "had lost its pin" };
                match self.return_to_hook(attached, side) {
                    Ok(()) => mended.told.push((Level::Warn, name, format!("{what} {was}, and is back"))),
                    // It is on its way out.
                    Err(_) if netdev::index_of(&name).ok() != Some(attached.ifindex) => {}
                    Err(error) => {
                        let text = format!("{what} was taken from {name} and cannot be put back: {error:#}");
                        mended.failing.get_or_insert(text);
                    }
                }
            }
        }
    }

    fn own_programs(&self) -> Vec<u32> {
        let programs = [self.programs.xdp.info(), self.programs.tc.info(), self.programs.out.info()];
        programs.into_iter().flatten().map(|program| program.id()).collect()
    }

    /// On the hook that it was on.
    fn return_to_hook(&mut self, attached: &Attached, side: Side) -> anyhow::Result<()> {
        let device = netdev::by_name(&attached.interface)?;
        anyhow::ensure!(device.ifindex == attached.ifindex, "it is another interface by now");
        let clsact = self.asked.get(&attached.ifindex).is_some_and(|(_, clsact)| *clsact);
        self.changes += 1;
        let mut hooks = Hooks { pins: &self.pins, programs: &mut self.programs };
        if side == Side::Out {
            return hooks.guard(&device, clsact || self.guards_by_filter);
        }
        let requested = match attached.mode {
            Mode::Xdp => Requested::Xdp,
            Mode::XdpGeneric => Requested::XdpGeneric,
            Mode::Tc => Requested::Tc,
        };
        hooks.attach(&device, requested, clsact).map(drop)
    }

    /// See [`Rivals`].
    fn overtake(&mut self, attached: &Attached, side: Side, hook: Hook, before: &[Found], mended: &mut Mended) {
        let key = (attached.ifindex, hook.is_outgoing());
        let Met { new, staying } = self.rivals.entry(key).or_default().meet(hook, before);
        let moved = if new.is_empty() { Ok(()) } else { self.move_to_head(attached, hook) };
        let what = if side == Side::In { "the program" } else { "the guard" };
        let then = match &moved {
            Ok(()) => format!("{what} is put in front of it"),
            Err(error) => format!("{what} cannot be put in front of it: {error:#}"),
        };
        let stays = format!("frames pass it before {what} sees them");
        let all = new.iter().map(|found| (found, &then)).chain(staying.iter().map(|found| (found, &stays)));
        for (found, then) in all {
            let text = format!("{} stands first: {then}", found.told());
            mended.told.push((Level::Warn, attached.interface.clone(), text));
        }
        if moved.is_ok()
            && let Some(rivals) = self.rivals.get_mut(&key)
        {
            rivals.overtook(&new);
        }
    }

    fn move_to_head(&mut self, attached: &Attached, hook: Hook) -> anyhow::Result<()> {
        let device = netdev::by_name(&attached.interface)?;
        anyhow::ensure!(device.ifindex == attached.ifindex, "it is another interface by now");
        self.changes += 1;
        Hooks { pins: &self.pins, programs: &mut self.programs }.move_to_head(&device, hook)
    }

    /// The programs of others that see a frame before ours does, as they were last seen.
    pub fn behind(&self, ifindex: u32) -> Vec<String> {
        let sides = [false, true].into_iter().filter_map(|outward| self.rivals.get(&(ifindex, outward)));
        sides.flat_map(Rivals::before).map(Found::told).collect()
    }
}
