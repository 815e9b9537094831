//! What the program reports to a developer, through `aya-log`: segments that are answered with a
//! RST or dropped, tries that fail, moves to another backend or port (debug), and every change of
//! an open flow's state (trace). Each line names its connection.
//!
//! The level is a constant of the loaded program (`evenkeel run --kernel-log LEVEL`). Without one
//! the verifier knows that no line is ever written, and the kernel removes the calls. What is left
//! is a read of the constant where something is refused, dropped, moved or changed; a packet that
//! is forwarded on the established path meets not one instruction of this, and is logged at no
//! level. A line costs microseconds and wakes its reader, so there are at most [`LINES`] a second;
//! the next line says how many were left out.
//!
//! Reasons and states are written as `reason#N` and `state#N`; user space puts their names there.

use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
    trace,
};
use lb_common::{
    address::V4,
    flow::{Key, SlotAt},
    layout::Slot,
    slot::Ctl,
    tcp::RST,
};

use crate::{
    clock,
    outcome::Outcome,
    parse::Segment,
    records::{self, Held},
};

/// Most lines in a stretch of time, about a second, over all CPUs.
const LINES: u32 = 1000;

/// The sender of a segment gets a RST instead of a connection.
const RESET: u32 = 0;
/// A segment ends here.
const DROPPED: u32 = 1;

/// The sender of a segment is answered with a RST, by the number of a reason; a RST is not
/// answered.
#[inline(always)]
pub fn reset(segment: Segment, reason: u32) {
    if logs(Level::Debug) {
        turned_away(segment, if segment.flags & RST == 0 { RESET } else { DROPPED }, reason);
    }
}

/// A segment of ours is dropped, by the number of a reason.
#[inline(always)]
pub fn dropped(segment: Segment, reason: u32) {
    if logs(Level::Debug) {
        turned_away(segment, DROPPED, reason);
    }
}

#[inline(always)]
fn turned_away(segment: Segment, what: u32, reason: u32) {
    let ports = (segment.source_port as u32) << 16 | segment.destination_port as u32;
    turned_away_global(segment.source, segment.destination, ports, what, reason);
}

/// A try failed.
const FAILED: u32 = 0;
/// The last try failed, and the client is refused.
const REFUSED: u32 = 1;

/// A try failed, by the number of a reason.
#[inline(always)]
pub fn try_failed(at: SlotAt, slot: Held<Slot>, reason: u32) {
    if logs(Level::Debug) {
        try_global(at.0, slot.key().0, FAILED, reason);
    }
}

/// No try is left for a client, by the number of the last one's reason.
#[inline(always)]
pub fn refused(at: SlotAt, slot: Held<Slot>, reason: u32) {
    if logs(Level::Debug) {
        try_global(at.0, slot.key().0, REFUSED, reason);
    }
}

/// A connection goes on in another slot, towards the next backend or the same one.
#[inline(always)]
pub fn moved(from: SlotAt, to: SlotAt, outcome: Outcome) {
    if level_enabled(Level::Debug)
        && outcome.kind() == Outcome::SEND_SYN
        && let Some(slot) = records::slot(to)
        && may_log_global() != 0
    {
        moved_global(from.0, to.0, slot.key().0);
    }
}

/// The state of a flow has changed.
#[inline(always)]
pub fn changed(at: SlotAt, slot: Held<Slot>, (old, new): (Ctl, Ctl), won: bool) {
    if level_enabled(Level::Trace) && won && old.0 as u8 != new.0 as u8 && may_log_global() != 0 {
        changed_global(at.0, slot.key().0, old.0, new.0);
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn turned_away_global(source: u32, destination: u32, ports: u32, what: u32, reason: u32) -> u32 {
    let (from, to) = (source.to_ne_bytes(), destination.to_ne_bytes());
    let (from_port, to_port) = (u16::from_be((ports >> 16) as u16), u16::from_be(ports as u16));
    if what == RESET {
        debug!((), target: "kernel", "reset: {:i}:{} to {:i}:{} reason#{}", from, from_port, to, to_port, reason);
    } else {
        debug!((), target: "kernel", "dropped: {:i}:{} to {:i}:{} reason#{}", from, from_port, to, to_port, reason);
    }
    1
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn try_global(at: u32, key: u64, what: u32, reason: u32) -> u32 {
    let (client, client_port) = client(Key(key));
    let (backend, port) = backend(SlotAt(at));
    if what == FAILED {
        debug!(
            (), target: "kernel",
            "try failed: {:i}:{} at backend {:i}:{} slot {} reason#{}",
            client, client_port, backend, port, at & 0xffff, reason
        );
    } else {
        debug!(
            (), target: "kernel",
            "refused: {:i}:{} after backend {:i}:{} slot {} reason#{}",
            client, client_port, backend, port, at & 0xffff, reason
        );
    }
    1
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn moved_global(from: u32, to: u32, key: u64) -> u32 {
    let (client, client_port) = client(Key(key));
    let (backend, port) = backend(SlotAt(to));
    debug!(
        (), target: "kernel",
        "moved: {:i}:{} from pool {} slot {} to backend {:i}:{} slot {}",
        client, client_port, from >> 16, from & 0xffff, backend, port, to & 0xffff
    );
    1
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn changed_global(at: u32, key: u64, old: u64, new: u64) -> u32 {
    let (client, client_port) = client(Key(key));
    let (backend, port) = backend(SlotAt(at));
    trace!(
        (), target: "kernel",
        "state: {:i}:{} at backend {:i}:{} slot {} state#{} to state#{}",
        client, client_port, backend, port, at & 0xffff, old as u8, new as u8
    );
    1
}

/// The client's address and port.
#[inline(always)]
fn client(key: Key) -> ([u8; 4], u16) {
    (key.address_word().to_ne_bytes(), u16::from_be(key.port()))
}

/// Address and port of the backend that a slot leads to.
#[inline(always)]
fn backend(at: SlotAt) -> ([u8; 4], u16) {
    match records::pool(at.pool() as u32) {
        Some(pool) => (pool.backend::<V4>().to_ne_bytes(), u16::from_be(pool.backend_port())),
        None => ([0; 4], 0),
    }
}

/// Whether a line of this level is to be written. The level is looked at first: without a log the
/// verifier drops the rest. The functions that write a line do not ask it themselves: that would
/// put one more call on top of the deepest chain.
#[inline(always)]
fn logs(level: Level) -> bool {
    level_enabled(level) && may_log_global() != 0
}

/// Whether one more line may be written. The first line of a stretch of time says how many were
/// left out in the one before.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn may_log_global() -> u32 {
    let (wanted, left_out) = records::next_log_line(clock::ticks());
    let left_out = left_out.saturating_sub(LINES);
    if left_out > 0 {
        debug!((), target: "kernel", "{} lines left out", left_out);
    }
    (wanted <= LINES) as u32
}
