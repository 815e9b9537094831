//! One connection, as read from its slot.

use std::net::SocketAddr;

use lb_common::{
    flow::{Key, SlotAt},
    layout::{Opening, Slot},
    seq,
    slot::{CONNECTED, Ctl, FIN_BACKEND, FIN_CLIENT, State},
    time::{Instant, Ticks},
};

/// A slot and its word, as it was read. A change of the flow swaps the word, and does nothing if
/// the word has changed by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowAt {
    /// The slot.
    pub at: SlotAt,
    /// Its word.
    pub ctl: Ctl,
}

/// A consistent copy of a slot that holds a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The slot; its number in its pool plus the pool's `first_port` is the SNAT port.
    pub at: SlotAt,
    /// Its word when the copy was made; of a flow closed just now, its word before that.
    pub ctl: Ctl,
    /// The record.
    pub record: Slot,
    /// The rest of the slot: what the flow began with.
    pub opening: Opening,
}

/// The part of a flow that is in one cache line: what a sweep over all slots needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The slot and its word.
    pub flow: FlowAt,
    /// The client and its listener, as in the flow index.
    pub key: Key,
    /// When the last packet was seen.
    pub last_seen: Ticks,
    /// The backend.
    pub backend: u16,
}

impl Head {
    /// Milliseconds since the last packet; `now_ns` is of the coarse clock.
    pub fn idle_ms(&self, now_ns: u64) -> u64 {
        idle_ms(self.last_seen, now_ns)
    }

    /// The listener it came in by, its row in LISTENERS.
    pub fn listener(&self) -> u16 {
        self.key.listener()
    }
}

impl Flow {
    /// The slot and its word.
    pub fn seen(&self) -> FlowAt {
        FlowAt { at: self.at, ctl: self.ctl }
    }

    /// The client.
    pub fn client(&self) -> SocketAddr {
        self.record.key.client(self.opening.client6)
    }

    /// The client as its connections are counted (`lb_common::clients`).
    pub fn client_word(&self) -> u32 {
        self.record.key.address_word()
    }

    /// The listener it came in by, its row in LISTENERS.
    pub fn listener(&self) -> u16 {
        self.record.key.listener()
    }

    /// The backend, its row in BACKENDS.
    pub fn backend(&self) -> u16 {
        self.record.backend
    }

    /// Whether the client has acknowledged the backend's answer: bytes are valid.
    pub fn is_connected(&self) -> bool {
        self.ctl.flags() & CONNECTED != 0
    }

    /// Whether the backend has answered: its numbers and the connect time are valid.
    pub fn is_answered(&self) -> bool {
        self.is_connected() || self.ctl.state() == State::Answered
    }

    /// Payload bytes from the client.
    pub fn bytes_in(&self) -> u64 {
        self.payload(self.opening.isn_client, self.record.end_client, FIN_CLIENT)
    }

    /// Payload bytes to the client.
    pub fn bytes_out(&self) -> u64 {
        self.payload(self.opening.isn_backend, self.record.end_backend, FIN_BACKEND)
    }

    fn payload(&self, initial: u32, highest: u64, fin: u8) -> u64 {
        if !self.is_connected() {
            return 0;
        }
        seq::payload(initial, highest, self.ctl.flags() & fin != 0)
    }

    /// How long the backend took to answer, in microseconds; 0 if it has not yet.
    pub fn connect_us(&self) -> u32 {
        if self.is_answered() { self.opening.connect_us } else { 0 }
    }

    /// When the client's first SYN came, CLOCK_MONOTONIC in nanoseconds.
    pub fn started_ns(&self) -> u64 {
        self.opening.started.0
    }

    /// Milliseconds since the last packet; `now_ns` is of the coarse clock.
    pub fn idle_ms(&self, now_ns: u64) -> u64 {
        idle_ms(self.record.last_seen, now_ns)
    }
}

fn idle_ms(last_seen: Ticks, now_ns: u64) -> u64 {
    last_seen.age(Instant(now_ns).ticks()).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(state: State, flags: u8) -> Flow {
        let key = Key::of("10.0.1.7:50123".parse().unwrap(), 300);
        let (end_client, end_backend) = (500, 1001 + (1 << 33) + 1);
        let record = Slot { key, end_client, end_backend, ..Slot::default() };
        let opening = Opening { connect_us: 77, isn_client: u32::MAX, isn_backend: 1000, ..Opening::default() };
        Flow { at: SlotAt::new(3, 9), ctl: Ctl::new(1, state).with_flags(flags), record, opening }
    }

    #[test]
    fn the_client_and_its_listener_are_read_from_the_key() {
        let flow = flow(State::Established, CONNECTED);
        assert_eq!(flow.client(), "10.0.1.7:50123".parse().unwrap());
        assert_eq!(flow.listener(), 300);
    }

    #[test]
    fn bytes_are_payload_and_none_before_the_client_has_confirmed() {
        let open = flow(State::ClosingBackend, CONNECTED | FIN_BACKEND);
        assert_eq!((open.bytes_in(), open.bytes_out(), open.connect_us()), (500, 1 << 33, 77));
        let half = flow(State::HalfOpen, 0);
        assert_eq!((half.bytes_in(), half.bytes_out(), half.connect_us()), (0, 0, 0));
        let answered = flow(State::Answered, 0);
        assert_eq!((answered.bytes_in(), answered.bytes_out(), answered.connect_us()), (0, 0, 77));
    }

    #[test]
    fn idle_time_goes_round_the_wrap_and_is_never_negative() {
        let mut flow = flow(State::Established, CONNECTED);
        flow.record.last_seen = Ticks(u32::MAX);
        let now = (1_u64 << 52) + (999 << 20);
        assert_eq!(Instant(now).ticks(), Ticks(999));
        assert_eq!(flow.idle_ms(now), (1000 << 20) / 1_000_000);
        flow.record.last_seen = Ticks(1001);
        assert_eq!(flow.idle_ms(now), 0);
    }
}
