//! What this kernel's verifier makes of the programs: `evenkeel-lab verified`, in a process of its
//! own because its log is long.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::super::said::Measured;
use crate::{
    binaries, process,
    verified::budget::{PASS, PROGRAM, STACK},
};

/// For XDP, TC and the way out.
const PROGRAMS: usize = 3;

#[derive(Deserialize)]
struct Report {
    programs: Vec<Program>,
}

#[derive(Deserialize)]
struct Program {
    name: String,
    instructions: u32,
    functions: Vec<Function>,
    interpreted: Path,
    compiled: Path,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    pass: Option<u32>,
}

#[derive(Deserialize)]
struct Path {
    bytes: u32,
}

/// Every program, with the functions that the verifier checks by themselves, the costliest first.
pub fn measure() -> Result<Vec<Measured>> {
    let shown = process::output(Command::new(binaries::lab()?).args(["verified", "--json"]))?;
    let report: Report = serde_json::from_str(&shown).context("`verified --json` prints something else")?;
    Ok(report.programs.into_iter().map(measured).collect())
}

/// Leaves room for kernels that need more.
pub fn within_budget(programs: &[Measured]) -> Result<String> {
    ensure!(programs.len() == PROGRAMS, "{} programs, not {PROGRAMS}", programs.len());
    for Measured { name, instructions, functions, stack } in programs {
        // Otherwise the log of this kernel was not understood.
        let passes: u32 = functions.iter().map(|(_, pass)| pass).sum();
        ensure!(
            *instructions > 0 && passes == *instructions,
            "{name}: {instructions} instructions, by function {passes}"
        );
        ensure!(*instructions < PROGRAM, "{name}: {instructions} instructions, the bound is {PROGRAM}");
        ensure!(stack[0] <= STACK, "{name}: {} bytes of stack, the bound is {STACK}", stack[0]);
        for (function, pass) in functions {
            ensure!(*pass < PASS, "{name}: {pass} instructions in {function}, the bound is {PASS}");
        }
    }
    Ok(String::new())
}

fn measured(program: Program) -> Measured {
    let Program { name, instructions, functions, interpreted, compiled } = program;
    let own = functions.into_iter().filter_map(|function| Some((function.name, function.pass?)));
    let mut functions: Vec<_> = own.collect();
    functions.sort_by_key(|(_, pass)| std::cmp::Reverse(*pass));
    Measured { name, instructions, functions, stack: [interpreted.bytes, compiled.bytes] }
}
