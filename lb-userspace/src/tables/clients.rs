//! The counts of `per_client_connections` (`lb_common::clients`), as the controller uses them: it
//! uncounts the flows that it closes, and corrects counts that do not agree with the slots.

use std::sync::atomic::Ordering;

use anyhow::Result;
use lb_common::{
    clients::{CLIENT_BUCKETS, ClientCount, MOST, buckets_of},
    hash::BUCKET,
    layout::ClientLine,
    slot::COUNTED,
};

use super::{
    Tables,
    flow::{Flow, FlowAt},
    maps::Outer,
};
use crate::sys::memory::Table;

impl Tables {
    /// Makes the table of a service's clients, if there is none. It stays until the service goes,
    /// so that connections that were counted are uncounted even if the limit is gone by then.
    pub(super) fn make_clients(&self, service: u16) -> Result<()> {
        if self.clients.of(service).is_some() {
            return Ok(());
        }
        let made = self.make(Outer::Clients, CLIENT_BUCKETS)?;
        self.replace(&self.clients, service, made)
    }

    /// The words of a service's clients, in no order.
    pub fn clients(&self, service: u16) -> Vec<ClientCount> {
        let Some(table) = self.clients.of(service) else { return Vec::new() };
        let words = (0..table.len()).flat_map(|bucket| table.read(bucket));
        words.filter(|word| *word != 0).map(ClientCount).collect()
    }

    /// Changes a client's count by this many connections, if the client is in the table or a place
    /// is free.
    pub fn move_client_count(&self, service: u16, client: u32, by: i32) {
        let Some(table) = self.clients.of(service) else { return };
        let mut left = by;
        // A client has at most two words, each of which others change now and then.
        for _ in 0..32 {
            let Some((bucket, offset, old)) = self.client_word(&table, client, left > 0) else { return };
            let count = old.count().saturating_add_signed(left).min(MOST);
            let new = if old.count() == 0 { ClientCount::new(client, count) } else { old.changed_to(count) };
            let word = table.word64(bucket, offset);
            if word.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                left -= count as i32 - old.count() as i32;
            }
            if left == 0 || count == MOST {
                return;
            }
        }
    }

    /// A word of the client: its bucket, its offset in bytes and its value; or, if asked for, an
    /// empty one.
    fn client_word(
        &self,
        table: &Table<ClientLine>,
        client: u32,
        or_empty: bool,
    ) -> Option<(usize, usize, ClientCount)> {
        let (first, second) = buckets_of(self.fixed.index.meta.seed, client);
        let places = [first, second]
            .into_iter()
            .flat_map(|bucket| (0..BUCKET as usize).map(move |at| (bucket as usize, at * 8)));
        let word = |(bucket, at)| (bucket, at, ClientCount(table.word64(bucket, at).load(Ordering::Acquire)));
        let own = places.clone().map(word).find(|(.., word)| word.is_of(client));
        own.or_else(|| places.map(word).find(|(.., word)| or_empty && word.0 == 0))
    }

    /// Counts an open connection that was not counted when it began, because the limit is newer or
    /// the table was full.
    pub fn count_flow(&self, seen: FlowAt) -> bool {
        let Some(slots) = self.slots_of(seen.at.pool()) else { return false };
        let Some(flow) = self.flow(seen.at).filter(|flow| flow.ctl == seen.ctl) else { return false };
        if flow.ctl.flags() & COUNTED != 0 || !slots.flag(seen.at.slot(), flow.ctl, COUNTED) {
            return false;
        }
        self.move_client_count(self.backend(flow.backend()).service, flow.client_word(), 1);
        true
    }

    /// Uncounts a flow that was ended here, if it was counted.
    pub(super) fn uncount_flow(&self, flow: &Flow) {
        if flow.ctl.flags() & COUNTED != 0 {
            self.move_client_count(self.backend(flow.backend()).service, flow.client_word(), -1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> Tables {
        let tables = Tables::in_memory().unwrap();
        tables.make_clients(3).unwrap();
        tables
    }

    fn counts(tables: &Tables) -> Vec<(u32, u32)> {
        let mut counts: Vec<_> = tables.clients(3).into_iter().map(|word| (word.client(), word.count())).collect();
        counts.sort_unstable();
        counts
    }

    #[test]
    fn counts_go_up_and_down_and_nobody_is_left_at_zero() {
        let tables = tables();
        tables.move_client_count(3, 7, 2);
        tables.move_client_count(3, 8, 1);
        tables.move_client_count(3, 7, -1);
        assert_eq!(counts(&tables), [(7, 1), (8, 1)]);
        tables.move_client_count(3, 7, -1);
        tables.move_client_count(3, 9, -1);
        assert_eq!(counts(&tables), [(8, 1)], "of whom there is none, none is taken");
        tables.move_client_count(4, 8, 1);
        assert_eq!(tables.clients(4), [], "a service without a limit has no table");
    }

    #[test]
    fn a_client_with_two_words_is_counted_as_their_sum() {
        let tables = tables();
        let table = tables.clients.of(3).unwrap();
        let (first, second) = buckets_of(tables.fixed.index.meta.seed, 7);
        table.word64(first as usize, 8).store(ClientCount::new(7, 2).0, Ordering::Relaxed);
        table.word64(second as usize, 16).store(ClientCount::new(7, 3).0, Ordering::Relaxed);
        tables.move_client_count(3, 7, -4);
        assert_eq!(counts(&tables), [(7, 1)]);
    }

    #[test]
    fn a_full_bucket_takes_nobody_and_loses_nobody() {
        let tables = tables();
        let table = tables.clients.of(3).unwrap();
        let (first, second) = buckets_of(tables.fixed.index.meta.seed, 7);
        for bucket in [first, second] {
            for place in 0..8 {
                table.word64(bucket as usize, place * 8).store(ClientCount::new(1000, 1).0, Ordering::Relaxed);
            }
        }
        tables.move_client_count(3, 7, 1);
        assert_eq!(counts(&tables).len(), 16);
        assert!(counts(&tables).iter().all(|count| *count == (1000, 1)));
    }
}
