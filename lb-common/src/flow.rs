//! What identifies a flow: its key in the index, the slot it is in, and what its connection
//! attempts have tried so far. Each is one word of a record, with a type around it.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use crate::address::{port_word, word};

/// The key of a flow in the index, as it is kept in its slot's first cache line: the client's
/// address word and port as they lie in the packet, and the listener.
///
/// ```text
/// 63      48 47   32 31               0
/// | listener |  port |  address word   |
/// ```
/// The address word of an IPv4 client is its address, that of an IPv6 client a fold of it: the
/// whole address is on the slot's second line
/// ([`Opening::client6`](crate::layout::Opening::client6)) and is compared only after tag,
/// generation and this word agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Key(pub u64);

impl Key {
    /// The key of a client at a listener. `port` is in network order, as it lies in the packet.
    #[inline(always)]
    pub const fn new(address_word: u32, port: u16, listener: u16) -> Key {
        Key(address_word as u64 | (port as u64) << 32 | (listener as u64) << 48)
    }

    /// The key of an IPv4 client at a listener.
    pub const fn of(client: SocketAddrV4, listener: u16) -> Key {
        Key::new(word(*client.ip()), port_word(client.port()), listener)
    }

    /// The client's address and port; `client6` is
    /// [`Opening::client6`](crate::layout::Opening::client6).
    pub const fn client(self, client6: [u8; 16]) -> SocketAddr {
        let address = match u128::from_ne_bytes(client6) {
            0 => IpAddr::V4(Ipv4Addr::from_octets(self.address_word().to_ne_bytes())),
            _ => IpAddr::V6(Ipv6Addr::from_octets(client6)),
        };
        SocketAddr::new(address, u16::from_be(self.port()))
    }

    /// The client's address word.
    #[inline(always)]
    pub const fn address_word(self) -> u32 {
        self.0 as u32
    }

