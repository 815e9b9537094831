//! Whether a client may open a connection at all, before a backend is chosen for it.

use lb_common::{
    clients::{ClientCount, buckets_of},
    flow::Key,
    hash::BUCKET,
    layout::{MAX_RULES, RuleLine},
    rules::DENY,
    slot::{COUNTED, Ctl},
    verdict::Reason,
};

use crate::{
    maps,
    records::{self, highest_bit},
    report,
};

/// Rules in one line of the list.
const LINE: usize = core::mem::size_of::<RuleLine>() / core::mem::size_of::<lb_common::layout::Rule>();

/// What the service's rules say about a client: `number of the rule << 8 | verdict`, or 0 if none
/// matches it. The list is looked up once, so that a list that is replaced in between is not mixed
/// with the new one.
#[inline(always)]
pub fn ruled(service: u32, client: u32) -> u32 {
    ruled_global(service, client)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn ruled_global(service: u32, client: u32) -> u32 {
    let Some(list) = maps::RULES.get(service) else { return 0 };
    for number in 0..MAX_RULES / LINE as u32 {
        let Some(line) = list.get(number) else { break };
        for (position, rule) in line.iter().enumerate() {
            if rule.verdict == 0 {
                return 0;
            }
            if rule.matches_v4(client) {
                return (number * LINE as u32 + position as u32) << 8 | rule.verdict as u32;
            }
        }
    }
    0
}

/// Whether the rules keep a client out.
#[inline(always)]
pub fn is_denied(service: u32, client: u32) -> bool {
    // Most services have no rules, and a call costs more than this check.
    maps::RULES.get(service).is_some() && ruled(service, client) as u8 == DENY
}

/// Compare-and-swaps of a client's count that may fail, one after the other.
const SWAPS: u32 = 8;

/// What a bucket holds of a client: its connections, and two masks of positions, of its words and
/// of empty ones.
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

/// Looks through one bucket for a client. Without a branch: the verifier would follow every
/// combination of eight.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn client_in_global(service: u32, bucket: u32, client: u32) -> u64 {
    let Some(line) = records::client_bucket(service, bucket) else { return 0 };
    let mut seen = 0;
    for position in 0..BUCKET {
        let word = ClientCount(line.word(position).load());
        let own = (is_not_zero((word.client() ^ client) as u64) ^ 1) & is_not_zero(word.count() as u64);
        seen |= own << position | (is_not_zero(word.0) ^ 1) << (8 + position);
        seen += (word.count() as u64 * own) << 32;
    }
    seen
}

/// 1 for everything but 0, as arithmetic.
#[inline(always)]
fn is_not_zero(number: u64) -> u64 {
    highest_bit(number | number.wrapping_neg())
}

/// Adds a connection to the client's word at a position (`bucket << 3 | position in it`), or writes
/// the first word of a client that comes at an empty one; with `limit` 0 takes one away. Returns 1
/// if that was done: by now the word may be another one, or at the limit.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn change_count_global(service: u32, position: u32, client: u32, limit: u32) -> u32 {
    let Some(line) = records::client_bucket(service, position >> 3) else { return 0 };
    let word = line.masked_word(position);
    let old = ClientCount(word.load());
    let new = match old.is_of(client) {
        true if limit == 0 => old.changed_to(old.count() - 1),
        true if old.count() < limit => old.changed_to(old.count() + 1),
        false if limit != 0 && old.0 == 0 => ClientCount::new(client, 1),
        _ => return 0,
    };
    word.swap(old.0, new.0) as u32
}

/// The new connection would be one too many.
pub const OVER: u32 = 1 << 8;

/// Counts a new connection for its client, if the service has a limit. Returns the flag for its
/// slot's word, 0 if it is not counted, or `OVER`.
#[inline(always)]
pub fn count_client(service: u32, client: u32) -> u32 {
    match limit_of(service) {
        0 => 0,
        limit => count_client_global(service, client, limit),
    }
}

/// The most connections of one client; 0: unlimited.
#[inline(always)]
fn limit_of(service: u32) -> u32 {
    match records::service(service) {
        Some(service) => service.client_limit(),
        None => 0,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn count_client_global(service: u32, client: u32, limit: u32) -> u32 {
    let (first, second) = buckets_of(maps::seed(), client);
    for _ in 0..SWAPS {
        let a = Seen(client_in_global(service, first, client));
        let b = if second == first { Seen(0) } else { Seen(client_in_global(service, second, client)) };
        if a.connections() + b.connections() >= limit {
            return OVER;
        }
        let position = if a.own() != 0 {
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
        if change_count_global(service, position, client, limit) != 0 {
            return COUNTED as u32;
        }
    }
    report::count(Reason::ClientUncounted);
    0
}

/// Whether one more connection of a client would be one too many.
#[inline(always)]
pub fn is_over_limit(service: u32, client: u32) -> bool {
    let limit = limit_of(service);
    limit != 0 && connections_global(service, client) >= limit
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn connections_global(service: u32, client: u32) -> u32 {
    let (first, second) = buckets_of(maps::seed(), client);
    let b = if second == first { 0 } else { Seen(client_in_global(service, second, client)).connections() };
    Seen(client_in_global(service, first, client)).connections() + b
}

/// Takes a flow that is over out of its client's count, if it is counted.
#[inline(always)]
pub fn uncount_flow(ctl: Ctl, service: u16, key: Key) {
    if ctl.flags() & COUNTED != 0 {
        uncount_client(service as u32, key.address_word());
    }
}

/// Takes back what [`count_client`] has counted. If that fails, the controller finds the difference
/// by comparing.
#[inline(always)]
pub fn uncount_client(service: u32, client: u32) {
    uncount_client_global(service, client);
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn uncount_client_global(service: u32, client: u32) -> u32 {
    let (first, second) = buckets_of(maps::seed(), client);
    for _ in 0..SWAPS {
        let own = Seen(client_in_global(service, first, client)).own();
        let (bucket, own) =
            if own != 0 { (first, own) } else { (second, Seen(client_in_global(service, second, client)).own()) };
        if own == 0 || change_count_global(service, bucket << 3 | own.trailing_zeros(), client, 0) != 0 {
            break;
        }
    }
    0
}
