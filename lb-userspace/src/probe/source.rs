//! The ports from which probes are sent. Where a SNAT address is the host's own, what backends send
//! to `snat_ports` is taken for an answer to a client; a probe from such a port would never hear of
//! its backend. So probes avoid these ports. The kernel does that by itself unless they are among
//! its ephemeral ports.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    ops::RangeInclusive,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::net::TcpSocket;

use crate::{config::model::PortRange, sys::host};

/// Ports that are tried before a probe is given up.
const TRIES: u32 = 64;
/// Ports that are enough for the connections of probes that wait in TIME_WAIT.
const ENOUGH: usize = 1024;
/// The ports that need no right, as long as there are others.
const ALL: RangeInclusive<u16> = PortRange::LOWEST..=u16::MAX;

/// Where the next probe begins to look, so that ports come round late.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The ports that probes are sent from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// `None`: the kernel chooses.
    ports: Option<RangeInclusive<u16>>,
}

impl Source {
    /// The kernel chooses.
    #[cfg(test)]
    pub fn any() -> &'static Source {
        &Source { ports: None }
    }

    /// Ports that are in none of `avoided`, nor in `older` if that leaves enough.
    pub fn beside(avoided: &[PortRange], older: &[PortRange]) -> Source {
        Source::chosen(&host::ephemeral_ports(), avoided, older)
    }

    fn chosen(ephemeral: &[RangeInclusive<u16>], avoided: &[PortRange], older: &[PortRange]) -> Source {
        let meets =
            |avoided: &[PortRange]| ephemeral.iter().any(|range| range.clone().any(|port| is_in(port, avoided)));
        let all = [avoided, older].concat();
        if !meets(&all) {
            return Source::default();
        }
        let ports = longest_left(ephemeral, &all).filter(|run| run.len() >= ENOUGH);
        if ports.is_none() && !meets(avoided) {
            return Source::default();
        }
        Source { ports: ports.or_else(|| longest_left(ephemeral, avoided)) }
    }

    /// Binds a socket to one of them, if the kernel must not choose.
    pub fn bind(&self, socket: &TcpSocket, to: SocketAddr) -> io::Result<()> {
        let Some(ports) = &self.ports else { return Ok(()) };
        // A port whose last connection has just ended is as good.
        socket.set_reuseaddr(true)?;
        let any = SocketAddr::new(if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() }, 0);
        for _ in 0..TRIES {
            let step = NEXT.fetch_add(1, Ordering::Relaxed) % ports.len() as u32;
            let port = *ports.start() + step as u16;
            match socket.bind(SocketAddr::new(any.ip(), port)) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                bound => return bound,
            }
        }
        Err(ErrorKind::AddrInUse.into())
    }
}

fn is_in(port: u16, ranges: &[PortRange]) -> bool {
    ranges.iter().any(|range| (range.first()..=range.last()).contains(&port))
}

/// The longest run of the kernel's ephemeral ports that is left; if it is short, of all ports.
fn longest_left(ephemeral: &[RangeInclusive<u16>], avoided: &[PortRange]) -> Option<RangeInclusive<u16>> {
    let is_free = |port: u16| !is_in(port, avoided);
    let own = ephemeral.iter().filter_map(|range| longest_run(range.clone(), is_free));
    let own = own.max_by_key(ExactSizeIterator::len).filter(|run| run.len() >= ENOUGH);
    own.or_else(|| longest_run(ALL, is_free))
}

/// The longest run of free ports in a range.
fn longest_run(range: RangeInclusive<u16>, is_free: impl Fn(u16) -> bool) -> Option<RangeInclusive<u16>> {
    let (mut best, mut run): (Option<RangeInclusive<u16>>, Option<RangeInclusive<u16>>) = (None, None);
    for port in range {
        run = is_free(port).then(|| run.map_or(port, |run| *run.start())..=port);
        if run.as_ref().map_or(0, ExactSizeIterator::len) > best.as_ref().map_or(0, ExactSizeIterator::len) {
            best.clone_from(&run);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    #[test]
    fn probes_leave_the_ports_alone_that_clients_are_given() {
        let linux = [32_768..=60_999];
        let ports =
            |ephemeral: &[RangeInclusive<u16>], avoided: &[PortRange]| Source::chosen(ephemeral, avoided, &[]).ports;
        assert_eq!(ports(&linux, &[range(10_240, 32_767)]), None, "the kernel never chooses one of these");
        assert_eq!(ports(&linux, &[range(1024, 40_000)]), Some(40_001..=60_999));
        assert_eq!(ports(&[1024..=65_000], &[range(10_240, 32_767)]), Some(32_768..=65_000));
        assert_eq!(ports(&linux, &[range(30_000, 61_000)]), Some(1024..=29_999), "none of the kernel's is left");
        assert_eq!(ports(&linux, &[range(10_240, 60_990)]), Some(1024..=10_239), "too few are left");
        assert_eq!(ports(&linux, &[range(40_000, 50_000), range(32_768, 35_000)]), Some(50_001..=60_999));
        assert_eq!(ports(&linux, &[range(1024, 65_535)]), None, "nothing is left");
        assert_eq!(ports(&[1024..=10_239, 32_768..=65_000], &[range(10_240, 32_767)]), None, "reserved ones");
    }

    #[test]
    fn ports_of_before_are_left_alone_as_long_as_enough_others_are_there() {
        let now = [range(10_240, 32_767)];
        let ports = |older: &[PortRange]| Source::chosen(&[32_768..=60_999], &now, older).ports;
        assert_eq!(ports(&[range(40_000, 41_000)]), Some(41_001..=60_999));
        assert_eq!(ports(&[range(1024, 65_535)]), None, "those of now are what matters");
        assert_eq!(ports(&[range(1024, 60_000)]), Some(60_001..=65_535));
        assert_eq!(ports(&[range(1024, 65_000)]), None);
    }

    #[tokio::test]
    async fn a_socket_is_bound_to_one_that_is_free() {
        let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let ports = port.saturating_sub(3)..=port.saturating_add(3);
        let source = Source { ports: Some(ports.clone()) };
        for _ in 0..14 {
            let socket = TcpSocket::new_v4().unwrap();
            source.bind(&socket, taken.local_addr().unwrap()).unwrap();
            let bound = socket.local_addr().unwrap().port();
            assert!(ports.contains(&bound) && bound != port, "{bound}");
        }
    }
}
