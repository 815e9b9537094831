use aya_obj::{Object, generated::bpf_insn, maps::Map};

use super::*;
use crate::tables::Outer;

/// Kinds of BTF types (linux/btf.h).
const INT: u32 = 1;
const ARRAY: u32 = 3;

/// The kind of each type in `.BTF`, by its number. Type 0 is `void`.
fn btf_kinds(btf: &[u8]) -> Vec<u32> {
    let word = |at: usize| u32::from_ne_bytes(btf[at..at + 4].try_into().unwrap());
    // struct btf_header: magic, version, flags; hdr_len, type_off, type_len.
    let begin = (word(4) + word(8)) as usize;
    let end = begin + word(12) as usize;
    let (mut kinds, mut at) = (vec![0], begin);
    while at < end {
        let info = word(at + 4);
        let (kind, members) = (info >> 24 & 0x1f, info as usize & 0xffff);
        kinds.push(kind);
        at += 12
            + match kind {
                INT | 14 | 17 => 4,
                ARRAY => 12,
                4 | 5 | 15 | 19 => 12 * members,
                6 | 13 => 8 * members,
                2 | 7..=12 | 16 | 18 => 0,
                _ => panic!("BTF kind {kind} is unknown to this test"),
            };
    }
    kinds
}

/// Kernels 5.15 to 6.1 refuse the controller's inner maps where the template's value is a structure
/// (`bpf_map_meta_equal` compares `timer_off`, see `lb_ebpf::maps`); newer ones take either, so only
/// the object can show it here.
#[test]
fn no_inner_map_has_a_structure_for_a_value() {
    let object = Object::parse(OBJECT).unwrap();
    let kinds = btf_kinds(&object.btf.as_ref().unwrap().to_bytes());
    let mut seen = 0;
    for (name, map) in &object.maps {
        let Some(Map::Btf(inner)) = map.inner() else { continue };
        let kind = kinds[inner.def.btf_value_type_id as usize];
        assert!(kind == INT || kind == ARRAY, "the inner maps of {name} have values of BTF kind {kind}");
        seen += 1;
    }
    assert_eq!(seen, Outer::ALL.len());
}

const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Classes of operations.
const JUMP: u8 = 0x05;
const JUMP_32: u8 = 0x06;

/// Where a function goes on after an instruction, in the order in which the verifier looks: the
/// next one, and the target of a jump. The flag: whether the kernel allows a loop by this edge.
fn edges(instructions: &[bpf_insn], at: usize) -> Vec<(usize, bool)> {
    let instruction = &instructions[at];
    let target = (at as i64 + 1 + i64::from(instruction.off)) as usize;
    match instruction.code {
        EXIT => vec![],
        // Two instructions long: a 64-bit constant.
        0x18 => vec![(at + 2, false)],
        JUMP => vec![(target, true)],
        CALL => vec![(at + 1, false)],
        code if matches!(code & 7, JUMP | JUMP_32) => vec![(at + 1, true), (target, true)],
        _ => vec![(at + 1, false)],
    }
}

/// The first edge that closes a loop and is not a jump.
fn loop_without_a_jump(instructions: &[bpf_insn]) -> Option<(usize, usize)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        OnTheWay,
        Done,
    }
    let mut seen = vec![Seen::Not; instructions.len()];
    let mut way = vec![(0, 0)];
    seen[0] = Seen::OnTheWay;
    while let Some((at, taken)) = way.last_mut() {
        let (from, edges) = (*at, edges(instructions, *at));
        let Some((to, may_loop)) = edges.get(*taken).copied() else {
            seen[from] = Seen::Done;
            way.pop();
            continue;
        };
        *taken += 1;
        match seen[to] {
            Seen::Not => {
                seen[to] = Seen::OnTheWay;
                way.push((to, 0));
            }
            Seen::OnTheWay if !may_loop => return Some((from, to)),
            _ => {}
        }
    }
    None
}

/// Before 6.7 the verifier takes a loop only if a jump closes it (`check_cfg`): one whose last
/// instruction runs into its first is refused ("back-edge from insn").
#[test]
fn every_loop_is_closed_by_a_jump() {
    let object = Object::parse(OBJECT).unwrap();
    for function in object.functions.values() {
        let found = loop_without_a_jump(&function.instructions);
        assert_eq!(found, None, "{}: an instruction runs into the beginning of its loop", function.name);
    }
}
