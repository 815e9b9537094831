//! Hashing of flow keys, and the entries of the flow index.
//!
//! An entry is a hint: 64 bits that name a slot. It is valid if the slot's generation, state and
//! client agree. So there are no tombstones and no chains: an entry is deleted by swapping in 0,
//! and a stale entry does no harm.
//!
//! ```text
//! 63            41 40      39          38   26 25   16 15        0
//! |  generation   | used | provisional |  tag  | pool  |   slot   |
//! ```

use crate::{
    flow::{Key, SlotAt},
    slot::{Ctl, State},
};

/// Entries in one bucket of the index: one cache line.
pub const BUCKET: u32 = 8;
/// A primary bucket with fewer entries than this takes a new one, whatever the second bucket's
/// load.
pub const PRIMARY_FILL: u32 = 5;

const USED: u64 = 1 << 40;
const PROVISIONAL: u64 = 1 << 39;
const TAG_SHIFT: u32 = 26;
const TAG_MASK: u64 = 0x1fff;
const GENERATION_SHIFT: u32 = 41;

/// Mixes a key of 64 bits with a secret seed: two rounds of multiply and fold (the constants are
/// those of xxHash64). The seed is drawn at random when the tables are made, since attackers choose
/// addresses and ports.
#[inline(always)]
pub const fn mix(seed: u64, key: u64) -> u64 {
    let mut hash = (key ^ seed).wrapping_mul(0x9E37_79B1_85EB_CA87);
    hash ^= hash >> 32;
    hash = (hash ^ seed.rotate_left(29)).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    hash ^ hash >> 29
}

/// The identification in the IPv4 header of the SYN of a flow: an ICMP error that quotes it has
/// come from somebody who has seen the SYN. Never zero.
#[inline(always)]
pub const fn identification(seed: u64, at: SlotAt, generation: u32) -> u16 {
    (mix(seed, (generation as u64) << 32 | at.0 as u64) >> 17) as u16 | 1
}

/// Which client it is, for `balance = "hash"`: without the seed, so that both hosts of a pair
/// choose alike.
#[inline(always)]
pub const fn client(key: Key) -> u32 {
    (mix(0, key.address_word() as u64) >> 32) as u32
}

/// `hash` scaled to `0..buckets` without a division.
#[inline(always)]
pub const fn scale(hash: u32, buckets: u32) -> u32 {
    ((hash as u64 * buckets as u64) >> 32) as u32
}

/// The two buckets that may hold a key with this hash.
#[inline(always)]
pub const fn buckets(hash: u64, count: u32) -> (u32, u32) {
    (scale((hash >> 32) as u32, count), scale(hash as u32, count))
}

/// The part of the hash that an entry carries, taken from bits that choose neither bucket.
#[inline(always)]
pub const fn tag(hash: u64) -> u64 {
    ((hash & 0x3f) | (hash >> 32 & 0x7f) << 6) & TAG_MASK
}

/// The position in its primary bucket where a key with this hash is put if possible: the first and
/// mostly the only one that is read.
#[inline(always)]
pub const fn position(hash: u64) -> u32 {
    (hash >> 6) as u32 & (BUCKET - 1)
}

/// One entry of the flow index; 0: empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(pub u64);

impl Entry {
    /// The entry for a generation of the slot `at`.
    #[inline(always)]
    pub const fn new(tag: u64, at: SlotAt, generation: u32) -> Entry {
        Entry(
            USED | (tag & TAG_MASK) << TAG_SHIFT | (at.0 & 0x3ff_ffff) as u64 | (generation as u64) << GENERATION_SHIFT,
        )
    }

    /// The same entry, as one that may still lose against a twin.
    #[inline(always)]
    pub const fn provisional(self) -> Entry {
        Entry(self.0 | PROVISIONAL)
    }

    /// The same entry, committed.
    #[inline(always)]
    pub const fn committed(self) -> Entry {
        Entry(self.0 & !PROVISIONAL)
    }

    /// Whether it may still lose against a twin.
    #[inline(always)]
    pub const fn is_provisional(self) -> bool {
        self.0 & PROVISIONAL != 0
    }

    /// Whether it is in use and carries `tag`: only then is the slot worth reading.
    #[inline(always)]
    pub const fn may_be(self, tag: u64) -> bool {
        self.0 & (USED | TAG_MASK << TAG_SHIFT) == USED | tag << TAG_SHIFT
    }

    /// The pool of the slot.
    #[inline(always)]
    pub const fn pool(self) -> u32 {
        (self.0 >> 16) as u32 & 0x3ff
    }

