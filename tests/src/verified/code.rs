//! What a program's instructions say without a kernel: which function calls which, and how much
//! stack each uses.

use std::{collections::BTreeSet, ops::Range};

use aya_obj::generated::bpf_insn;

const CALL: u8 = 0x85;
const ADD_IMMEDIATE: u8 = 0x07;
const MOVE: u8 = 0xbf;
const PSEUDO_CALL: u8 = 1;
const FRAME_POINTER: usize = 10;

/// A function of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub code: Range<usize>,
    /// The functions that it calls, by their positions in the program.
    pub calls: Vec<usize>,
    /// The bytes of stack that it uses.
    pub frame: u32,
}

/// The functions of a program that begin at these instructions, in ascending order. The kernel
/// numbers them in the same way.
pub fn parts(starts: &[usize], instructions: &[bpf_insn]) -> Vec<Part> {
    let ends = starts.iter().skip(1).copied().chain([instructions.len()]);
    let part = |code: Range<usize>| {
        let callees = code.clone().filter_map(|at| callee(at, &instructions[at]));
        let calls: BTreeSet<usize> = callees.filter_map(|at| starts.binary_search(&at).ok()).collect();
        Part { calls: calls.into_iter().collect(), frame: frame(&instructions[code.clone()]), code }
    };
    starts.iter().zip(ends).map(|(start, end)| part(*start..end)).collect()
}

/// Where an instruction calls, if it calls a function of the program.
fn callee(at: usize, instruction: &bpf_insn) -> Option<usize> {
    let is_call = instruction.code == CALL && instruction.src_reg() == PSEUDO_CALL;
    is_call.then(|| (at + 1).wrapping_add_signed(instruction.imm as isize))
}

/// The bytes below the frame pointer that a function accesses, or whose address it takes. It goes
/// through the instructions in their order, and so also counts those that are never reached: it is at
/// least what the verifier sees.
fn frame(instructions: &[bpf_insn]) -> u32 {
    // How far below the frame pointer each register points.
    let mut below: [Option<i32>; 11] = [None; 11];
    below[FRAME_POINTER] = Some(0);
    let mut deepest = 0;
    for instruction in instructions {
        let (to, from) = (usize::from(instruction.dst_reg()), usize::from(instruction.src_reg()));
        let offset = i32::from(instruction.off);
        match (instruction.code, instruction.code & 7) {
            (MOVE, _) => below[to] = below[from],
            (ADD_IMMEDIATE, _) => {
                below[to] = below[to].map(|depth| depth - instruction.imm);
                deepest = deepest.max(below[to].unwrap_or(0));
            }
            (CALL, _) => below[..6].fill(None),
            // Loads.
            (_, 1) => {
                deepest = deepest.max(below[from].map_or(0, |depth| depth - offset));
                below[to] = None;
            }
            // Stores and atomics.
            (_, 2 | 3) => deepest = deepest.max(below[to].map_or(0, |depth| depth - offset)),
            // Other arithmetic, and constants.
            (_, 0 | 4 | 7) => below[to] = None,
            _ => {}
        }
    }
    // The verifier counts in words of eight bytes.
    (deepest as u32).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, to: u8, from: u8, off: i16, imm: i32) -> bpf_insn {
        let registers = bpf_insn::new_bitfield_1(to, from);
        bpf_insn { code, _bitfield_align_1: [], _bitfield_1: registers, off, imm }
    }

    #[test]
    fn a_frame_reaches_to_the_deepest_access_and_to_the_deepest_address() {
        let store = instruction(0x7b, 10, 1, -24, 0);
        let load = instruction(0x79, 1, 10, -40, 0);
        let exit = instruction(0x95, 0, 0, 0, 0);
        assert_eq!(frame(&[exit]), 0);
        assert_eq!(frame(&[store, exit]), 24);
        assert_eq!(frame(&[store, load, exit]), 40);
        // r2 = r10; r2 += -60: an address for a helper.
        let address = [instruction(MOVE, 2, 10, 0, 0), instruction(ADD_IMMEDIATE, 2, 0, 0, -60)];
        assert_eq!(frame(&address), 64);
        // *(u64 *)(r2 - 12) = r1
        assert_eq!(frame(&[address[0], address[1], instruction(0x7b, 2, 1, -12, 0)]), 72);
    }

    #[test]
    fn what_is_below_another_pointer_is_not_stack() {
        let address = instruction(MOVE, 2, 10, 0, 0);
        let access = instruction(0x79, 3, 2, -200, 0);
        assert_eq!(frame(&[address, access]), 200);
        assert_eq!(frame(&[address, instruction(0x79, 2, 1, 0, 0), access]), 0, "r2 is loaded anew");
        assert_eq!(frame(&[address, instruction(CALL, 0, 0, 0, 1), access]), 0, "a helper was called");
        assert_eq!(frame(&[address, instruction(0xb7, 2, 0, 0, 9), access]), 0, "r2 is a number");
    }

    #[test]
    fn calls_lead_to_functions_and_helpers_do_not_count() {
        let call = |to: i32| instruction(CALL, 0, PSEUDO_CALL, 0, to);
        let exit = instruction(0x95, 0, 0, 0, 0);
        // 0: calls 2 and 1, and 2 again; 1: calls a helper; 2: nothing.
        let program = [call(5), call(2), call(3), exit, instruction(CALL, 0, 0, 0, 14), exit, exit];
        let parts = parts(&[0, 4, 6], &program);
        let calls: Vec<&[usize]> = parts.iter().map(|part| part.calls.as_slice()).collect();
        assert_eq!(calls, [&[1, 2][..], &[], &[]]);
        assert_eq!(parts[1].code, 4..6);
    }
}
