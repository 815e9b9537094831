#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "BPF atomics with a result exist only as intrinsics, see atomic.rs")]
#![allow(dead_code)]
mod atomic;
mod maps;
use aya_ebpf::{macros::{classifier, xdp}, programs::{TcContext, XdpContext}};
#[xdp]
pub fn evenkeel_xdp(_ctx: XdpContext) -> u32 { touch(); 2 }
#[classifier]
pub fn evenkeel_tc(_ctx: TcContext) -> i32 { touch(); -1 }
#[inline(always)]
fn touch() {
    if let Some(l) = maps::LISTENERS.get_ptr_mut(maps::buckets()) { unsafe { atomic::store(&raw mut (*l).service, maps::seed() as u16) } }
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
