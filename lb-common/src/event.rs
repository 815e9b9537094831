//! What the kernel program tells the controller through the ring buffer: ends and failures, never a
//! packet.

use core::net::SocketAddr;

use crate::{address::socket_address, flow::SlotAt, time::Instant};

/// A connection that had been established ended; `reason` says how.
pub const ENDED: u8 = 1;
/// A try to connect to `backend` failed; `reason` says how. The connection moves on to the next
/// backend, or its client is refused.
pub const TRY_FAILED: u8 = 2;
/// A new connection was turned away, or none of its tries succeeded: the client got a RST.
pub const TURNED_AWAY: u8 = 3;
/// A trial connection to a backend that was out succeeded: it is up again.
pub const RECOVERED: u8 = 4;
/// As `TRY_FAILED`; this failure was one too many, and the kernel program has taken `backend` out.
pub const TOOK_OUT: u8 = 5;
/// `backend` still holds an older connection on the port of a try, which goes on from another port.
/// Until it is told that the older one is over, it holds the port: `bytes_in` is the number that it
/// expects next there, `bytes_out` the one that it sends next.
pub const PORT_LEFT: u8 = 6;
/// An unconfirmed flow gave way to others. `bytes_in` and `bytes_out` are the sequence numbers that
/// its client and its backend would have gone on with.
pub const GAVE_WAY: u8 = 7;

/// One event. Numbers are the host's, addresses and ports as in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// When it happened, by the coarse clock.
    pub at: Instant,
    /// When the client's first SYN came, by the exact clock; [`Instant::ZERO`] if there was no
    /// flow.
    pub started: Instant,
    /// Payload bytes from the client. If a try failed, the number that the backend expects next, if it
    /// has got the SYN after all.
    pub bytes_in: u64,
    /// Payload bytes to the client.
    pub bytes_out: u64,
    /// The client's address (v4-mapped).
    pub client: [u8; 16],
    /// The client's port.
    pub client_port: [u8; 2],
    /// The listener, its row in LISTENERS.
    pub listener: u16,
    /// The service, its number in SERVICES.
    pub service: u16,
    /// The backend, its number in BACKENDS; `u16::MAX` if none was chosen.
    pub backend: u16,
    /// The pool; `u16::MAX` if no slot was claimed.
    pub pool: u16,
    /// The slot in its pool.
    pub slot: u16,
    /// The slot's generation.
    pub generation: u32,
    /// How long the backend took to answer, in microseconds; 0 if it did not.
    pub connect_us: u32,
    /// `ENDED`, `TRY_FAILED`, `TURNED_AWAY`, `RECOVERED`, `TOOK_OUT`, `PORT_LEFT` or
    /// `GAVE_WAY`.
    pub kind: u8,
    /// The number of a [`Reason`](crate::verdict::Reason).
    pub reason: u8,
    /// Backends tried so far.
    pub tries: u8,
    /// 4 or 6.
    pub family: u8,
}

impl Event {
    /// The client.
    pub const fn client(&self) -> SocketAddr {
        socket_address(self.client, self.client_port)
    }

    /// The slot of its flow; `None` if no slot was claimed.
    pub const fn slot_at(&self) -> Option<SlotAt> {
        if self.pool == u16::MAX { None } else { Some(SlotAt::new(self.pool, self.slot)) }
    }
}

const _: () = assert!(size_of::<Event>() == 72);
