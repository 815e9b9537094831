//! The flow index: client and listener → slot. Two buckets of eight entries for a key; an entry is a hint that the slot
//! confirms (`lb_common::hash`).
//!
//! Loops over entries are in global functions, which the verifier looks at once and not once a path.

use lb_common::{
    flow::Key,
    hash::{self, BUCKET, Entry, PRIMARY_FILL, buckets, mix, tag},
    layout::Slot,
    slot::Ctl,
};

use crate::{atomic, maps, slots};

/// Result of [`insert`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The entry stands.
    Won,
    /// Another CPU has entered the same client first.
    Lost,
    /// Both buckets are full of live flows.
    Full,
}

/// A flow that the index knows.
#[derive(Clone, Copy)]
pub struct Found {
    pub pool: u32,
    pub slot: u32,
    pub record: *mut Slot,
    pub ctl: Ctl,
}

/// Reads from the second bucket of a client that is expected to have no flow: its line comes from memory while the first
/// one's does.
#[inline(always)]
pub fn fetch_second(hash: u64) {
    let (_, secondary) = buckets(hash, maps::buckets());
    if let Some(at) = word(position(secondary, 0)) {
        // SAFETY: a place of the index.
        unsafe { atomic::load(at) };
    }
}

/// Looks a client up. Closed flows are found too, for their late segments.
///
/// Its own place in the primary bucket comes first, inlined: most flows stand there, so the processor can foresee how this
/// ends, which it cannot for a search.
#[inline(always)]
pub fn find(key: Key, hash: u64) -> Option<Found> {
    let (primary, _) = buckets(hash, maps::buckets());
    let at = word(position(primary, hash::position(hash)))?;
    // SAFETY: a place of the index.
    let entry = Entry(unsafe { atomic::load(at) });
    if entry.may_be(tag(hash))
        && let Some(found) = confirm(entry, key)
    {
        return Some(found);
    }
    confirm(Entry(find_any(key.0, hash)), key)
}

#[inline(always)]
fn confirm(entry: Entry, key: Key) -> Option<Found> {
    if entry.0 == 0 {
        return None;
    }
    let (pool, slot) = (entry.pool(), entry.slot());
    let record = slots::get(pool, slot)?;
    // SAFETY: from a map lookup.
    let (ctl, slot_key) = unsafe { (atomic::load(&raw const (*record).ctl), atomic::load(&raw const (*record).key)) };
    if !entry.confirms(ctl, slot_key, key) {
        return None;
    }
    Some(Found { pool, slot, record, ctl })
}

/// Every entry of both buckets that carries the tag: the first that its slot confirms.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn find_any(key: u64, hash: u64) -> u64 {
    let (primary, secondary) = buckets(hash, maps::buckets());
    let entry = find_in(primary, key, tag(hash));
    if entry != 0 { entry } else { find_in(secondary, key, tag(hash)) }
}

#[inline(always)]
fn find_in(bucket: u32, key: u64, tag: u64) -> u64 {
    let Some(entries) = maps::INDEX.get_ptr_mut(bucket) else { return 0 };
    for place in 0..BUCKET as usize {
        // SAFETY: a place of the bucket.
        let entry = Entry(unsafe { atomic::load((&raw const (*entries)[place]).cast()) });
        if entry.may_be(tag) && confirm(entry, Key(key)).is_some() {
            return entry.0;
        }
    }
    0
}

/// A place of the index, as a number: bucket and place in it.
#[inline(always)]
fn position(bucket: u32, place: u32) -> u64 {
    (bucket as u64) << 3 | place as u64
}

/// The word at a position.
#[inline(always)]
fn word(position: u64) -> Option<*mut u64> {
    let entries = maps::INDEX.get_ptr_mut((position >> 3) as u32)?;
    let mut place = position as u32;
    // LLVM knows that the mask is superfluous and deletes it; the verifier does not know.
    // SAFETY: touches one register.
    unsafe { core::arch::asm!("{0} &= 7", inout(reg) place) };
    // SAFETY: 0..=7 lies in the bucket.
    Some(unsafe { (&raw mut (*entries)).cast::<u64>().add(place as usize) })
}

