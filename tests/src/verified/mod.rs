//! `evenkeel-lab verified`: what the kernel's verifier makes of the programs. It shows how many
//! instructions the verifier looks at in each function, and the deepest chains of calls with the
//! stack that they take. docs/ebpf.md has the budget, and `it/datapath/verifier.rs` holds it.

pub mod budget;
pub mod chains;
pub mod code;
mod load;
mod log;
mod report;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use chains::{Chain, Rounding};
use code::Part;
use load::Loading;
use log::Log;

pub use load::{Image, Verdict, verify};
pub use report::names;

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Load this object file instead of the one that evenkeel carries
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    let programs = match &options.object {
        Some(path) => measure(&fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)?,
        None => measure(evenkeel::dataplane::OBJECT)?,
    };
    if options.json {
        println!("{}", serde_json::to_string(&report::Report::of(&programs)?)?);
    } else {
        programs.iter().for_each(report::print);
    }
    match programs.iter().find(|program| program.refusal.is_some()) {
        Some(Program { name, .. }) => bail!("the kernel refuses the program {name}"),
        None => Ok(()),
    }
}

/// What the verifier made of one program.
#[derive(Debug, Serialize)]
pub struct Program {
    pub name: String,
    /// The instructions that the program has.
    pub length: usize,
    /// How often the verifier looked at an instruction. The limit is 1,000,000.
    pub instructions: u32,
    /// In the order in which they stand in the program: the entry first.
    pub functions: Vec<Function>,
    /// `None`: the kernel took the program.
    pub refusal: Option<String>,
}

/// A function of a program: its entry, or one that is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Function {
    pub name: String,
    /// How often the verifier looked at an instruction in it. 0: since 6.8 kernels do not check
    /// global functions that are never called; older ones check all.
    pub instructions: u32,
    /// The same with the static functions that it calls, if the verifier checks it by itself: the
    /// entry and the global functions.
    pub pass: Option<u32>,
    /// The bytes of stack that its instructions use, reached or not.
    pub frame: u32,
    /// The bytes of stack that the verifier saw in use. `None`: it did not come here, or it refused
    /// the program and may not have seen all of the function.
    pub verified_frame: Option<u32>,
    /// The functions that it calls, by their positions in the program.
    pub calls: Vec<usize>,
}

impl Function {
    /// The bytes of stack that count.
    pub fn stack(&self) -> u32 {
        self.verified_frame.unwrap_or(self.frame)
    }
}

impl Program {
    /// The chain of calls that takes the most stack.
    pub fn deepest(&self, rounding: Rounding) -> Chain {
        chains::deepest(&self.functions, rounding)
    }

    /// The chain with the most calls.
    pub fn longest(&self) -> Chain {
        chains::longest(&self.functions)
    }

    fn of(loading: Loading) -> Program {
        let Loading { name, length, parts, verdict: Verdict { log, refusal } } = loading;
        let log = Log::read(&log);
        let mut functions: Vec<Function> =
            parts.into_iter().enumerate().map(|(number, (name, part))| function(name, number, part, &log)).collect();
        if refusal.is_none() {
            note_frames(&mut functions, &log.frames);
        }
        let refusal = refusal.map(|error| format!("{error}: {}", log.last));
        Program { name, length, instructions: log.processed, functions, refusal }
    }
}

/// Loads every program of an object of evenkeel.
pub fn measure(object: &[u8]) -> Result<Vec<Program>> {
    Ok(load::load(object)?.into_iter().map(Program::of).collect())
}

fn function(name: String, number: usize, part: Part, log: &Log) -> Function {
    Function {
        name,
        instructions: log.looked_at.range(part.code).map(|(_, count)| count).sum(),
        pass: log.passes.get(&number).copied(),
        frame: part.frame,
        verified_frame: None,
        calls: part.calls,
    }
}

/// The kernel writes the frames at the very end, when it has removed the functions to which the
/// verifier did not come.
fn note_frames(functions: &mut [Function], frames: &[u32]) {
    let left: Vec<&mut Function> = functions.iter_mut().filter(|function| function.instructions > 0).collect();
    if left.len() == frames.len() {
        left.into_iter().zip(frames).for_each(|(function, frame)| function.verified_frame = Some(*frame));
    }
}
