//! The counts of `per_client_connections` against the slots: a client's count must equal the number
//! of its open flows that are marked as counted.
//!
//! A controller that was killed between the end of a flow and the change of its client's count
//! leaves one too many. Flows come and go while they are counted here, so only clients whose word
//! is the same before and after are compared; and a count is changed an instant before or after the
//! flow's own word, so a difference is believed only when two looks in a row find the same one.
//! Flows that are not counted though their service has a limit (it is newer than they are, or the
//! table was full) are brought into the count.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{clients::ClientCount, slot::COUNTED, time::Instant};

use crate::tables::{FlowAt, Tables};

/// Between two looks: a look reads every flow of a service.
const PERIOD: Duration = Duration::from_secs(5);
/// How soon the second look follows one that has found something.
const AGAIN: Duration = Duration::from_millis(500);
/// Most flows that one look brings into the count.
const ADOPTED: usize = 4096;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Mark an open flow as counted, and count it.
    Count(FlowAt),
    /// A client's count is off by `by` (too high if positive).
    Correct {
        /// The service.
        service: u16,
        /// The client, as in the flow's key.
        client: u32,
        /// How far off.
        by: i32,
    },
}

/// What the table says about a client: its connections, and its words, which show every change.
type Counted = (i64, Vec<u64>);

/// The machine; one for all services.
#[derive(Debug, Default)]
pub struct Clients {
    due: Instant,
    /// Where the round goes on.
    next: u16,
    /// The differences that the last look found, by client.
    suspected: Option<(u16, BTreeMap<u32, i32>)>,
    /// Corrections so far, in connections: the metric, which must stay 0.
    corrected: u64,
}

impl Clients {
    /// The sum of all corrections since the start.
    pub fn corrected(&self) -> u64 {
        self.corrected
    }

    /// One turn: looks at one of the services that have a limit, if it is time. `pools` are those
    /// of all backends, and `service_of` says which service a backend belongs to.
    pub fn turn(
        &mut self,
        limited: &[u16],
        pools: &[u16],
        service_of: &dyn Fn(u16) -> Option<u16>,
        tables: &Tables,
        now: Instant,
    ) -> Vec<Step> {
        if now < self.due || limited.is_empty() {
            return Vec::new();
        }
        let (again, before) = self.suspected.take().unzip();
        let service = again.filter(|service| limited.contains(service));
        let next = || limited.iter().copied().find(|service| *service >= self.next).unwrap_or(limited[0]);
        let service = service.unwrap_or_else(next);
        self.next = service.wrapping_add(1);
        let (found, mut steps) = look(service, pools, service_of, tables);
        let (mut suspected, before) = (BTreeMap::new(), before.unwrap_or_default());
        for (client, by) in found {
            if again == Some(service) && before.get(&client) == Some(&by) {
                self.corrected += u64::from(by.unsigned_abs());
                steps.push(Step::Correct { service, client, by });
            } else {
                suspected.insert(client, by);
            }
        }
        self.due = now + if suspected.is_empty() { PERIOD } else { AGAIN };
        self.suspected = (!suspected.is_empty()).then_some((service, suspected));
        steps
    }
}

/// Differences by client, and the flows to be counted.
fn look(
    service: u16,
    pools: &[u16],
    service_of: &dyn Fn(u16) -> Option<u16>,
    tables: &Tables,
) -> (BTreeMap<u32, i32>, Vec<Step>) {
    let before = counted(service, tables);
    let mut open: BTreeMap<u32, i64> = BTreeMap::new();
    let mut steps = Vec::new();
    for pool in pools {
        tables.heads(*pool, 0..tables.slots(*pool)).for_each(|head| {
            let ctl = head.flow.ctl;
            if !ctl.state().is_active() || service_of(head.backend) != Some(service) {
                return;
            }
            if ctl.flags() & COUNTED != 0 {
                *open.entry(head.key.address_word()).or_default() += 1;
            } else if !ctl.state().is_unconfirmed() && steps.len() < ADOPTED {
                steps.push(Step::Count(head.flow));
            }
        });
    }
    let after = counted(service, tables);
    let clients: std::collections::BTreeSet<_> = before.keys().chain(open.keys()).copied().collect();
    let off = clients.into_iter().filter(|client| before.get(client) == after.get(client)).filter_map(|client| {
        let by = before.get(&client).map_or(0, |(count, _)| *count) - open.get(&client).unwrap_or(&0);
        Some((client, i32::try_from(by).ok().filter(|by| *by != 0)?))
    });
    (off.collect(), steps)
}

fn counted(service: u16, tables: &Tables) -> BTreeMap<u32, Counted> {
    let mut counted: BTreeMap<u32, Counted> = BTreeMap::new();
    tables.clients(service).into_iter().for_each(|word: ClientCount| {
        let (count, words) = counted.entry(word.client()).or_default();
        *count += i64::from(word.count());
        words.push(word.0);
    });
    counted
}

#[cfg(test)]
mod tests;
