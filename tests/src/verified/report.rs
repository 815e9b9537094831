//! What the verifier made of the programs, for a terminal and for other programs.

use anyhow::Result;
use serde::Serialize;

use super::{
    Function, Program,
    chains::{Chain, FRAMES, Rounding, STACK},
};

/// The JSON object.
#[derive(Serialize)]
pub struct Report<'a> {
    kernel: String,
    programs: Vec<Measured<'a>>,
}

#[derive(Serialize)]
struct Measured<'a> {
    #[serde(flatten)]
    program: &'a Program,
    /// Frames rounded up to 32 bytes.
    interpreted: Path<'a>,
    /// Frames rounded up to 16 bytes.
    compiled: Path<'a>,
    /// The chain with the most calls.
    longest: Path<'a>,
}

#[derive(Serialize)]
struct Path<'a> {
    bytes: u32,
    functions: Vec<&'a str>,
}

impl<'a> Report<'a> {
    pub fn of(programs: &'a [Program]) -> Result<Report<'a>> {
        let uname = nix::sys::utsname::uname()?;
        let measured = |program: &'a Program| {
            let path = |chain: Chain| Path {
                bytes: chain.bytes,
                functions: chain.functions.iter().map(|number| program.functions[*number].name.as_str()).collect(),
            };
            Measured {
                program,
                interpreted: path(program.deepest(Rounding::Interpreted)),
                compiled: path(program.deepest(Rounding::Compiled)),
                longest: path(program.longest()),
            }
        };
        let kernel = uname.release().to_string_lossy().into_owned();
        Ok(Report { kernel, programs: programs.iter().map(measured).collect() })
    }
}

/// The names of a chain, each with its frame.
pub fn names(program: &Program, chain: &Chain) -> String {
    let name = |number: &usize| {
        let function = &program.functions[*number];
        format!("{} ({})", function.name, function.stack())
    };
    chain.functions.iter().map(name).collect::<Vec<_>>().join(" > ")
}

/// A table and the chains, on standard output.
pub fn print(program: &Program) {
    let Program { name, length, instructions, functions, refusal } = program;
    println!("{name}: {instructions} instructions looked at, of a program of {length}");
    if let Some(refusal) = refusal {
        println!("  REFUSED: {refusal}");
    }
    println!("  {:<36} {:>9} {:>11} {:>6}", "function", "looked at", "whole pass", "frame");
    let mut sorted: Vec<&Function> = functions.iter().collect();
    sorted.sort_by_key(|function| (std::cmp::Reverse(function.instructions), &function.name));
    for function in sorted {
        let Function { name, instructions, pass, .. } = function;
        let pass = pass.map_or("-".to_owned(), |count| count.to_string());
        println!("  {name:<36} {instructions:>9} {pass:>11} {:>6}", function.stack());
    }
    for (rounding, to) in [(Rounding::Interpreted, 32), (Rounding::Compiled, 16)] {
        let chain = program.deepest(rounding);
        println!("  deepest chain by {to}: {} bytes of {STACK}: {}", chain.bytes, names(program, &chain));
    }
    let chain = program.longest();
    println!("  most frames: {} of {FRAMES}: {}\n", chain.functions.len(), names(program, &chain));
}
