//! What the kernel must have for the programs, and how each of it is found out: by trying, never by
//! the kernel's version, because distributions take features into older kernels.
//!
//! Nothing is tried while all goes well. When the kernel has refused the maps or a program,
//! [`missing`] tells why; only what a load does not show ([`Need::XdpContext`]) is tried before.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::{
    inject::xdp_context,
    shapes::{INNER, MAPPED},
};
use crate::sys::bpf;

/// Something that not every kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Arrays whose records the controller maps into its memory.
    MappedArrays,
    /// The ring buffer of events.
    RingBuffers,
    /// Inner maps of one outer map that differ in size.
    InnerSizes,
    /// A helper function of [`HELPERS`].
    Helper(u32),
    /// `fetch_add`, `xchg` and `cmpxchg`: atomic instructions that return what was there before.
    AtomicResults,
    /// A context for the test run of an XDP program: the self-test and `trace` say by which
    /// interface a frame comes in.
    XdpContext,
}

/// A helper function that the programs call.
pub struct Helper {
    /// Its number (linux/bpf.h).
    pub number: u32,
    pub name: &'static str,
    /// The kernel that brought it, for the programs that call it.
    pub since: (u32, u32),
}

const fn helper(number: u32, name: &'static str, since: (u32, u32)) -> Helper {
    Helper { number, name, since }
}

/// Every helper function that the programs call; a test compares it with the object.
pub const HELPERS: [Helper; 16] = [
    helper(1, "bpf_map_lookup_elem", (4, 8)),
    helper(5, "bpf_ktime_get_ns", (4, 8)),
    helper(7, "bpf_get_prandom_u32", (4, 8)),
    helper(9, "bpf_skb_store_bytes", (4, 1)),
    helper(11, "bpf_l4_csum_replace", (4, 1)),
    helper(19, "bpf_skb_vlan_pop", (4, 3)),
    helper(23, "bpf_redirect", (4, 14)),
    helper(38, "bpf_skb_change_tail", (4, 9)),
    helper(39, "bpf_skb_pull_data", (4, 9)),
    helper(44, "bpf_xdp_adjust_head", (4, 10)),
    helper(50, "bpf_skb_adjust_room", (4, 13)),
    helper(118, "bpf_jiffies64", (5, 6)),
    helper(131, "bpf_ringbuf_reserve", (5, 8)),
    helper(132, "bpf_ringbuf_submit", (5, 8)),
    helper(133, "bpf_ringbuf_discard", (5, 8)),
    helper(160, "bpf_ktime_get_coarse_ns", (5, 11)),
];

impl Need {
    /// Everything that is tried, the oldest first.
    fn all() -> impl Iterator<Item = Need> {
        let helpers = HELPERS.iter().map(|helper| Need::Helper(helper.number));
        [Need::MappedArrays, Need::RingBuffers, Need::InnerSizes]
            .into_iter()
            .chain(helpers)
            .chain([Need::AtomicResults, Need::XdpContext])
    }

    /// What it is, for an operator.
    pub fn name(self) -> String {
        match self {
            Need::MappedArrays => "arrays that can be mapped into memory".into(),
            Need::RingBuffers => "ring buffers".into(),
            Need::InnerSizes => "inner maps of different sizes".into(),
            Need::Helper(number) => {
                let known = HELPERS.iter().find(|helper| helper.number == number);
                known.map_or_else(|| format!("helper function {number}"), |helper| helper.name.into())
            }
            Need::AtomicResults => "atomic instructions that return a value".into(),
            Need::XdpContext => "test runs of XDP programs with a context".into(),
        }
    }

    /// The release of Linux that brought it.
    pub fn since(self) -> (u32, u32) {
        match self {
            Need::MappedArrays => (5, 5),
            Need::RingBuffers => (5, 8),
            Need::InnerSizes => (5, 10),
            Need::Helper(number) => {
                HELPERS.iter().find(|helper| helper.number == number).map_or((0, 0), |helper| helper.since)
            }
            Need::AtomicResults => (5, 12),
            Need::XdpContext => (5, 15),
        }
    }

