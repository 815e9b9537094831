//! The flow index: client and listener → slot. A key has two buckets of eight entries; an entry is
//! a hint that its slot confirms (`lb_common::hash`).
//!
//! Loops over entries are in global functions, which the verifier looks at once and not once per
//! path.

use lb_common::{
    address::{Family, V4},
    flow::{Key, SlotAt},
    hash::{BUCKET, Entry, PRIMARY_FILL, buckets, mix, position, tag},
    layout::Slot,
    slot::Ctl,
};

use crate::{
    maps,
    outcome::NONE,
    records::{self, Held, Word},
};

/// A key and its hash, which everything here begins with.
#[derive(Clone, Copy)]
pub struct Hashed {
    pub key: Key,
    hash: u64,
}

impl Hashed {
    /// Hashes a key with the secret seed.
    #[inline(always)]
    pub fn new(key: Key) -> Hashed {
        Hashed { key, hash: mix(maps::seed(), key.0) }
    }

    /// The entry of a flow with this key.
    #[inline(always)]
    pub fn entry(self, at: SlotAt, generation: u32) -> Entry {
        Entry::new(tag(self.hash), at, generation)
    }
}

/// A flow that the index knows.
#[derive(Clone, Copy)]
pub struct Found {
    pub at: SlotAt,
    pub slot: Held<Slot>,
    pub ctl: Ctl,
}

/// What came of entering a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The flow is entered.
    Won,
    /// Another CPU has entered the same client first.
    Lost,
    /// Both buckets are full of live flows.
    Full,
}

/// Reads from the second bucket of a client that is expected to have no flow, so that its line
/// comes from memory while the first one's does.
#[inline(always)]
pub fn fetch_second(hashed: Hashed) {
    let (_, secondary) = buckets(hashed.hash, maps::buckets());
    if let Some(bucket) = records::bucket(secondary) {
        bucket.word(0).load();
    }
}

/// Looks a client up. Closed flows are found too, for their late segments.
///
/// The client's own position in the primary bucket comes first, inlined: most flows are there, so
/// the processor predicts how this ends, which it cannot do for a search.
#[inline(always)]
pub fn find(hashed: Hashed) -> Option<Found> {
    let (primary, _) = buckets(hashed.hash, maps::buckets());
    let entry = Entry(records::bucket(primary)?.masked_word(position(hashed.hash)).load());
    if entry.may_be(tag(hashed.hash))
        && let Some(found) = confirm(entry, hashed.key)
    {
        return Some(found);
    }
    confirm(Entry(find_global(hashed.key.0, hashed.hash)), hashed.key)
}

#[inline(always)]
fn confirm(entry: Entry, key: Key) -> Option<Found> {
    if entry.0 == 0 {
        return None;
    }
    let slot = records::slot(entry.at())?;
    let ctl = slot.ctl();
    if !entry.confirms(ctl, slot.key(), key) || !is_client::<V4>(entry.at()) {
        return None;
    }
    Some(Found { at: entry.at(), slot, ctl })
}

/// Whether the whole address agrees, once tag, generation and key do. An IPv4 address is in its
/// key: this is gone when the program is compiled. An IPv6 address is compared on the slot's second
/// line here.
#[inline(always)]
fn is_client<V: Family>(_at: SlotAt) -> bool {
    const { assert!(V::WORD_IS_ADDRESS, "IPv6 compares Opening::client6 with the segment's source here") };
    true
}

/// Every entry of both buckets that carries the tag: the first that its slot confirms.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn find_global(key: u64, hash: u64) -> u64 {
    let (primary, secondary) = buckets(hash, maps::buckets());
    let entry = find_in(primary, Key(key), tag(hash));
    if entry != 0 { entry } else { find_in(secondary, Key(key), tag(hash)) }
}

#[inline(always)]
fn find_in(bucket: u32, key: Key, tag: u64) -> u64 {
    let Some(entries) = records::bucket(bucket) else { return 0 };
    for position in 0..BUCKET {
        let entry = entries.entry(position);
        if entry.may_be(tag) && confirm(entry, key).is_some() {
            return entry.0;
        }
    }
    0
}

/// A position in the whole index, as one number: the bucket and the position in it.
#[inline(always)]
fn number(bucket: u32, position: u32) -> u64 {
    (bucket as u64) << 3 | position as u64
}

/// The word at a position of the whole index.
#[inline(always)]
fn word(number: u64) -> Option<Word<u64>> {
    Some(records::bucket((number >> 3) as u32)?.masked_word(number as u32))
}

/// Stores `new` at a position of the whole index if `old` is there.
#[inline(always)]
fn swap(number: u64, old: u64, new: u64) -> bool {
    let Some(word) = word(number) else { return false };
    word.load() == old && word.swap(old, new)
}

/// Whether one more flow with this key would find room.
#[inline(always)]
pub fn has_room(hashed: Hashed) -> bool {
    let (primary, secondary) = buckets(hashed.hash, maps::buckets());
    has_room_global(primary) != 0 || has_room_global(secondary) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn has_room_global(bucket: u32) -> u32 {
    let Some(entries) = records::bucket(bucket) else { return 0 };
    for position in 0..BUCKET {
        let entry = entries.entry(position).0;
        if entry == 0 || is_over_global(entry) != 0 {
            return 1;
        }
    }
    0
}

/// The position of another flow's live entry for the same client in either bucket; nearly always,
/// there is no such entry.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn twin_global(primary: u32, secondary: u32, own: u64, key: u64, tag: u64) -> i64 {
    let twin = twin_in(primary, own, Key(key), tag);
    if twin >= 0 { twin } else { twin_in(secondary, own, Key(key), tag) }
}

