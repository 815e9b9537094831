//! `evenkeel-lab bench`: how fast evenkeel is, compared with what people use today.

pub mod against;
pub mod bars;
pub mod lab;
pub mod machine;
pub mod packets;
pub mod page;
mod plots;
pub mod results;
pub mod statistics;
mod tables;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use results::Results;

/// Where the results of whole runs go.
const DOCS: &str = "docs/bench";
/// Where the results of quick and partial runs go.
const SCRATCH: &str = "target/bench";

/// The benchmarks' part of the command line.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Program {
    /// Measure how fast it is
    Bench(Options),
    /// The benchmark's server
    #[command(hide = true)]
    BenchServer(lab::server::Options),
    /// The benchmark's load
    #[command(hide = true)]
    BenchLoad(lab::load::Options),
    /// The benchmark's idle connections
    #[command(hide = true)]
    BenchHold(lab::idle::Options),
    /// The benchmark's first connection
    #[command(hide = true)]
    BenchFirst(lab::idle::FirstOptions),
}

impl Program {
    pub fn run(self) -> Result<()> {
        match self {
            Program::Bench(options) => run(&options),
            Program::BenchServer(options) => lab::server::run(&options),
            Program::BenchLoad(options) => lab::load::run(options),
            Program::BenchHold(options) => lab::idle::hold(&options),
            Program::BenchFirst(options) => lab::idle::first(&options),
        }
    }
}

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Measure nanoseconds per packet of the attached program, instead of the lab
    #[arg(long)]
    pub packets: bool,
    /// Measure only this part: of the lab `kept-tcp`, `idle`, `daemon` and others; with --packets
    /// `flows`, `many`, `size`, `life`, `cookies`, `backends`, `services`
    #[arg(long, conflicts_with = "quick")]
    pub only: Option<String>,
    /// Take a quick look: TCP only, three systems, less than 90 s
    #[arg(long, conflicts_with = "packets")]
    pub quick: bool,
    /// Compare with the results of an earlier run: its lab.json or packets.json
    #[arg(long)]
    pub against: Option<PathBuf>,
    /// Write page, plots and results to this folder [default: docs/bench; target/bench for --quick
    /// and --only]
    #[arg(long)]
    pub into: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    // First of all, so that an unreadable file does not waste a whole measurement.
    let before = options.against.as_deref().map(Results::read).transpose()?;
    let is_whole = !options.quick && options.only.is_none();
    let folder = options.into.clone().unwrap_or_else(|| if is_whole { DOCS } else { SCRATCH }.into());
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut results = Results::new(&options.command());
    let file = if options.packets {
        packets::run(options.only.as_deref(), &mut results)?;
        page::PACKETS
    } else {
        let extent = if options.quick { lab::Extent::QUICK } else { lab::Extent::FULL };
        lab::run(extent, options.only.as_deref(), &mut results)?;
        page::LAB
    };
    results.write(&folder.join(file))?;
    page::write(&folder)?;
    let (lab, packets) = if options.packets { (None, Some(&results)) } else { (Some(&results), None) };
    let bars: Vec<_> = bars::all(lab, packets).into_iter().filter(|bar| bar.measured.is_some()).collect();
    println!("\n{}", bars::report(&bars));
    if let Some(before) = before {
        println!("{}", against::report(&before, &results));
    }
    println!("written: {} and its plots, {}", folder.join(page::PAGE).display(), folder.join(file).display());
    Ok(())
}

impl Options {
    /// How to run this again.
    fn command(&self) -> String {
        let mut command = "cargo xtask bench".to_owned();
        if self.packets {
            command += " --packets";
        }
        if self.quick {
            command += " --quick";
        }
        if let Some(only) = &self.only {
            command += &format!(" --only {only}");
        }
        command
    }
}
