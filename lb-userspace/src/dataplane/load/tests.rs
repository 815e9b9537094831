use aya_obj::{Object, maps::Map};

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
