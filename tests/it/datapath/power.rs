//! The attacker's power, see [`lab::power`]: random histories. `EVENKEEL_SEED=N` runs one of them
//! alone; `cargo xtask test --full` runs ten times as many.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use lab::{
    power::{Fault, Strangers, Words, World, bench},
    program::Hook,
};

/// Histories on each hook; at full size ten times as many.
const RUNS: u64 = 1_000;
/// The seed of one history, to run it alone.
const SEED: &str = "EVENKEEL_SEED";

fn seeds() -> Range<u64> {
    match std::env::var(SEED) {
        Ok(seed) => {
            let seed = seed.parse().expect("EVENKEEL_SEED is a number");
            seed..seed + 1
        }
        Err(_) if std::env::var_os("EVENKEEL_FULL").is_some() => 0..10 * RUNS,
        Err(_) => 0..RUNS,
    }
}

/// The first history of each kind of fault, its seed, and how many there are.
type Faults = BTreeMap<String, (u64, u64, Fault)>;

/// Runs all histories on one hook: how many frames strangers have sent, and what went wrong.
fn histories(hook: Hook, strangers: Strangers) -> (u64, Faults) {
    let bench = bench(hook);
    let (words, start) = World::tables(&bench);
    let mut frames = 0;
    let mut faults = Faults::new();
    for seed in seeds() {
        match World::run(&bench, (&words, &start), strangers, seed) {
            Ok(sent) => frames += sent,
            Err(fault) => faults.entry(fault.kind.clone()).or_insert((seed, 0, fault)).1 += 1,
        }
    }
    (frames, faults)
}

/// Prints the seeds, and for each kind of fault its first history up to what made the difference.
fn run(strangers: Strangers) {
    let hooks = [Hook::Xdp, Hook::Tcx];
    let results = std::thread::scope(|scope| {
        // A bench moves its thread into its own namespaces.
        let running = hooks.map(|hook| scope.spawn(move || histories(hook, strangers)));
        running.map(|thread| thread.join().expect("the histories of one hook"))
    });
    let mut failed = 0;
    for (hook, (frames, faults)) in hooks.into_iter().zip(&results) {
        println!("{hook:?}, strangers {strangers:?}: seeds {:?}, {frames} of their frames", seeds());
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
    run(Strangers::None);
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