    /// Tries it. An answer that says something else counts as there: this explains a refusal, and
    /// the refusal itself is reported with it.
    pub fn is_missing(self) -> bool {
        match self {
            Need::MappedArrays => is_invalid(bpf::create_array("probe", 8, 1, MAPPED)),
            Need::RingBuffers => is_invalid(bpf::create_ring_buffer(1 << 16)),
            Need::InnerSizes => is_invalid(bpf::create_array("probe", 8, 1, MAPPED | INNER)),
            Need::Helper(number) => [bpf::TC, bpf::XDP].into_iter().all(|kind| lacks_helper(kind, number)),
            Need::AtomicResults => bpf::load_program(bpf::TC, &FETCH_ADD).is_err_and(|no| invalid(&no.error)),
            Need::XdpContext => {
                bpf::load_program(bpf::XDP, &PASS).is_ok_and(|program| is_invalid(run_with_context(program)))
            }
        }
    }
}

/// What this kernel lacks, the oldest first.
pub fn missing() -> Vec<Need> {
    let mut missing: Vec<_> = Need::all().filter(|need| need.is_missing()).collect();
    missing.sort_by_key(|need| need.since());
    missing
}

const EINVAL: i32 = 22;

fn invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(EINVAL)
}

fn is_invalid<T>(answer: io::Result<T>) -> bool {
    answer.is_err_and(|error| invalid(&error))
}

/// One instruction of eBPF: operation, destination, source, offset, number.
const fn instruction(operation: u8, to: u8, from: u8, offset: i16, number: u32) -> u64 {
    operation as u64 | (to as u64) << 8 | (from as u64) << 12 | (offset as u16 as u64) << 16 | (number as u64) << 32
}

/// `r0 = 2`: XDP_PASS.
const RESULT: u64 = instruction(0xb7, 0, 0, 0, 2);
const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);
const PASS: [u64; 2] = [RESULT, EXIT];
/// `r1 = 1; *(r10 - 8) = r1; r1 = fetch_add(r10 - 8, r1)`: BPF_ADD | BPF_FETCH.
const FETCH_ADD: [u64; 5] =
    [instruction(0xb7, 1, 0, 0, 1), instruction(0x7b, 10, 1, -8, 0), instruction(0xdb, 10, 1, -8, 1), RESULT, EXIT];

/// Calls the helper without its arguments: the verifier looks whether it knows the helper before it
/// looks at those. The error's number is the same in both cases; only the log tells.
fn lacks_helper(kind: u32, number: u32) -> bool {
    let call = [instruction(0x85, 0, 0, 0, number), RESULT, EXIT];
    bpf::load_program(kind, &call).is_err_and(|no| {
        ["invalid func ", "unknown func ", "cannot use helper "].iter().any(|words| no.log.contains(words))
    })
}

fn run_with_context(program: OwnedFd) -> io::Result<()> {
    /// The loopback device, which every network namespace has.
    const LOOPBACK: u32 = 1;
    let frame = [0; 60];
    bpf::test_run(program.as_fd(), &frame, &xdp_context(LOOPBACK, frame.len() as u32))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use aya_obj::Object;

    use super::*;
    use crate::dataplane::load::OBJECT;

    const CALL: u8 = 0x85;

    #[test]
    fn the_table_has_every_helper_function_that_the_programs_call() {
        let object = Object::parse(OBJECT).unwrap();
        let instructions = object.functions.values().flat_map(|function| &function.instructions);
        // A call of a function of the program itself has another source register.
        let called: BTreeSet<_> = instructions
            .filter(|instruction| instruction.code == CALL && instruction.src_reg() == 0)
            .map(|instruction| instruction.imm as u32)
            .collect();
        let known: BTreeSet<_> = HELPERS.iter().map(|helper| helper.number).collect();
        assert_eq!(called, known);
    }

    #[test]
    fn nothing_is_newer_than_the_least_kernel_that_a_refusal_names() {
        let newest = Need::all().map(Need::since).max();
        assert_eq!(newest, Some(crate::dataplane::refusal::LEAST));
    }

    /// CO-RE relocations would need the kernel's own BTF, which not every kernel has.
    #[test]
    fn the_programs_need_nothing_of_the_kernels_own_types() {
        assert!(!Object::parse(OBJECT).unwrap().has_btf_relocations());
    }

    #[test]
    fn an_instruction_is_put_together_as_the_kernel_reads_it() {
        // From `llvm-objdump`: `*(u64 *)(r10 - 0x8) = r1` and `exit`.
        assert_eq!(instruction(0x7b, 10, 1, -8, 0).to_le_bytes(), [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0]);
        assert_eq!(EXIT.to_le_bytes(), [0x95, 0, 0, 0, 0, 0, 0, 0]);
    }
}
