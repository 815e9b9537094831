//! Doing what the core has decided, on the real tables.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lb_common::{
    address::to_mapped,
    event::{ENDED, Event},
    layout::{ACTIVE, CLOSING, LOG, NONE, UP},
    schedule,
    time::Instant,
    verdict::Reason,
};
use log::{debug, warn};

use super::hops::Hops;
use crate::{
    controller::{
        clients,
        installed::{BackendRow, ServiceRow, listener_address, pool_backend, pool_snat},
        plan::Write,
        sweep::Step,
        view::FlowAt,
    },
    dataplane::Dataplane,
    sys::clock,
    tables::{BackendSetup, Flow, NewPool, ServiceSetup, Tables},
};

/// Carries out one write. `waiting` takes ports that cannot be withheld yet. `upper_first`: which half of the ports of a
/// new pool is handed out first, see [`NewPool`].
pub fn write(
    tables: &Tables,
    hops: &Hops,
    write: &Write,
    waiting: &mut Vec<(u16, u16)>,
    upper_first: bool,
) -> Result<()> {
    match write {
        Write::NewPool { number, pool, withheld } => {
            let backend = SocketAddr::V4(pool_backend(pool));
            let new = NewPool {
                backend,
                snat: pool_snat(pool).into(),
                first_port: pool.first_port,
                ports: pool.ports,
                reserved: withheld.clone(),
                hop: hops.hop(tables, backend.ip()).unwrap_or_default(),
                upper_first,
            };
            let made = tables.create_pool(&new).with_context(|| format!("slots for backend {backend}"))?;
            ensure!(made == *number, "the slots for backend {backend} were made in place {made}, not {number}");
        }
        Write::WithholdPort { pool, port } => {
            if !tables.reserve_port(*pool, *port) {
                waiting.push((*pool, *port));
            }
        }
        Write::NewBackend { number, row } => {
            tables.reset_backend(*number);
            tables.configure_backend(*number, &backend_setup(row));
            let (admission, retry_at) = if row.closed { (NONE, Instant::NEVER.0) } else { (UP, Instant::NEVER.0) };
            tables.admit(*number, admission, retry_at);
        }
        Write::SetBackend { number, row } => {
            tables.configure_backend(*number, &backend_setup(row));
            if row.closed {
                tables.admit(*number, NONE, Instant::NEVER.0);
            }
        }
        Write::SetService { number, row } => tables.configure_service(*number, &service_setup(row))?,
        Write::Maglev { service, backends } => {
            let mut table = [0; schedule::MAGLEV_PLACES as usize];
            schedule::maglev(backends, &mut table);
            tables.set_maglev(*service, &table)?;
        }
        Write::SetListener { number, listener } if listener.state == ACTIVE => {
            let address = listener_address(listener);
            let placed = tables.place_listener(SocketAddr::V4(address), listener.service)?;
            ensure!(placed == *number, "listener {address} was put in place {placed}, not {number}");
        }
        Write::SetListener { number, listener } => {
            debug_assert_eq!(listener.state, CLOSING);
            tables.close_listener(*number);
        }
        Write::RemoveListener { number } => tables.delete_listener(*number),
        Write::RemoveBackend { number } => tables.reset_backend(*number),
        Write::RemoveService { number } => tables.disable_service(*number)?,
        Write::RemovePool { number } => tables.remove_pool(*number)?,
    }
    Ok(())
}

fn backend_setup(row: &BackendRow) -> BackendSetup {
    BackendSetup {
        service: row.service,
        weight: row.weight,
        max_conns: row.max_conns,
        backup: row.backup,
        retry_after_ns: row.retry_after,
        slow_start_ms: row.slow_start_ms,
        pools: row.pools.clone(),
    }
}

fn service_setup(row: &ServiceRow) -> ServiceSetup {
    ServiceSetup {
        connect_timeout_ns: row.connect_timeout,
        balance: row.balance,
        tries: row.tries,
        half_open_cells: row.half_open_cells,
        log: row.flags & LOG != 0,
        rules: row.rules.clone(),
        client_limit: row.client_limit,
        backends: row.backends.clone(),
    }
}

/// Changes one flow, if its word still is what it was. A flow that this closes gives the event that the kernel program
/// would have sent.
pub fn step(dataplane: &Dataplane, step: &Step) -> Option<Event> {
    let tables = dataplane.tables();
    match step {
        Step::Suspect(flow) => {
            tables.suspect(flow.place.pool, flow.place.slot, flow.ctl);
            None
        }
        Step::Release(flow) => {
            tables.release_abandoned(flow.place.pool, flow.place.slot, flow.ctl);
            None
        }
        Step::Close(flow, reason) => {
            let closed = tables.close(flow.place.pool, flow.place.slot, flow.ctl, *reason)?;
            if let Err(error) = dataplane.reset(&closed) {
                debug!("no RST for the connection of {}: {error:#}", closed.client());
            }
            Some(ended(tables, &closed, *reason))
        }
    }
}

/// Brings a client's count in line.
pub fn client(tables: &Tables, step: clients::Step) {
    match step {
        // Who has changed meanwhile is met at the next look.
        clients::Step::Count(flow) => _ = tables.count_flow(flow.place.pool, flow.place.slot, flow.ctl),
        clients::Step::Correct { service, client, by } => tables.move_client_count(service, client, -by),
    }
}

/// The client's SYN once more, through the kernel program, which moves the flow to the next backend.
pub fn retry(dataplane: &Dataplane, flow: &FlowAt) {
    let current = dataplane.tables().flow(flow.place.pool, flow.place.slot);
    let Some(current) = current.filter(|current| current.ctl == flow.ctl) else { return };
    if let Err(error) = dataplane.resend_syn(&current) {
        warn!("the SYN of {} cannot be sent to another backend: {error:#}", current.client());
    }
}

/// Asks a connection's backend for a sign of life.
pub fn ask(dataplane: &Dataplane, flow: &FlowAt) {
    let current = dataplane.tables().flow(flow.place.pool, flow.place.slot);
    let Some(current) = current.filter(|current| current.ctl == flow.ctl) else { return };
    if let Err(error) = dataplane.ask(&current) {
        debug!("the backend of {} cannot be asked for a sign of life: {error:#}", current.client());
    }
}

fn ended(tables: &Tables, flow: &Flow, reason: Reason) -> Event {
    let client = flow.client();
    Event {
        at: Instant(clock::coarse_ns()),
        started: Instant(flow.started_ns()),
        bytes_in: flow.bytes_in(),
        bytes_out: flow.bytes_out(),
        client: to_mapped(client.ip()),
        client_port: client.port().to_be_bytes(),
        listener: flow.listener(),
        service: tables.backend(flow.backend()).service,
        backend: flow.backend(),
        pool: flow.pool,
        slot: flow.slot,
        generation: flow.ctl.generation(),
        connect_us: flow.connect_us(),
        kind: ENDED,
        reason: reason as u8,
        tries: flow.record.tries,
        family: 4,
    }
}
