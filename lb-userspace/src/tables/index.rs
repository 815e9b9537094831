//! The flow index from user space: the same entries in the same buckets as the kernel program's, by
//! the same protocol.
//!
//! It is needed for flows that come from the other host; the kernel program enters its own flows
//! itself. An entry is a hint that its slot confirms (see `lb_common::hash`), so a stale entry does
//! no harm and is overwritten.

use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::{
    flow::{Key, SlotAt},
    hash::{BUCKET, Entry, buckets, mix, position, tag},
    layout::Meta,
};

use super::{FlowAt, Tables};
use crate::sys::memory::Table;

/// A bucket of entries.
pub type Bucket = [u64; BUCKET as usize];

/// The mapped index, and what is needed to find an entry in it.
pub struct Index {
    /// INDEX, mapped.
    pub table: Table<Bucket>,
    /// META: the hash seed and the number of buckets.
    pub meta: Meta,
}

/// The outcome of entering a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It can be found from now on.
    Won,
    /// Another flow of the same client is entered.
    Lost,
    /// Both buckets are full of live flows.
    Full,
}

impl Index {
    pub(super) fn hash(&self, key: Key) -> u64 {
        mix(self.meta.seed, key.0)
    }

    /// The word at a key's own position, where the kernel program looks first.
    pub(super) fn own_place(&self, hash: u64) -> &AtomicU64 {
        let (primary, _) = buckets(hash, self.meta.buckets);
        self.table.word64(primary as usize, position(hash) as usize * 8)
    }

    /// The words of a key's two buckets, each once.
    pub(super) fn places(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        let (primary, secondary) = buckets(hash, self.meta.buckets);
        let second = (primary != secondary).then_some(secondary);
        let both = [Some(primary), second].into_iter().flatten();
        let places = both.flat_map(|bucket| (0..BUCKET as usize).map(move |place| (bucket as usize, place * 8)));
        places.map(|(bucket, offset)| self.table.word64(bucket, offset))
    }
}

impl Tables {
    /// The slot of an entry and its word, if the entry is of this client and its slot confirms it.
    /// Its flow may have ended.
    pub(super) fn confirmed(&self, word: u64, key: Key, tag: u64) -> Option<FlowAt> {
        let entry = Entry(word);
        if !entry.may_be(tag) {
            return None;
        }
        let at = entry.at();
        let slots = self.slots_of(at.pool()).filter(|slots| u32::from(at.slot()) < slots.len())?;
        let ctl = slots.ctl(at.slot());
        entry.confirms(ctl, slots.key(at.slot()), key).then_some(FlowAt { at, ctl })
    }

    /// The open flow with a key.
    pub fn find_key(&self, key: Key) -> Option<FlowAt> {
        let hash = self.fixed.index.hash(key);
        let flows = self.fixed.index.places(hash);
        let mut flows = flows.filter_map(|place| self.confirmed(place.load(Ordering::Acquire), key, tag(hash)));
        flows.find(|flow| flow.ctl.state().is_active())
    }

    /// Enters a flow whose slot is filled and published: provisionally first, then committed unless
    /// a twin is found that is committed or has a lower position. The kernel program enters flows
    /// at the same time in the same way.
    pub(super) fn enter(&self, key: Key, at: SlotAt, generation: u32) -> Entered {
        let hash = self.fixed.index.hash(key);
        let entry = Entry::new(tag(hash), at, generation);
        let provisional = entry.provisional().0;
        let put = |place: &&AtomicU64| {
            let old = place.load(Ordering::Acquire);
            let free = old == 0 || self.is_over(old);
            free && swapped(place, old, provisional).is_ok()
        };
        let index = &self.fixed.index;
        let mut places = std::iter::once(index.own_place(hash)).chain(index.places(hash));
        let Some(own) = places.find(put) else { return Entered::Full };
        let lost = index.places(hash).any(|place| !std::ptr::eq(place, own) && self.yields_to(place, own, key));
        let settle = if lost { 0 } else { entry.committed().0 };
        let settled = swapped(own, provisional, settle).is_ok();
        if settled && !lost { Entered::Won } else { Entered::Lost }
    }

    /// Whether our provisional entry at `own` loses against the one at `place`. An entry for the
    /// same client that does not win is removed. So is that of an earlier flow of its, which has
    /// ended: the kernel program takes the first entry that a slot confirms, and its late segments
    /// belong to the open flow now.
    fn yields_to(&self, place: &AtomicU64, own: &AtomicU64, key: Key) -> bool {
        let word = place.load(Ordering::Acquire);
        let Some(twin) = self.confirmed(word, key, tag(self.fixed.index.hash(key))) else { return false };
        // A provisional twin at a higher position gives way, unless it is just being committed.
        let stays = !Entry(word).is_provisional() || std::ptr::from_ref(place) < std::ptr::from_ref(own);
        twin.ctl.state().is_active() && stays || swapped(place, word, 0) == Err(Entry(word).committed().0)
    }

    /// Removes the entry of a flow, if there is one.
    pub(super) fn leave(&self, key: Key, at: SlotAt, generation: u32) {
        let hash = self.fixed.index.hash(key);
        let entry = Entry::new(tag(hash), at, generation).0;
        for place in self.fixed.index.places(hash) {
            // Another word means that the entry is gone already.
            _ = swapped(place, entry, 0);
        }
    }

    /// Whether the flow that an entry names has ended.
    fn is_over(&self, word: u64) -> bool {
        let entry = Entry(word);
        let Some(slots) = self.slots_of(entry.pool() as u16).filter(|slots| entry.slot() < slots.len()) else {
            return true;
        };
        entry.is_over(slots.ctl(entry.slot() as u16))
    }
}

/// Stores `new` if the place holds `old`; if not, returns what it holds.
fn swapped(place: &AtomicU64, old: u64, new: u64) -> Result<u64, u64> {
    place.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire)
}
