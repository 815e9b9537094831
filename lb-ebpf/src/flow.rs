//! The life of a flow: opened by a SYN, moved to the next backend, connected, closed. Everything
//! here is off the fast path and works on slots alone; what happens to the frame is the answer, an
//! [`Outcome`](crate::outcome::Outcome).
//!
//! Every change of state is one compare-and-swap of the slot's word. The winner carries out the
//! consequences, once; the loser looks again.

mod backend;
mod client;
mod confirming;
mod end;
mod half_open;
mod moving_on;
mod opening;

use lb_common::{
    flow::SlotAt,
    layout::Slot,
    slot::{Ctl, LOOSE, State},
};

use crate::{klog, outcome::Outcome, records::Held};

pub use backend::{Answer, from_backend, leave};
pub use client::from_client;
pub use confirming::{confirm, resume};
pub use moving_on::move_on;
pub use opening::open;

/// Changes the word of a flow that is still `old`; true for the winner.
#[inline(always)]
fn change(at: SlotAt, slot: Held<Slot>, old: Ctl, new: Ctl) -> bool {
    let won = slot.swap(old, new);
    klog::changed(at, slot, (old, new), won);
    won
}

/// In addition to the flags of TCP: the segment's numbers are believed.
const INSIDE: u32 = 1 << 8;

/// The flags of a segment for the functions below.
#[inline(always)]
const fn flags_of(flags: u8, inside: bool) -> u32 {
    flags as u32 | if inside { INSIDE } else { 0 }
}

/// The state in which a segment meets a flow. One inside the window lifts suspicion and settles a
/// flow that was taken over: then `None`, look again.
#[inline(always)]
fn met(at: SlotAt, slot: Held<Slot>, ctl: Ctl, inside: bool) -> Option<State> {
    let seen = if matches!(ctl.state(), State::Suspect) { ctl.cleared() } else { ctl };
    let settled = seen.without_flags(LOOSE);
    if inside && settled != ctl {
        change(at, slot, ctl, settled);
        return None;
    }
    Some(seen.state())
}

/// Compare-and-swaps that may fail before the segment is forwarded as it is.
const SWAPS: u32 = 3;

/// Looks at a flow again as long as another CPU changes it meanwhile. What is done each time is a
/// call: with more than that in the loop, the compiler may close it without a jump, which kernels
/// before 6.7 refuse.
#[inline(always)]
fn persist(at: SlotAt, look: impl Fn() -> Outcome) -> Outcome {
    for _ in 0..SWAPS {
        let outcome = look();
        if outcome.kind() != Outcome::AGAIN {
            return outcome;
        }
    }
    Outcome::forward(at)
}
