//! Totals that never go back. A backend's bytes are those of its record and those of its open flows,
//! which are read one after the other: a flow that ends in between is in neither for a moment.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

/// A backend's totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Connections that were opened, from its record: fewer than before mean another record.
    pub opened: u64,
    /// From clients.
    pub bytes_in: u64,
    /// To clients.
    pub bytes_out: u64,
}

/// The largest totals that were reported, by the backend's number; with its address, because
/// another one may have that number later.
#[derive(Debug, Default)]
pub struct Floors(Mutex<BTreeMap<u16, (SocketAddr, Totals)>>);

impl Floors {
    /// The totals to be reported, which are not below any before.
    pub fn raise(&self, number: u16, address: SocketAddr, read: Totals) -> Totals {
        let mut floors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let floor = floors.get(&number).filter(|(of, floor)| *of == address && floor.opened <= read.opened);
        let raised = floor.map_or(read, |(_, floor)| Totals {
            bytes_in: read.bytes_in.max(floor.bytes_in),
            bytes_out: read.bytes_out.max(floor.bytes_out),
            ..read
        });
        floors.insert(number, (address, raised));
        raised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_go_up_only_until_the_record_is_another_one() {
        let floors = Floors::default();
        let at = |last: u8| SocketAddr::from(([10, 0, 1, last], 6443));
        let totals = |opened, bytes_in, bytes_out| Totals { opened, bytes_in, bytes_out };
        assert_eq!(floors.raise(3, at(1), totals(5, 100, 700)), totals(5, 100, 700));
        assert_eq!(floors.raise(3, at(1), totals(6, 40, 800)), totals(6, 100, 800), "a flow has just ended");
        assert_eq!(floors.raise(3, at(1), totals(6, 120, 90)), totals(6, 120, 800));
        assert_eq!(floors.raise(4, at(1), totals(1, 1, 1)), totals(1, 1, 1));
        assert_eq!(floors.raise(3, at(1), totals(0, 0, 0)), totals(0, 0, 0), "removed, and added again");
        assert_eq!(floors.raise(3, at(2), totals(9, 7, 7)), totals(9, 7, 7));
        assert_eq!(floors.raise(3, at(1), totals(9, 3, 3)), totals(9, 3, 3));
    }
}
