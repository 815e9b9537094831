//! What a SYN says, and the SYN that a backend gets in its place.
//!
//! A stranger's SYN is not passed on: a backend answers some options with silence or a RST (TCP-MD5,
//! TCP-AO, joins of MPTCP), and would seem dead. What every TCP understands is read from it, and
//! written anew: maximum segment size, window scale, SACK permitted and timestamps (RFC 9293
//! section 3.7.1, RFC 7323, RFC 2018). MPTCP falls back to TCP, and the data of a fast open comes
//! again after the handshake.

use crate::tcp::Side;

/// The most bytes of options that a TCP header holds.
pub const OPTIONS: u32 = 40;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const TIMESTAMPS: u8 = 8;

/// Offers a window scale.
pub const OFFERS_SCALE: u8 = 1;
/// Permits selective acknowledgements.
pub const OFFERS_SACK: u8 = 2;
/// Offers timestamps.
pub const OFFERS_TIMESTAMPS: u8 = 4;

/// The maximum segment size of who does not state one (RFC 9293 section 3.7.1, for IPv4).
pub const DEFAULT_MSS: u16 = 536;
/// The largest window scale (RFC 7323 section 2.3).
pub const MAX_SCALE: u8 = 14;

/// The window scales of both sides, in one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Scales(pub u8);

impl Scales {
    /// These two; none is above [`MAX_SCALE`].
    #[inline(always)]
    pub const fn new(client: u8, backend: u8) -> Scales {
        Scales(client & 15 | backend << 4)
    }

    /// Those of a connection whose SYN and SYN-ACK offered these; without either offer, windows are
    /// not scaled (RFC 7323 section 2.2).
    #[inline(always)]
    pub const fn agreed(client: Scan, backend: Scan) -> Scales {
        if client.offers() & backend.offers() & OFFERS_SCALE == 0 {
            return Scales(0);
        }
        Scales::new(client.scale(), backend.scale())
    }

    /// By how many bits the windows of one side are shifted.
    #[inline(always)]
    pub const fn of(self, side: Side) -> u32 {
        match side {
            Side::Client => self.0 as u32 & 15,
            Side::Backend => self.0 as u32 >> 4,
        }
    }
}

/// What the kernel program keeps of the client's SYN. Numbers that only go back into a packet are
/// kept as they lie in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SavedSyn {
    /// The maximum segment size.
    pub mss: u16,
    /// The window, as it lies in the packet.
    pub window: [u8; 2],
    /// The window scale.
    pub scale: u8,
    /// `OFFERS_*`.
    pub offers: u8,
    /// The type of service.
    pub tos: u8,
    /// 1: it was filled in. Between the claim of a slot and that, there is nothing to send.
    pub saved: u8,
    /// The value of the timestamps option, as it lies in the packet.
    pub timestamp: u32,
}

const _: () = assert!(size_of::<SavedSyn>() == 12);

impl SavedSyn {
    /// Its offers, as they were read.
    #[inline(always)]
    pub const fn scan(&self) -> Scan {
        Scan((self.scale as u64) << 32 | (self.offers as u64) << 24)
    }

    /// The options of the SYN that is written anew, as words of memory, and how many there are.
    #[inline(always)]
    pub const fn options(&self) -> ([u32; 5], u32) {
        let [high, low] = self.mss.to_be_bytes();
        let mut words = [u32::from_ne_bytes([MSS, 4, high, low]), 0, 0, 0, 0];
        let mut count = 1;
        let sack = self.offers & OFFERS_SACK != 0;
        if self.offers & OFFERS_TIMESTAMPS != 0 {
            let before = if sack { [SACK_PERMITTED, 2] } else { [NOP, NOP] };
            words[1] = u32::from_ne_bytes([before[0], before[1], TIMESTAMPS, 10]);
            words[2] = self.timestamp;
            count = 4;
        } else if sack {
            words[1] = u32::from_ne_bytes([NOP, NOP, SACK_PERMITTED, 2]);
            count = 2;
        }
        if self.offers & OFFERS_SCALE != 0 {
            words[count as usize] = u32::from_ne_bytes([NOP, SCALE, 3, self.scale]);
            count += 1;
        }
        (words, count)
    }
}

/// How far options have been read, and what they said; one number, so that the kernel program's
/// functions can return it.
///
/// ```text
/// 63  48 47        40 39   32 31   24 23    16 15      8 7       0
/// | mss | timestamps | scale | offers | mss at |  done  |   at   |
/// ```
/// `timestamps` and `mss at` are where these options begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Scan(pub u64);

