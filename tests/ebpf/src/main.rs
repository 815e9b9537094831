//! The kernel side of the benchmarks: what makes the packets, and what evenkeel is compared with.
//!
//! `replay_*_N` makes the next packet in the frame that it is run on, and goes on to the program in
//! `NEXT[N]` by a tail call: the measured program sees a fresh packet of another flow each time, as
//! on a wire. `making_*` sends the packet itself, which measures what the making costs.

#![no_std]
#![no_main]

mod compared;

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    helpers::{bpf_ktime_get_ns, bpf_skb_pull_data},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use tests_ebpf::{BLOCK, BLOCKS, HEADERS, Plan};

#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();
/// When each block of packets began.
#[btf_map]
static TIMES: Array<u64, BLOCKS> = Array::new();
#[btf_map]
static NEXT_XDP: ProgramArray<7> = ProgramArray::new();
#[btf_map]
static NEXT_TC: ProgramArray<7> = ProgramArray::new();

const SOURCE_PORT: usize = 34;
const DESTINATION_PORT: usize = 36;

/// One program per measured program: a tail call to a fixed entry is a plain jump.
macro_rules! replay {
    ($($place:literal $xdp:ident $tc:ident)*) => {$(
        #[doc = concat!("Makes the next packet and goes on to NEXT[", $place, "].")]
        #[xdp]
        pub fn $xdp(ctx: XdpContext) -> u32 {
            if make(ctx.data(), ctx.data_end()).is_some() {
                // SAFETY: nothing is left to be dropped.
                unsafe { NEXT_XDP.tail_call(&ctx, $place) };
            }
            xdp_action::XDP_ABORTED
        }

        #[doc = concat!("Makes the next packet and goes on to NEXT[", $place, "].")]
        #[classifier]
        pub fn $tc(ctx: TcContext) -> i32 {
            // SAFETY: plain helper on the kernel's context; it unshares what the previous program
            // may have left shared.
            unsafe { bpf_skb_pull_data(ctx.skb.skb, HEADERS as u32) };
            if make(ctx.data(), ctx.data_end()).is_some() {
                // SAFETY: nothing is left to be dropped.
                unsafe { NEXT_TC.tail_call(&ctx, $place) };
            }
            FAILED
        }
    )*};
}

replay! {
    0 replay_xdp_0 replay_tc_0
    1 replay_xdp_1 replay_tc_1
    2 replay_xdp_2 replay_tc_2
    3 replay_xdp_3 replay_tc_3
    4 replay_xdp_4 replay_tc_4
    5 replay_xdp_5 replay_tc_5
    6 replay_xdp_6 replay_tc_6
}

/// Makes the next packet and sends it, to measure what the making costs.
#[xdp]
pub fn making_xdp(ctx: XdpContext) -> u32 {
    match make(ctx.data(), ctx.data_end()) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Makes the next packet and sends it.
#[classifier]
pub fn making_tc(ctx: TcContext) -> i32 {
    // SAFETY: as in `replay_tc_*`.
    unsafe { bpf_skb_pull_data(ctx.skb.skb, HEADERS as u32) };
    match make(ctx.data(), ctx.data_end()) {
        Some(()) => compared::TC_REDIRECT,
        None => FAILED,
    }
}

/// Not a verdict of TC: the frame was too short or there was no program.
const FAILED: i32 = 99;

/// Writes the headers of the next packet into the frame.
#[inline(always)]
fn make(start: usize, end: usize) -> Option<()> {
    let plan = PLAN.get_ptr_mut(0)?;
    if start + HEADERS > end {
        return None;
    }
    // SAFETY: the plan is from a map lookup; the frame's bounds were checked above.
    unsafe {
        let turn = (*plan).turn;
        (*plan).turn = turn.wrapping_add(1);
        let number = turn.wrapping_sub((*plan).start);
        if number % BLOCK == 0
            && let Some(time) = TIMES.get_ptr_mut(number / BLOCK)
        {
            *time = bpf_ktime_get_ns();
        }
        let turned = (*plan).turned((*plan).flow(turn));
        for word in 0..6 {
            *((start + word * 8) as *mut u64) = (*plan).frame[word];
        }
        *((start + 48) as *mut u32) = (*plan).frame[6] as u32;
        *((start + 52) as *mut u16) = ((*plan).frame[6] >> 32) as u16;
        *((start + 24) as *mut u16) = turned.ip_check;
        *((start + 50) as *mut u16) = turned.tcp_check;
        if turned.source != 0 {
            *((start + 26) as *mut u32) = turned.source;
        }
        if turned.source_port != 0 {
            *((start + SOURCE_PORT) as *mut u16) = turned.source_port;
        }
        if turned.destination_port != 0 {
            *((start + DESTINATION_PORT) as *mut u16) = turned.destination_port;
        }
    }
    Some(())
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: no path leads here, because the verifier would refuse the endless loop.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The kernel offers some of the helpers used here only to GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
