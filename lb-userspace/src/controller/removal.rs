//! What a plan has closed is removed when its last flow has ended: tombstones, closing listeners,
//! and services and pools that nothing refers to.

use std::{collections::BTreeMap, time::Duration};

use lb_common::{flow::Key, layout::CLOSING, time::Instant};

use crate::tables::{Installed, Tables, Write};

/// How long something must have been without flows before it goes. Well above the time in which a
/// packet under way in the kernel program can still open one, and the time in which a last FIN may
/// be sent again.
const QUIET: Duration = Duration::from_secs(10);

/// Something that is removed when it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Leaving {
    Listener(u16),
    Backend(u16),
    Service(u16),
    Pool(u16),
}

/// The machine: since when each thing that is to go has been seen empty.
#[derive(Debug, Default)]
pub struct Removal {
    empty_since: BTreeMap<Leaving, Instant>,
}

impl Removal {
    /// Writes that remove what has been empty long enough; `installed` is kept in step.
    pub fn turn(&mut self, installed: &mut Installed, tables: &Tables, now: Instant) -> Vec<Write> {
        let leaving = leaving(installed);
        self.empty_since.retain(|what, _| leaving.contains(what));
        let mut writes = Vec::new();
        for what in leaving {
            if !is_empty(what, installed, tables) {
                self.empty_since.remove(&what);
            } else if self.empty_since.entry(what).or_insert(now).age(now) >= QUIET {
                self.empty_since.remove(&what);
                writes.push(remove(what, installed));
            }
        }
        writes
    }
}

fn leaving(installed: &Installed) -> Vec<Leaving> {
    let listeners = installed.listeners.iter().filter(|(_, listener)| listener.state == CLOSING);
    let backends = installed.backends.keys().filter(|number| installed.is_tombstone(**number));
    let services = installed.services.keys().filter(|number| {
        !installed.listeners.values().any(|listener| listener.service == **number)
            && !installed.backends.values().any(|row| row.service == **number)
    });
    let pools = installed.pools.keys().filter(|pool| !installed.backends.values().any(|row| row.pools.contains(pool)));
    let listeners = listeners.map(|(number, _)| Leaving::Listener(*number));
    let backends = backends.map(|number| Leaving::Backend(*number));
    let services = services.map(|number| Leaving::Service(*number));
    listeners.chain(backends).chain(services).chain(pools.map(|pool| Leaving::Pool(*pool))).collect()
}

fn is_empty(what: Leaving, installed: &Installed, tables: &Tables) -> bool {
    match what {
        Leaving::Backend(number) => tables.backend(number).active == 0,
        Leaving::Service(_) => true,
        Leaving::Pool(pool) => flows(pool, tables, &mut |_| true) == 0,
        Leaving::Listener(number) => {
            installed.pools.keys().all(|pool| flows(*pool, tables, &mut |key| key.listener() == number) == 0)
        }
    }
}

fn flows(pool: u16, tables: &Tables, counts: &mut dyn FnMut(Key) -> bool) -> u32 {
    let mut open = 0;
    tables.heads(pool, 0..tables.slots(pool)).for_each(|head| {
        if head.flow.ctl.state().is_active() && tables.flow(head.flow.at).is_some_and(|flow| counts(flow.record.key)) {
            open += 1;
        }
    });
    open
}

fn remove(what: Leaving, installed: &mut Installed) -> Write {
    match what {
        Leaving::Listener(number) => {
            installed.listeners.remove(&number);
            Write::RemoveListener { number }
        }
        Leaving::Backend(number) => {
            installed.backends.remove(&number);
            Write::RemoveBackend { number }
        }
        Leaving::Service(number) => {
            installed.services.remove(&number);
            Write::RemoveService { number }
        }
        Leaving::Pool(number) => {
            installed.pools.remove(&number);
            Write::RemovePool { number }
        }
    }
}

#[cfg(test)]
mod tests;
