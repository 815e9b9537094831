//! `evenkeel-lab verified`: what the kernel's verifier makes of the programs. It shows how many
//! instructions the verifier looks at in each function, and the deepest chains of calls with the
//! stack that they take.

pub mod chains;
mod load;
pub mod log;
mod report;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use chains::{Chain, Rounding};
use load::{Part, Verification};
use log::Log;

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
#[derive(Serialize)]
pub struct Program {
    pub name: String,
    /// The instructions that the program has.
    pub length: usize,
    /// How often the verifier looked at an instruction. The limit is 1,000,000.
    pub instructions: u32,
    /// In the order in which they stand in the program.
    pub functions: Vec<Function>,
    /// `None`: the program was loaded.
    pub refusal: Option<String>,
}

/// A function of a program: the program's entry, or one that is called.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// How often the verifier looked at an instruction in it.
    pub instructions: u32,
    /// The same with the static functions that it calls, if the verifier checks it by itself: the
    /// entry and the global functions.
    pub pass: Option<u32>,
    /// The bytes of stack in use. `None`: the verifier never came here, and the kernel has removed
    /// the function.
    pub frame: Option<u32>,
    /// The functions that it calls, by their positions in the program.
    pub calls: Vec<usize>,
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

    fn of(verification: &Verification) -> Result<Program> {
        let log = Log::read(&verification.log);
        let refusal = verification.refusal.as_ref().map(|error| format!("{error}: {}", log.last));
        let functions = functions(&verification.parts, verification.length, &log)
            .with_context(|| format!("the verifier's log of {} is not understood", verification.name))?;
        let Verification { name, length, .. } = verification;
        Ok(Program { name: name.clone(), length: *length, instructions: log.processed, functions, refusal })
    }
}

/// Loads every program of an object, the ones of evenkeel in whatever state.
pub fn measure(object: &[u8]) -> Result<Vec<Program>> {
    load::load(object)?.iter().map(Program::of).collect()
}

fn functions(parts: &[Part], length: usize, log: &Log) -> Result<Vec<Function>> {
    let ends = parts.iter().skip(1).map(|part| part.start).chain([length]);
    let functions = parts.iter().zip(ends).enumerate().map(|(number, (part, end))| Function {
        name: part.name.clone(),
        instructions: log.looked_at.range(part.start..end).map(|(_, count)| count).sum(),
        pass: log.passes.get(&number).copied(),
        frame: None,
        calls: part.calls.clone(),
    });
    let mut functions: Vec<Function> = functions.collect();
    let frames = log.frames.len();
    if frames == functions.len() {
        functions.iter_mut().zip(&log.frames).for_each(|(function, frame)| function.frame = Some(*frame));
        return Ok(functions);
    }
    // Functions without an instruction that the verifier has looked at are removed before it
    // writes the frames.
    let left: Vec<&mut Function> = functions.iter_mut().filter(|function| function.instructions > 0).collect();
    if frames != left.len() {
        bail!("it has {frames} frames for {} functions", left.len());
    }
    left.into_iter().zip(&log.frames).for_each(|(function, frame)| function.frame = Some(*frame));
    Ok(functions)
}
