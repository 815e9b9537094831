//! The kernel side of evenkeel: one engine, compiled for two hooks.
//!
//! ```text
//! parse → whose? → flow → (new: choose → claim a slot) → rewrite → transmit
//! ```
//! `cursor` is the only packet arithmetic, `maps` the tables; what stands in them is described in `lb_common::layout`.
//! Loops over table entries and everything off the fast path are global functions: the verifier looks at them once.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "BPF atomics with a result exist only as intrinsics, see atomic.rs")]

mod access;
mod atomic;
mod clock;
mod cursor;
mod flow;
mod index;
mod lease;
mod maps;
mod parse;
mod reply;
mod report;
mod select;
mod slots;
mod trace;
mod walk;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

use crate::cursor::{TcFrame, XdpFrame};

/// The program for native and generic XDP.
#[xdp]
pub fn evenkeel_xdp(ctx: XdpContext) -> u32 {
    walk::walk(XdpFrame(ctx.ctx)) as u32
}

/// The program for tcx and clsact, egress, on the interfaces of VRRP: what this host itself must not say.
#[classifier]
pub fn evenkeel_out(ctx: TcContext) -> i32 {
    lease::outgoing(TcFrame(ctx.skb.skb))
}

/// The program for tcx and clsact, ingress.
#[classifier]
pub fn evenkeel_tc(ctx: TcContext) -> i32 {
    walk::walk(TcFrame(ctx.skb.skb))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: no path leads here: the verifier would refuse the endless loop.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The helpers used are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
