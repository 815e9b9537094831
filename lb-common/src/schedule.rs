//! Choosing a backend: comparisons, shares and the Maglev table, as plain arithmetic.

/// `balance = "least_conn"`: active connections by weight, ties in smooth weighted round-robin.
pub const LEAST_CONN: u32 = 0;
/// `balance = "round_robin"`: smooth weighted round-robin.
pub const ROUND_ROBIN: u32 = 1;
/// `balance = "random_two"`: two are drawn at random by weight; the one with fewer active
/// connections by weight is chosen.
pub const RANDOM_TWO: u32 = 2;
/// `balance = "hash"`: the client's address chooses an entry of a Maglev table.
pub const HASH: u32 = 3;

/// How a backend was chosen: it is up, and no backup.
pub const CHOSEN_UP: u32 = 0;
/// It is a backup, and no other backend is up.
pub const CHOSEN_BACKUP: u32 = 1;
/// It is not up, but nothing better is left.
pub const CHOSEN_FAIL_OPEN: u32 = 2;
/// It is out, and the time for a trial connection has come.
pub const CHOSEN_TRIAL: u32 = 3;
/// The four of them in words.
pub const CHOSEN: [&str; 4] = ["up", "backup", "fail_open", "trial"];

/// Entries of a Maglev table: a prime, well above 64 backends (Eisenbud et al., NSDI 2016, section
/// 3.4).
pub const MAGLEV_PLACES: u32 = 16_381;

/// Whether one backend is less loaded than another: compares `active / weight`, without a division.
#[inline(always)]
pub const fn less_loaded(active: u32, weight: u32, than_active: u32, than_weight: u32) -> bool {
    (active as u64) * (than_weight as u64) < (than_active as u64) * (weight as u64)
}

/// The share of new connections that a backend gets while it starts slowly, in 2^-32: it grows
/// linearly from nothing over `slow_ms`, of which `left` nanoseconds are left. It is a share of
/// every connection or, if `total` is not 0, of the part that its weight is of `total`.
#[inline(always)]
pub const fn slow_share(left: u64, slow_ms: u32, weight: u32, total: u32) -> u32 {
    if slow_ms == 0 {
        return u32::MAX;
    }
    let whole = slow_ms as u64;
    let passed = whole.saturating_sub(left / 1_000_000);
    // At most 2^32 x 2^22 (an hour in milliseconds).
    let mut share = (passed << 32) / whole;
    if total != 0 {
        share = share * (weight as u64) / (total as u64);
    }
    if share > u32::MAX as u64 { u32::MAX } else { share as u32 }
}

/// The Maglev table of backends with these `(hash of the name, weight)`: entry → position in the
/// list.
///
/// Every backend walks the entries in its own order and takes the next free one at its turn, as
/// many per turn as its weight. Removing a backend moves few entries of the others.
pub fn maglev(backends: &[(u64, u32)], table: &mut [u16; MAGLEV_PLACES as usize]) {
    const NONE: u16 = u16::MAX;
    table.fill(NONE);
    if backends.is_empty() {
        return;
    }
    let places = u64::from(MAGLEV_PLACES);
    let mut next = [0_u64; 64];
    let mut filled = 0;
    while filled < MAGLEV_PLACES {
        for (position, (name, weight)) in backends.iter().enumerate().take(64) {
            let offset = crate::hash::mix(1, *name) % places;
            let skip = crate::hash::mix(2, *name) % (places - 1) + 1;
            for _ in 0..*weight {
                if filled == MAGLEV_PLACES {
                    return;
                }
                loop {
                    let place = ((offset + next[position] * skip) % places) as usize;
                    next[position] += 1;
                    if table[place] == NONE {
                        table[place] = position as u16;
                        break;
                    }
                }
                filled += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_compared_by_weight() {
        assert!(less_loaded(2, 3, 1, 1));
        assert!(!less_loaded(3, 3, 1, 1) && !less_loaded(1, 1, 3, 3), "equally loaded");
        assert!(less_loaded(u32::MAX - 1, u32::MAX, u32::MAX, u32::MAX));
    }

    #[test]
    fn a_slow_start_grows_linearly_to_the_whole_share() {
        let second = 1_000_000_000;
        let share = |left| f64::from(slow_share(left, 10_000, 1, 0)) / 2_f64.powi(32);
        for tenth in 0..=10 {
            let expected = tenth as f64 / 10.0;
            assert!((share((10 - tenth) * second) - expected).abs() < 1e-6, "{tenth}");
        }
        assert_eq!(share(11 * second), 0.0, "a clock that lies behind");
        assert_eq!(slow_share(0, 10_000, 1, 0), u32::MAX);
        assert_eq!(slow_share(5 * second, 10_000, 3, 12), 1 << 29, "half of a quarter");
        assert_eq!(slow_share(0, 3_600_000, 65_535, 65_535), u32::MAX);
        assert_eq!(slow_share(second, 0, 1, 0), u32::MAX, "switched off meanwhile");
    }

    fn shares(backends: &[(u64, u32)]) -> Vec<usize> {
        let mut table = [0; MAGLEV_PLACES as usize];
        maglev(backends, &mut table);
        (0..backends.len()).map(|b| table.iter().filter(|place| usize::from(**place) == b).count()).collect()
    }

    #[test]
    fn maglev_gives_every_backend_its_share() {
        for count in shares(&[(11, 1), (22, 1), (33, 1)]) {
            assert!((5459..=5462).contains(&count));
        }
        let weighted = shares(&[(11, 3), (22, 1), (33, 1)]);
        assert!((9826..=9832).contains(&weighted[0]), "{weighted:?}");
        assert_eq!(shares(&[(5, 1)]), [MAGLEV_PLACES as usize]);
    }

    #[test]
    fn removing_a_backend_moves_few_entries_of_the_others() {
        let mut before = [0; MAGLEV_PLACES as usize];
        let mut after = before;
        maglev(&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)], &mut before);
        maglev(&[(1, 1), (2, 1), (3, 1), (4, 1)], &mut after);
        let moved = before.iter().zip(&after).filter(|(old, new)| **old != 4 && old != new).count();
        assert!(moved < MAGLEV_PLACES as usize / 12, "{moved} entries moved without need");
    }
}
