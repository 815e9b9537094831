//! The verifier's log at level 2, with statistics. Its text differs between kernels; what is read
//! here has been the same from 5.15 on:
//!
//! - `12: (07) r1 += 1`: looked at instruction 12.
//! - `12: safe`, `from 7 to 12: safe`: came to instruction 12, and need not go on.
//! - `Validating name() func#3...`: begins with a global function, as if nothing were known of its
//!   caller.
//! - `Func#3 is safe for any args that match its prototype` (with the name before `is` since 6.8):
//!   is done with it.
//! - `stack depth 120+0+48`: the frames of the functions that are left, on newer kernels with
//!   ` max 168` behind them. The newest write a line for each function instead:
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

#[cfg(test)]
mod tests {
    use super::*;

    /// 5.15 to 6.7: the global functions come first, the program itself last.
    const OLD: &str = "\
Validating row_global() func#1...
4: R1=invP(id=0) R10=fp0
; let row = 0;
4: (bf) r0 = r1
5: R0_w=invP(id=0) R1=invP(id=0) R10=fp0
5: (15) if r0 == 0x0 goto pc+1
 R0_w=invP(id=0) R1=invP(id=0) R10=fp0
6: (95) exit

from 5 to 6 (speculative execution): safe
Func#1 is safe for any args that match its prototype
0: R1=ctx(id=0,off=0,imm=0) R10=fp0
0: (7b) *(u64 *)(r10 -8) = r1
1: (85) call pc+2
Func#1 is global and valid. Skipping.
2: R0=invP(id=0) R10=fp0
2: (95) exit
verification time 312 usec
stack depth 8+0
processed 7 insns (limit 1000000) max_states_per_insn 1 total_states 2 peak_states 2 mark_read 1
";

    /// 6.8 to 6.18: the program itself first, then the global functions that it calls.
    const NEW: &str = "\
func#0 @0
func#1 @4
0: R1=ctx() R10=fp0
; let key = 0; @ main.rs:12
0: (7b) *(u64 *)(r10 -8) = r1         ; R1=ctx() R10=fp0 fp-8_w=ctx()
1: (85) call pc+2
Func#1 ('row_global') is global and assumed valid.
2: R0_w=scalar()
2: (95) exit
mark_precise: frame0: last_idx 2 first_idx 0 subseq_idx -1
mark_precise: frame0: regs=r0 stack= before 1: (85) call pc+2
Validating row_global() func#1...
4: R1=scalar() R10=fp0
4: (bf) r0 = r1                       ; R0_w=scalar(id=1) R1=scalar(id=1)
5: (15) if r0 == 0x0 goto pc+1        ; R0_w=scalar(id=1,umin=1)
6: (95) exit

from 5 to 6: R0_w=0 R1=0 R10=fp0
6: (95) exit
6: safe
Func#1 ('row_global') is safe for any args that match its prototype
verification time 312 usec
stack depth 8+0
processed 8 insns (limit 1000000) max_states_per_insn 1 total_states 2 peak_states 2 mark_read 1
";

    fn counts(counts: &[(usize, u32)]) -> BTreeMap<usize, u32> {
        counts.iter().copied().collect()
    }

    #[test]
    fn every_instruction_that_an_old_kernel_looks_at_is_counted() {
        let log = Log::read(OLD.as_bytes());
        assert_eq!(log.looked_at, counts(&[(0, 1), (1, 1), (2, 1), (4, 1), (5, 1), (6, 2)]));
        assert_eq!(log.passes, counts(&[(0, 3), (1, 4)]));
        assert_eq!((log.frames, log.processed), (vec![8, 0], 7));
    }

    #[test]
    fn every_instruction_that_a_new_kernel_looks_at_is_counted() {
        let log = Log::read(NEW.as_bytes());
        assert_eq!(log.looked_at, counts(&[(0, 1), (1, 1), (2, 1), (4, 1), (5, 1), (6, 3)]));
        assert_eq!(log.passes, counts(&[(0, 3), (1, 5)]));
        assert_eq!((log.frames, log.processed), (vec![8, 0], 8));
    }

    #[test]
    fn frames_are_read_in_each_of_their_forms() {
        for text in [
            "stack depth 144+16+0\n",
            "stack depth 144+16+0 max 192\n",
            "stack depth max 192\n\
             subprog 0 (evenkeel_out) main insns_self 138 insns_total 437 stack 144\n\
             subprog 1 (row_global) global insns_self 299 insns_total 299 stack 16\n\
             subprog 2 (peek_global) global insns_self 9 insns_total 9 stack 0\n",
        ] {
            assert_eq!(Log::read(text.as_bytes()).frames, [144, 16, 0], "{text}");
        }
    }

    #[test]
    fn the_last_line_before_the_sums_says_why_a_program_is_refused() {
        let log = Log::read(
            b"7: (95) exit\n\
              combined stack size of 3 calls is 624. Too large\n\
              verification time 60 usec\n\
              stack depth 200+200+200\n\
              processed 10 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n",
        );
        assert_eq!(log.last, "combined stack size of 3 calls is 624. Too large");
        let log = Log::read(
            b"BPF program is too large. Processed 1000001 insn\n\
              processed 1000001 insns (limit 1000000) max_states_per_insn 80 total_states 9 peak_states 9 mark_read 9\n",
        );
        assert_eq!(log.processed, 1_000_001);
        assert_eq!(log.last, "BPF program is too large. Processed 1000001 insn");
    }
}
