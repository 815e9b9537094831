//! The kernel side of evenkeel: one engine, compiled for two hooks.
//!
//! ```text
//! parse → whose? → flow → (new: choose → claim a slot) → rewrite → transmit
//! ```
//! `cursor` is the only packet arithmetic, `records` the only way to what is in the tables
//! (`maps`); `lb_common::layout` describes it. `unsafe` is in `cursor`, `records`, `maps`, `atomic`
//! and `clock` and nowhere else; a new SAFETY comment names the bound and where it was checked.
//!
//! Loops over table entries and everything off the fast path are global functions, which the
//! verifier looks at once, whatever calls them. They take and return numbers, at most five of them.
//! One rule for names: the plain name is the safe, inlined face with types; `*_global` behind it is
//! what the verifier sees once.
//!
//! The files use one another in one direction only: `walk` → `irregular`, `lease`, `icmp`, `reply`,
//! `flow` → `trace` → `select`, `access`, `cookie` → `slots` → `index` → `report` → `cursor` →
//! `records` → `maps` → `atomic`; `klog`, the log for developers, is on the same level as `report`.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "BPF atomics with a result exist only as intrinsics, see atomic.rs")]

mod access;
mod atomic;
mod clock;
mod cookie;
mod cursor;
mod flow;
mod icmp;
mod index;
mod irregular;
mod klog;
mod lease;
mod maps;
mod outcome;
mod parse;
mod records;
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
#[inline(always)]
pub fn evenkeel_xdp(ctx: XdpContext) -> u32 {
    walk::walk(XdpFrame(ctx.ctx)) as u32
}

/// The program for tcx and clsact, egress, on the interfaces of VRRP: drops what this host itself
/// must not say.
#[classifier]
pub fn evenkeel_out(ctx: TcContext) -> i32 {
    lease::outgoing(TcFrame(ctx.skb.skb))
}

/// The program for tcx and clsact, ingress.
#[classifier]
#[inline(always)]
pub fn evenkeel_tc(ctx: TcContext) -> i32 {
    walk::walk(TcFrame(ctx.skb.skb))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // SAFETY: nothing leads here: the verifier checks every access that a panic would have guarded.
    unsafe { core::hint::unreachable_unchecked() }
}

/// The helpers used are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
