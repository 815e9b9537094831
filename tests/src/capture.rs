//! Packets as a host's device sees them, by tcpdump.

use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::{Host, Process, wait};

const START: Duration = Duration::from_secs(5);

/// A tcpdump that runs until it is dropped.
pub struct Capture {
    process: Process,
}

impl Capture {
    /// Watches a device for what `filter` (pcap-filter(7)) selects; returns when it sees.
    pub fn start(host: &Host, device: &str, filter: &str) -> Result<Self> {
        let mut command = host.command("tcpdump");
        command.args(["-i", device, "-n", "-tt", "-l", "--immediate-mode", filter]);
        let process = host.start("tcpdump", &mut command)?;
        wait::until("tcpdump listens", START, || process.log().contains("listening on").then_some(()))?;
        Ok(Self { process })
    }

    /// Every SYN of a client to `port`.
    pub fn of_syns(host: &Host, port: u16) -> Result<Self> {
        Self::start(host, "eth0", &format!("dst port {port} and tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"))
    }

    /// When each packet was seen, since the epoch.
    pub fn seen(&self) -> Vec<Duration> {
        let seconds = |line: &str| line.split(' ').next()?.parse().ok();
        self.process.log().lines().filter_map(seconds).map(Duration::from_secs_f64).collect()
    }

    /// What stands in the lines, such as `10.0.1.100.31999 > 10.0.1.10.6443: Flags [S], …`.
    pub fn lines(&self) -> Vec<String> {
        self.process.log().lines().filter(|line| line.contains(" > ")).map(str::to_owned).collect()
    }
}

/// Now, as captures tell the time.
pub fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
