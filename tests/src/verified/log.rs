//! The verifier's log at level 2, with statistics. Its text differs between kernels; what is read
//! here has been the same from 5.15 on:
//!
//! - `12: (07) r1 += 1`: looked at instruction 12.
//! - `12: safe`, `from 7 to 12: safe`: came to instruction 12, and need not go on.
//! - `Validating name() func#3...`: begins with a global function, as if nothing were known of its
//!   caller.
//! - `Func#3 is safe for any args that match its prototype` (with the name before `is` since 6.8):
//!   is done with it.
//! - `stack depth 120+0+48`, with ` max 168` behind it since 7.0: the frames of the functions that
//!   are left. The newest kernels write a line for each function in its place:
//!   `subprog 2 (name) global insns_self 90 insns_total 90 stack 48`.
//! - `processed 450 insns (limit 1000000) ...`: the sum of all looks.

use std::collections::BTreeMap;

/// What a log says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Looks by instruction.
    pub looked_at: BTreeMap<usize, u32>,
    /// Looks by the function in which the verifier began: 0, and the global ones.
    pub passes: BTreeMap<usize, u32>,
    /// Bytes of stack, in the order of the functions.
    pub frames: Vec<u32>,
    /// The sum as the kernel gives it.
    pub processed: u32,
    /// The last line before the statistics: the reason if the program was refused.
    pub last: String,
}

impl Log {
    pub fn read(text: &[u8]) -> Log {
        let mut log = Log::default();
        let mut pass = 0;
        for line in text.split(|byte| *byte == b'\n') {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            if let Some(number) = looked_at(line) {
                *log.looked_at.entry(number).or_default() += 1;
                *log.passes.entry(pass).or_default() += 1;
            } else if let Some(number) = begun(line) {
                pass = number;
            } else if is_done(line) {
                pass = 0;
            } else if let Some(frames) = line.strip_prefix("stack depth ") {
                log.frames.extend(frames.split('+').filter_map(number::<u32>));
            } else if let Some(frame) = frame_of_function(line) {
                log.frames.push(frame);
            } else if let Some(count) = line.strip_prefix("processed ") {
                log.processed = number(count).unwrap_or_default();
            } else if !line.is_empty() && !line.starts_with("verification time") {
                log.last.clear();
                log.last.push_str(line);
            }
        }
        log
    }
}

/// The number with which a text begins.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

fn looked_at(line: &str) -> Option<usize> {
    if let Some((_, to)) = line.strip_prefix("from ").and_then(|jump| jump.split_once(" to ")) {
        return if to.ends_with(": safe") { number(to) } else { None };
    }
    let (before, after) = line.split_once(": ")?;
    if after.starts_with('(') || after == "safe" { before.parse().ok() } else { None }
}

fn begun(line: &str) -> Option<usize> {
    number(line.strip_prefix("Validating ")?.split_once("func#")?.1)
}

fn frame_of_function(line: &str) -> Option<u32> {
    let (_, sums) = line.strip_prefix("subprog ")?.split_once(" insns_self ")?;
    number(sums.split_once(" stack ")?.1)
}

fn is_done(line: &str) -> bool {
    line.starts_with("Func#") && line.contains(" is safe for any args")
}
