//! What a try that went on elsewhere leaves behind at its backend: a SYN of ours that was not
//! answered, or an older connection on its port (TIME_WAIT). And what a flow leaves there that gave
//! way: an attempt for whose client the backend waits.
//!
//! Neither ends by itself before the port is used again, and both spoil its next connection. A
//! stateful firewall before the backend holds the unanswered SYN for two minutes and judges the next
//! connection by its number: if that one is lower, as chance has it half the time, the client's
//! acknowledgement is invalid (`ct state invalid drop`) and the connection hangs. A socket in
//! TIME_WAIT answers one SYN in half a second. A RST with the number that the backend expects ends
//! both, as a client's own kernel would have done.

use lb_common::{
    event::{Event, GAVE_WAY, PORT_LEFT, TOOK_OUT, TRY_FAILED},
    flow::SlotAt,
    verdict::Reason,
};

/// A port at whose backend something is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftPort {
    /// The port.
    pub at: SlotAt,
    /// The number that the backend expects next.
    pub sequence: u32,
    /// The number that it sends next, if it has answered.
    pub acknowledgement: Option<u32>,
}

/// The port that an event asks to reset.
pub fn left_port(event: &Event) -> Option<LeftPort> {
    let is_left = match event.kind {
        PORT_LEFT | GAVE_WAY => true,
        // One that refused has answered the SYN itself; where an ICMP error came, a firewall on the
        // way may have noted it all the same.
        TRY_FAILED | TOOK_OUT => event.reason != Reason::Refused as u8,
        _ => false,
    };
    let (sequence, acknowledgement) = (event.bytes_in as u32, event.bytes_out as u32);
    let acknowledgement = Some(acknowledgement).filter(|number| *number != 0);
    is_left.then(|| event.slot_at()).flatten().map(|at| LeftPort { at, sequence, acknowledgement })
}

#[cfg(test)]
mod tests;
