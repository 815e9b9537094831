//! From events to lines of the access log: the tries of one connection are put together, words
//! become a status.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use lb_common::{
    event::{ENDED, Event, TOOK_OUT, TRY_FAILED, TURNED_AWAY},
    layout::Pool,
    time::Instant,
    verdict::Reason,
};

use super::Now;
use crate::access_log::{Record, Status, Try};
use crate::tables::rows::pool_snat;

/// Most connections whose failed tries are remembered until they end. A connection that is
/// forgotten is logged with its last try only. About 100 bytes each.
const REMEMBERED: usize = 16_384;

/// What the controller knows about the numbers in events.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Services by number.
    pub services: BTreeMap<u16, Arc<str>>,
    /// Name and address of backends by number.
    pub backends: BTreeMap<u16, (Arc<str>, SocketAddr)>,
    /// Addresses of listeners by number.
    pub listeners: BTreeMap<u16, SocketAddr>,
    /// The pools by number.
    pub pools: BTreeMap<u16, Pool>,
}

/// One connection: its first SYN distinguishes it from another one from the same client port.
type Connection = (SocketAddr, u16, Instant);

/// The machine.
#[derive(Debug, Default)]
pub struct Recorder {
    failed: HashMap<Connection, Vec<Try>>,
    /// The same connections, oldest first.
    order: VecDeque<Connection>,
    /// Those that had no slot.
    turned_away: u32,
}

/// `$connection`: the use of a slot, which no other connection has had. All lines of a connection
/// have the same number.
pub fn connection_number(pool: u16, slot: u16, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(pool) << 16 | u64::from(slot)
}

impl Recorder {
    /// Takes an event; returns a record if it ends a connection.
    pub fn event(&mut self, event: &Event, names: &Names, now: Now) -> Option<Record> {
        let client = event.client();
        let connection = (client, event.listener, event.started);
        let backend = names.backends.get(&event.backend);
        match event.kind {
            TRY_FAILED | TOOK_OUT => {
                if let Some((_, address)) = backend {
                    self.remember(connection, Try { address: *address, connected_in: None });
                }
                None
            }
            ENDED | TURNED_AWAY => {
                let mut tries = self.failed.remove(&connection).unwrap_or_default();
                if event.reason == Reason::Unconfirmed as u8 {
                    // There was no connection, only a SYN from anybody's address.
                    return None;
                }
                if let Some((_, address)) = backend.filter(|_| event.kind == ENDED) {
                    let took = Duration::from_micros(u64::from(event.connect_us));
                    tries.push(Try { address: *address, connected_in: is_connected(event).then_some(took) });
                }
                Some(Record {
                    client,
                    server: names.listeners.get(&event.listener).copied().unwrap_or(UNKNOWN),
                    ended: wall_clock(event.at, now),
                    session: session(event),
                    bytes_received: event.bytes_in,
                    bytes_sent: event.bytes_out,
                    status: status(event),
                    tries,
                    service: names.services.get(&event.service).cloned().unwrap_or_else(|| Arc::from("-")),
                    backend: backend.map(|(name, _)| name.clone()),
                    reason: Reason::from_number(event.reason),
                    snat: names
                        .pools
                        .get(&event.pool)
                        .map(|pool| SocketAddr::new(pool_snat(pool).into(), pool.first_port.wrapping_add(event.slot))),
                    connection: self.number(event),
                })
            }
            _ => None,
        }
    }

    fn number(&mut self, event: &Event) -> u64 {
        if event.pool == NO_SLOT {
            self.turned_away = self.turned_away.wrapping_add(1);
            return connection_number(NO_SLOT, 0, self.turned_away);
        }
        connection_number(event.pool, event.slot, event.generation)
    }

    /// The failed tries so far of a connection that is still open.
    pub fn failed(&self, client: SocketAddr, listener: u16, started: Instant) -> Vec<SocketAddr> {
        let tries = self.failed.get(&(client, listener, started)).into_iter().flatten();
        tries.map(|failed| failed.address).collect()
    }

    fn remember(&mut self, connection: Connection, failed: Try) {
        let tries = self.failed.entry(connection).or_default();
        tries.push(failed);
        if tries.len() == 1 {
            self.order.push_back(connection);
        }
        // `order` also holds connections that have ended, so it is what is bounded.
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.failed.remove(&oldest);
            }
        }
    }
}

/// In an event: no slot was claimed.
const NO_SLOT: u16 = u16::MAX;
/// For an event of a listener that is no longer known here.
const UNKNOWN: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0));

/// Whether the connection that ended had been answered by its backend: there are ends before that.
/// Half-open ones that the controller closes have no connect time.
fn is_connected(event: &Event) -> bool {
    let reason = Reason::from_number(event.reason);
    let before = [Reason::ClientAborted, Reason::HalfOpenEvicted, Reason::ConnectTimeout, Reason::ClientLimit];
    event.kind == ENDED && event.connect_us > 0 && !reason.is_some_and(|reason| before.contains(&reason))
}

/// nginx's words: 200 served, 403 denied, 502 no backend could be connected, 503 over a limit of
/// ours.
fn status(event: &Event) -> Status {
    match Reason::from_number(event.reason) {
        _ if is_connected(event) => Status::Served,
        Some(Reason::Denied) => Status::Denied,
        Some(Reason::NoSlot | Reason::IndexFull | Reason::ClientLimit | Reason::HalfOpenEvicted) => Status::OverLimit,
        _ => Status::NoBackend,
    }
}

fn session(event: &Event) -> Duration {
    // `at` is read from the coarse clock, which may be behind the exact one of `started`.
    let began = if event.started == Instant::ZERO { event.at } else { event.started };
    began.age(event.at)
}

fn wall_clock(at: Instant, now: Now) -> Timestamp {
    now.wall.checked_sub(at.age(now.monotonic)).unwrap_or(now.wall)
}

#[cfg(test)]
mod tests;
