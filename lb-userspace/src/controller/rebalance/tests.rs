use super::*;

fn load(backend: u16, weight: u32, active: u32) -> Load {
    Load { backend, weight, active, max_conns: 0 }
}

fn loads(of: &[(u32, u32)]) -> Vec<Load> {
    of.iter().enumerate().map(|(backend, (active, weight))| load(backend as u16, *weight, *active)).collect()
}

fn resets(shares: &[Share]) -> Vec<u32> {
    shares.iter().map(|share| share.resets).collect()
}

fn is_even(of: &[(u32, u32)], tolerance: u32) -> bool {
    let all: u32 = of.iter().map(|(active, _)| active).sum();
    let weights: u32 = of.iter().map(|(_, weight)| weight).sum();
    of.iter().filter(|a| a.0 * weights > all * a.1).all(|a| {
        let without = a.0.saturating_sub(tolerance);
        of.iter().all(|b| without * b.1 <= b.0 * a.1)
    })
}

/// What least_conn makes of `count` connections that come in one after the other.
fn come_back(mut of: Vec<(u32, u32)>, count: u32) -> Vec<(u32, u32)> {
    for _ in 0..count {
        let least = (0..of.len()).min_by(|a, b| busier(of[*a], of[*b])).expect("a backend");
        of[least].0 += 1;
    }
    of
}

/// The fewest resets of all ways to take some from each backend.
fn fewest(of: &[(u32, u32)], tolerance: u32) -> u32 {
    fn go(taken: &mut Vec<(u32, u32)>, place: usize, count: u32, best: &mut u32, tolerance: u32) {
        if count >= *best {
            return;
        }
        if place == taken.len() {
            if is_even(&come_back(taken.clone(), count), tolerance) {
                *best = count;
            }
            return;
        }
        let all = taken[place].0;
        for left in (0..=all).rev() {
            taken[place].0 = left;
            go(taken, place + 1, count + all - left, best, tolerance);
        }
        taken[place].0 = all;
    }
    let mut best = of.iter().map(|(active, _)| active).sum::<u32>() + 1;
    go(&mut of.to_vec(), 0, 0, &mut best, tolerance);
    best
}

#[test]
fn a_thousand_watches_go_back_to_the_backend_that_has_returned() {
    let shares = shares(&loads(&[(1500, 1), (1500, 1), (0, 1)]), 1);
    assert_eq!(resets(&shares), [500, 500, 0]);
    assert!(shares.iter().all(|share| share.after == 1000));
}

#[test]
fn what_is_even_is_left_alone() {
    for of in [&[][..], &[(7, 1)], &[(3, 1), (3, 1)], &[(4, 1), (3, 1)], &[(30, 3), (10, 1), (11, 1)]] {
        assert!(shares(&loads(of), 1).iter().all(|share| share.resets == 0), "{of:?}");
    }
    assert_eq!(resets(&shares(&loads(&[(14, 1), (4, 1)]), 10)), [0, 0]);
    assert_eq!(resets(&shares(&loads(&[(15, 1), (4, 1)]), 10)), [1, 0]);
}

#[test]
fn it_takes_the_fewest_resets_of_all_ways_and_least_conn_makes_it_even_whatever_the_loads() {
    for weights in [[1, 1, 1], [1, 2, 3], [5, 2, 2]] {
        for tolerance in 1..=2 {
            for number in 0..512_u32 {
                let active = [number & 7, number >> 3 & 7, number >> 6];
                let of: Vec<_> = active.into_iter().zip(weights).collect();
                let shares = shares(&loads(&of), tolerance);
                let count: u32 = resets(&shares).iter().sum();
                assert_eq!(count, fewest(&of, tolerance), "{of:?}, tolerance {tolerance}");
                let left = shares.iter().map(|share| (share.load.active - share.resets, share.load.weight)).collect();
                let back = come_back(left, count);
                assert!(is_even(&back, tolerance), "{of:?}, tolerance {tolerance}: {back:?}");
            }
        }
    }
}

/// A small generator (xorshift), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as u32 % limit
    }
}

#[test]
fn laws_hold_for_large_clusters() {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for round in 0..2_000 {
        let backends = 1 + dice.below(16);
        let of: Vec<_> = (0..backends).map(|_| (dice.below(2_000), 1 + dice.below(9))).collect();
        let tolerance = 1 + dice.below(20);
        let shares = shares(&loads(&of), tolerance);
        let after: Vec<_> = shares.iter().map(|share| (share.after, share.load.weight)).collect();
        assert!(is_even(&after, tolerance), "round {round}: {of:?}");
        let all: u32 = of.iter().map(|(active, _)| active).sum();
        assert_eq!(after.iter().map(|(active, _)| active).sum::<u32>(), all, "nobody is lost");
        let weight: u32 = of.iter().map(|(_, weight)| weight).sum();
        for share in &shares {
            let fair = u64::from(all) * u64::from(share.load.weight) / u64::from(weight);
            if share.resets > 0 {
                assert!(u64::from(share.after) >= fair, "below its share: {share:?}, {fair}");
                assert_eq!(share.after + share.resets, share.load.active, "gives or gets, not both");
            }
        }
        // As uneven as the tolerance allows, and not better at the cost of any backend.
        assert!(spread(after.iter().copied()) <= tolerance);
        if spread(of.iter().copied()) <= tolerance {
            assert_eq!(after, of);
        }
    }
}

#[test]
fn a_backend_that_is_full_gets_nobody() {
    let mut of = loads(&[(10, 1), (2, 1), (6, 1)]);
    of[1].max_conns = 3;
    let shares = shares(&of, 1);
    assert_eq!(shares.iter().map(|share| share.after).collect::<Vec<_>>(), [8, 3, 7]);
}

#[test]
fn the_spread_is_the_most_less_the_fewest_and_by_weight() {
    let spread = |of: &[(u32, u32)]| spread(of.iter().copied());
    assert_eq!(spread(&[]), 0);
    assert_eq!(spread(&[(1500, 1), (1500, 1), (0, 1)]), 1500);
    assert_eq!(spread(&[(1001, 1), (1000, 1), (999, 1)]), 2);
    assert_eq!(spread(&[(30, 3), (10, 1)]), 0);
    assert_eq!(spread(&[(33, 3), (10, 1)]), 3);
}