/// Stores `new` at a position if `old` stands there.
#[inline(always)]
fn swap(position: u64, old: u64, new: u64) -> bool {
    let Some(at) = word(position) else { return false };
    // SAFETY: a place of the index.
    unsafe { atomic::load(at) == old && atomic::compare_swap(at, old, new) == old }
}

/// Whether one more flow with this key would find a place.
#[inline(always)]
pub fn has_room(key: Key) -> bool {
    let (primary, secondary) = buckets(mix(maps::seed(), key.0), maps::buckets());
    has_room_in(primary) != 0 || has_room_in(secondary) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn has_room_in(bucket: u32) -> u32 {
    let Some(entries) = maps::INDEX.get_ptr_mut(bucket) else { return 0 };
    for place in 0..BUCKET as usize {
        // SAFETY: a place of the bucket.
        let entry = unsafe { atomic::load((&raw const (*entries)[place]).cast::<u64>()) };
        if entry == 0 || is_over(entry) != 0 {
            return 1;
        }
    }
    0
}

/// Position of another flow's live entry for the same client in either bucket; -1 if there is none, as nearly always.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn twin(primary: u32, secondary: u32, own: u64, key: u64, tag: u64) -> i64 {
    let twin = look_for_twin(primary, own, key, tag);
    if twin >= 0 { twin } else { look_for_twin(secondary, own, key, tag) }
}

/// The same in one bucket.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn twin_in(bucket: u32, own: u64, key: u64, tag: u64) -> i64 {
    look_for_twin(bucket, own, key, tag)
}

#[inline(always)]
fn look_for_twin(bucket: u32, own: u64, key: u64, tag: u64) -> i64 {
    let Some(entries) = maps::INDEX.get_ptr_mut(bucket) else { return -1 };
    for place in 0..BUCKET {
        // SAFETY: a place of the bucket.
        let entry = Entry(unsafe { atomic::load((&raw const (*entries)[place as usize]).cast()) });
        if !entry.may_be(tag) || position(bucket, place) == own {
            continue;
        }
        if confirm(entry, Key(key)).is_some_and(|found| found.ctl.state().is_active()) {
            return position(bucket, place) as i64;
        }
    }
    -1
}

/// Puts an entry into an empty place of the bucket, else in the place of an entry whose flow is over. Its position; -1 if
/// the bucket is full.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn put_in(bucket: u32, entry: u64) -> i64 {
    let Some(entries) = maps::INDEX.get_ptr_mut(bucket) else { return -1 };
    for place in 0..BUCKET {
        // SAFETY: a place of the bucket.
        unsafe {
            let at = (&raw mut (*entries)[place as usize]).cast::<u64>();
            if atomic::load(at) == 0 && atomic::compare_swap(at, 0, entry) == 0 {
                return position(bucket, place) as i64;
            }
        }
    }
    for place in 0..BUCKET {
        // SAFETY: as above.
        unsafe {
            let at = (&raw mut (*entries)[place as usize]).cast::<u64>();
            let old = atomic::load(at);
            if is_over(old) != 0 && atomic::compare_swap(at, old, entry) == old {
                return position(bucket, place) as i64;
            }
        }
    }
    -1
}

/// Whether the flow that an entry names has ended.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn is_over(entry: u64) -> u32 {
    let entry = Entry(entry);
    let Some(record) = slots::get(entry.pool(), entry.slot()) else { return 1 };
    // SAFETY: from a map lookup.
    let ctl = unsafe { atomic::load(&raw const (*record).ctl) };
    entry.is_over(ctl) as u32
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn load_of(bucket: u32) -> u32 {
    let Some(entries) = maps::INDEX.get_ptr_mut(bucket) else { return BUCKET };
    let mut load = 0;
    for place in 0..BUCKET as usize {
        // SAFETY: a place of the bucket.
        load += unsafe { atomic::load((&raw const (*entries)[place]).cast::<u64>()) != 0 } as u32;
    }
    load
}

