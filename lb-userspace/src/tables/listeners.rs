//! The listeners: the addresses that clients connect to.

use std::{mem::offset_of, net::SocketAddrV4};

use anyhow::{Result, ensure};
use lb_common::layout::{ACTIVE, CLOSING, DELETED, Listener, MAX_SERVICES};

use super::{
    Tables, check_reach, find_row, numbered,
    rows::{listener_address, listener_rows},
};

impl Tables {
    /// Puts a listener into the row that was chosen for it
    /// ([`Installed::free_listener_row`](super::Installed)), or changes the one that is there.
    /// `ACTIVE`: it takes connections from now on; `CLOSING`: no new ones, those it has go on.
    pub fn put_listener(&self, row: u16, listener: &Listener) -> Result<()> {
        // What is there can always be closed, however it was damaged.
        let closes = Listener { state: CLOSING, ..self.listener(row) } == *listener;
        if !closes {
            self.check_listener(row, listener)?;
        }
        self.fixed.listeners.publish(row.into(), listener, offset_of!(Listener, state));
        self.note_addresses()
    }

    /// Whether the kernel program would find a listener in this row, and nothing else is there.
    fn check_listener(&self, row: u16, listener: &Listener) -> Result<()> {
        ensure!(u32::from(listener.service) < MAX_SERVICES, "service number {} is out of range", listener.service);
        ensure!(listener.family == 4, "the datapath has no IPv6 yet");
        match self.find_listener(listener_address(listener)) {
            Some(found) => ensure!(found == row, "it stands in row {found}, not in row {row}"),
            None => {
                let state = |row| self.listener(row).state;
                ensure!(!matches!(state(row), ACTIVE | CLOSING), "row {row} holds another listener");
                check_reach(listener_rows(listener_address(listener)), row, state)?;
            }
        }
        Ok(())
    }

    /// Frees a listener's row. Its last connection must be over.
    pub fn delete_listener(&self, row: u16) -> Result<()> {
        let record = Listener { state: DELETED, ..self.listener(row) };
        self.fixed.listeners.publish(row.into(), &record, offset_of!(Listener, state));
        self.note_addresses()
    }

    /// The row of the listener at an address, if there is one.
    fn find_listener(&self, address: SocketAddrV4) -> Option<u16> {
        let state = |row| self.listener(row).state;
        find_row(listener_rows(address), state, |row| listener_address(&self.listener(row)) == address)
    }

    /// A listener's record.
    pub fn listener(&self, row: u16) -> Listener {
        self.fixed.listeners.read(row.into())
    }

    /// All listeners that have connections or may get some, by row.
    pub fn listeners(&self) -> Vec<(u16, Listener)> {
        numbered(&self.fixed.listeners).filter(|(_, record)| matches!(record.state, ACTIVE | CLOSING)).collect()
    }
}
