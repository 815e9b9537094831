//! What the controller's plans consist of, carried out on the tables. [`read`](super::read) is the
//! other direction.

use anyhow::{Context, Result};
use lb_common::{
    layout::{Listener, NONE, Pool, UP},
    schedule,
    time::Instant,
};

use super::{
    BackendRow, ServiceRow, Tables,
    rows::{Ports, listener_address, pool_backend},
};

/// One change of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Makes the slots and the ring of free ones, then the record. The ports in `withheld` never
    /// enter the ring.
    NewPool {
        /// Its row in POOLS.
        number: u16,
        /// The record, without a next hop.
        pool: Pool,
        /// SNAT ports that are listen ports of the same address.
        withheld: Vec<u16>,
    },
    /// Gives the new connections of a pool other ports. Open ones keep theirs.
    SetPorts {
        /// Its row in POOLS.
        number: u16,
        /// The ports.
        ports: Ports,
        /// Those of them that are listen ports of the same address.
        withheld: Vec<u16>,
    },
    /// Makes the slot of a port that new connections do not get: another host has one there.
    ReachPort {
        /// The pool, a row of POOLS.
        number: u16,
        /// The SNAT port.
        port: u16,
    },
    /// Takes a port out of use because it has become a listen port of the same address.
    WithholdPort {
        /// The pool, a row of POOLS.
        pool: u16,
        /// The SNAT port.
        port: u16,
    },
    /// Says whether the SNAT address of a pool is a listen address too.
    FlagPool {
        /// The pool, a row of POOLS.
        number: u16,
        /// `LISTENED`, or 0.
        flags: u32,
    },
    /// Clears totals and connect times, then writes the record: `UP`, or `NONE` if closed.
    NewBackend {
        /// Its row in BACKENDS.
        number: u16,
        /// The controller's part.
        row: BackendRow,
    },
    /// Changes the controller's part. The admission becomes `NONE` if the row is closed; otherwise
    /// it stays as it is, and the controller decides about it afterwards.
    SetBackend {
        /// Its row in BACKENDS.
        number: u16,
        /// The controller's part.
        row: BackendRow,
    },
    /// Writes the controller's part of a service, and makes its ring of half-open flows if it has
    /// none of this size.
    SetService {
        /// Its row in SERVICES.
        number: u16,
        /// The controller's part.
        row: ServiceRow,
    },
    /// Fills the table of `balance = "hash"`.
    Maglev {
        /// The service, a row of SERVICES.
        service: u16,
        /// The hash of the address and the weight of each backend, in the order of the service's
        /// list.
        backends: Vec<(u64, u32)>,
    },
    /// Writes a listener: `ACTIVE`, or `CLOSING`.
    SetListener {
        /// Its row in LISTENERS.
        number: u16,
        /// The record.
        listener: Listener,
    },
    /// Marks a listener `DELETED`.
    RemoveListener {
        /// Its row in LISTENERS.
        number: u16,
    },
    /// Clears the record of a tombstone.
    RemoveBackend {
        /// Its row in BACKENDS.
        number: u16,
    },
    /// Takes a service out of use and frees its ring and tables.
    RemoveService {
        /// Its row in SERVICES.
        number: u16,
    },
    /// Marks the record `DELETED`, then frees the slots.
    RemovePool {
        /// Its row in POOLS.
        number: u16,
    },
}

impl Tables {
    /// Carries out one write. `upper_first`: which half of the ports of a new pool is handed out
    /// first, see [`put_pool`](Self::put_pool). `false`: a connection has the port that is to be
    /// withheld, so [`withhold_port`](Self::withhold_port) has to be asked again.
    pub fn write(&self, write: &Write, upper_first: bool) -> Result<bool> {
        match write {
            Write::NewPool { number, pool, withheld } => self
                .put_pool(*number, pool, withheld, upper_first)
                .with_context(|| format!("slots for backend {}", pool_backend(pool)))?,
            Write::SetPorts { number, ports, withheld } => self.set_ports(*number, *ports, withheld, upper_first)?,
            Write::ReachPort { number, port } => self.reach_port(*number, *port)?,
            Write::WithholdPort { pool, port } => return Ok(self.withhold_port(*pool, *port)),
            Write::FlagPool { number, flags } => self.set_pool_flags(*number, *flags),
            Write::NewBackend { number, row } => {
                self.reset_backend(*number);
                self.configure_backend(*number, row);
                self.admit(*number, if row.closed { NONE } else { UP }, Instant::NEVER);
            }
            Write::SetBackend { number, row } => self.configure_backend(*number, row),
            Write::SetService { number, row } => self.configure_service(*number, row)?,
            Write::Maglev { service, backends } => {
                let mut table = [0; schedule::MAGLEV_PLACES as usize];
                schedule::maglev(backends, &mut table);
                self.set_maglev(*service, &table)?;
            }
            Write::SetListener { number, listener } => self
                .put_listener(*number, listener)
                .with_context(|| format!("listener {}", listener_address(listener)))?,
            Write::RemoveListener { number } => self.delete_listener(*number)?,
            Write::RemoveBackend { number } => self.reset_backend(*number),
            Write::RemoveService { number } => self.disable_service(*number)?,
            Write::RemovePool { number } => self.remove_pool(*number)?,
        }
        Ok(true)
    }
}
