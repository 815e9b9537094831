//! What happens to a frame: the slow path's answer to the walk.

use lb_common::{flow::SlotAt, tcp::Side, verdict::Reason};

/// What the walk does with the frame, as one number so that global functions can return it. Each
/// has its constructor; whatever ends a frame says why, and the walk counts it.
///
/// ```text
/// 63     48 47    40 39   32 31        0
/// |    0   | reason |  kind |    slot    |
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outcome(pub u64);

impl Outcome {
    pub const FORWARD: u64 = 1;
    pub const OPENED: u64 = 2;
    pub const SEND_SYN: u64 = 3;
    pub const REFUSE: u64 = 4;
    pub const RESET: u64 = 5;
    pub const DROP: u64 = 6;
    pub const MOVE_ON: u64 = 7;
    pub const OPEN: u64 = 8;
    pub const END: u64 = 9;
    pub const ADMITTED: u64 = 10;
    pub const AGAIN: u64 = 11;
    pub const CHALLENGE: u64 = 12;
    pub const COOKIE: u64 = 13;
    pub const NOT_OURS: u64 = 14;
    pub const QUOTED_CLIENT: u64 = 15;
    pub const QUOTED_BACKEND: u64 = 16;

    #[inline(always)]
    const fn new(kind: u64, reason: u64, at: SlotAt) -> Outcome {
        Outcome(reason << 40 | kind << 32 | at.0 as u64)
    }

    /// Translate it by the flow in the slot.
    #[inline(always)]
    pub const fn forward(at: SlotAt) -> Outcome {
        Self::new(Self::FORWARD, 0, at)
    }

    /// The SYN that opened the flow: what it says is saved, and its backend gets it written anew.
    #[inline(always)]
    pub const fn opened(at: SlotAt) -> Outcome {
        Self::new(Self::OPENED, 0, at)
    }

    /// Replace it with the saved SYN of the flow, to that flow's backend.
    #[inline(always)]
    pub const fn send_syn(at: SlotAt) -> Outcome {
        Self::new(Self::SEND_SYN, 0, at)
    }

    /// Answer it with the acknowledgement that the flow is at.
    #[inline(always)]
    pub const fn challenge(at: SlotAt) -> Outcome {
        Self::new(Self::CHALLENGE, 0, at)
    }

    /// Answer it with a SYN cookie.
    #[inline(always)]
    pub const fn cookie() -> Outcome {
        Self::new(Self::COOKIE, 0, SlotAt(0))
    }

    /// Replace it with a RST that refuses the client of the flow.
    #[inline(always)]
    pub const fn refuse(at: SlotAt) -> Outcome {
        Self::new(Self::REFUSE, 0, at)
    }

    /// Leave it to the host: the port is none of ours.
    #[inline(always)]
    pub const fn not_ours() -> Outcome {
        Self::new(Self::NOT_OURS, 0, SlotAt(0))
    }

    /// Count why, and answer its sender with a RST.
    #[inline(always)]
    pub const fn reset(reason: Reason) -> Outcome {
        Self::new(Self::RESET, reason as u64, SlotAt(0))
    }

    /// Count why, and drop it.
    #[inline(always)]
    pub const fn drop(reason: Reason) -> Outcome {
        Self::new(Self::DROP, reason as u64, SlotAt(0))
    }

    /// A try has failed and its flow was taken out of `HalfOpen`: `flow::move_on` says what comes
    /// next.
    #[inline(always)]
    pub const fn move_on(reason: Reason, at: SlotAt) -> Outcome {
        Self::new(Self::MOVE_ON, reason as u64, at)
    }

    /// A SYN that begins a new connection: `flow::open`.
    #[inline(always)]
    pub const fn open() -> Outcome {
        Self::new(Self::OPEN, 0, SlotAt(0))
    }

    /// Another CPU has changed the flow: look again.
    #[inline(always)]
    pub const fn again() -> Outcome {
        Self::new(Self::AGAIN, 0, SlotAt(0))
    }

    /// A new connection may be opened at a service, which `at` numbers.
    #[inline(always)]
    pub const fn admitted(service: u16) -> Outcome {
        Self::new(Self::ADMITTED, 0, SlotAt(service as u32))
    }

    /// It was a question of `evenkeel trace`, which leaves no trace, not even in a counter.
    #[inline(always)]
    pub const fn answered() -> Outcome {
        Self::new(Self::END, 0, SlotAt(0))
    }

    /// For what cannot happen and only the verifier considers possible: a look-up by a number that
    /// is certainly in the table. Nothing leads here, so nothing is counted.
    #[inline(always)]
    pub const fn impossible() -> Outcome {
        Self::new(Self::END, 0, SlotAt(0))
    }

    /// It is an error about a segment of this side of the flow in the slot, which is to get it.
    #[inline(always)]
    pub const fn quoted(at: SlotAt, side: Side) -> Outcome {
        let kind = if matches!(side, Side::Client) { Self::QUOTED_CLIENT } else { Self::QUOTED_BACKEND };
        Self::new(kind, 0, at)
    }

    #[inline(always)]
    pub const fn kind(self) -> u64 {
        self.0 >> 32 & 0xff
    }

    /// The number of its reason.
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        (self.0 >> 40) as u32 & 0xff
    }

    /// Its slot.
    #[inline(always)]
    pub const fn at(self) -> SlotAt {
        SlotAt(self.0 as u32)
    }
}

/// What a global function returns if it has found nothing: it returns numbers only. Its plain face
/// returns an `Option`.
pub const NONE: i64 = -1;

/// The answer of a global function as an option.
#[inline(always)]
pub const fn found(answer: i64) -> Option<u32> {
    if answer < 0 { None } else { Some(answer as u32) }
}
