//! The TCP life of a flow as seen from the middle: a pure function of state, side and flags.
//!
//! It is not a TCP implementation: it decides when a connection is made, when it is over, and which
//! segments need a closer look. The caller checks sequence numbers where a step says so.

use crate::slot::State;

/// Which side sent the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client of the VIP.
    Client,
    /// The backend.
    Backend,
}

impl Side {
    /// The receiver.
    #[inline(always)]
    pub const fn other(self) -> Side {
        match self {
            Side::Client => Side::Backend,
            Side::Backend => Side::Client,
        }
    }
}

/// TCP flags as in the header's 14th byte (RFC 9293 section 3.1).
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Push.
pub const PSH: u8 = 0x08;
/// The acknowledgement field is valid.
pub const ACK: u8 = 0x10;
/// Those that make a segment more than data and acknowledgements.
pub const CONTROL: u8 = FIN | SYN | RST;

/// What a segment means for its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Forward it; the state stays.
    Forward,
    /// Forward it; one side has closed.
    Closing(State),
    /// Forward it; both sides have closed.
    Close,
    /// Forward it; over, if its sequence number is exact.
    Reset,
    /// The client's SYN: the same one again, or a new connection from the same port?
    Syn,
    /// SYN-ACK in `HalfOpen`: connected, if it acknowledges our SYN.
    Connected,
    /// RST in `HalfOpen`: refused, if it acknowledges our SYN.
    Refused,
    /// No SYN and no RST from the backend in `HalfOpen`: it still holds an older connection on this
    /// port.
    Stale,
    /// To or from a backend that was given up: reset what asks for an answer, drop the rest.
    GivenUp,
    /// From a client that has nothing to acknowledge yet, or a SYN with another flag beside it: no
    /// TCP sends it.
    Odd,
    /// The slot holds no flow.
    Unknown,
}

/// What a segment with `flags` from `side` means for a flow in `state`; `inside`: its numbers were
/// compared with what both sides have sent and acknowledged, and fit. The caller clears `Suspect`
/// first.
#[inline(always)]
pub const fn step(state: State, side: Side, flags: u8, inside: bool) -> Step {
    match (state, side) {
        (State::Free | State::Claiming | State::Suspect, _) => Step::Unknown,
        (State::Abandoned, _) => Step::GivenUp,
        (State::HalfOpen, Side::Backend) => half_open_answer(flags),
        (_, Side::Client) if flags & (SYN | RST) == SYN => {
            if flags & (ACK | FIN) == 0 {
                Step::Syn
            } else {
                Step::Odd
            }
        }
        (State::Closed, _) => Step::Forward,
        _ if flags & RST != 0 => Step::Reset,
        (State::HalfOpen, Side::Client) => Step::Odd,
        (State::Answered, _) => Step::Forward,
        _ if inside && flags & FIN != 0 && flags & SYN == 0 => fin(state, side),
        _ => Step::Forward,
    }
}

const fn half_open_answer(flags: u8) -> Step {
    match (flags & RST != 0, flags & SYN != 0, flags & ACK != 0) {
        (true, _, _) => Step::Refused,
        (false, true, true) => Step::Connected,
        // A simultaneous open (RFC 9293 section 3.5) makes no sense through a balancer: it is
        // treated like a stale segment.
        (false, _, _) => Step::Stale,
    }
}

