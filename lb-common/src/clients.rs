//! `per_client_connections`: how many connections each client of a service has, as words that one
//! compare-and-swap changes.
//!
//! ```text
//! 63                32 31      16 15     0
//! |      client       |  changes |  count |       0: empty
//! ```
//! The words are kept in buckets of eight; a client's word is in one of two buckets. A word whose
//! count falls to 0 becomes empty at once, so nothing has to be searched for or cleaned up. If a
//! word is emptied at the moment when two CPUs count a connection of the same client, the client
//! may get two words. That is harmless: its count is their sum.
//!
//! The client is the lower half of the flow's key: the IPv4 address (of IPv6, a fold).

use crate::hash::{buckets, mix};

/// Buckets of a service's table: room for 32,768 clients; below half of that practically no client
/// is left out.
pub const CLIENT_BUCKETS: u32 = 4096;
/// The highest limit, and the most connections that are counted for one client.
pub const MOST: u32 = u16::MAX as u32;

/// A word of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct ClientCount(pub u64);

impl ClientCount {
    /// The word of a client with `count` connections.
    #[inline(always)]
    pub const fn new(client: u32, count: u32) -> ClientCount {
        if count == 0 { ClientCount(0) } else { ClientCount((client as u64) << 32 | (count & MOST) as u64) }
    }

    /// Whether this is the word of `client`.
    #[inline(always)]
    pub const fn is_of(self, client: u32) -> bool {
        self.count() != 0 && self.client() == client
    }

    /// The client.
    #[inline(always)]
    pub const fn client(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Its connections; 0: the word is empty.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        self.0 as u32 & MOST
    }

    /// The same client with `count` connections. Every change is counted too, so that two reads of
    /// a word show whether it has changed in between.
    #[inline(always)]
    pub const fn changed_to(self, count: u32) -> ClientCount {
        if count == 0 {
            return ClientCount(0);
        }
        let changes = (self.0 as u32).wrapping_add(1 << 16) & !MOST;
        ClientCount(self.0 & !0xffff_ffff | (changes | count & MOST) as u64)
    }
}

/// The two buckets that may hold a client's word.
#[inline(always)]
pub const fn buckets_of(seed: u64, client: u32) -> (u32, u32) {
    buckets(mix(seed, client as u64), CLIENT_BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_gives_back_what_was_put_in_and_is_empty_without_connections() {
        let word = ClientCount::new(0xdead_beef, 3);
        assert_eq!((word.client(), word.count()), (0xdead_beef, 3));
        assert!(word.is_of(0xdead_beef) && !word.is_of(1) && !ClientCount(0).is_of(0));
        assert_eq!(word.changed_to(0), ClientCount(0));
        assert_eq!(ClientCount::new(7, 0), ClientCount(0));
        assert_eq!(ClientCount::new(u32::MAX, MOST).count(), MOST);
    }

    #[test]
    fn a_count_that_comes_back_to_what_it_was_is_another_word() {
        let mut word = ClientCount::new(7, 1);
        let mut seen = std::collections::HashSet::from([word.0]);
        for round in 0..65_535_u32 {
            word = word.changed_to(1 + round % 2);
            assert_eq!((word.client(), word.count()), (7, 1 + round % 2));
            seen.insert(word.0);
        }
        assert!(seen.len() > 65_535 / 2, "{}", seen.len());
    }

    #[test]
    fn sixteen_thousand_clients_find_room() {
        let mut load = vec![0_u32; CLIENT_BUCKETS as usize];
        let mut left_out = 0;
        for client in 0..16_384_u32 {
            let (a, b) = buckets_of(0x5eed, u32::from_ne_bytes((0x0a00_0000 + client).to_be_bytes()));
            let emptier = if load[a as usize] <= load[b as usize] { a } else { b };
            left_out += u32::from(load[emptier as usize] == 8);
            load[emptier as usize] += 1;
        }
        assert_eq!(left_out, 0);
    }
}
