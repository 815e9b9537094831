//! Which connections to reset so that backends become even. After an API server has restarted, its
//! watches sit on the others for hours; a client that is reset comes back at once, and the
//! scheduler gives it to the least busy backend.
//!
//! Even within a tolerance of T: no backend that has more than its share (by weight) would, with T
//! connections fewer, still be busier (connections by weight) than another one. With equal weights:
//! the most and the fewest connections differ by T at most. With T = 1 that is what least_conn
//! makes of any number of connections that come one after the other, so it can always be reached.
//!
//! The fewest resets: one connection at a time is moved from the busiest backend to the least busy
//! one until it is even. Each move takes a connection away that any solution has to take away: see
//! the tests, which compare with all other ways.

use std::cmp::Ordering;

/// One backend that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The backend.
    pub backend: u16,
    /// Its weight; at least 1.
    pub weight: u32,
    /// Its open connections.
    pub active: u32,
    /// Most connections it may have; 0: no limit.
    pub max_conns: u32,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// As it is.
    pub load: Load,
    /// How many of its connections are to be reset.
    pub resets: u32,
    /// How many it has when all clients have come back.
    pub after: u32,
}

/// The fewest resets after which the backends are even within `tolerance` (0 counts as 1).
pub fn shares(loads: &[Load], tolerance: u32) -> Vec<Share> {
    let mut shares: Vec<_> = loads.iter().map(|load| Share { load: *load, resets: 0, after: load.active }).collect();
    let whole = sum(loads.iter().map(|load| (load.active, load.weight)));
    while let Some((from, to)) = next_move(&shares, whole, tolerance.max(1)) {
        shares[from].resets += 1;
        shares[from].after -= 1;
        shares[to].after += 1;
    }
    shares
}

/// How far from even: the smallest tolerance that these `(connections, weight)` satisfy. With equal
/// weights: the most minus the fewest.
pub fn spread(loads: impl Iterator<Item = (u32, u32)> + Clone) -> u32 {
    let whole = sum(loads.clone());
    let Some(fewest) = loads.clone().min_by(|a, b| busier(*a, *b)) else { return 0 };
    let over = |(active, weight): (u32, u32)| {
        let fair = u64::from(fewest.0) * u64::from(weight) / u64::from(fewest.1);
        u64::from(active).saturating_sub(fair) as u32
    };
    loads.filter(|load| is_above_share(*load, whole)).map(over).max().unwrap_or(0)
}

/// From the busiest to the least busy one that has room; `None` if that would not make it more
/// even.
fn next_move(shares: &[Share], whole: (u64, u64), tolerance: u32) -> Option<(usize, usize)> {
    let with_room = |share: &Share| share.load.max_conns == 0 || share.after < share.load.max_conns;
    let to = (0..shares.len()).filter(|place| with_room(&shares[*place]));
    let to = to.min_by(|a, b| busier(shares[*a].now(), shares[*b].now()))?;
    let from = (0..shares.len()).filter(|place| is_above_share(shares[*place].now(), whole));
    let from = from.max_by(|a, b| busier(shares[*a].without(tolerance), shares[*b].without(tolerance)))?;
    let is_uneven = busier(shares[from].without(tolerance), shares[to].now()) == Ordering::Greater;
    is_uneven.then_some((from, to))
}

impl Share {
    /// Connections and weight.
    fn now(&self) -> (u32, u32) {
        (self.after, self.load.weight)
    }

    fn without(&self, tolerance: u32) -> (u32, u32) {
        (self.after.saturating_sub(tolerance), self.load.weight)
    }
}

/// Compares connections by weight.
fn busier(a: (u32, u32), b: (u32, u32)) -> Ordering {
    (u64::from(a.0) * u64::from(b.1)).cmp(&(u64::from(b.0) * u64::from(a.1)))
}

fn sum(loads: impl Iterator<Item = (u32, u32)>) -> (u64, u64) {
    loads.fold((0, 0), |(active, weight), load| (active + u64::from(load.0), weight + u64::from(load.1)))
}

/// Whether it has more connections than its weight's share of all.
fn is_above_share((active, weight): (u32, u32), (all, weights): (u64, u64)) -> bool {
    u64::from(active) * weights > all * u64::from(weight)
}

#[cfg(test)]
mod tests;
