//! What comes of choosing a backend, as one number.

use lb_common::{
    flow::{Attempt, Chosen, SlotAt, Tried},
    layout::{MAX_BACKENDS, Slot},
    verdict::Reason,
};

use super::tried;
use crate::records::Held;

/// A backend that was chosen and a slot that was claimed towards it, or why there is none. One
/// number, so that global functions can return it.
///
/// ```text
/// 63 62 61   61 60  59 58     49 48  48 47    40 39    32 31        0
/// | 0  | full | list | backend | same | reason | chosen |    slot    |
/// ```
#[derive(Clone, Copy)]
pub struct Choice(pub u64);

impl Choice {
    /// No backend may take it.
    pub const NO_BACKEND: Choice = Choice((Reason::NoBackend as u64) << 40);
    /// Those that may take it have no free port.
    pub const NO_SLOT: Choice = Choice((Reason::NoSlot as u64) << 40);
    /// Those that may take it have as many connections as they may have.
    pub const FULL: Choice = Choice(1 << 61 | Self::NO_BACKEND.0);

    /// From what [`choose_global`] has returned.
    #[inline(always)]
    pub const fn new(chosen: u32, backend: u32, at: SlotAt) -> Choice {
        const { assert!(MAX_BACKENDS <= 1 << 10) };
        let named = ((chosen >> 8 & 3) as u64) << 59 | ((backend & 0x3ff) as u64) << 49;
        Choice(named | ((chosen & 0xff) as u64) << 32 | at.0 as u64)
    }

    /// Another slot towards the backend that the flow is at.
    #[inline(always)]
    pub const fn same_backend(at: SlotAt) -> Choice {
        Choice(1 << 48 | at.0 as u64)
    }

    /// Whether it is [`same_backend`](Self::same_backend).
    #[inline(always)]
    pub const fn is_same_backend(self) -> bool {
        self.0 >> 48 & 1 != 0
    }

    /// Why nothing was chosen.
    #[inline(always)]
    pub const fn refusal(self) -> Option<Reason> {
        match (self.0 >> 40) as u8 {
            0 => None,
            reason if reason == Reason::NoSlot as u8 => Some(Reason::NoSlot),
            _ => Some(Reason::NoBackend),
        }
    }

    /// Whether it would be taken if there were fewer connections.
    #[inline(always)]
    pub const fn lacks_room(self) -> bool {
        self.0 == Self::NO_SLOT.0 || self.0 == Self::FULL.0
    }

    /// The backend.
    #[inline(always)]
    pub const fn chosen(self) -> Chosen {
        Chosen((self.0 >> 32) as u8)
    }

    /// The backend's number, whatever the list holds by now.
    #[inline(always)]
    pub const fn backend(self) -> u32 {
        (self.0 >> 49) as u32 & 0x3ff
    }

    /// What the flow in `old` has tried when it has gone on to this one.
    #[inline(always)]
    pub fn tried(self, old: Held<Slot>) -> Tried {
        tried(old, (self.0 >> 59) as u32).with(self.chosen().position())
    }

    /// The attempt that begins with it.
    #[inline(always)]
    pub const fn attempt(self) -> Attempt {
        Attempt::new(self.chosen().how(), (self.0 >> 59) as u32)
    }

    /// The slot.
    #[inline(always)]
    pub const fn at(self) -> SlotAt {
        SlotAt(self.0 as u32)
    }
}
