//! The attacker's power, see [`lab::power`]: random histories. `EVENKEEL_SEED=N` runs one of them
//! alone; `cargo xtask test --full` runs 10,000 of each kind.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use lab::{
    power::{Fault, Strangers, Words, World, bench},
    program::Hook,
};

/// The seed of one history, to run it alone.
const SEED: &str = "EVENKEEL_SEED";

/// So many histories on each hook; at full size `full` ones.
fn seeds(quick: u64, full: u64) -> Range<u64> {
    match std::env::var(SEED) {
        Ok(seed) => {
            let seed = seed.parse().expect("EVENKEEL_SEED is a number");
            seed..seed + 1
        }
        Err(_) if std::env::var_os("EVENKEEL_FULL").is_some() => 0..full,
        Err(_) => 0..quick,
    }
}

/// The first history of each kind of fault, its seed, and how many there are.
type Faults = BTreeMap<String, (u64, u64, Fault)>;

/// Runs all histories on one hook: how many frames strangers have sent, and what went wrong.
fn histories(hook: Hook, strangers: Strangers, seeds: Range<u64>) -> (u64, Faults) {
    let bench = bench(hook);
    let (words, start) = World::tables(&bench);
    let mut frames = 0;
    let mut faults = Faults::new();
    for seed in seeds {
        match World::run(&bench, (&words, &start), strangers, seed) {
            Ok(sent) => frames += sent,
            Err(fault) => faults.entry(fault.kind.clone()).or_insert((seed, 0, fault)).1 += 1,
        }
    }
    (frames, faults)
}

/// Prints the seeds, and for each kind of fault its first history up to what made the difference.
fn run(strangers: Strangers, seeds: Range<u64>) {
    let hooks = [Hook::Xdp, Hook::Tcx];
    let results = std::thread::scope(|scope| {
        // A bench moves its thread into its own namespaces.
        let running = hooks.map(|hook| {
            let seeds = seeds.clone();
            scope.spawn(move || histories(hook, strangers, seeds))
        });
        running.map(|thread| thread.join().expect("the histories of one hook"))
    });
    let mut failed = 0;
    for (hook, (frames, faults)) in hooks.into_iter().zip(&results) {
        println!("{hook:?}, strangers {strangers:?}: seeds {seeds:?}, {frames} of their frames");
        for (kind, (seed, count, fault)) in faults {
            failed += count;
            println!("\n{hook:?}, strangers {strangers:?}: {count} histories: {kind}. The first is {SEED}={seed}:");
            fault.history.iter().for_each(|step| println!("  {step}"));
            println!("{}\n", fault.what);
        }
    }
    assert_eq!(failed, 0, "histories with a fault; {SEED} repeats one of them");
}

#[test]
fn honest_connections_end_as_the_model_says() {
    run(Strangers::None, seeds(1_000, 10_000));
}

#[test]
fn what_a_connection_writes_is_seen_and_is_put_back() {
    super::on_every_hook(|bench| {
        let words = Words::open(&bench.bpffs.join("maps"), 64).expect("the tables");
        let before = words.keep();
        assert!(words.changes(&before).is_empty());
        bench.connect(super::client(0));
        let changes = words.changes(&before);
        let tables: BTreeSet<_> = changes.iter().map(|change| &change.table[..]).collect();
        let written = ["BACKENDS", "CONNECT_TIMES", "HALF_OPEN", "INDEX", "OPENINGS", "RINGS", "SERVICES", "SLOTS"];
        assert!(written.iter().all(|table| tables.contains(table)), "{tables:?}");
        words.restore(&before);
        assert!(words.changes(&before).is_empty());
        assert_eq!((bench.active(), bench.tables().find(super::client(0).into())), (vec![0; 3], Vec::new()));
    });
}
#[test]
fn whoever_knows_addresses_and_ports_but_no_number_changes_no_word_of_any_table() {
    run(Strangers::Blind, seeds(250, 10_000));
}

#[test]
fn whoever_knows_nothing_opens_what_gives_way_and_changes_nothing_else() {
    run(Strangers::Unknowing, seeds(250, 10_000));
}

#[test]
fn strangers_of_both_kinds_together_have_no_more_power_than_each() {
    run(Strangers::Both, seeds(250, 10_000));
}