impl Scan {
    /// Nothing is read yet.
    pub const BEGIN: Scan = Scan((DEFAULT_MSS as u64) << 48);
    const DONE: u64 = 1 << 8;

    /// What twenty bytes of options say, if they are those of Linux in its order: maximum segment
    /// size, SACK permitted, timestamps, a filler, window scale. Words as they lie in the packet.
    #[inline(always)]
    pub const fn usual(words: [u32; 5]) -> Option<Scan> {
        const SIZE: u32 = u32::from_ne_bytes([MSS, 4, 0, 0]);
        const STAMPS: u32 = u32::from_ne_bytes([SACK_PERMITTED, 2, TIMESTAMPS, 10]);
        const SHIFT: u32 = u32::from_ne_bytes([NOP, SCALE, 3, 0]);
        const HALF: u32 = u32::from_ne_bytes([0xff, 0xff, 0, 0]);
        const THREE: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
        if words[0] & HALF != SIZE || words[1] != STAMPS || words[4] & THREE != SHIFT {
            return None;
        }
        let [_, _, high, low] = words[0].to_ne_bytes();
        let [_, _, _, scale] = words[4].to_ne_bytes();
        let scale = if scale > MAX_SCALE { MAX_SCALE } else { scale };
        let offers = OFFERS_SCALE | OFFERS_SACK | OFFERS_TIMESTAMPS;
        let mss = (high as u64) << 8 | low as u64;
        Some(Scan(mss << 48 | 6 << 40 | (scale as u64) << 32 | (offers as u64) << 24 | 20).ended())
    }

    #[inline(always)]
    const fn at(self) -> u32 {
        self.0 as u32 & 0xff
    }

    /// The same, with the rest left unread.
    #[inline(always)]
    pub const fn ended(self) -> Scan {
        Scan(self.0 | Self::DONE)
    }

    /// Whether all is read.
    #[inline(always)]
    pub const fn is_done(self) -> bool {
        self.0 & Self::DONE != 0
    }

