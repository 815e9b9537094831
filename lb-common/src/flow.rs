//! What names a flow: its key in the index, the slot it stands in, and what its connects have tried so far. Each is one
//! word of a record, with a type around it.

/// The key of a flow in the index, as it stands in its slot's first cache line: the client's address word and port as
/// they lie in the packet, and the listener.
///
/// ```text
/// 63      48 47   32 31               0
/// | listener |  port |  address word   |
/// ```
/// The address word of IPv4 is the address. That of IPv6 is a fold of it; the whole address stands on the slot's second
/// line ([`Opening::client6`](crate::layout::Opening::client6)) and is compared only after tag, generation and this word
/// agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Key(pub u64);

impl Key {
    /// The key of a client at a listener. `port` is in network order, as it lies in the packet.
    #[inline(always)]
    pub const fn new(address_word: u32, port: u16, listener: u16) -> Key {
        Key(address_word as u64 | (port as u64) << 32 | (listener as u64) << 48)
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

    /// Whether two keys name the same client address word and port, at whatever listener.
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

/// The backends that a connection has tried, as a mask of positions in its service's list (at most 64). It stands in
/// `ack_client` (lower half) and `ack_backend` (upper half) of a slot that is half-open.
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

#[cfg(test)]
mod tests {
    use super::*;

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
