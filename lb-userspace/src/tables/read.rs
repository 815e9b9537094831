//! What is in the tables, as the rows that the controller's plans are made of: the other direction
//! of [`write`](Tables::write).

use std::collections::BTreeSet;

use lb_common::{
    layout::{Hop, MAX_BACKENDS, MAX_SERVICES, Pool},
    time::Ticks,
};

use super::{Installed, Tables};

impl Tables {
    /// Everything that is installed. The records of services carry no mark: one is in use if it
    /// takes connections, or if a listener or a backend names it.
    pub fn read(&self) -> Installed {
        let plain = |pool: Pool| Pool { hop: Hop::default(), heard: Ticks(0), sent: Ticks(0), ..pool };
        let mut installed = Installed {
            listeners: self.listeners().into_iter().collect(),
            pools: self.pools().into_iter().map(|(number, pool)| (number, plain(pool))).collect(),
            ..Installed::default()
        };
        let backends = (0..MAX_BACKENDS as u16).filter_map(|number| Some((number, self.backend_row(number)?)));
        installed.backends = backends.collect();
        let by_listeners = installed.listeners.values().map(|listener| listener.service);
        let named: BTreeSet<_> = by_listeners.chain(installed.backends.values().map(|row| row.service)).collect();
        let is_used = |number: &u16| self.service(*number).half_open_cells > 0 || named.contains(number);
        let services = (0..MAX_SERVICES as u16).filter(is_used).map(|number| (number, self.service_row(number)));
        installed.services = services.collect();
        installed
    }
}
