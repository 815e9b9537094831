//! The tables. `lb_common::layout` says which side writes what and what each record means;
//! `records` is the only way to them.
//!
//! All are fixed arrays, allocated when they are made: no packet allocates anything, and no table
//! is full by surprise. Sizes that are given as 1 here are set by the controller when it loads the
//! program.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, PerCpuArray, RingBuf},
    macros::btf_map,
};
use lb_common::{
    clients::CLIENT_BUCKETS,
    event::Event,
    layout::{
        Address, Backend, CHALLENGES, ClientLine, ConnectTimes, CookieKey, ERROR_BUCKETS, EVENTS_BYTES, EXTENT_BITS,
        ExemptKey, Failures, FreeLine, Interface, LEASE_BITS, LISTENER_BITS, Lease, Listener, MAGLEV_LINES, MARKS,
        MAX_ADDRESSES, MAX_BACKENDS, MAX_EXEMPT, MAX_INTERFACES, MAX_SERVICES, MAX_WAYS, MaglevLine, Meta, Opening,
        POOL_BITS, POOL_EXTENTS, Pool, RST_BUCKETS, Ring, RuleLine, Service, Slot, SlowStart, Trace, WIDE_LINES,
    },
    verdict::REASON_LIMIT,
};

use crate::atomic;

const MAPPED: usize = BPF_F_MMAPABLE as usize;
/// Inner maps differ in size, which the kernel permits only with this flag (5.10).
const INNER: usize = (BPF_F_MMAPABLE | BPF_F_INNER_MAP) as usize;
const POOLS_LEN: usize = 1 << POOL_BITS;
const EXTENTS_LEN: usize = POOLS_LEN * POOL_EXTENTS as usize;

/// Entries of one bucket of the flow index: one cache line.
pub type Bucket = [u64; lb_common::hash::BUCKET as usize];

/// Tokens of a limit on generated RSTs, one record per limit and CPU.
#[repr(C)]
pub struct RstTokens {
    /// RSTs that may still be sent.
    pub tokens: u64,
    /// When the tokens were last refilled, in `Ticks`.
    pub refilled: u64,
}

#[btf_map]
pub static META: Array<Meta, 1, MAPPED> = Array::new();
#[btf_map]
pub static LISTENERS: Array<Listener, { 1 << LISTENER_BITS }, MAPPED> = Array::new();
#[btf_map]
pub static LEASES: Array<Lease, { 1 << LEASE_BITS }, MAPPED> = Array::new();
#[btf_map]
pub static INTERFACES: Array<Interface, { MAX_INTERFACES as usize }, MAPPED> = Array::new();
#[btf_map]
pub static POOLS: Array<Pool, POOLS_LEN, MAPPED> = Array::new();
#[btf_map]
pub static RINGS: Array<Ring, POOLS_LEN, MAPPED> = Array::new();
#[btf_map]
pub static BACKENDS: Array<Backend, { MAX_BACKENDS as usize }, MAPPED> = Array::new();
#[btf_map]
pub static SERVICES: Array<Service, { MAX_SERVICES as usize }, MAPPED> = Array::new();
#[btf_map]
pub static CONNECT_TIMES: Array<ConnectTimes, { MAX_BACKENDS as usize }, MAPPED> = Array::new();
#[btf_map]
pub static SLOW_STARTS: Array<SlowStart, { MAX_BACKENDS as usize }, MAPPED> = Array::new();
#[btf_map]
pub static FAILURES: Array<Failures, { MAX_BACKENDS as usize }, MAPPED> = Array::new();
#[btf_map]
pub static INDEX: Array<Bucket, 1, MAPPED> = Array::new();
// One record in an array: kernels before 6.2 note of an inner map whose value is a structure that it
// has no timer (-ENOENT), of any other that it cannot have one (-EINVAL), and take only inner maps
// with the same note (`bpf_map_meta_equal`). Those of the controller have no BTF: -EINVAL.
#[btf_map]
pub static SLOTS: ArrayOfMaps<Array<[Slot; 1], { 1 << EXTENT_BITS }, MAPPED>, EXTENTS_LEN> = ArrayOfMaps::new();
#[btf_map]
pub static OPENINGS: ArrayOfMaps<Array<[Opening; 1], { 1 << EXTENT_BITS }, MAPPED>, EXTENTS_LEN> = ArrayOfMaps::new();
#[btf_map]
pub static FREE: ArrayOfMaps<Array<FreeLine, 1, INNER>, POOLS_LEN> = ArrayOfMaps::new();
#[btf_map]
pub static WIDE: ArrayOfMaps<Array<FreeLine, { WIDE_LINES as usize }, INNER>, POOLS_LEN> = ArrayOfMaps::new();
#[btf_map]
pub static HALF_OPEN: ArrayOfMaps<Array<u64, 1, INNER>, { MAX_SERVICES as usize }> = ArrayOfMaps::new();
#[btf_map]
pub static MAGLEV: ArrayOfMaps<Array<MaglevLine, { MAGLEV_LINES as usize }, INNER>, { MAX_SERVICES as usize }> =
    ArrayOfMaps::new();