    /// The client's port as it lies in the packet.
    #[inline(always)]
    pub const fn port(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The listener, its row in LISTENERS.
    #[inline(always)]
    pub const fn listener(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Whether two keys have the same address word and port, at any listener.
    #[inline(always)]
    pub const fn is_same_client(self, other: Key) -> bool {
        (self.0 ^ other.0) << 16 == 0
    }
}

/// Where a flow's slot is: the pool, a row in POOLS, and the slot in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct SlotAt(pub u32);

impl SlotAt {
    /// Slot `slot` of pool `pool`.
    #[inline(always)]
    pub const fn new(pool: u16, slot: u16) -> SlotAt {
        SlotAt((pool as u32) << 16 | slot as u32)
    }

    /// The pool.
    #[inline(always)]
    pub const fn pool(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The slot in its pool.
    #[inline(always)]
    pub const fn slot(self) -> u16 {
        self.0 as u16
    }
}

/// The backends that a connection has tried, as a mask of positions in its service's list (at most
/// 64). While a slot is half-open, the mask is in `ack_client` (lower half) and `ack_backend`
/// (upper half).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Tried(pub u64);

impl Tried {
    /// The mask from its two halves.
    #[inline(always)]
    pub const fn from_halves(lower: u32, upper: u32) -> Tried {
        Tried(lower as u64 | (upper as u64) << 32)
    }

    /// Its two halves.
    #[inline(always)]
    pub const fn halves(self) -> (u32, u32) {
        (self.0 as u32, (self.0 >> 32) as u32)
    }

    /// The mask with one more position.
    #[inline(always)]
    pub const fn with(self, position: u32) -> Tried {
        Tried(self.0 | 1 << (position & 63))
    }

    /// Whether a position was tried.
    #[inline(always)]
    pub const fn has(self, position: u32) -> bool {
        self.0 >> (position & 63) & 1 != 0
    }
}

/// A backend that was chosen: its position in the service's list, and how it was chosen
/// ([`schedule::CHOSEN`](crate::schedule::CHOSEN)).
///
/// ```text
/// 7   6 5        0
/// | how | position |
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Chosen(pub u8);

impl Chosen {
    /// Position `position`, chosen as `how` (one of `schedule::CHOSEN_*`).
    #[inline(always)]
    pub const fn new(position: u32, how: u32) -> Chosen {
        Chosen((position & 63) as u8 | ((how & 3) << 6) as u8)
    }

    /// The position in the service's list.
    #[inline(always)]
    pub const fn position(self) -> u32 {
        (self.0 & 63) as u32
    }

    /// How it was chosen: one of `schedule::CHOSEN_*`.
    #[inline(always)]
    pub const fn how(self) -> u32 {
        (self.0 >> 6) as u32
    }
}

/// The attempt that a half-open flow is in: how its backend was chosen, how often its SYN was sent
/// again from another port because the backend still held an older connection on the last one, and
/// of which of its service's lists the positions in [`Tried`] are: the low bits of
/// [`Service::list`](crate::layout::Service::list).
///
/// ```text
/// 7    6 5  4 3             0
/// | list | how | port retries |
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Attempt(pub u8);

impl Attempt {
    /// The first SYN to a backend that was chosen as `how` (one of `schedule::CHOSEN_*`) from
    /// `list`.
    #[inline(always)]
    pub const fn new(how: u32, list: u32) -> Attempt {
        Attempt((list as u8 & 3) << 6 | (how as u8 & 3) << 4)
    }

    /// The same attempt from one more port; at most 15 are counted.
    #[inline(always)]
    pub const fn from_another_port(self) -> Attempt {
        Attempt(self.0 + 1)
    }

    /// How many ports it has left behind.
    #[inline(always)]
    pub const fn port_retries(self) -> u8 {
        self.0 & 15
    }

    /// How its backend was chosen: one of `schedule::CHOSEN_*`.
    #[inline(always)]
    pub const fn how(self) -> u32 {
        (self.0 >> 4 & 3) as u32
    }

    /// Whether it was chosen from this list. After four changes within one attempt the answer is
    /// wrong: then a backend may be passed over, or tried twice.
    #[inline(always)]
    pub const fn is_of_list(self, list: u32) -> bool {
        (self.0 >> 6) as u32 == list & 3
    }
}

/// A cell of a service's ring of half-open flows: which slot, in which generation. Zero is a cell
/// that was never used.
///
/// ```text
/// 63   62             32 31  26 25   16 15        0
/// | 1 |    generation    |   0   | pool  |   slot   |
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct HalfOpenCell(pub u64);

impl HalfOpenCell {
    /// The cell of the flow in a slot.
    #[inline(always)]
    pub const fn new(at: SlotAt, generation: u32) -> HalfOpenCell {
        HalfOpenCell(1 << 63 | (at.0 & 0x3ff_ffff) as u64 | (generation as u64 & 0x7fff_ffff) << 32)
    }

    /// Whether a flow was ever entered in it.
    #[inline(always)]
    pub const fn is_used(self) -> bool {
        self.0 != 0
    }

    /// The slot.
    #[inline(always)]
    pub const fn at(self) -> SlotAt {
        SlotAt(self.0 as u32 & 0x3ff_ffff)
    }

    /// The slot's generation, its low 31 bits: see
    /// [`Ctl::is_of_low31`](crate::slot::Ctl::is_of_low31).
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & 0x7fff_ffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_read_from_its_key_or_from_the_second_line() {
        let client = SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 7), 50_123);
        let key = Key::of(client, 300);
        assert_eq!((key.client([0; 16]), key.listener()), (client.into(), 300));
        let client6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
        assert_eq!(key.client(client6.octets()), SocketAddr::new(client6.into(), 50_123));
    }

    #[test]
    fn an_attempt_gives_back_what_was_put_in() {
        for (how, list) in (0..16).map(|both| (both & 3, both >> 2)) {
            let again = Attempt::new(how, list).from_another_port().from_another_port();
            assert_eq!((again.port_retries(), again.how()), (2, how));
            assert!((0..4).all(|other| again.is_of_list(other + 4) == (other == list)));
        }
    }

    #[test]
    fn a_half_open_cell_gives_back_what_was_put_in() {
        assert!(!HalfOpenCell(0).is_used());
        for (at, generation) in [(SlotAt::new(1023, 65_535), 0x7fff_ffff), (SlotAt::new(0, 0), 0)] {
            let cell = HalfOpenCell::new(at, generation);
            assert_eq!((cell.is_used(), cell.at(), cell.generation()), (true, at, generation));
        }
    }

    #[test]
    fn every_word_gives_back_what_was_put_in() {
        let key = Key::new(0xdead_beef, 0x1234, 511);
        assert_eq!((key.address_word(), key.port(), key.listener()), (0xdead_beef, 0x1234, 511));
        assert!(key.is_same_client(Key::new(0xdead_beef, 0x1234, 7)));
        assert!(!key.is_same_client(Key::new(0xdead_beef, 0x1235, 511)));
        let at = SlotAt::new(1023, 65_535);
        assert_eq!((at.pool(), at.slot()), (1023, 65_535));
        for position in 0..64 {
            for how in 0..4 {
                let chosen = Chosen::new(position, how);
                assert_eq!((chosen.position(), chosen.how()), (position, how));
            }
            let tried = Tried::default().with(position);
            let (lower, upper) = tried.halves();
            assert_eq!(Tried::from_halves(lower, upper), tried);
            assert!((0..64).all(|other| tried.has(other) == (other == position)));
        }
    }
}
