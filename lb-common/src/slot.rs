//! The slot's word: `ctl`, on which every change of a flow's state is one compare-and-swap.
//!
//! ```text
//! 63           32 31      24 23      16 15       8 7        0
//! |  generation  |  reason  |  flags   | previous |  state   |
//! ```
//! The winner of the swap carries out the consequences (counter, ring, event) exactly once; the
//! loser re-reads.

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Never used; its port waits in the ring of free ports.
    Free = 0,
    /// Taken from the ring, being filled by one CPU.
    Claiming = 1,
    /// The SYN went to the backend, no answer yet.
    HalfOpen = 2,
    /// The client has acknowledged the backend's SYN-ACK.
    Established = 3,
    /// The client has sent its FIN.
    ClosingClient = 4,
    /// The backend has sent its FIN.
    ClosingBackend = 5,
    /// Idle for too long; any packet returns it to the previous state.
    Suspect = 6,
    /// Over. The translation stays until the slot is claimed again, so that a repeated last FIN is
    /// still forwarded.
    Closed = 7,
    /// The try failed, or the backend holds an older connection on this port: it is held back
    /// before it is used again.
    Abandoned = 8,
    /// The backend has answered with SYN-ACK, and the client has not acknowledged it yet: it may be
    /// anybody's address. Half-open in every respect but one: no other backend is tried.
    Answered = 9,
}

impl State {
    /// Every state, in the order of their numbers.
    pub const ALL: [State; 10] = [
        State::Free,
        State::Claiming,
        State::HalfOpen,
        State::Established,
        State::ClosingClient,
        State::ClosingBackend,
        State::Suspect,
        State::Closed,
        State::Abandoned,
        State::Answered,
    ];

    /// The state with this number. An unknown number counts as `Claiming`, which nothing touches.
    #[inline(always)]
    pub const fn from_number(number: u8) -> State {
        match number {
            0 => State::Free,
            2 => State::HalfOpen,
            3 => State::Established,
            4 => State::ClosingClient,
            5 => State::ClosingBackend,
            6 => State::Suspect,
            7 => State::Closed,
            8 => State::Abandoned,
            9 => State::Answered,
            _ => State::Claiming,
        }
    }

    /// The word in `conns` and in filters.
    pub const fn name(self) -> &'static str {
        match self {
            State::Free => "free",
            State::Claiming => "claiming",
            State::HalfOpen | State::Answered => "half_open",
            State::Established => "established",
            State::ClosingClient => "closing_client",
            State::ClosingBackend => "closing_backend",
            State::Suspect => "suspect",
            State::Closed => "closed",
            State::Abandoned => "abandoned",
        }
    }

    /// Whether the flow counts in its backend's `active`.
    #[inline(always)]
    pub const fn is_active(self) -> bool {
        matches!(
            self,
            State::HalfOpen
                | State::Answered
                | State::Established
                | State::ClosingClient
                | State::ClosingBackend
                | State::Suspect
        )
    }

    /// Whether the client has not yet shown that it receives what is sent to its address.
    #[inline(always)]
    pub const fn is_unconfirmed(self) -> bool {
        matches!(self, State::HalfOpen | State::Answered)
    }
}

/// A FIN of the client was seen.
pub const FIN_CLIENT: u8 = 1;
/// A FIN of the backend was seen.
pub const FIN_BACKEND: u8 = 2;
/// A RST ended the flow, of Evenkeel itself or of one side: every further segment is answered with
/// a RST.
pub const KILLED: u8 = 4;
/// The flow was established once: its client has acknowledged the backend's SYN-ACK.
pub const CONNECTED: u8 = 8;
/// The flow is counted for its client (`per_client_connections`): its end takes that back.
pub const COUNTED: u8 = 16;
/// The end of the flow does not give its port back. The flow was taken over from the other host
/// without taking its port from the ring of free ports, where the port still waits: a claim that
/// meets it there clears the flag. Or its port is none of those that new connections get any more.
pub const IN_RING: u8 = 64;
/// The flow was taken over from the other host, whose last packets of it may not be known here. The
/// first segment inside the window clears the flag; or else two segments, one of each side, that
/// agree about where the flow is.
pub const LOOSE: u8 = 32;
/// The port was taken from an unconfirmed flow that gave way a moment ago: the backend may still
/// wait for that one's client, and what it answers is then about that one. Kept until the backend
/// has answered this one.
pub const SEIZED: u8 = 128;

/// The value of a slot's first word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Ctl(pub u64);