#[btf_map]
pub static RULES: ArrayOfMaps<Array<RuleLine, 1, INNER>, { MAX_SERVICES as usize }> = ArrayOfMaps::new();
#[btf_map]
pub static CLIENTS: ArrayOfMaps<Array<ClientLine, { CLIENT_BUCKETS as usize }, INNER>, { MAX_SERVICES as usize }> =
    ArrayOfMaps::new();
#[btf_map]
pub static TRACE: Array<Trace, 1, MAPPED> = Array::new();
#[btf_map]
pub static LINKS: HashMap<u32, u32, { MAX_INTERFACES as usize }> = HashMap::new();
#[btf_map]
pub static ADDRESSES: HashMap<Address, u32, { MAX_ADDRESSES as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub static WAYS: LpmTrie<[u8; 16], u64, { MAX_WAYS as usize }> = LpmTrie::new();
#[btf_map]
pub static COOKIES: Array<CookieKey, 1, MAPPED> = Array::new();
#[btf_map]
pub static VERIFIED: Array<u64, { MARKS as usize }, MAPPED> = Array::new();
#[btf_map]
pub static CHALLENGED: Array<u64, { CHALLENGES as usize }, MAPPED> = Array::new();
#[btf_map]
pub static EXEMPT: LpmTrie<ExemptKey, u32, { MAX_EXEMPT as usize }> = LpmTrie::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { REASON_LIMIT as usize }> = PerCpuArray::new();
/// What the controller counts: a value of its own for each reason, because it cannot add to those of
/// COUNTERS without overwriting what the program adds meanwhile. The program does not use it.
#[btf_map]
pub static COUNTED: Array<u64, { REASON_LIMIT as usize }, MAPPED> = Array::new();
#[btf_map]
pub static RST_TOKENS: PerCpuArray<RstTokens, { RST_BUCKETS as usize }> = PerCpuArray::new();
#[btf_map]
pub static ICMP_TOKENS: PerCpuArray<RstTokens, 1> = PerCpuArray::new();
#[btf_map]
pub static ERROR_TOKENS: PerCpuArray<RstTokens, { ERROR_BUCKETS as usize }> = PerCpuArray::new();
/// The options of the segment at hand.
#[btf_map]
pub static OPTIONS: PerCpuArray<[u32; 16], 1> = PerCpuArray::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, { EVENTS_BYTES as usize }> = RingBuf::new();

/// Seed of the flow index's hash, set at load from META.
#[unsafe(no_mangle)]
static SEED: u64 = 0;
/// Buckets of the flow index, set at load from META.
#[unsafe(no_mangle)]
static BUCKETS: u32 = 1;
/// Lines of the log: the upper half is the stretch of time of the last line, the lower half is the
/// number of lines in that stretch.
#[unsafe(no_mangle)]
pub static mut LOG_LINES: u64 = 0;

/// The seed. The compiler must not fold the read: the loader changes the value.
#[inline(always)]
pub fn seed() -> u64 {
    // SAFETY: an aligned word of this program's own, which never changes.
    unsafe { atomic::load(&raw const SEED) }
}

/// The number of buckets.
#[inline(always)]
pub fn buckets() -> u32 {
    // SAFETY: an aligned word of this program's own, which never changes.
    unsafe { atomic::load(&raw const BUCKETS) }
}

/// Always zero; the verifier cannot assume so, because the program may write it.
#[unsafe(no_mangle)]
static mut ZERO: u64 = 0;

/// The same number, which the verifier no longer knows: it would follow every value of a loop's
/// result to the end of the next loop.
#[inline(always)]
pub fn forgotten(number: u64) -> u64 {
    // SAFETY: an aligned word of this program's own, which nothing writes.
    number ^ unsafe { atomic::load(&raw const ZERO) }
}
