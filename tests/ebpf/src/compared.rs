//! What the product is compared with, on the same packets: nothing at all, one lookup in the
//! kernel's hash table, the bare rewriting of a full NAT to fixed addresses, and to one that the
//! fewest possible reads find. In the lab: a balancer that only rewrites.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_PSEUDO_HDR, xdp_action},
    btf_maps::{Array, HashMap},
    helpers::{bpf_l4_csum_replace, bpf_redirect, bpf_skb_pull_data},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use lb_common::checksum::{difference, update};
use tests_ebpf::{CLIENT_PORT, CLIENTS, HASH_ENTRIES, HEADERS, INDEX_LINES, LINES, Wiring};

pub const TC_REDIRECT: i32 = 7;

/// Client → a line as long as the hot line of a slot.
#[btf_map]
static FLOWS: HashMap<u64, [u64; 8], HASH_ENTRIES> = HashMap::new();
/// Lines like those of an index.
#[btf_map]
static INDEX: Array<[u64; 8], INDEX_LINES, { BPF_F_MMAPABLE as usize }> = Array::new();
/// A line per client.
#[btf_map]
static TABLE: Array<[u64; 8], LINES, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Sends every frame back.
#[xdp]
pub fn empty_xdp(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Sends every frame on.
#[classifier]
pub fn empty_tc(_: TcContext) -> i32 {
    TC_REDIRECT
}

/// Looks the client up.
#[xdp]
pub fn hash_xdp(ctx: XdpContext) -> u32 {
    if is_known(ctx.data(), ctx.data_end()) { xdp_action::XDP_TX } else { xdp_action::XDP_DROP }
}

/// Looks the client up.
#[classifier]
pub fn hash_tc(ctx: TcContext) -> i32 {
    if is_known(ctx.data(), ctx.data_end()) { TC_REDIRECT } else { 2 }
}

/// Reads the client's line: as far as any table of flows gets with one access to memory.
#[xdp]
pub fn lines_xdp(ctx: XdpContext) -> u32 {
    match scattered(ctx.data(), ctx.data_end()).and_then(line_of) {
        // Nothing writes the lines, so it is never 1.
        Some(line) if line != 1 => xdp_action::XDP_TX,
        _ => xdp_action::XDP_DROP,
    }
}

/// A full NAT and nothing else, to an address from a line whose number another line contains: no
/// table of flows with an index needs less.
#[xdp]
pub fn found_xdp(ctx: XdpContext) -> u32 {
    let Some(number) = scattered(ctx.data(), ctx.data_end()) else { return xdp_action::XDP_ABORTED };
    let place = ((number as u64 * INDEX_LINES as u64) >> 32) as u32;
    let Some(entry) = INDEX.get_ptr_mut(place) else { return xdp_action::XDP_DROP };
    // SAFETY: from a map lookup. The value is 0, but neither compiler nor verifier knows.
    let entry = unsafe { core::ptr::read_volatile(entry.cast::<u64>()) } as u32;
    match line_of(number ^ entry) {
        Some(line) => rewritten(&ctx, DESTINATION ^ line as u32),
        None => xdp_action::XDP_DROP,
    }
}

/// The number of the client's flow, scattered over all numbers.
#[inline(always)]
fn scattered(start: usize, end: usize) -> Option<u32> {
    let key = client(start, end)?;
    let (address, port) = (u32::from_be(key as u32), u16::from_be((key >> 32) as u16));
    let flow = address.wrapping_sub(CLIENTS) << 4 | (port.wrapping_sub(CLIENT_PORT) & 15) as u32;
    Some(flow.wrapping_mul(0x9E37_79B1))
}

/// The content of a number's line: 0, which neither compiler nor verifier knows.
#[inline(always)]
fn line_of(number: u32) -> Option<u64> {
    let line = TABLE.get_ptr_mut(number & (LINES as u32 - 1))?;
    // SAFETY: from a map lookup.
    Some(unsafe { core::ptr::read_volatile(line.cast::<u64>()) })
}

/// Enters the client, for later lookups.
#[xdp]
pub fn enter_xdp(ctx: XdpContext) -> u32 {
    let Some(key) = client(ctx.data(), ctx.data_end()) else { return xdp_action::XDP_ABORTED };
    match FLOWS.insert(key, [key; 8], 0) {
        Ok(()) => xdp_action::XDP_TX,
        Err(_) => xdp_action::XDP_DROP,
    }
}

#[inline(always)]
fn is_known(start: usize, end: usize) -> bool {
    match client(start, end) {
        // SAFETY: nothing removes entries while the program runs.
        Some(key) => unsafe { FLOWS.get(key) }.is_some_and(|line| line[0] == key),
        None => false,
    }
}

/// The client's address and port.
#[inline(always)]
fn client(start: usize, end: usize) -> Option<u64> {
    if start + HEADERS > end || !is_tcp(start) {
        return None;
    }
    // SAFETY: bounds checked above.
    unsafe { Some(*((start + 26) as *const u32) as u64 | (*((start + 34) as *const u16) as u64) << 32) }
}

/// TCP over IPv4 without options. The caller has checked the bounds.
#[inline(always)]
fn is_tcp(start: usize) -> bool {
    // SAFETY: bounds checked by the caller.
    unsafe {
        *((start + 12) as *const u16) == 0x0800_u16.to_be()
            && *((start + 14) as *const u8) == 0x45
            && *((start + 23) as *const u8) == 6
    }
}

/// What the bare rewriting writes.
const SOURCE: u32 = u32::from_ne_bytes([10, 0, 0, 100]);
const DESTINATION: u32 = u32::from_ne_bytes([10, 0, 1, 10]);
const PORTS: u32 = u32::from_ne_bytes([0x4e, 0x20, 0x19, 0x2b]);

/// Rewrites addresses, ports, MAC addresses, time to live and both checksums.
#[xdp]
pub fn rewrite_xdp(ctx: XdpContext) -> u32 {
    rewritten(&ctx, DESTINATION)
}

#[inline(always)]
fn rewritten(ctx: &XdpContext, destination: u32) -> u32 {
    match rewrite(ctx.data(), ctx.data_end(), destination) {
        Some((addresses, ports)) => {
            let start = ctx.data();
            if start + HEADERS > ctx.data_end() {
                return xdp_action::XDP_ABORTED;
            }
            // SAFETY: bounds checked above.
            unsafe {
                let check = (start + 50) as *mut u16;
                *check = update(*check, addresses + ports);
            }
            xdp_action::XDP_TX
        }
        None => xdp_action::XDP_DROP,
    }
}

/// The same through the helper that TC needs for unfinished checksums; those of the test run are
/// finished.
#[classifier]
pub fn rewrite_tc(ctx: TcContext) -> i32 {
    let Some((addresses, ports)) = rewrite(ctx.data(), ctx.data_end(), DESTINATION) else { return 2 };
    change_addresses(&ctx, addresses);
    let start = ctx.data();
    if start + HEADERS > ctx.data_end() {
        return 2;
    }
    // SAFETY: bounds checked above.
    unsafe {
        let check = (start + 50) as *mut u16;
        *check = update(*check, ports);
    }
    TC_REDIRECT
}

/// Adds the difference of the addresses to the TCP checksum.
#[inline(always)]
fn change_addresses(ctx: &TcContext, difference: u64) {
    let sum = (difference & 0xffff_ffff) + (difference >> 32);
    // SAFETY: plain helper on the kernel's context.
    unsafe { bpf_l4_csum_replace(ctx.skb.skb, 50, 0, sum, BPF_F_PSEUDO_HDR as u64) };
}

/// Rewrites everything except the TCP checksum; returns the changes in the sums over addresses and
/// over ports.
#[inline(always)]
fn rewrite(start: usize, end: usize, destination: u32) -> Option<(u64, u64)> {
    if start + HEADERS > end || !is_tcp(start) {
        return None;
    }
    // SAFETY: bounds checked above.
    unsafe {
        let word = |offset: usize| (start + offset) as *mut u32;
        let half = |offset: usize| (start + offset) as *mut u16;
        let addresses = difference(*word(26), SOURCE) + difference(*word(30), destination);
        let ports = difference(*word(34), PORTS);
        let life = *half(22);
        *half(24) = update(*half(24), addresses + difference(life as u32, (life - 1) as u32));
        *half(22) = life - 1;
        (*word(0), *half(4), *half(6), *word(8)) = (0x0102_0304, 0x0506, 0x0708, 0x090a_0b0c);
        (*word(26), *word(30), *word(34)) = (SOURCE, destination, PORTS);
        Some((addresses, ports))
    }
}

#[btf_map]
static WIRING: Array<Wiring, 1> = Array::new();
/// The frame is not ours.
const TC_NEXT: i32 = -1;

/// A balancer for one client, without flows, checks or counters: the client's port selects the
/// server. It costs what the way through a host costs, whatever is done there.
#[classifier]
pub fn bare_tc(ctx: TcContext) -> i32 {
    if ctx.data() + HEADERS > ctx.data_end() {
        // SAFETY: plain helper on the kernel's context.
        unsafe { bpf_skb_pull_data(ctx.skb.skb, HEADERS as u32) };
    }
    let Some((addresses, ifindex)) = readdress(ctx.data(), ctx.data_end()) else { return TC_NEXT };
    change_addresses(&ctx, addresses);
    // SAFETY: plain helper.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Rewrites everything except the TCP checksum; returns the change in the sum over addresses, and
/// the device.
#[inline(always)]
fn readdress(start: usize, end: usize) -> Option<(u64, u32)> {
    if start + HEADERS > end || !is_tcp(start) {
        return None;
    }
    // SAFETY: bounds checked above; the wiring is from a map lookup.
    unsafe {
        let wiring = &*WIRING.get_ptr(0)?;
        let word = |offset: usize| (start + offset) as *mut u32;
        let half = |offset: usize| (start + offset) as *mut u16;
        let [address, mac] = match (*half(34), *half(36)) {
            _ if *word(30) != wiring.vip as u32 => return None,
            (port, to) if to == wiring.port as u16 => match u16::from_be(port) % 3 {
                0 => wiring.servers[0],
                1 => wiring.servers[1],
                _ => wiring.servers[2],
            },
            (from, _) if from == wiring.port as u16 => wiring.client,
            _ => return None,
        };
        let (source, destination, own) = (wiring.vip as u32, address as u32, wiring.mac);
        let addresses = difference(*word(26), source) + difference(*word(30), destination);
        let life = *half(22);
        *half(24) = update(*half(24), addresses + difference(life as u32, (life - 1) as u32));
        *half(22) = life - 1;
        (*word(0), *half(4)) = (mac as u32, (mac >> 32) as u16);
        (*half(6), *word(8)) = (own as u16, (own >> 16) as u32);
        (*word(26), *word(30)) = (source, destination);
        Some((addresses, wiring.ifindex as u32))
    }
}
