//! Whether a client may open a connection at all, before a backend is chosen for it.

use lb_common::{
    clients::{ClientCount, places},
    hash::BUCKET,
    layout::{MAX_RULES, RuleLine},
    rules::DENY,
    slot::COUNTED,
    verdict::Reason,
};

use crate::{atomic, maps, report};

/// Rules in one line of the list.
const LINE: usize = core::mem::size_of::<RuleLine>() / core::mem::size_of::<lb_common::layout::Rule>();

/// What the service's rules say about a client: `number of the rule << 8 | verdict`, or 0 if none is about it. The list
/// is looked up once, so that one replaced meanwhile is not mixed with the new one.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn ruled(service: u32, client: u32) -> u32 {
    let Some(list) = maps::RULES.get(service) else { return 0 };
    for number in 0..MAX_RULES / LINE as u32 {
        let Some(line) = list.get(number) else { break };
        for (place, rule) in line.iter().enumerate() {
            if rule.verdict == 0 {
                return 0;
            }
            if rule.matches_v4(client) {
                return (number * LINE as u32 + place as u32) << 8 | rule.verdict as u32;
            }
        }
    }
    0
}

/// Whether the rules keep a client out.
#[inline(always)]
pub fn is_denied(service: u32, client: u32) -> bool {
    // Most services have no rules: the call is dearer than this look.
    maps::RULES.get(service).is_some() && ruled(service, client) as u8 == DENY
}

/// Compare-and-swaps of a client's count that may fail, one after the other.
const SWAPS: u32 = 8;

/// What a bucket holds of a client: its connections, and as masks of places where its words stand and which are empty.
#[derive(Clone, Copy)]
struct Seen(u64);

impl Seen {
    #[inline(always)]
    fn connections(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    fn own(self) -> u32 {
        self.0 as u32 & 0xff
    }

    #[inline(always)]
    fn empty(self) -> u32 {
        self.0 as u32 >> 8 & 0xff
    }
}

/// Looks through one bucket for a client. Without a branch: the verifier would follow every combination of eight of them.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn client_in(service: u32, bucket: u32, client: u32) -> u64 {
    let Some(line) = maps::CLIENTS.get_value_ptr_mut(service, &bucket) else { return 0 };
    let mut seen = 0;
    for place in 0..BUCKET as usize {
        // SAFETY: a place of the bucket.
        let word = ClientCount(unsafe { atomic::load((&raw const (*line)[place]).cast()) });
        let own = (is_not_zero((word.client() ^ client) as u64) ^ 1) & is_not_zero(word.count() as u64);
        seen |= own << place | (is_not_zero(word.0) ^ 1) << (8 + place);
        seen += (word.count() as u64 * own) << 32;
    }
    seen
}

/// 1 for everything but 0, as arithmetic.
#[inline(always)]
fn is_not_zero(number: u64) -> u64 {
    let mut sign = number | number.wrapping_neg();
    // Written as Rust, LLVM would know the comparison again, and BPF has none without a jump.
    // SAFETY: touches one register.
    unsafe { core::arch::asm!("{0} >>= 63", inout(reg) sign) };
    sign
}

/// Adds a connection to the client's word at a place, or makes the first word of a client that comes in an empty place;
/// with `limit` 0 takes one away. 1 if that was done: the word may be another one by now, or stand at the limit.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn change_count(service: u32, place: u32, client: u32, limit: u32) -> u32 {
    let Some(line) = maps::CLIENTS.get_value_ptr_mut(service, &(place >> 3)) else { return 0 };
    let mut word = place;
    // SAFETY: touches one register; a line has eight words.
    unsafe { core::arch::asm!("{0} &= 7", inout(reg) word) };
    // SAFETY: 0..=7 lies in the line.
    unsafe {
        let at = line.cast::<u64>().add(word as usize);
        let old = ClientCount(atomic::load(at));
        let new = match old.is_of(client) {
            true if limit == 0 => old.changed_to(old.count() - 1),
            true if old.count() < limit => old.changed_to(old.count() + 1),
            false if limit != 0 && old.0 == 0 => ClientCount::new(client, 1),
            _ => return 0,
        };
        (atomic::compare_swap(at, old.0, new.0) == old.0) as u32
    }
}

/// The new connection is one too many.
pub const OVER: u32 = 1 << 8;

/// Counts a new connection for its client, if the service has a limit: the flag for its slot's word, 0 if it is not
/// counted, or `OVER`.
#[inline(always)]
pub fn count_client(service: u32, client: u32) -> u32 {
    let Some(record) = maps::SERVICES.get_ptr_mut(service) else { return 0 };
    // SAFETY: from a map lookup.
    match unsafe { atomic::load(&raw const (*record).client_limit) } {
        0 => 0,
        limit => count_limited(service, client, limit),
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_limited(service: u32, client: u32, limit: u32) -> u32 {
    let (first, second) = places(maps::seed(), client);
    for _ in 0..SWAPS {
        let a = Seen(client_in(service, first, client));
        let b = if second == first { Seen(0) } else { Seen(client_in(service, second, client)) };
        if a.connections() + b.connections() >= limit {
            return OVER;
        }
        let place = if a.own() != 0 {
            first << 3 | a.own().trailing_zeros()
        } else if b.own() != 0 {
            second << 3 | b.own().trailing_zeros()
        } else if a.empty() != 0 && a.empty().count_ones() >= b.empty().count_ones() {
            first << 3 | a.empty().trailing_zeros()
        } else if b.empty() != 0 {
            second << 3 | b.empty().trailing_zeros()
        } else {
            break;
        };
        if change_count(service, place, client, limit) != 0 {
            return COUNTED as u32;
        }
    }
    report::count(Reason::ClientUncounted);
    0
}

/// Whether one more connection of a client would be one too many.
#[inline(always)]
pub fn is_over_limit(service: u32, client: u32) -> bool {
    let Some(record) = maps::SERVICES.get_ptr_mut(service) else { return false };
    // SAFETY: from a map lookup.
    let limit = unsafe { atomic::load(&raw const (*record).client_limit) };
    limit != 0 && connections_of(service, client) >= limit
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn connections_of(service: u32, client: u32) -> u32 {
    let (first, second) = places(maps::seed(), client);
    let b = if second == first { 0 } else { Seen(client_in(service, second, client)).connections() };
    Seen(client_in(service, first, client)).connections() + b
}

/// Takes back what [`count_client`] has counted. Were it to miss it, the controller would find it when it compares.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn uncount_client(service: u32, client: u32) -> u32 {
    let (first, second) = places(maps::seed(), client);
    for _ in 0..SWAPS {
        let own = Seen(client_in(service, first, client)).own();
        let (bucket, own) =
            if own != 0 { (first, own) } else { (second, Seen(client_in(service, second, client)).own()) };
        if own == 0 || change_count(service, bucket << 3 | own.trailing_zeros(), client, 0) != 0 {
            break;
        }
    }
    0
}