/// The same in one bucket.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn twin_in_global(bucket: u32, own: u64, key: u64, tag: u64) -> i64 {
    twin_in(bucket, own, Key(key), tag)
}

#[inline(always)]
fn twin_in(bucket: u32, own: u64, key: Key, tag: u64) -> i64 {
    let Some(entries) = records::bucket(bucket) else { return NONE };
    for position in 0..BUCKET {
        let entry = entries.entry(position);
        if !entry.may_be(tag) || number(bucket, position) == own {
            continue;
        }
        if confirm(entry, key).is_some_and(|found| found.ctl.state().is_active()) {
            return number(bucket, position) as i64;
        }
    }
    NONE
}

/// Puts an entry at an empty position of the bucket, or else over an entry whose flow has ended.
/// Returns its position; `NONE` if the bucket is full.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn put_global(bucket: u32, entry: u64) -> i64 {
    let Some(entries) = records::bucket(bucket) else { return NONE };
    for position in 0..BUCKET {
        let word = entries.word(position);
        if word.load() == 0 && word.swap(0, entry) {
            return number(bucket, position) as i64;
        }
    }
    for position in 0..BUCKET {
        let word = entries.word(position);
        let old = word.load();
        if is_over_global(old) != 0 && word.swap(old, entry) {
            return number(bucket, position) as i64;
        }
    }
    NONE
}

/// Whether the flow that an entry names has ended.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_over_global(entry: u64) -> u32 {
    match records::slot(Entry(entry).at()) {
        Some(slot) => Entry(entry).is_over(slot.ctl()) as u32,
        None => 1,
    }
}

/// How many entries a bucket has.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn load_global(bucket: u32) -> u32 {
    let Some(entries) = records::bucket(bucket) else { return BUCKET };
    let mut load = 0;
    for position in 0..BUCKET {
        load += (entries.word(position).load() != 0) as u32;
    }
    load
}

/// The bucket to try first: the primary one, unless it is fairly full and the other one is emptier.
#[inline(always)]
fn emptier(primary: u32, secondary: u32) -> (u32, u32) {
    let load = load_global(primary);
    if load < PRIMARY_FILL || load <= load_global(secondary) { (primary, secondary) } else { (secondary, primary) }
}

/// Enters a flow. Two SYNs of one client may come at once on two CPUs, so the entry is provisional
/// until no other entry for the same client is found that is committed or is at a lower position.
#[inline(always)]
pub fn insert(hashed: Hashed, entry: Entry) -> Inserted {
    match insert_global(hashed.key.0, hashed.hash, entry.provisional().0) {
        WON => Inserted::Won,
        LOST => Inserted::Lost,
        _ => Inserted::Full,
    }
}

const WON: u32 = 0;
const LOST: u32 = 1;
const FULL: u32 = 2;

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn insert_global(key: u64, hash: u64, entry: u64) -> u32 {
    let (primary, secondary) = buckets(hash, maps::buckets());
    let mut own = number(primary, position(hash)) as i64;
    if !swap(own as u64, 0, entry) {
        let (first, second) = emptier(primary, secondary);
        own = put_global(first, entry);
        if own < 0 {
            own = put_global(second, entry);
        }
        if own < 0 {
            return FULL;
        }
    }
    let own = own as u64;
    let lost = twin_global(primary, secondary, own, key, tag(hash)) >= 0 && {
        contest_global(primary, own, key, tag(hash)) != 0
            || primary != secondary && contest_global(secondary, own, key, tag(hash)) != 0
    };
    let Some(word) = word(own) else { return FULL };
    if !lost && word.swap(entry, Entry(entry).committed().0) {
        return WON;
    }
    word.swap(entry, 0);
    LOST
}

/// Whether our provisional entry at `own` loses against one in `bucket`. Those that lose against
/// ours are removed.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn contest_global(bucket: u32, own: u64, key: u64, tag: u64) -> u32 {
    for _ in 0..4 {
        let twin = twin_in_global(bucket, own, key, tag);
        if twin < 0 {
            return 0;
        }
        if beaten_by_global(own, twin as u64) != 0 {
            return 1;
        }
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn beaten_by_global(own: u64, twin: u64) -> u32 {
    let Some(word) = word(twin) else { return 0 };
    let entry = Entry(word.load());
    if entry.0 == 0 {
        return 0;
    }
    if !entry.is_provisional() || twin < own {
        return 1;
    }
    // Committed at this very moment: it stays.
    (word.compare_swap(entry.0, 0) == entry.committed().0) as u32
}

/// Removes the entry of a flow that is over, so that its client can begin again.
#[inline(always)]
pub fn forget(key: Key, at: SlotAt, ctl: Ctl) {
    let hashed = Hashed::new(key);
    replace(hashed, hashed.entry(at, ctl.generation()), Entry(0));
}

/// Swaps the entry of a flow for another one (0: removes it). Returns false if it is no longer
/// there.
#[inline(always)]
pub fn replace(hashed: Hashed, old: Entry, new: Entry) -> bool {
    let (primary, secondary) = buckets(hashed.hash, maps::buckets());
    swap(number(primary, position(hashed.hash)), old.0, new.0)
        || replace_global(primary, old.0, new.0) != 0
        || replace_global(secondary, old.0, new.0) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn replace_global(bucket: u32, old: u64, new: u64) -> u32 {
    let Some(entries) = records::bucket(bucket) else { return 0 };
    for position in 0..BUCKET {
        let word = entries.word(position);
        if word.load() == old && word.swap(old, new) {
            return 1;
        }
    }
    0
}
