//! Packets as a device of a host sees them, captured by tcpdump.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::Result;

use crate::{Host, Process, wait};

static COUNT: AtomicU32 = AtomicU32::new(0);
const START: Duration = Duration::from_secs(5);

/// A tcpdump that runs until it is dropped.
pub struct Capture {
    process: Process,
}

impl Capture {
    /// Captures on a device what `filter` (pcap-filter(7)) selects. Returns once the capture runs.
    pub fn start(host: &Host, device: &str, filter: &str) -> Result<Self> {
        Self::start_with(host, device, filter, &[])
    }

    /// The same with more options: `-e` for MAC addresses, `-x` for [`packets`](Self::packets).
    pub fn start_with(host: &Host, device: &str, filter: &str, options: &[&str]) -> Result<Self> {
        let mut command = host.command("tcpdump");
        command.args(["-i", device, "-n", "-tt", "-l", "--immediate-mode"]).args(options).arg(filter);
        // Several may run on one host, so each has its own log.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = host.start(&format!("tcpdump{number}"), &mut command)?;
        wait::until("tcpdump listens", START, || process.log().contains("listening on").then_some(()))?;
        Ok(Self { process })
    }

    /// Captures every SYN of a client to `port`.
    pub fn of_syns(host: &Host, port: u16) -> Result<Self> {
        Self::start(host, "eth0", &format!("dst port {port} and tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"))
    }

    /// The time of each packet since the epoch.
    pub fn seen(&self) -> Vec<Duration> {
        let seconds = |line: &str| line.split(' ').next()?.parse().ok();
        self.process.log().lines().filter_map(seconds).map(Duration::from_secs_f64).collect()
    }

    /// The time of each packet and its bytes from the network header on. The capture needs `-x`.
    pub fn packets(&self) -> Vec<(Duration, Vec<u8>)> {
        let mut packets: Vec<(Duration, Vec<u8>)> = Vec::new();
        for line in self.process.log().lines() {
            if let Some((_, hex)) = line.trim_start().strip_prefix("0x").and_then(|line| line.split_once(':')) {
                let digits: Vec<u8> =
                    hex.chars().filter_map(|char| char.to_digit(16)).map(|digit| digit as u8).collect();
                if let Some((_, bytes)) = packets.last_mut() {
                    bytes.extend(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]));
                }
            } else if let Some(seconds) = line.split(' ').next().and_then(|word| word.parse().ok()) {
                packets.push((Duration::from_secs_f64(seconds), Vec::new()));
            }
        }
        packets
    }

    /// The lines of packets, such as `10.0.1.100.31999 > 10.0.1.10.6443: Flags [S], …`.
    pub fn lines(&self) -> Vec<String> {
        self.process.log().lines().filter(|line| line.contains(" > ")).map(str::to_owned).collect()
    }
}

/// The current time, on the clock of captures.
pub fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
