//! The flow index from user space: the same entries in the same buckets as the kernel program's, by
//! the same protocol.
//!
//! It is needed for flows that come from the other host; the kernel program enters its own flows
//! itself. An entry is a hint that its slot confirms (see `lb_common::hash`), so a stale entry does
//! no harm and is overwritten.

use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::{
    flow::{Key, SlotAt},
    hash::{BUCKET, Entry, buckets, mix, tag},
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
    fn hash(&self, key: Key) -> u64 {
        mix(self.meta.seed, key.0)
    }

    /// The words of a key's two buckets, each once.
    fn places(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        let (primary, secondary) = buckets(hash, self.meta.buckets);
        let second = (primary != secondary).then_some(secondary);
        let both = [Some(primary), second].into_iter().flatten();
        let places = both.flat_map(|bucket| (0..BUCKET as usize).map(move |place| (bucket as usize, place * 8)));
        places.map(|(bucket, offset)| self.table.word64(bucket, offset))
    }
}

impl Tables {
    /// The slot of an entry and its word, if the entry is of this client and its slot confirms it.
    fn confirmed(&self, word: u64, key: Key, tag: u64) -> Option<FlowAt> {
        let entry = Entry(word);
        if !entry.may_be(tag) {
            return None;
        }
        let at = entry.at();
        let slots = self.slots_of(at.pool()).filter(|slots| u32::from(at.slot()) < slots.len())?;
        let ctl = slots.ctl(at.slot());
        let is_flow = entry.confirms(ctl, slots.key(at.slot()), key) && ctl.state().is_active();
        is_flow.then_some(FlowAt { at, ctl })
    }

    /// The open flow with a key.
    pub fn find_key(&self, key: Key) -> Option<FlowAt> {
        let hash = self.fixed.index.hash(key);
        self.fixed.index.places(hash).find_map(|place| self.confirmed(place.load(Ordering::Acquire), key, tag(hash)))
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
            free && place.compare_exchange(old, provisional, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        let Some(own) = self.fixed.index.places(hash).find(put) else { return Entered::Full };
        let position = std::ptr::from_ref(own).addr();
        let lost = self.fixed.index.places(hash).any(|place| {
            let word = place.load(Ordering::Acquire);
            let other = std::ptr::from_ref(place).addr();
            if other == position || self.confirmed(word, key, tag(hash)).is_none() {
                return false;
            }
            // A provisional twin at a higher position gives way, unless it is just being committed.
            let ours = Entry(word).is_provisional() && other > position;
            !ours
                || place.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Acquire)
                    == Err(Entry(word).committed().0)
        });
        let settle = if lost { 0 } else { entry.committed().0 };
        let settled = own.compare_exchange(provisional, settle, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if settled && !lost { Entered::Won } else { Entered::Lost }
    }

    /// Removes the entry of a flow, if there is one.
    pub(super) fn leave(&self, key: Key, at: SlotAt, generation: u32) {
        let hash = self.fixed.index.hash(key);
        let entry = Entry::new(tag(hash), at, generation).0;
        for place in self.fixed.index.places(hash) {
            // Another word means that the entry is gone already.
            _ = place.compare_exchange(entry, 0, Ordering::AcqRel, Ordering::Acquire);
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
