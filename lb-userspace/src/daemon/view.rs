//! The mapped tables as the core reads them.

use std::net::SocketAddr;

use lb_common::{
    clients::ClientCount,
    flow::SlotAt,
    layout::{Backend, Opening, Slot},
    slot::Ctl,
    time::{Instant, Ticks},
};

use crate::{
    controller::view::{FlowAt, Head, Place, View},
    tables::Tables,
};

impl View for Tables {
    fn backend(&self, number: u16) -> Backend {
        Tables::backend(self, number)
    }

    fn slow_until(&self, backend: u16) -> Instant {
        self.slow_start(backend).until
    }

    fn heard(&self, pool: u16) -> Ticks {
        Ticks(Tables::heard(self, pool))
    }

    fn sent(&self, pool: u16) -> Ticks {
        Ticks(Tables::sent(self, pool))
    }

    fn half_open_head(&self, service: u16) -> u32 {
        self.service(service).half_open
    }

    fn half_open(&self, service: u16, each: &mut dyn FnMut(Place, u32)) {
        for cell in Tables::half_open(self, service) {
            each(Place { pool: cell.at().pool(), slot: cell.at().slot() }, cell.generation());
        }
    }

    fn clients(&self, service: u16, each: &mut dyn FnMut(ClientCount)) {
        Tables::clients(self, service).into_iter().for_each(each);
    }

    fn slots(&self, pool: u16) -> u32 {
        Tables::slots(self, pool)
    }

    fn heads(&self, pool: u16, from: u32, to: u32, each: &mut dyn FnMut(Head)) {
        for head in Tables::heads(self, pool, from..to) {
            let flow = FlowAt { place: Place { pool, slot: head.flow.at.slot() }, ctl: head.flow.ctl };
            each(Head { flow, key: head.key, last_seen: head.last_seen, backend: head.backend });
        }
    }

    fn slot(&self, place: Place) -> Option<(Ctl, Slot)> {
        self.flow(SlotAt::new(place.pool, place.slot)).map(|flow| (flow.ctl, flow.record))
    }

    fn opening(&self, place: Place) -> Option<(Ctl, Opening)> {
        self.flow(SlotAt::new(place.pool, place.slot)).map(|flow| (flow.ctl, flow.opening))
    }

    fn client(&self, place: Place) -> Option<SocketAddr> {
        self.flow(SlotAt::new(place.pool, place.slot)).map(|flow| flow.client())
    }
}