    /// The maximum segment size.
    #[inline(always)]
    pub const fn mss(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Where the option of the maximum segment size begins, if there is one.
    #[inline(always)]
    pub const fn mss_at(self) -> u32 {
        (self.0 >> 16) as u32 & 0xff
    }

    /// Where the timestamps option begins, if there is one.
    #[inline(always)]
    pub const fn timestamps(self) -> u32 {
        (self.0 >> 40) as u32 & 0xff
    }

    /// The window scale.
    #[inline(always)]
    pub const fn scale(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// `OFFERS_*`.
    #[inline(always)]
    pub const fn offers(self) -> u8 {
        (self.0 >> 24) as u8
    }

    #[inline(always)]
    const fn with(self, clear: u64, shift: u32, value: u64) -> Scan {
        Scan(self.0 & !(clear << shift) | value << shift)
    }

    #[inline(always)]
    const fn offering(self, offer: u8) -> Scan {
        Scan(self.0 | (offer as u64) << 24)
    }

    #[inline(always)]
    const fn moved_to(self, at: u32) -> Scan {
        self.with(0xff, 0, at as u64 & 0xff)
    }

    /// Reads one option of `length` bytes of them; `byte` gives the one at a position. What cannot
    /// be right ends the list.
    #[inline(always)]
    pub fn next(self, length: u32, byte: impl Fn(u32) -> u8) -> Scan {
        let (done, at) = (self.ended(), self.at());
        if at >= length {
            return done;
        }
        let kind = byte(at);
        match kind {
            END => return done,
            NOP => return self.moved_to(at + 1),
            _ if at + 1 >= length => return done,
            _ => {}
        }
        let size = byte(at + 1) as u32;
        if size < 2 || at + size > length {
            return done;
        }
        let read = match (kind, size) {
            (MSS, 4) => {
                let mss = (byte(at + 2) as u64) << 8 | byte(at + 3) as u64;
                self.with(0xffff, 48, mss).with(0xff, 16, at as u64)
            }
            (SCALE, 3) => {
                let scale = byte(at + 2);
                let scale = if scale > MAX_SCALE { MAX_SCALE } else { scale };
                self.with(0xff, 32, scale as u64).offering(OFFERS_SCALE)
            }
            (SACK_PERMITTED, 2) => self.offering(OFFERS_SACK),
            (TIMESTAMPS, 10) => self.with(0xff, 40, at as u64).offering(OFFERS_TIMESTAMPS),
            _ => self,
        };
        read.moved_to(at + size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(options: &[u8]) -> Scan {
        let mut scan = Scan::BEGIN;
        for _ in 0..=OPTIONS {
            scan = scan.next(options.len() as u32, |at| options[at as usize]);
        }
        assert!(scan.is_done(), "{options:?}");
        scan
    }

    fn saved(options: &[u8]) -> SavedSyn {
        let scan = scan(options);
        let at = scan.timestamps() as usize;
        let stamp = options.get(at + 2..at + 6).filter(|_| scan.offers() & OFFERS_TIMESTAMPS != 0);
        let timestamp = stamp.map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().unwrap()));
        SavedSyn { mss: scan.mss(), scale: scan.scale(), offers: scan.offers(), timestamp, ..SavedSyn::default() }
    }

    fn written(syn: &SavedSyn) -> Vec<u8> {
        let (words, count) = syn.options();
        words[..count as usize].iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    const LINUX: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];

    #[test]
    fn the_syn_of_linux_is_written_as_it_came() {
        assert_eq!(written(&saved(&LINUX)), LINUX);
    }

    #[test]
    fn every_set_of_offers_is_read_from_what_is_written() {
        for offers in 0..8 {
            let syn = SavedSyn { mss: 1400, scale: 9, offers, timestamp: 0x0403_0201, ..SavedSyn::default() };
            let again = saved(&written(&syn));
            assert_eq!((again.mss, again.offers), (1400, offers));
            assert_eq!(again.scale, if offers & OFFERS_SCALE != 0 { 9 } else { 0 });
            assert_eq!(again.timestamp, if offers & OFFERS_TIMESTAMPS != 0 { syn.timestamp } else { 0 });
        }
    }

    #[test]
    fn no_other_option_is_kept() {
        // MD5, TCP-AO, MPTCP join, fast open, and one that nobody knows.
        for (kind, size) in [(19, 18), (29, 16), (30, 12), (34, 10), (254, 20)] {
            let mut options = vec![kind, size];
            options.resize(size.into(), 2);
            options.extend(LINUX);
            options.truncate(OPTIONS as usize);
            assert_eq!(written(&saved(&options)), LINUX, "{kind}");
        }
    }

    #[test]
    fn nonsense_ends_the_list_and_keeps_what_came_before() {
        for tail in [&[2, 0][..], &[3, 1, 7], &[8, 10, 1], &[3], &[8, 40, 0], &[0, 3, 3, 9]] {
            let options: Vec<u8> = [2, 4, 2, 0].iter().chain(tail).copied().collect();
            let syn = saved(&options);
            assert_eq!((syn.mss, syn.offers), (512, 0), "{tail:?}");
        }
        assert_eq!(saved(&[]).mss, DEFAULT_MSS);
        assert_eq!(saved(&[1; 40]).offers, 0);
        assert_eq!(saved(&[3, 3, 200]).scale, MAX_SCALE);
    }

    #[test]
    fn the_usual_options_are_read_at_once_as_one_by_one() {
        let words = |options: &[u8; 20]| {
            let word = |at: usize| u32::from_ne_bytes(options[at * 4..at * 4 + 4].try_into().unwrap());
            [word(0), word(1), word(2), word(3), word(4)]
        };
        for at in 0..20 {
            for bit in 0..8 {
                let mut options = LINUX;
                options[at] ^= 1 << bit;
                let usual = Scan::usual(words(&options));
                assert!(usual.is_none_or(|usual| usual == scan(&options)), "byte {at}, bit {bit}: {usual:?}");
                assert_eq!(usual.is_some(), matches!(at, 2 | 3 | 8..=15 | 19), "byte {at}, bit {bit}");
            }
        }
        assert_eq!(Scan::usual(words(&LINUX)), Some(scan(&LINUX)));
    }

    #[test]
    fn where_the_maximum_segment_size_stands_is_known() {
        for (before, options) in [(0, &LINUX[..]), (1, &[1, 2, 4, 5, 180]), (5, &[3, 3, 7, 4, 2, 2, 4, 5, 180])] {
            let scan = scan(options);
            assert_eq!((scan.mss_at(), scan.mss()), (before, 1460));
            assert_eq!(options[before as usize..][..4], [2, 4, 5, 180]);
        }
    }

    #[test]
    fn windows_are_scaled_only_if_both_sides_offer_it() {
        let (seven, none) = (scan(&[3, 3, 7]), scan(&[2, 4, 5, 180]));
        let both = Scales::agreed(seven, scan(&[3, 3, 9]));
        assert_eq!((both.of(Side::Client), both.of(Side::Backend)), (7, 9));
        assert_eq!(Scales::agreed(seven, none), Scales(0));
        assert_eq!(Scales::agreed(none, seven), Scales(0));
    }
}
