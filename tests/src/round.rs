//! `evenkeel-lab run`: a first look at evenkeel in a lab with a client and three stand-in API
//! servers. With `--once` it runs a scripted round and prints what it did and measured; otherwise
//! it shows the live screen until Ctrl-C.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{
    Lab, Plan, StandIn,
    client::{bulk, hold::Holding, storm},
    daemon::{Evenkeel, Service, kubectl},
    show,
    topology::{PORT, Topology, VIP},
};

const SOON: Duration = Duration::from_secs(15);
/// Lines of the kernel program's log that the round prints at a time.
const KERNEL_LINES: usize = 12;

/// The lab and everything that runs in it.
pub struct Stage {
    pub evenkeel: Evenkeel,
    pub standins: Vec<StandIn>,
    pub lab: Lab,
    pub vip: String,
    /// Whether evenkeel logs what its kernel program does.
    pub has_kernel_log: bool,
}

pub fn run(once: bool, kernel_log: Option<&str>) -> Result<()> {
    let mut stage = Stage::new(kernel_log)?;
    if once { stage.round() } else { show::run(&mut stage) }
}

impl Stage {
    fn new(kernel_log: Option<&str>) -> Result<Stage> {
        let lab = Lab::build(&Plan::new(Topology::Segment))?;
        let standins = lab.backends.iter().map(StandIn::start).collect::<Result<Vec<_>>>()?;
        let service = Service::new(&lab, "auto").line("connect_timeout = \"1s\"");
        let mut evenkeel = Evenkeel::stopped(&lab, &service.toml())?;
        kernel_log.into_iter().for_each(|level| evenkeel.run_option(&format!("--kernel-log={level}")));
        evenkeel.run()?;
        let has_kernel_log = kernel_log.is_some();
        Ok(Stage { evenkeel, standins, lab, vip: format!("{VIP}:{PORT}"), has_kernel_log })
    }

    pub fn hold(&self, options: &[&str]) -> Result<Holding> {
        Holding::start(self.lab.client(), &[&[self.vip.as_str()], options].concat())
    }

    /// Each step either prints what it saw or ends the round with what failed.
    fn round(&mut self) -> Result<()> {
        print!("{}", self.evenkeel.done(&["status"])?);
        let server = format!("--server=https://{}", self.vip);
        for path in ["/version", "/livez?verbose"] {
            let told = kubectl(self.lab.client(), &[&server, "get", "--raw", path])?;
            say(&format!("kubectl get --raw {path}"), told.lines().last().unwrap_or_default());
        }
        let folder = self.lab.folder().display().to_string();
        let mut held = self.hold(&["--tls", &folder])?;
        let opened = held.open(30)?;
        ensure!(opened.opened == 30, "some of the 30 TLS connections failed: {opened:?}");
        self.evenkeel.wait_active(&[("cp01", 10), ("cp02", 10), ("cp03", 10)], SOON)?;
        let by = show::counts(&opened.by);
        say("30 TLS connections held", &format!("{by}; slowest {:.1} ms", opened.slowest_ms));

        for direction in ["download", "upload"] {
            let report = bulk::transfer(self.lab.client(), &self.vip, direction, 64 << 20)?;
            let (server, seconds) = (&report.served_by, report.seconds);
            say(&format!("64 MiB {direction}, checksums equal"), &format!("{seconds:.2} s, {server}"));
        }
        self.standins[0].kill();
        self.burst("cp01 refuses (its process was killed)", 300)?;
        self.standins[0].revive()?;
        self.lab.backends[1].drop_syns(PORT)?;
        self.burst("cp02 is silent (its firewall drops SYNs)", 300)?;
        self.lab.backends[1].open_firewall()?;

        self.print_kernel_log();
        self.evenkeel.kill();
        self.burst("the controller was killed with -9", 1000)?;
        self.evenkeel.run()?;
        let answered = held.ask()?.answered;
        ensure!(answered == 20, "only {answered} of the 20 connections to cp02 and cp03 still answer");
        say("the controller is back", "the 20 connections held to cp02 and cp03 still answer");
        self.evenkeel.done(&["reload"])?;
        self.burst("after a reload", 300)?;
        print!("{}", self.evenkeel.done(&["backends"])?);
        self.print_kernel_log();
        self.evenkeel.stop_detach()?;
        say("stop --detach", "done");
        Ok(())
    }

    /// Prints the last lines of the kernel program's log since the daemon was started.
    fn print_kernel_log(&self) {
        if self.has_kernel_log {
            let log = self.evenkeel.log();
            let lines: Vec<_> = log.lines().filter(|line| line.contains(" kernel] ")).collect();
            println!("the kernel program has logged {} lines; the last ones:", lines.len());
            lines[lines.len().saturating_sub(KERNEL_LINES)..].iter().for_each(|line| println!("  {line}"));
        }
    }

    /// Opens short connections, none of which may fail.
    fn burst(&self, what: &str, connections: u64) -> Result<()> {
        let report =
            storm::start(self.lab.client(), &[&self.vip, "--connections", &connections.to_string()])?.finish(SOON)?;
        ensure!(report.done == connections && report.failures() == 0, "{what}: connections failed: {report:?}");
        let times = format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", report.p50_ms, report.p99_ms, report.max_ms);
        say(&format!("{what}: {connections} new connections, 0 failed"), &times);
        Ok(())
    }
}

fn say(what: &str, result: &str) {
    println!("✓ {what}: {result}");
}
