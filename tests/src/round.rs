//! `evenkeel-lab run`: a first look. A lab with a client, evenkeel and three stand-in API servers; with `--once` a scripted
//! round that says what it did and measured, else a screen that shows what happens until Ctrl-C.

use std::{
    io::{BufRead as _, Write as _},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    Lab, Plan, StandIn,
    client::{bulk, hold::Holding, storm},
    daemon::{Evenkeel, Service, kubectl},
    topology::{PORT, Topology, VIP},
    wait,
};

const SOON: Duration = Duration::from_secs(15);

/// The lab and what runs in it.
struct Stage {
    evenkeel: Evenkeel,
    standins: Vec<StandIn>,
    lab: Lab,
    vip: String,
}

pub fn run(once: bool) -> Result<()> {
    let mut stage = Stage::new()?;
    if once { stage.round() } else { stage.show() }
}

impl Stage {
    fn new() -> Result<Stage> {
        let lab = Lab::build(&Plan::new(Topology::Segment))?;
        let standins = lab.backends.iter().map(StandIn::start).collect::<Result<Vec<_>>>()?;
        let service = Service::new(&lab, "auto").line("connect_timeout = \"1s\"");
        let evenkeel = Evenkeel::start(&lab, &service.toml())?;
        Ok(Stage { evenkeel, standins, lab, vip: format!("{VIP}:{PORT}") })
    }

    fn hold(&self, options: &[&str]) -> Result<Holding> {
        Holding::start(self.lab.client(), &[&[self.vip.as_str()], options].concat())
    }

    /// Every step either prints what it saw or ends the round with what failed.
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
        ensure!(opened.opened == 30, "of 30 TLS connections some failed: {opened:?}");
        self.evenkeel.wait_active(&[("cp01", 10), ("cp02", 10), ("cp03", 10)], SOON)?;
        say("30 TLS connections held", &format!("{:?}, slowest {:.1} ms", opened.by, opened.slowest_ms));

        for direction in ["download", "upload"] {
            let report = bulk::transfer(self.lab.client(), &self.vip, direction, 64 << 20)?;
            say(&format!("64 MiB {direction}, checksums equal"), &format!("{report:?}"));
        }
        self.standins[0].kill();
        self.burst("cp01 refuses (its process was killed)", 300)?;
        self.standins[0].revive()?;
        self.lab.backends[1].drop_syns(PORT)?;
        self.burst("cp02 is silent (its firewall drops SYNs)", 300)?;
        self.lab.backends[1].open_firewall()?;

        self.evenkeel.kill();
        self.burst("the controller was killed with -9", 1000)?;
        self.evenkeel.run()?;
        let answered = held.ask()?.answered;
        ensure!(answered == 20, "of the 20 connections to cp02 and cp03 {answered} still answer");
        say("the controller is back", "the 20 connections that were held to cp02 and cp03 still answer");
        self.evenkeel.done(&["reload"])?;
        self.burst("after a reload", 300)?;
        print!("{}", self.evenkeel.done(&["backends"])?);
        self.evenkeel.stop_detach()?;
        say("stop --detach", "done");
        Ok(())
    }

    /// Short connections, none of which may fail.
    fn burst(&self, what: &str, connections: u64) -> Result<()> {
        let report =
            storm::start(self.lab.client(), &[&self.vip, "--connections", &connections.to_string()])?.finish(SOON)?;
        ensure!(report.done == connections && report.failures() == 0, "{what}: connections failed: {report:?}");
        let times = format!("p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", report.p50_ms, report.p99_ms, report.max_ms);
        say(&format!("{what}: {connections} new connections, 0 failed"), &times);
        Ok(())
    }

    /// Traffic, the status again every second, and a line of input to break something.
    fn show(&mut self) -> Result<()> {
        let folder = self.lab.folder().display().to_string();
        let mut held = self.hold(&["--tls", &folder, "--watch"])?;
        held.open(30)?;
        let _traffic = storm::start(self.lab.client(), &[&self.vip, "--seconds", "86400", "--rate", "20"])?;
        let (send, orders) = mpsc::channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut told = String::new();
        loop {
            let status = self.evenkeel.done(&["status"])?;
            let events = self.evenkeel.done(&["events", "--limit", "6"])?;
            let watches = held.status()?;
            print!("\x1b[2J\x1b[H{status}\n{events}\n30 watches: {:?}, ended {:?}\n", watches.by, watches.ended);
            println!("from a second terminal: evenkeel --socket {} backends", self.evenkeel.socket().display());
            println!(
                "k1 kill, p1 pause, c1 cut off, b1 bring back cp01 (likewise 2, 3) and Enter; q or Ctrl-C ends   {told}"
            );
            std::io::stdout().flush()?;
            match orders.recv_timeout(Duration::from_secs(1)) {
                Ok(order) if order.trim() == "q" => return Ok(()),
                Ok(order) => told = self.obey(order.trim())?,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                // No terminal to take orders from: the screen goes on until it is ended.
                Err(mpsc::RecvTimeoutError::Disconnected) => wait::until("a second", SOON, second())?,
            }
        }
    }

    fn obey(&mut self, order: &str) -> Result<String> {
        let (what, number) = order.split_at_checked(1).unwrap_or(("", ""));
        let Some(number) = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1)).filter(|n| *n < 3)
        else {
            return Ok(format!("not understood: {order}"));
        };
        let name = self.standins[number].host.name.to_string();
        match what {
            "k" => self.standins[number].kill(),
            "p" => self.standins[number].pause()?,
            "c" => self.lab.switch.link(&name, false)?,
            "b" => {
                self.lab.switch.link(&name, true)?;
                self.standins[number].revive()?;
            }
            _ => return Ok(format!("not understood: {order}")),
        }
        Ok(format!("done: {order}"))
    }
}

fn second() -> impl FnMut() -> Option<()> {
    let since = Instant::now();
    move || (since.elapsed() >= Duration::from_secs(1)).then_some(())
}

fn say(what: &str, result: &str) {
    println!("✓ {what}: {result}");
}