/// The bucket to try first: the primary one unless it is fairly full and the other one is emptier.
#[inline(always)]
fn emptier(primary: u32, secondary: u32) -> (u32, u32) {
    let load = load_of(primary);
    if load < PRIMARY_FILL || load <= load_of(secondary) { (primary, secondary) } else { (secondary, primary) }
}

/// Enters a flow. Two SYNs of one client may come at once on two CPUs: the entry is provisional until no other one for the
/// same client is found that is committed or stands at a lower position.
#[inline(always)]
pub fn insert(key: Key, hash: u64, entry: Entry) -> Inserted {
    match insert_entry(key.0, hash, entry.provisional().0) {
        0 => Inserted::Won,
        1 => Inserted::Lost,
        _ => Inserted::Full,
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn insert_entry(key: u64, hash: u64, entry: u64) -> u32 {
    let (primary, secondary) = buckets(hash, maps::buckets());
    let mut own = position(primary, hash::position(hash)) as i64;
    if !swap(own as u64, 0, entry) {
        let (first, second) = emptier(primary, secondary);
        own = put_in(first, entry);
        if own < 0 {
            own = put_in(second, entry);
        }
        if own < 0 {
            return 2;
        }
    }
    let own = own as u64;
    let lost = twin(primary, secondary, own, key, tag(hash)) >= 0 && {
        contest(primary, own, key, tag(hash)) != 0
            || primary != secondary && contest(secondary, own, key, tag(hash)) != 0
    };
    let Some(at) = word(own) else { return 2 };
    // SAFETY: a place of the index.
    unsafe {
        if !lost && atomic::compare_swap(at, entry, Entry(entry).committed().0) == entry {
            return 0;
        }
        atomic::compare_swap(at, entry, 0);
    }
    1
}

/// 1 if our provisional entry at `own` loses against one in `bucket`. Those that lose against ours are removed.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn contest(bucket: u32, own: u64, key: u64, tag: u64) -> u32 {
    for _ in 0..4 {
        let twin = twin_in(bucket, own, key, tag);
        if twin < 0 {
            return 0;
        }
        if beaten_by(own, twin as u64) != 0 {
            return 1;
        }
    }
    0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn beaten_by(own: u64, twin: u64) -> u32 {
    let Some(at) = word(twin) else { return 0 };
    // SAFETY: a place of the index.
    unsafe {
        let entry = Entry(atomic::load(at));
        if entry.0 == 0 {
            return 0;
        }
        if !entry.is_provisional() || twin < own {
            return 1;
        }
        // Committed in this very moment: it stands.
        (atomic::compare_swap(at, entry.0, 0) == entry.committed().0) as u32
    }
}

/// Swaps the entry of a flow for another one (0: removes it). False if it does not stand there any more.
#[inline(always)]
pub fn replace(hash: u64, old: Entry, new: Entry) -> bool {
    let (primary, secondary) = buckets(hash, maps::buckets());
    swap(position(primary, hash::position(hash)), old.0, new.0)
        || replace_in(primary, old.0, new.0) != 0
        || replace_in(secondary, old.0, new.0) != 0
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn replace_in(bucket: u32, old: u64, new: u64) -> u32 {
    let Some(entries) = maps::INDEX.get_ptr_mut(bucket) else { return 0 };
    for place in 0..BUCKET as usize {
        // SAFETY: a place of the bucket.
        unsafe {
            let at = (&raw mut (*entries)[place]).cast::<u64>();
            if atomic::load(at) == old && atomic::compare_swap(at, old, new) == old {
                return 1;
            }
        }
    }
    0
}
