//! `bench`: the same works through no balancer, through what people use today, through a bare
//! rewriting and through evenkeel, in turn.

mod bare;
pub mod cpu;
mod daemon;
pub mod idle;
pub mod load;
pub mod memory;
pub mod server;
pub mod systems;
pub mod works;

use std::{collections::BTreeMap, thread, time::Instant};

use anyhow::{Result, bail};

use super::results::Results;
use load::Report;
use systems::{Servers, Stage, System};
use works::{ALL, BULK, Pace, REST, Work};

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extent {
    pub systems: &'static [System],
    /// Names of the works; none: all.
    pub works: Option<&'static [&'static str]>,
    /// Every system does every work once in each.
    pub rounds: usize,
    /// Seconds of each measurement.
    pub seconds: f64,
    pub idle: Option<Idle>,
}

/// Connections over which nothing comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Idle {
    /// Of every system, for what they cost in memory.
    pub compared: u32,
    /// Of the daemon's own figures.
    pub own: u32,
    /// How long the daemon is observed while nothing happens: several rounds of its slower timers.
    pub seconds: f64,
}

impl Extent {
    pub const FULL: Extent = Extent {
        systems: &System::ALL,
        works: None,
        rounds: 5,
        seconds: 2.0,
        idle: Some(Idle { compared: 20_000, own: 100_000, seconds: 10.0 }),
    };
    /// TCP only, three systems, below 90 s.
    pub const QUICK: Extent =
        Extent { systems: &System::QUICK, works: Some(&works::QUICK), rounds: 5, seconds: 0.6, idle: None };
}

/// All of it, or one part: a work's name (with the one that its rate comes from), `idle` or
/// `daemon`.
pub fn run(extent: Extent, only: Option<&str>, results: &mut Results) -> Result<()> {
    let began = Instant::now();
    let wanted = |part: &str| only.is_none_or(|only| only == part);
    let is_wanted = |work: &&Work| {
        let chosen = extent.works.is_none_or(|works| works.contains(&work.name));
        let is_base = ALL.iter().any(|other| other.base() == Some(work.name) && wanted(other.name));
        chosen && (wanted(work.name) || is_base)
    };
    let works: Vec<_> = ALL.iter().filter(is_wanted).collect();
    if works.is_empty() && !["idle", "daemon"].iter().any(|part| wanted(part)) {
        bail!("there are the parts {}, idle, daemon", ALL.map(|work| work.name).join(", "));
    }
    if !works.is_empty() {
        loads(extent, &works, began, results)?;
    }
    let Some(idle) = extent.idle else { return Ok(()) };
    if wanted("idle") {
        memory::measure(extent.systems, idle.compared, extent.rounds, results)?;
        println!("memory of {} idle connections ({:.0} s)", idle.compared, began.elapsed().as_secs_f32());
    }
    if wanted("daemon") {
        daemon::measure(extent.rounds, idle, results)?;
        println!("the daemon itself ({:.0} s)", began.elapsed().as_secs_f32());
    }
    Ok(())
}

fn loads(extent: Extent, works: &[&Work], began: Instant, results: &mut Results) -> Result<()> {
    let start = |system: &System| Stage::start(*system, Servers::Answering);
    let stages = extent.systems.iter().map(start).collect::<Result<Vec<_>>>()?;
    println!("{} systems stand ({:.0} s)", stages.len(), began.elapsed().as_secs_f32());
    // By work, the lowest rate of any system in the first round.
    let mut slowest = BTreeMap::new();
    for round in 0..extent.rounds {
        for work in works {
            one_work(work, &stages, round, extent, &mut slowest, results)?;
        }
        println!("round {} of {} ({:.0} s)", round + 1, extent.rounds, began.elapsed().as_secs_f32());
    }
    Ok(())
}

/// One work through all systems, each round in another order.
fn one_work(
    work: &Work,
    stages: &[Stage],
    round: usize,
    extent: Extent,
    slowest: &mut BTreeMap<&'static str, f64>,
    results: &mut Results,
) -> Result<()> {
    let rate = match work.pace {
        Pace::Full => None,
        Pace::Share(share, of) => slowest.get(of).map(|rate| (rate * share).floor()),
    };
    if let (Some(rate), 0) = (rate, round) {
        results.add(&format!("lab/{}/asked", work.name), "1/s", rate);
    }
    for turn in 0..stages.len() {
        let stage = &stages[(turn + round) % stages.len()];
        if !work.segmentation {
            stage.segmentation(false)?;
        }
        let report = work.run(stage, rate, extent.seconds);
        if !work.segmentation && stage.system.base() == System::Direct {
            stage.segmentation(true)?;
        }
        let report = report?;
        if round == 0 {
            let lowest = slowest.entry(work.name).or_insert(f64::INFINITY);
            *lowest = lowest.min(report.rate());
        }
        note(work, stage.system, &report, results);
        thread::sleep(REST);
    }
    Ok(())
}

fn note(work: &Work, system: System, report: &Report, results: &mut Results) {
    let mut add = |what: &str, unit: &str, value: f64| {
        results.add(&format!("lab/{}/{}/{what}", work.name, system.name()), unit, value);
    };
    add("rate", "1/s", report.rate());
    add("p50", "µs", report.p50_us);
    add("p99", "µs", report.p99_us);
    add("failed", "", report.failed as f64);
    if work.is_bulk() {
        add("cpu", "s/GB", report.spent.busy / (report.done as f64 * BULK as f64 / 1e9));
    } else {
        add("cpu", "µs", report.busy_us());
    }
    add("busy", "%", report.spent.share * 100.0);
    add("own", "µs", report.own * 1e6 / report.done as f64);
    add("stolen", "%", report.spent.stolen / report.spent.seconds * 100.0);
}
