//! `mss_clamp`: how much payload the segments of a service's connections may have.

use lb_common::syn::DEFAULT_MSS;

use super::Daemon;
use crate::{config::model::MssClamp, sys::netdev};

/// The headers of a segment over IPv4 without options.
const HEADERS: u32 = 40;

impl Daemon {
    /// Writes it for every service. It bounds connections that are opened from now on.
    pub(super) fn clamp_payload(&self) {
        for service in &self.controller.desired().services {
            let mtus = || {
                let names = self.wanted.of_service.get(&service.name).into_iter().flatten();
                names.filter_map(|name| netdev::mtu(name).ok()).collect::<Vec<_>>()
            };
            let mut known = self.controller.services().iter();
            if let Some((number, _)) = known.find(|(_, facts)| facts.name == service.name) {
                self.dataplane.tables().set_mss_clamp(*number, clamp(service.mss_clamp, mtus));
            }
        }
    }
}

/// The bound; 0: none is needed. Where all interfaces take the same, what both sides say of theirs
/// is enough.
fn clamp(wanted: MssClamp, mtus: impl FnOnce() -> Vec<u32>) -> u32 {
    match wanted {
        MssClamp::Off => 0,
        MssClamp::Bytes(bytes) => bytes,
        MssClamp::Auto => {
            let mtus = mtus();
            let smallest = mtus.iter().min().copied().unwrap_or(0);
            let differ = mtus.iter().any(|mtu| *mtu != smallest);
            if differ { smallest.saturating_sub(HEADERS).max(DEFAULT_MSS.into()) } else { 0 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_bound_the_payload_where_they_differ() {
        let auto = |mtus: &[u32]| clamp(MssClamp::Auto, || mtus.to_vec());
        assert_eq!((auto(&[1500, 1400]), auto(&[9000, 1500, 9000])), (1360, 1460));
        assert_eq!((auto(&[1500, 1500]), auto(&[1500]), auto(&[])), (0, 0, 0));
        assert_eq!(auto(&[1500, 296]), 536, "what every host takes (RFC 9293 section 3.7.1)");
        assert_eq!(clamp(MssClamp::Bytes(1200), || vec![1500, 1400]), 1200);
        assert_eq!(clamp(MssClamp::Off, || vec![1500, 1400]), 0);
    }
}