const fn fin(state: State, side: Side) -> Step {
    match (state, side) {
        (State::ClosingBackend, Side::Client) | (State::ClosingClient, Side::Backend) => Step::Close,
        (State::ClosingClient, Side::Client) | (State::ClosingBackend, Side::Backend) => Step::Forward,
        (_, Side::Client) => Step::Closing(State::ClosingClient),
        (_, Side::Backend) => Step::Closing(State::ClosingBackend),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(mut law: impl FnMut(State, Side, u8, bool, Step)) {
        for state in State::ALL {
            for side in [Side::Client, Side::Backend] {
                for flags in 0..64 {
                    for inside in [false, true] {
                        law(state, side, flags, inside, step(state, side, flags, inside));
                    }
                }
            }
        }
    }

    fn is_open(state: State) -> bool {
        matches!(state, State::Established | State::ClosingClient | State::ClosingBackend)
    }

    #[test]
    fn only_a_flow_that_is_open_can_be_closed_and_only_from_inside_the_window() {
        every(|state, _, _, inside, step| {
            if matches!(step, Step::Closing(_) | Step::Close) {
                assert!(is_open(state) && inside);
            }
        });
    }

    #[test]
    fn a_flow_is_over_after_a_fin_from_both_sides_in_either_order() {
        for (first, second) in [(Side::Client, Side::Backend), (Side::Backend, Side::Client)] {
            for more in [0, ACK, ACK | PSH] {
                let Step::Closing(half) = step(State::Established, first, FIN | more, true) else {
                    panic!("no half-close")
                };
                assert_eq!(step(half, first, FIN | more, true), Step::Forward, "a FIN sent again changes nothing");
                assert_eq!(step(half, second, ACK | PSH, true), Step::Forward, "data goes on after a half-close");
                assert_eq!(step(half, second, FIN | more, true), Step::Close);
                assert_eq!(step(half, second, FIN | more, false), Step::Forward, "a FIN from nowhere closes nothing");
            }
        }
    }

    #[test]
    fn a_rst_on_a_flow_with_two_sides_is_always_compared_with_its_numbers() {
        every(|state, side, flags, _, step| {
            let syn = side == Side::Client && flags & (SYN | RST) == SYN;
            if (is_open(state) || state == State::Answered) && flags & RST != 0 && !syn {
                assert_eq!(step, Step::Reset, "{state:?} {side:?} {flags:#x}");
            }
            if step == Step::Reset {
                assert!(flags & RST != 0);
            }
        });
    }

    #[test]
    fn only_the_backend_answers_or_refuses_and_only_half_open_flows() {
        every(|state, side, flags, _, step| {
            if matches!(step, Step::Connected | Step::Refused | Step::Stale) {
                assert_eq!((state, side), (State::HalfOpen, Side::Backend));
            }
            if step == Step::Connected {
                assert_eq!(flags & (SYN | ACK | RST), SYN | ACK);
            }
            if step == Step::Refused {
                assert!(flags & RST != 0);
            }
        });
    }

    #[test]
    fn a_syn_of_the_client_is_looked_at_in_every_state_that_has_a_client() {
        every(|state, side, flags, _, step| {
            let has_client = !matches!(state, State::Free | State::Claiming | State::Suspect | State::Abandoned);
            let opens = side == Side::Client && flags & (SYN | RST | ACK | FIN) == SYN;
            assert_eq!(step == Step::Syn, has_client && opens, "{state:?} {side:?} {flags:#x}");
        });
    }

    #[test]
    fn nothing_but_the_caller_confirms_an_answered_flow() {
        every(|state, _, flags, _, step| {
            if state == State::Answered {
                assert!(matches!(step, Step::Forward | Step::Reset | Step::Syn | Step::Odd), "{flags:#x}: {step:?}");
            }
        });
    }

    #[test]
    fn an_empty_slot_forwards_nothing() {
        every(|state, _, _, _, step| {
            let empty = matches!(state, State::Free | State::Claiming | State::Suspect);
            assert_eq!(step == Step::Unknown, empty);
            assert_eq!(step == Step::GivenUp, state == State::Abandoned);
        });
    }

    #[test]
    fn a_closed_flow_still_translates_late_segments() {
        for flags in 0..64_u8 {
            assert_eq!(step(State::Closed, Side::Backend, flags, false), Step::Forward);
        }
        assert_eq!(step(State::Closed, Side::Client, ACK | FIN, false), Step::Forward);
    }
}
