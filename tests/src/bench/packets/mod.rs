//! `bench --packets`: nanoseconds per packet of the attached program with its real tables, on both
//! hooks.

mod life;
mod replay;
mod report;
mod steady;

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use super::results::Results;
use crate::program::{Bench, Hook, Setup};
pub use replay::OBJECT;
use replay::Replay;
pub use report::report;

/// Rounds, each of which measures everything.
const ROUNDS: u32 = 5;
/// How many runs a round makes of each figure. The quickest counts: another load on the same core
/// or in the last-level cache makes some runs slower for milliseconds, and only our own program
/// makes all of them slower.
const RUNS: u32 = 12;

/// The hooks that are measured, and their names in the figures.
const HOOKS: [(Hook, &str); 2] = [(Hook::Xdp, "xdp"), (Hook::Tcx, "tc")];

/// A part of the benchmark, with its own tables.
type Part = (&'static str, fn(Hook, &str, &mut Results) -> Result<()>);

const PARTS: [Part; 7] = [
    ("flows", steady::by_flows),
    ("many", steady::many_flows),
    ("size", steady::by_size),
    ("life", life::whole_lives),
    ("cookies", life::cookies),
    ("backends", life::by_backends),
    ("services", steady::by_services),
];

/// Measures all parts, or one.
pub fn run(only: Option<&str>, results: &mut Results) -> Result<()> {
    let parts: Vec<_> = PARTS.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)).collect();
    if parts.is_empty() {
        bail!("there are the parts {}", PARTS.map(|(name, _)| name).join(", "));
    }
    for (hook, hook_name) in HOOKS {
        for (name, measure) in &parts {
            println!("{hook_name}: {name} ...");
            let part = || measure(hook, hook_name, results);
            in_own_network(part).with_context(|| format!("{hook_name}: {name}"))?;
        }
    }
    Ok(())
}

/// A bench moves its thread into its own namespaces, which end with the thread.
fn in_own_network<T: Send>(part: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pinned = || pin().and_then(|()| part());
    std::thread::scope(|scope| scope.spawn(pinned).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// A service with this many backends and this many ports for each (both powers of two), and the
/// program attached.
fn stage(hook: Hook, backends: u16, ports: u16, max_connections: u32) -> Result<Replay> {
    let mut setup = Setup { backends, ports, max_connections, ..Setup::default() };
    setup.service.half_open_cells = 8192;
    Replay::new(Bench::with(hook, setup), hook)
}

/// Keeps this thread on the last processor: the first one gets most interrupts.
pub fn pin() -> Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("which processors may be used")?;
    let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false)).context("no processor")?;
    let mut one = CpuSet::new();
    one.set(last)?;
    sched_setaffinity(Pid::from_raw(0), &one).context("pin to a processor")
}
