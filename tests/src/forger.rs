//! A stranger on a host of the lab: it sends segments that it makes itself, in anybody's name.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use evenkeel::sys::{netdev, packet_socket::PacketSocket};

use crate::{
    Host, arp,
    packet::{Mac, Segment},
};

/// How often the pace of a flood is looked at.
const BEAT: Duration = Duration::from_millis(1);

/// Sends from eth0 of one host to eth0 of another.
pub struct Forger {
    host: Host,
    /// The MAC addresses that its frames carry.
    from: Mac,
    to: Mac,
}

impl Forger {
    pub fn new(host: &Host, target: &Host) -> Result<Forger> {
        Ok(Forger { host: host.clone(), from: arp::mac(host, "eth0")?, to: arp::mac(target, "eth0")? })
    }

    /// Sends one frame for each segment. MAC addresses that a segment has stay as they are.
    pub fn send(&self, segments: &[Segment]) -> Result<()> {
        let frames: Vec<_> = segments.iter().map(|segment| self.frame(segment)).collect();
        self.send_frames(&frames)
    }

    /// The frame of a segment.
    pub fn frame(&self, segment: &Segment) -> Vec<u8> {
        let or = |mac: Mac, own: Mac| if mac == [0; 6] { own } else { mac };
        let (from, to) = (or(segment.from_mac, self.from), or(segment.to_mac, self.to));
        segment.clone().macs(from, to).bytes()
    }

    /// Sends frames as they are.
    pub fn send_frames(&self, frames: &[Vec<u8>]) -> Result<()> {
        self.host.inside(|| {
            let (socket, device) = (PacketSocket::open()?, netdev::index_of("eth0")?);
            frames.iter().try_for_each(|frame| Ok(socket.send(device, frame)?))
        })
    }

    /// Sends what `make` gives for 0, 1, 2, …: `rate` a second, or as fast as it goes, for this long.
    /// Returns how many were sent.
    pub fn flood(&self, rate: Option<u64>, time: Duration, mut make: impl FnMut(u64) -> Segment + Send) -> Result<u64> {
        self.host.inside(|| {
            let (socket, device) = (PacketSocket::open()?, netdev::index_of("eth0")?);
            let (begun, mut sent) = (Instant::now(), 0);
            while begun.elapsed() < time {
                let due = rate.map_or(sent + 64, |rate| (begun.elapsed().as_secs_f64() * rate as f64) as u64);
                while sent < due {
                    // A queue that is full loses the frame, as a wire does.
                    _ = socket.send(device, &self.frame(&make(sent)));
                    sent += 1;
                }
                if rate.is_some() {
                    thread::sleep(BEAT);
                }
            }
            Ok(sent)
        })
    }
}
