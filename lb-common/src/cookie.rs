//! SYN cookies: an answer to a SYN that costs no state, and by which the client shows that it gets
//! what is sent to its address.
//!
//! The answer is a SYN-ACK that acknowledges nothing the client has sent. RFC 9293 (section
//! 3.10.7.3) demands a RST whose sequence number is that acknowledgement, and the connection goes on
//! to be opened: the client sends its SYN again, Linux within two timer ticks. Only the low 16 bits
//! of the acknowledgement are the cookie; it lies at most 65,535 below the number that the SYN has,
//! so that a firewall that follows connections finds neither the SYN-ACK nor the RST out of window.
//! Whoever answers blindly is believed once in 2^15.

use crate::{hash::mix, layout::MARKS, time::Ticks};

/// How far ahead a stamp may lie, in [`Ticks`]: the clocks of two CPUs differ by less.
const AHEAD: u32 = 1 << 10;
/// One epoch is `1 << EPOCH_BITS` nanoseconds, 8.6 s. A cookie is good in its own and in the next.
pub const EPOCH_BITS: u32 = 33;
/// How long a client that has answered is known, in [`Ticks`]: 4.3 s.
pub const KNOWN: u32 = 4 << 10;
/// When a client that was sent a cookie and sends its SYN again has not answered, in [`Ticks`]: a
/// little less than the second after which a SYN is repeated (RFC 6298 section 2.1).
pub const REPEATED: u32 = 900;

/// The low 16 bits of a cookie: SipHash-1-3 of the connection and the epoch, in a key of 128 bits.
/// Addresses and ports as they lie in the packet.
#[inline(always)]
pub const fn hash(key: [u64; 2], addresses: u64, ports: u32, epoch: u32) -> u16 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let words = [addresses, (epoch as u64) << 32 | ports as u64, LENGTH << 56];
    let mut at = 0;
    while at < words.len() {
        v[3] ^= words[at];
        v = round(v);
        v[0] ^= words[at];
        at += 1;
    }
    v[2] ^= 0xff;
    v = round(round(round(v)));
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u16
}

/// Bytes that are hashed, for the last word.
const LENGTH: u64 = 16;

