//! Reading the ring buffer of events.

use std::{os::fd::AsFd, path::Path, time::Duration};

use anyhow::{Context, Result};
use aya::maps::{Map, MapData, RingBuf};
use lb_common::{
    event::{ENDED, Event, GAVE_WAY},
    time::Instant,
};

use crate::sys::readiness::Readiness;

/// How long events gather before they are read: a reader that runs after every event makes each
/// event ten times as expensive for the kernel program.
const GATHER: Duration = Duration::from_millis(10);
/// Most events of one batch: the shell has other work too.
const BATCH: usize = 4096;

/// The reading end. There must be only one.
pub struct Events {
    ring: RingBuf<MapData>,
    readiness: Readiness,
    malformed: u64,
}

impl Events {
    pub(super) fn open(maps: &Path) -> Result<Events> {
        let map = MapData::from_pin(maps.join("EVENTS")).context("cannot open map EVENTS")?;
        let ring: RingBuf<MapData> = Map::from_map_data(map)?.try_into()?;
        let readiness = Readiness::of(ring.as_fd())?;
        Ok(Events { ring, readiness, malformed: 0 })
    }

    /// Waits for events, lets them gather for 10 ms and puts what is there into `batch`, which is
    /// emptied first. No timer runs while nothing happens. May be dropped while it waits: no event
    /// is lost.
    pub async fn next_batch(&mut self, batch: &mut Vec<Event>) -> Result<()> {
        batch.clear();
        let mut ready = self.readiness.readable().await?;
        tokio::time::sleep(GATHER).await;
        while batch.len() < BATCH {
            let Some(item) = self.ring.next() else {
                // Armed again only now: an event that comes after the look into the empty ring
                // wakes us.
                ready.clear_ready();
                break;
            };
            match parse(&item) {
                Some(event) => batch.push(event),
                None => self.malformed += 1,
            }
        }
        Ok(())
    }

    /// Events that could not be read: a program of another version. Always 0.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }
}

/// An event from the bytes of its record, if they are one.
fn parse(bytes: &[u8]) -> Option<Event> {
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    let mut rest = Bytes(bytes);
    let event = Event {
        at: Instant(u64::from_ne_bytes(rest.take()?)),
        started: Instant(u64::from_ne_bytes(rest.take()?)),
        bytes_in: u64::from_ne_bytes(rest.take()?),
        bytes_out: u64::from_ne_bytes(rest.take()?),
        client: rest.take()?,
        client_port: rest.take()?,
        listener: u16::from_ne_bytes(rest.take()?),
        service: u16::from_ne_bytes(rest.take()?),
        backend: u16::from_ne_bytes(rest.take()?),
        pool: u16::from_ne_bytes(rest.take()?),
        slot: u16::from_ne_bytes(rest.take()?),
        generation: u32::from_ne_bytes(rest.take()?),
        connect_us: u32::from_ne_bytes(rest.take()?),
        kind: u8::from_ne_bytes(rest.take()?),
        reason: u8::from_ne_bytes(rest.take()?),
        tries: u8::from_ne_bytes(rest.take()?),
        family: u8::from_ne_bytes(rest.take()?),
    };
    (ENDED..=GAVE_WAY).contains(&event.kind).then_some(event)
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use lb_common::event::TRY_FAILED;

    use super::*;

    fn bytes() -> Vec<u8> {
        let mut bytes: Vec<u8> = (1..=72).collect();
        bytes[offset_of!(Event, kind)] = TRY_FAILED;
        bytes
    }

    #[test]
    fn every_field_is_read_from_its_place() {
        let event = parse(&bytes()).unwrap();
        macro_rules! check {
            ($($field:ident),*) => {$(
                assert_eq!(event.$field.to_ne_bytes()[0] as usize, offset_of!(Event, $field) + 1, stringify!($field));
            )*};
        }
        assert_eq!(event.at.0.to_ne_bytes()[0] as usize, offset_of!(Event, at) + 1);
        assert_eq!(event.started.0.to_ne_bytes()[0] as usize, offset_of!(Event, started) + 1);
        check!(bytes_in, bytes_out, listener, service, backend, pool, slot, generation, connect_us);
        check!(reason, tries, family);
        assert_eq!(event.client[0] as usize, offset_of!(Event, client) + 1);
        assert_eq!(event.client_port[0] as usize, offset_of!(Event, client_port) + 1);
        assert_eq!(event.kind, TRY_FAILED);
    }

    #[test]
    fn what_is_no_event_is_refused() {
        assert_eq!(parse(&bytes()[1..]), None);
        assert_eq!(parse(&[bytes(), vec![0]].concat()), None);
        for kind in [0, 8, 255] {
            let mut strange = bytes();
            strange[offset_of!(Event, kind)] = kind;
            assert_eq!(parse(&strange), None);
        }
    }
}
