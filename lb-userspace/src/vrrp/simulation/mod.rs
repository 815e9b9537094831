//! Two to five routers over virtual time: loss, delay, duplicates, partitions, pauses, crashes and
//! restarts, then peace. Every run derives from one number, the seed. A run that fails prints its
//! seed, and `EVENKEEL_SEED=N` repeats that run alone; `EVENKEEL_SEEDS=10000` runs that many.

mod network;
pub(crate) mod random;

use network::{Conduct, Network};
use random::Random;

use super::machine::State;

/// Runs a case with so many seeds, with as many as `EVENKEEL_SEEDS` says, or with the one in
/// `EVENKEEL_SEED`.
pub(crate) fn with_seeds(count: u64, case: impl Fn(u64)) {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    if let Some(seed) = number("EVENKEEL_SEED") {
        return case(seed);
    }
    for seed in 0..number("EVENKEEL_SEEDS").unwrap_or(count) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(seed)));
        assert!(outcome.is_ok(), "seed {seed} fails: EVENKEEL_SEED={seed} repeats it");
    }
}

/// One step of trouble.
fn trouble(network: &mut Network, random: &mut Random) {
    let host = random.below(network.hosts.len() as u64) as usize;
    match random.below(12) {
        0 => network.pause(host),
        1 => network.resume(host),
        2 => network.crash(host),
        3 => network.stop(host),
        4 | 5 => network.start(host),
        6 => network.set_usable(host, false),
        7 => network.set_usable(host, true),
        8 => network.weigh(host, random.within(-60, 0) as i32),
        9 => network.split(random),
        10 => network.heal(),
        _ => network.give_away(host),
    }
}

/// Runs for longer than the longest wait, so that everything that has to happen has happened.
fn settle(network: &mut Network) {
    let time = network.longest_wait();
    network.run(time);
    network.forget_transitions();
    network.run(time / 2);
}

#[test]
fn after_any_trouble_there_is_exactly_one_master_in_every_partition() {
    with_seeds(1500, |seed| {
        let mut random = Random::new(seed);
        let mut network = Network::any(&mut random);
        network.conduct = Conduct { loss: random.below(40), duplicates: random.below(20) };
        for _ in 0..random.within(3, 25) {
            let time = random.time_below(network.interval() * 6);
            network.run(time);
            trouble(&mut network, &mut random);
        }
        // Peace: all hosts run, and nothing is lost. The network may stay partitioned.
        network.conduct = Conduct::default();
        if random.chance(2, 3) {
            network.heal();
        }
        for host in 0..network.hosts.len() {
            network.resume(host);
            network.start(host);
            network.set_usable(host, true);
            network.weigh(host, 0);
        }
        settle(&mut network);
        for part in network.parts() {
            let masters = network.masters(&part);
            assert_eq!(masters.len(), 1, "seed {seed}: masters of {part:?} are {masters:?}\n{network:#?}");
            if network.preempts() {
                let best = network.best(&part);
                assert!(best == masters[0] || network.was_given_away(best), "seed {seed}: {best} is not master");
            }
        }
        assert_eq!(network.transitions(), 0, "seed {seed}: it has not settled\n{network:#?}");
    });
}

/// As long as no packet is lost, a host that is stopped or killed stops answering for the address
/// before another host begins to. The exception is a host that dies at the very moment in which two
/// masters find out which of them ranks higher: the lower one no longer hears it, and its lease
/// runs to its end. Preemption is such a moment too.
#[test]
fn two_leases_never_hold_at_once_longer_than_a_packet_travels() {
    with_seeds(1000, |seed| {
        let mut random = Random::new(seed);
        let mut network = Network::without_preemption(&mut random);
        for _ in 0..random.within(3, 20) {
            let time = random.time_below(network.interval() * 8);
            network.run(time);
            let host = random.below(network.hosts.len() as u64) as usize;
            if network.leases().len() > 1 {
                continue;
            }
            match random.below(6) {
                0 => network.pause(host),
                1 | 2 => network.resume(host),
                3 => network.crash(host),
                4 => network.start(host),
                _ => network.weigh(host, random.within(-60, 0) as i32),
            }
        }
        let (overlap, travel) = (network.longest_overlap(), network.longest_delay());
        assert!(overlap <= travel, "seed {seed}: {overlap:?}, a packet travels {travel:?} at most\n{network:#?}");
    });
}

#[test]
fn a_master_that_is_stopped_and_wakes_changes_hands_exactly_once_back_or_not_at_all() {
    for (preempt, back) in [(true, State::Master), (false, State::Backup)] {
        with_seeds(200, |seed| {
            let mut random = Random::new(seed);
            let mut network = Network::pair(preempt, &mut random);
            network.run(10 * network.interval());
            network.pause(0);
            network.run(10 * network.interval());
            assert_eq!(network.masters(&[0, 1]), [0, 1], "the stopped one does not know it yet");
            assert_eq!(network.leases(), [1], "but it does not answer for the address");
            network.forget_transitions();
            network.resume(0);
            network.run(10 * network.interval());
            assert_eq!(network.hosts[0].state(), back, "seed {seed}");
            // The sleeper steps down when it wakes; if it preempts, both change once more.
            assert_eq!(network.transitions(), if preempt { 3 } else { 1 }, "seed {seed}");
        });
    }
}
