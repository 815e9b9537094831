//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are kept as 64-bit values of the 16-bit (or 32-bit) words as they lie in memory: ones'
//! complement addition does not care about byte order, so the result can be stored back without
//! swapping.

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

/// Whether a TCP checksum is left for a device to finish, by what became of it when the kernel
/// added `difference` to what its pseudo-header covers (inet_proto_csum_replace_by_diff): an
/// unfinished one is a plain sum and grows by the difference, a finished one is the complement.
/// `None`: the difference is zero, so it cannot be known.
#[inline(always)]
pub const fn is_unfinished(before: u16, after: u16, difference: u64) -> Option<bool> {
    if after != fold(before as u64 + difference) {
        return Some(false);
    }
    if matches!(fold(difference), 0 | 0xffff) { None } else { Some(true) }
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
    fn an_unfinished_checksum_is_told_from_a_finished_one_by_any_difference_that_is_not_zero() {
        for difference in (1..0x2_0000_u64).step_by(7).chain([0xffff, 0xfffe, 0x1_fffe, 0x1_2345_6789]) {
            for before in (0..=u16::MAX).step_by(31).chain([0xffff]) {
                let finished = is_unfinished(before, update(before, difference), difference);
                let unfinished = is_unfinished(before, fold(u64::from(before) + difference), difference);
                if difference % 0xffff == 0 {
                    assert_ne!(finished, Some(true), "{difference:#x} {before:#x}");
                    assert_eq!(unfinished, None, "{difference:#x} {before:#x}");
                } else {
                    assert_eq!((finished, unfinished), (Some(false), Some(true)), "{difference:#x} {before:#x}");
                }
            }
        }
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
