//! Carries out what the core has decided.

use std::net::IpAddr;

use anyhow::Result;
use lb_common::{
    address::to_mapped,
    event::{ENDED, Event},
    slot::{SEIZED, State},
    time::Instant,
    verdict::Reason,
};
use log::{debug, warn};

use super::hops::Hops;
use crate::{
    controller::{clients, left_behind::LeftPort, sweep::Step},
    dataplane::Dataplane,
    sys::clock,
    tables::{Flow, FlowAt, Tables, Write, rows::pool_backend},
};

/// Carries out one write, with what the daemon knows beyond the plan: the next hop of a new pool,
/// and ports to try again (`waiting`), because a connection has them.
pub fn write(
    tables: &Tables,
    hops: &Hops,
    write: &Write,
    waiting: &mut Vec<(u16, u16)>,
    upper_first: bool,
) -> Result<()> {
    let done = tables.write(write, upper_first)?;
    match write {
        Write::NewPool { number, pool, .. } => {
            if let Some(hop) = hops.hop(tables, IpAddr::V4(*pool_backend(pool).ip())) {
                tables.set_pool_hop(*number, hop);
            }
        }
        Write::WithholdPort { pool, port } if !done => waiting.push((*pool, *port)),
        _ => {}
    }
    Ok(())
}

/// Changes one flow, if its word is still the same. If this closes the flow, it makes the event
/// that the kernel program would have sent.
pub fn step(dataplane: &Dataplane, step: &Step) -> Option<Event> {
    step_in(dataplane.tables(), step, clock::coarse(), |closed, both| {
        if let Err(error) = dataplane.reset(closed, both) {
            debug!("no RST for the connection of {}: {error:#}", closed.client());
        }
    })
}

/// The same in these tables. `reset` sends the RSTs of a flow that was closed: to its backend, or to
/// both sides.
pub fn step_in(tables: &Tables, step: &Step, now: Instant, reset: impl FnOnce(&Flow, bool)) -> Option<Event> {
    match step {
        Step::Suspect(flow) => {
            tables.suspect(*flow);
            None
        }
        Step::Release(flow) => {
            tables.release_abandoned(*flow);
            None
        }
        Step::Forget(flow) => {
            tables.end_quietly(flow.at, |now| now.ctl == flow.ctl);
            None
        }
        Step::Close(flow, reason) => {
            let closed = tables.close(*flow, *reason)?;
            // Who never acknowledged may be anybody: only the backend is told.
            let both = *reason != Reason::Unconfirmed;
            reset(&closed, both);
            Some(ended(tables, &closed, *reason, now))
        }
    }
}

/// Brings a client's count in line.
pub fn client(tables: &Tables, step: clients::Step) {
    match step {
        // A flow that has changed in the meantime is met at the next look.
        clients::Step::Count(flow) => _ = tables.count_flow(flow),
        clients::Step::Correct { service, client, by } => tables.move_client_count(service, client, -by),
    }
}

/// The client's SYN once more, through the kernel program, which moves the flow to the next
/// backend.
pub fn retry(dataplane: &Dataplane, flow: &FlowAt) {
    let current = dataplane.tables().flow(flow.at);
    let Some(current) = current.filter(|current| current.ctl == flow.ctl) else { return };
    if let Err(error) = dataplane.resend_syn(&current) {
        warn!("the SYN of {} cannot be sent to another backend: {error:#}", current.client());
    }
}

/// Asks a connection's backend for a sign of life.
pub fn ask(dataplane: &Dataplane, flow: &FlowAt) {
    let current = dataplane.tables().flow(flow.at);
    let Some(current) = current.filter(|current| current.ctl == flow.ctl) else { return };
    if let Err(error) = dataplane.ask(&current) {
        debug!("the backend of {} cannot be asked for a sign of life: {error:#}", current.client());
    }
}

/// Resets what a try has left behind at the backend of a port.
pub fn reset_port(dataplane: &Dataplane, LeftPort { at, sequence, acknowledgement }: &LeftPort) {
    if let Err(error) = dataplane.reset_port(*at, *sequence, *acknowledgement) {
        debug!("no RST to the backend of pool {} slot {}: {error:#}", at.pool(), at.slot());
    }
    // The SYN of the flow that has seized the port may have met what has just ended.
    let next = dataplane.tables().flow(*at);
    if let Some(next) = next.filter(|next| next.ctl.state() == State::HalfOpen && next.ctl.flags() & SEIZED != 0) {
        retry(dataplane, &next.seen());
    }
}

pub fn ended(tables: &Tables, flow: &Flow, reason: Reason, now: Instant) -> Event {
    let client = flow.client();
    Event {
        at: now,
        started: Instant(flow.started_ns()),
        bytes_in: flow.bytes_in(),
        bytes_out: flow.bytes_out(),
        client: to_mapped(client.ip()),
        client_port: client.port().to_be_bytes(),
        listener: flow.listener(),
        service: tables.backend(flow.backend()).service,
        backend: flow.backend(),
        pool: flow.at.pool(),
        slot: flow.at.slot(),
        generation: flow.ctl.generation(),
        connect_us: flow.connect_us(),
        kind: ENDED,
        reason: reason as u8,
        tries: flow.opening.tries,
        family: 4,
    }
}