    /// The slot's number in its pool.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 as u32 & 0xffff
    }

    /// The slot that the entry names.
    #[inline(always)]
    pub const fn at(self) -> SlotAt {
        SlotAt::new(self.pool() as u16, self.slot() as u16)
    }

    /// Whether a slot with this word and key is the one that the entry was made for. The slot of a
    /// closed flow still is: its late segments are forwarded.
    #[inline(always)]
    pub const fn confirms(self, ctl: Ctl, slot_key: Key, key: Key) -> bool {
        self.is_of(ctl.generation()) && slot_key.0 == key.0 && ctl.0 as u8 >= State::HalfOpen as u8
    }

    /// Whether the flow that the entry was made for has ended, by its slot's word: another entry
    /// may replace it.
    #[inline(always)]
    pub const fn is_over(self, ctl: Ctl) -> bool {
        !self.is_of(ctl.generation()) || !(ctl.state().is_active() || matches!(ctl.state(), State::Claiming))
    }

    /// Whether the entry was made for this generation of the slot (its low 23 bits).
    #[inline(always)]
    pub const fn is_of(self, generation: u32) -> bool {
        (self.0 >> GENERATION_SHIFT) as u32 == generation & 0x7f_ffff
    }
}

/// Probes of the open-addressed tables of listeners and pools: the controller puts no record
/// further away.
pub const PROBES: u32 = 4;

/// The rows of an open-addressed table of `1 << bits` rows in which a record may be, from the row
/// that its hash names on. A search ends at an `EMPTY` row and passes over a `DELETED` one
/// (`layout`).
#[inline(always)]
pub fn probe(start: u32, bits: u32, probes: u32) -> impl Iterator<Item = u32> {
    (0..probes).map(move |step| start.wrapping_add(step) & ((1 << bits) - 1))
}

/// The row at which the search for a listener (address word, port) begins, in a table of
/// `1 << bits` rows.
#[inline(always)]
pub const fn listener_start(address: u32, port: u16, bits: u32) -> u32 {
    ((address ^ (port as u32) << 11).wrapping_mul(0x9E37_79B1)) >> (32 - bits)
}

/// Probes of the table of leases.
pub const LEASE_PROBES: u32 = 8;

/// The row at which the search for a lease begins, in a table of `1 << bits` rows. Takes the halves
/// of its address as they lie in memory.
#[inline(always)]
pub const fn lease_start(first: u64, second: u64, bits: u32) -> u32 {
    let folded = first ^ second;
    ((folded >> 32) as u32 ^ folded as u32).wrapping_mul(0x9E37_79B1) >> (32 - bits)
}

/// The row at which the search for a pool (address words of backend and SNAT, backend's port)
/// begins, in a table of `1 << bits` rows.
#[inline(always)]
pub const fn pool_start(backend: u32, port: u16, snat: u32, bits: u32) -> u32 {
    ((backend ^ (port as u32) << 13 ^ snat.rotate_left(7)).wrapping_mul(0x85EB_CA77)) >> (32 - bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_gives_back_what_was_put_in() {
        let entry = Entry::new(0x1abc, SlotAt::new(1023, 65535), 0xffff_ffff);
        assert_eq!((entry.pool(), entry.slot()), (1023, 65535));
        assert!(entry.may_be(0x1abc) && !entry.may_be(0x1abd));
        assert!(entry.is_of(0xffff_ffff) && entry.is_of(0x007f_ffff) && !entry.is_of(1));
        assert!(!entry.is_provisional() && entry.provisional().is_provisional());
        assert_eq!(entry.provisional().committed(), entry);
        assert!(!Entry(0).may_be(0), "an empty entry matches no tag");
        assert_ne!(Entry::new(0, SlotAt::default(), 0).0, 0, "no entry looks empty");
    }

    #[test]
    fn two_buckets_of_eight_are_filled_by_half_without_overflow() {
        let count = 16_384_u32;
        let mut taken = vec![0_u8; count as usize];
        for key in 0..u64::from(count * BUCKET / 2) {
            let hash = mix(0x5eed, key << 16);
            let (primary, secondary) = buckets(hash, count);
            let load = |bucket: u32| taken[bucket as usize].count_ones();
            let bucket =
                if load(primary) < PRIMARY_FILL || load(primary) <= load(secondary) { primary } else { secondary };
            let own = 1 << position(hash);
            if taken[primary as usize] & own == 0 {
                taken[primary as usize] |= own;
                continue;
            }
            let bucket = if load(bucket) < BUCKET { bucket } else { primary + secondary - bucket };
            assert!(taken[bucket as usize] != u8::MAX, "both buckets of key {key} are full");
            taken[bucket as usize] |= 1 << taken[bucket as usize].trailing_ones();
        }
    }

    #[test]
    fn ports_of_one_client_spread_evenly() {
        let count = 1024_u32;
        let mut load = vec![0_u32; count as usize];
        for port in 0..65_536_u64 {
            load[buckets(mix(1, port << 32 | 0x0a00_0001), count).0 as usize] += 1;
        }
        assert!(load.iter().all(|entries| (24..=110).contains(entries)), "{:?}", load.iter().minmax());
    }

    trait MinMax {
        fn minmax(self) -> (u32, u32);
    }
    impl<'a, I: Iterator<Item = &'a u32> + Clone> MinMax for I {
        fn minmax(self) -> (u32, u32) {
            (*self.clone().min().unwrap_or(&0), *self.max().unwrap_or(&0))
        }
    }
}