impl Ctl {
    /// A word of generation `generation` in `state`, without flags.
    #[inline(always)]
    pub const fn new(generation: u32, state: State) -> Ctl {
        Ctl((generation as u64) << 32 | state as u64)
    }

    /// How often the slot was claimed, modulo 2^32.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether this is the generation of which `low31` is the low 31 bits, as a
    /// [`HalfOpenCell`](crate::flow::HalfOpenCell) holds it.
    #[inline(always)]
    pub const fn is_of_low31(self, low31: u32) -> bool {
        self.generation() & 0x7fff_ffff == low31
    }

    /// The state.
    #[inline(always)]
    pub const fn state(self) -> State {
        State::from_number(self.0 as u8)
    }

    /// The state before `Suspect`.
    #[inline(always)]
    pub const fn previous(self) -> State {
        State::from_number((self.0 >> 8) as u8)
    }

    /// `FIN_CLIENT`, `FIN_BACKEND`, `KILLED`, `CONNECTED`, `COUNTED`, `LOOSE`, `IN_RING`, `SEIZED`.
    #[inline(always)]
    pub const fn flags(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The number of the [`Reason`](crate::verdict::Reason) for which the flow was closed.
    #[inline(always)]
    pub const fn reason(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The same word with `flags` cleared.
    #[inline(always)]
    pub const fn without_flags(self, flags: u8) -> Ctl {
        Ctl(self.0 & !((flags as u64) << 16))
    }

    /// The same flow in another state.
    #[inline(always)]
    pub const fn with_state(self, state: State) -> Ctl {
        Ctl(self.0 & !0xff | state as u64)
    }

    /// The same word with `flags` set as well.
    #[inline(always)]
    pub const fn with_flags(self, flags: u8) -> Ctl {
        Ctl(self.0 | (flags as u64) << 16)
    }

    /// The same flow, closed for `reason`.
    #[inline(always)]
    pub const fn closed(self, reason: u8) -> Ctl {
        Ctl(self.with_state(State::Closed).0 & !(0xff << 24) | (reason as u64) << 24)
    }

    /// The same flow, suspected to be dead: its state is kept as the previous one.
    #[inline(always)]
    pub const fn suspected(self) -> Ctl {
        Ctl(self.0 & !0xffff | (self.state() as u64) << 8 | State::Suspect as u64)
    }

    /// The flow in the state it had before it came under suspicion.
    #[inline(always)]
    pub const fn cleared(self) -> Ctl {
        Ctl(self.0 & !0xffff | self.previous() as u64)
    }

    /// Whether the slot is out of use: it looks claimed for ever, so that it is skipped when it is
    /// popped. The flag distinguishes it from a claim.
    #[inline(always)]
    pub const fn is_retired(self) -> bool {
        matches!(self.state(), State::Claiming) && self.flags() & KILLED != 0
    }

    /// The word that takes a slot without a flow out of use.
    #[inline(always)]
    pub const fn retired(self) -> Ctl {
        self.claimed().with_flags(KILLED)
    }

    /// The next owner's word while it fills the slot.
    #[inline(always)]
    pub const fn claimed(self) -> Ctl {
        Ctl::new(self.generation().wrapping_add(1), State::Claiming)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_back_what_was_put_in() {
        for state in State::ALL {
            let ctl = Ctl::new(0xdead_beef, state).with_flags(FIN_CLIENT | KILLED);
            assert_eq!((ctl.generation(), ctl.state(), ctl.flags()), (0xdead_beef, state, FIN_CLIENT | KILLED));
            assert_eq!(State::from_number(state as u8), state);
            let closed = ctl.closed(63);
            assert_eq!((closed.state(), closed.reason(), closed.flags()), (State::Closed, 63, ctl.flags()));
            assert_eq!(closed.closed(60).reason(), 60);
        }
    }

    #[test]
    fn suspicion_keeps_the_state_and_gives_it_back() {
        for state in [State::Established, State::ClosingClient, State::ClosingBackend] {
            let ctl = Ctl::new(7, state).with_flags(FIN_BACKEND);
            assert_eq!(ctl.suspected().state(), State::Suspect);
            assert_eq!(ctl.suspected().previous(), state);
            assert_eq!(ctl.suspected().cleared(), ctl);
        }
    }

    #[test]
    fn a_claim_forgets_everything_but_the_next_generation() {
        let old = Ctl::new(u32::MAX, State::Closed).with_flags(0xff).closed(99);
        assert_eq!(old.claimed(), Ctl::new(0, State::Claiming));
    }
}