#[inline(always)]
const fn round(v: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = v;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// The acknowledgement number for a SYN with this sequence number: the largest one up to it whose
/// low half is the cookie.
#[inline(always)]
pub const fn acknowledgement(initial: u32, cookie: u16) -> u32 {
    initial.wrapping_sub((initial as u16).wrapping_sub(cookie) as u32)
}

/// In how many rows of VERIFIED a client's mark may stand: its own one, with the lowest bits changed.
/// All of them are in one cache line.
pub const ROWS: usize = 4;

const _: () = assert!(MARKS.is_multiple_of(ROWS as u32) && ROWS.is_power_of_two());

/// That a connection was seen, and when. Which one is known by a hash of its key: two share a row
/// with its number and a mark with the rest of it.
///
/// ```text
/// 63          32 31         0
/// |  ticks      |    tag     |
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Mark(pub u64);

impl Mark {
    /// The row and the tag of a key in the flow index.
    #[inline(always)]
    pub const fn place(seed: u64, key: u64) -> (u32, u32) {
        let hash = mix(seed, key);
        ((hash >> 32) as u32 % MARKS, hash as u32 | 1)
    }

    /// A connection that is seen now.
    #[inline(always)]
    pub const fn new(tag: u32, now: Ticks) -> Mark {
        Mark((now.0 as u64) << 32 | tag as u64)
    }

    /// Whether it is of a connection.
    #[inline(always)]
    pub const fn is_of(self, tag: u32) -> bool {
        self.0 as u32 == tag
    }

    /// Whether one of the marks in a client's rows is its own, and not too old.
    #[inline(always)]
    pub fn is_known(marks: &[Mark; ROWS], tag: u32, now: Ticks) -> bool {
        let mut known = false;
        for mark in marks {
            known |= mark.is_of(tag) && mark.age(now) < KNOWN;
        }
        known
    }

    /// Which of a client's rows is for its mark: its own one, else the oldest one. With one row each,
    /// two clients that share it and send their SYNs at the same time would take each other's place
    /// every time.
    #[inline(always)]
    pub fn room(marks: &[Mark; ROWS], tag: u32, now: Ticks) -> u32 {
        let (mut room, mut oldest) = (0, 0);
        for (row, mark) in marks.iter().enumerate() {
            let age = if mark.is_of(tag) { u32::MAX } else { mark.age(now) };
            if age > oldest {
                (room, oldest) = (row as u32, age);
            }
        }
        room
    }

    /// How long ago it was made, in ticks; an empty one is old. One that lies ahead was made by another
    /// CPU a moment ago, or 26 days before.
    #[inline(always)]
    pub const fn age(self, now: Ticks) -> u32 {
        let age = now.0.wrapping_sub((self.0 >> 32) as u32);
        if self.0 == 0 {
            u32::MAX
        } else if age > AHEAD.wrapping_neg() {
            0
        } else {
            age
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_carries_its_cookie_and_lies_just_below_the_syn() {
        for initial in [0_u32, 1, 0xffff, 0x1_0000, 0x1234_5678, u32::MAX] {
            for cookie in [0_u16, 1, 0x5678, 0x5679, u16::MAX] {
                let number = acknowledgement(initial, cookie);
                assert_eq!(number as u16, cookie);
                assert!(initial.wrapping_sub(number) <= 0xffff, "{initial:#x} {cookie:#x}");
            }
        }
    }

    #[test]
    fn a_cookie_depends_on_every_word_it_is_made_of() {
        let own = |key, addresses, ports, epoch| hash(key, addresses, ports, epoch);
        let words = |bit: u32| {
            [
                own([1 << bit, 0], 0, 0, 0),
                own([0, 1 << bit], 0, 0, 0),
                own([0, 0], 1 << bit, 0, 0),
                own([0, 0], 0, 1 << (bit % 32), 0),
                own([0, 0], 0, 0, 1 << (bit % 32)),
            ]
        };
        let none = own([0, 0], 0, 0, 0);
        let same = (0..64).flat_map(words).filter(|cookie| *cookie == none).count();
        assert!(same <= 1, "{same} of 320 are alike; by chance it is one in 200 runs");
    }

    #[test]
    fn cookies_are_siphash_1_3() {
        use std::hash::{DefaultHasher, Hasher};
        // The standard library's hasher has a key of zeros.
        let (addresses, ports, epoch) = (0x0706_0504_0302_0100_u64, 0x0b0a_0908_u32, 0x0f0e_0d0c_u32);
        let mut hasher = DefaultHasher::new();
        hasher.write(&addresses.to_le_bytes());
        hasher.write(&(u64::from(epoch) << 32 | u64::from(ports)).to_le_bytes());
        assert_eq!(hash([0; 2], addresses, ports, epoch), hasher.finish() as u16);
    }

    #[test]
    fn clients_that_share_their_rows_are_all_known_and_the_oldest_mark_gives_way() {
        let mut marks = [Mark::default(); ROWS];
        let mark =
            |marks: &mut [Mark; ROWS], tag, now| marks[Mark::room(marks, tag, now) as usize] = Mark::new(tag, now);
        // Again and again at the same time, as clients that repeat their SYNs together.
        for now in [1000, 1020, 2020, 3020].map(Ticks) {
            for tag in [1, 3, 5, 7] {
                mark(&mut marks, tag, now);
            }
            assert!([1, 3, 5, 7].iter().all(|tag| Mark::is_known(&marks, *tag, now)), "{marks:?}");
            assert!(!Mark::is_known(&marks, 9, now));
        }
        mark(&mut marks, 3, Ticks(4000));
        mark(&mut marks, 1, Ticks(4001));
        mark(&mut marks, 7, Ticks(4002));
        mark(&mut marks, 9, Ticks(4003));
        let known = |tag: &&u32| Mark::is_known(&marks, **tag, Ticks(4003));
        assert!([1, 3, 5, 7, 9].iter().filter(known).eq(&[1, 3, 7, 9]));
        assert!(!Mark::is_known(&marks, 9, Ticks(4003 + KNOWN)));
    }

    #[test]
    fn a_mark_is_known_by_its_tag_and_has_an_age() {
        let (row, tag) = Mark::place(5, 0x0a00_0001_1234_0001);
        assert!(row < MARKS);
        let mark = Mark::new(tag, Ticks(7));
        assert!(mark.is_of(tag) && !mark.is_of(tag ^ 2) && !Mark::default().is_of(tag));
        assert_eq!((mark.age(Ticks(10)), mark.age(Ticks(6)), Mark::default().age(Ticks(0))), (3, 0, u32::MAX));
        let old = Ticks(7_u32.wrapping_sub(1 << 20));
        assert!(mark.age(old) > KNOWN, "made half a round before");
    }
}
