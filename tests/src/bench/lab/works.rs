//! The works that the systems do.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{load::Report, systems::Stage};
use crate::{binaries, process};

/// Bytes of a bulk answer.
pub const BULK: u64 = 1 << 20;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// The name in the figures.
    pub name: &'static str,
    pub over: &'static str,
    pub tls: bool,
    pub threads: u32,
    pub bytes: u64,
    pub pace: Pace,
    /// `true`: super-packets; `false`: frames of MTU size.
    pub segmentation: bool,
}

/// How fast requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As fast as possible.
    Full,
    /// At this share of what the slowest system managed in the named work.
    Share(f64, &'static str),
}

const fn requests(name: &'static str, over: &'static str, tls: bool, pace: Pace) -> Work {
    Work { name, over, tls, threads: 16, bytes: 200, pace, segmentation: true }
}

/// In the order in which they are done: a fixed rate comes after the work that it is a share of.
pub const ALL: [Work; 11] = [
    requests("kept-tcp", "kept", false, Pace::Full),
    requests("new-tcp", "new", false, Pace::Full),
    requests("kept-tls", "kept", true, Pace::Full),
    requests("new-tls", "new", true, Pace::Full),
    requests("kept-tcp-fixed", "kept", false, Pace::Share(0.4, "kept-tcp")),
    requests("new-tcp-fixed", "new", false, Pace::Share(0.4, "new-tcp")),
    requests("kept-tls-fixed", "kept", true, Pace::Share(0.4, "kept-tls")),
    requests("new-tls-fixed", "new", true, Pace::Share(0.4, "new-tls")),
    Work { threads: 1, ..requests("one", "kept", false, Pace::Full) },
    Work { threads: 4, bytes: BULK, ..requests("bulk", "kept", false, Pace::Full) },
    Work { threads: 4, bytes: BULK, segmentation: false, ..requests("bulk-mtu", "kept", false, Pace::Full) },
];

/// The works of a quick look: TCP only, no bulk.
pub const QUICK: [&str; 5] = ["kept-tcp", "new-tcp", "kept-tcp-fixed", "new-tcp-fixed", "one"];

impl Work {
    /// A description in words.
    pub fn told(&self) -> String {
        let kind = if self.tls { "TLS" } else { "TCP" };
        let over = if self.over == "kept" { "kept connections" } else { "a new connection for each request" };
        let pace = match self.pace {
            Pace::Full => "each request as soon as the previous one is answered".to_owned(),
            Pace::Share(share, of) => {
                let share = (share * 100.0).round();
                format!(
                    "at a fixed rate, {share} % of what the slowest system manages in {of}; times count from when a request was due"
                )
            }
        };
        let frames = if self.segmentation { "" } else { "; frames of MTU size: no segmentation offload anywhere" };
        let Work { threads, bytes, .. } = self;
        let requests = if *threads == 1 { "one request".to_owned() } else { format!("{threads} requests") };
        format!("{kind}, {requests} at a time over {over}, answers of {bytes} bytes; {pace}{frames}")
    }

    /// The work whose rate this one takes a share of.
    pub fn base(&self) -> Option<&'static str> {
        match self.pace {
            Pace::Full => None,
            Pace::Share(_, of) => Some(of),
        }
    }

    /// Whether bytes count, not requests.
    pub fn is_bulk(&self) -> bool {
        self.bytes == BULK
    }

    /// Does it for this many seconds, at a rate if it has one.
    pub fn run(&self, stage: &Stage, rate: Option<f64>, seconds: f64) -> Result<Report> {
        let client = stage.lab.client();
        let mut command = client.command(binaries::lab()?);
        command.arg("bench-load").args(stage.targets.iter().map(ToString::to_string));
        command.args(["--over", self.over, "--threads", &self.threads.to_string()]);
        command.args(["--bytes", &self.bytes.to_string(), "--seconds", &seconds.to_string()]);
        if let Some(rate) = rate {
            command.args(["--rate", &rate.to_string()]);
        }
        if self.tls {
            let folder: &Path = client.folder();
            command.arg("--tls").arg(folder);
        }
        let said =
            process::output(&mut command).with_context(|| format!("{} through {}", self.name, stage.system.name()))?;
        let report: Report = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(report.done > 0, "{} through {}: nothing was served: {report:?}", self.name, stage.system.name());
        Ok(report)
    }
}

/// Time for what the previous work leaves behind: closing connections, log lines.
pub const REST: Duration = Duration::from_millis(50);
