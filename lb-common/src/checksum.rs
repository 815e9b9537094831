//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept as 64-bit values of the 16-bit (or 32-bit) words as they lie in memory: ones' complement addition does
//! not care about byte order, so the result can be stored back without swapping.

/// Folds a sum of 16- or 32-bit words to 16 bits, carries added back in.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// What replacing the word `old` by `new` adds to a sum: RFC 1624 equation 3, `~m + m'`.
#[inline(always)]
pub const fn difference(old: u32, new: u32) -> u64 {
    !old as u64 + new as u64
}

/// The checksum field after `difference` was added to what it covers.
#[inline(always)]
pub const fn update(field: u16, difference: u64) -> u16 {
    !fold(!field as u64 + difference)
}

/// The checksum field of a finished sum.
#[inline(always)]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(words: &[u16]) -> u64 {
        words.iter().map(|word| u64::from(*word)).sum()
    }

    #[test]
    fn a_header_with_its_checksum_sums_to_all_ones() {
        // The example of RFC 1071 section 3.
        let words = [0x0001, 0xf203, 0xf4f5, 0xf6f7];
        assert_eq!(fold(sum(&words)), 0xddf2);
        assert_eq!(fold(sum(&words) + u64::from(finish(sum(&words)))), 0xffff);
    }

    #[test]
    fn an_incremental_update_equals_a_full_sum_for_every_word() {
        let mut words = [0x1234, 0, 0xffff, 0x8001, 0x0bad];
        for old in 0..=u16::MAX {
            words[1] = old;
            let before = finish(sum(&words));
            words[1] = old.wrapping_mul(31).wrapping_add(17);
            let updated = update(before, difference(u32::from(old), u32::from(words[1])));
            assert_eq!(fold(sum(&words) + u64::from(updated)), 0xffff);
        }
    }
}
