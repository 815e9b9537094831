//! The checks of a row, one after the other: a failed one does not end the round.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::{
    super::said::{Device, Hook, Orders, Outcome, Row, Said},
    check, devices, since,
    stage::{DENIED, SOON, Stage, served, verified},
};
use crate::{
    client::bulk,
    process,
    topology::{PORT, VIP},
    wait,
};

type Check = (&'static str, fn(&mut Stage) -> Result<String>);

/// The first of every row. Each check leaves what the next one needs.
const FIRST: [Check; 5] = [
    ("hook", hook),
    ("VRRP is MASTER", master),
    ("20 connections", small),
    ("300 kB each way", large),
    ("refusing backend", refusing),
];
/// On a cable, all that there is.
const CABLE: [Check; 9] = [
    ("silent backend", silent),
    ("deny all", denied),
    ("trace", trace),
    ("upgrade", upgrade),
    ("kill -9", killed),
    ("restart", restarted),
    ("kill", kill),
    ("program taken away", put_back),
    ("connections after all", small),
];
/// On other devices, what depends on them.
const VLAN: [Check; 2] = [("silent backend", silent), ("deny all", denied)];
const BOND: [Check; 1] = [("active cable cut", cut)];
/// The last of every row.
const LAST: [Check; 1] = [("stop leaves nothing", stop)];

/// Runs the checks of a row.
pub fn run(row: Row, orders: &Orders) {
    Said::Row { name: row.to_string() }.say();
    let started = Instant::now();
    let mut stage = match Stage::new(row, orders.has_tcx) {
        Ok(stage) => stage,
        Err(error) => return check("the lab", started, Err(error)),
    };
    let started = Instant::now();
    let loaded = stage.evenkeel.run();
    if orders.is_too_old {
        return check("refused in a sentence", started, refused(loaded));
    }
    if let Err(error) = loaded {
        return check("load", started, Err(error));
    }
    let seconds = since(started);
    if row.hook == Hook::Tc && !orders.has_tcx {
        goes_on_with_clsact(row, seconds);
    }
    match verified() {
        Ok(verified) => Said::Loaded { seconds, verified }.say(),
        Err(error) => check("verified instructions", started, Err(error)),
    }
    carry_out(&mut stage);
}

/// Without tcx, what follows is about clsact.
fn goes_on_with_clsact(Row { device, .. }: Row, seconds: f64) {
    let why = "this kernel has no tcx (6.6 and newer): TC is clsact".to_owned();
    Said::Check { name: "hook".into(), outcome: Outcome::Absent(why), seconds }.say();
    Said::Row { name: Row { hook: Hook::Clsact, device }.to_string() }.say();
}

fn carry_out(stage: &mut Stage) {
    let own: &[Check] = match stage.row.device {
        Device::Cable => &CABLE,
        Device::Vlan => &VLAN,
        Device::Bond => &BOND,
    };
    for (name, of) in FIRST.iter().chain(own).chain(&LAST) {
        let started = Instant::now();
        let done = of(stage);
        if done.is_err() {
            println!("the end of evenkeel's log:\n{}", end(&stage.evenkeel.log(), 12));
        }
        check(name, started, done);
    }
}

fn end(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// It has ended by itself and named the kernel, in one sentence.
fn refused(loaded: Result<()>) -> Result<String> {
    let Err(error) = loaded else { bail!("it runs") };
    let told = format!("{error:#}");
    let (_, log) = told.split_once(":\n").with_context(|| told.clone())?;
    let lines: Vec<_> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    ensure!(lines.len() == 1, "{} lines instead of one: {}", lines.len(), end(log, 4));
    ensure!(lines[0].contains(&super::release()?), "it does not name the kernel: {}", lines[0]);
    ensure!(lines[0].contains("evenkeel needs Linux"), "it does not say which kernel is enough: {}", lines[0]);
    Ok(lines[0].to_owned())
}

/// The program is where it was asked for.
fn hook(stage: &mut Stage) -> Result<String> {
    let status = stage.evenkeel.status()?;
    let shown = &status["services"][0]["datapath"][0];
    let Row { hook, device } = stage.row;
    ensure!(shown["interface"] == device.name() && shown["mode"] == hook.datapath(), "status shows {shown}");
    let kinds: Vec<_> = stage.hooks()?.into_iter().map(|(kind, _)| kind).collect();
    ensure!(kinds == [stage.kind], "it hangs on {kinds:?}, not on {}", stage.kind);
    Ok(kinds[0].clone())
}

fn master(stage: &mut Stage) -> Result<String> {
    stage.becomes("MASTER")?;
    wait::until("the VIP is here", SOON, || stage.has_vip().is_ok_and(|has| has).then_some(()))?;
    Ok(String::new())
}

fn small(stage: &mut Stage) -> Result<String> {
    let report = stage.connections(20)?;
    Ok(format!("slowest {:.0} ms", report.max_ms))
}

/// TLS, with checksums of what arrives.
fn large(stage: &mut Stage) -> Result<String> {
    for direction in ["download", "upload"] {
        bulk::transfer(stage.lab.client(), &format!("{VIP}:{PORT}"), direction, 300_000)?;
    }
    Ok(String::new())
}

/// No client waits for a backend that refuses: it would repeat its SYN after a second.
fn refusing(stage: &mut Stage) -> Result<String> {
    let before = stage.evenkeel.backend("cp01")?.connect_failures;
    stage.standins[0].kill();
    let report = stage.connections(12)?;
    let refused = stage.evenkeel.backend("cp01")?.connect_failures - before;
    stage.standins[0].revive()?;
    ensure!(refused > 0, "no connection met it: {report:?}");
    ensure!(report.max_ms < 1000.0, "a client had to repeat its SYN: {report:?}");
    Ok(format!("{refused} moved on, slowest {:.0} ms", report.max_ms))
}

/// The connection moves on after connect_timeout (500 ms), before the client repeats its SYN.
fn silent(stage: &mut Stage) -> Result<String> {
    let before = stage.evenkeel.backend("cp02")?.connect_failures;
    let mute = |what: &str| stage.lab.backends[1].ip(&["route", what, "blackhole", &format!("{VIP}/32")]);
    mute("add")?;
    let report = stage.connections(6);
    mute("delete")?;
    let report = report?;
    let silent = stage.evenkeel.backend("cp02")?.connect_failures - before;
    ensure!(silent > 0, "no connection met it: {report:?}");
    ensure!((450.0..1000.0).contains(&report.max_ms), "not after connect_timeout: {report:?}");
    Ok(format!("{silent} moved on, slowest {:.0} ms", report.max_ms))
}

fn denied(stage: &mut Stage) -> Result<String> {
    let opened = stage.hold(DENIED)?.open(1)?;
    ensure!(opened.opened == 0 && opened.failed.get("refused") == Some(&1), "{opened:?}");
    let counted = stage.evenkeel.counter("denied")?;
    ensure!(counted > 0, "it was not counted");
    Ok(format!("refused after {:.0} ms", opened.slowest_failed_ms))
}

/// Of an open connection, and of one that does not exist.
fn trace(stage: &mut Stage) -> Result<String> {
    let mut held = stage.hold(PORT)?;
    let opened = held.open(3)?;
    ensure!(opened.opened == 3, "{opened:?}");
    stage.held = Some(held);
    let client = a_client(stage)?;
    let open = stage.evenkeel.json(&["trace", &client])?;
    ensure!(open["connections"][0]["state"] == "established", "{open}");
    let stranger = stage.evenkeel.json(&["trace", "10.0.1.101:7", "--service", "kube-apiserver"])?;
    ensure!(stranger["new"][0]["verdict"] == "forwarded", "{stranger}");
    Ok(String::new())
}

/// The client's end of an open connection.
fn a_client(stage: &Stage) -> Result<String> {
    let conns = stage.evenkeel.json(&["conns"])?;
    let open = conns.as_array().context("no list")?.iter().find(|conn| conn["state"] == "established");
    let client = open.and_then(|conn| conn["client"].as_str()).with_context(|| format!("no connection in {conns}"))?;
    Ok(client.to_owned())
}

fn upgrade(stage: &mut Stage) -> Result<String> {
    stage.evenkeel.upgrade()?;
    stage.held_answer(3)?;
    let report = stage.connections(6)?;
    Ok(format!("slowest {:.0} ms", report.max_ms))
}

/// Without a controller the program goes on.
fn killed(stage: &mut Stage) -> Result<String> {
    stage.evenkeel.kill();
    stage.held_answer(3)?;
    let report = stage.connections(6)?;
    Ok(format!("slowest {:.0} ms", report.max_ms))
}

fn restarted(stage: &mut Stage) -> Result<String> {
    let started = Instant::now();
    stage.evenkeel.run()?;
    let seconds = since(started);
    stage.held_answer(3)?;
    stage.connections(6)?;
    Ok(format!("answers after {seconds} s"))
}

/// An operator ends a connection: the client meets a RST, the others go on.
fn kill(stage: &mut Stage) -> Result<String> {
    // After a restart that takes longer than the lease: until then the connections are not this
    // host's to end.
    stage.becomes("MASTER")?;
    let client = a_client(stage)?;
    stage.evenkeel.done(&["kill", &client])?;
    let held = stage.held.as_mut().context("no connection is held")?;
    let reset = || held.status().ok().filter(|status| status.ended.get("reset") == Some(&1)).map(drop);
    wait::until("the client meets a RST", SOON, reset)?;
    stage.held_answer(2)?;
    Ok(String::new())
}

/// A program that was taken away is noticed, and makes this host give up the VIP; a restart puts it
/// back.
/// What was taken from the hooks is put back, and the address stays.
fn put_back(stage: &mut Stage) -> Result<String> {
    stage.becomes("MASTER")?;
    let before = stage.instance()?["transitions"].clone();
    for (kind, link) in stage.hooks()? {
        if kind == "clsact" {
            let device = stage.row.device.name();
            process::output(stage.lab.balancer.command("tc").args(["filter", "delete", "dev", device, "ingress"]))?;
        } else {
            let link = link.to_str().context("a path that is not UTF-8")?;
            process::output(std::process::Command::new("bpftool").args(["link", "detach", "pinned", link]))?;
        }
    }
    let words = "the program was taken away, and is back";
    let is_told = || stage.evenkeel.done(&["events"]).is_ok_and(|events| events.contains(words)).then_some(());
    wait::until(words, SOON, is_told).with_context(|| format!("{:?}", stage.evenkeel.done(&["events"])))?;
    stage.becomes("MASTER")?;
    stage.connections(6)?;
    let moves = stage.instance()?["transitions"].clone();
    ensure!(moves == before, "{moves} transitions, {before} before");
    Ok(words.into())
}

/// Connections begin all the time while the cable is cut.
fn cut(stage: &mut Stage) -> Result<String> {
    let mut held = stage.hold(PORT)?;
    let opened = held.open(3)?;
    ensure!(opened.opened == 3, "{opened:?}");
    stage.held = Some(held);
    let storm = stage.storm(&["--rate", "5"])?;
    more_connections(stage, 5).context("before")?;
    let what = devices::cut_active(&stage.lab)?;
    more_connections(stage, 10).context("after the cut")?;
    let report = storm.stop(SOON)?;
    served(&report, report.done)?;
    stage.held_answer(3)?;
    stage.connections(20)?;
    Ok(format!("{what}; {} connections meanwhile, slowest {:.0} ms", report.done, report.max_ms))
}

/// Waits until this many more have been established.
fn more_connections(stage: &Stage, count: u64) -> Result<()> {
    let total = || -> Result<u64> { Ok(stage.evenkeel.backends()?.iter().map(|backend| backend.total).sum()) };
    let before = total()?;
    wait::until("connections are established", SOON, || total().ok().filter(|now| *now >= before + count).map(drop))
}

fn stop(stage: &mut Stage) -> Result<String> {
    let device = stage.row.device.name();
    stage.held = None;
    stage.evenkeel.stop_detach()?;
    ensure!(!stage.evenkeel.bpffs().exists(), "pins are left");
    ensure!(!stage.has_vip()?, "the VIP is left");
    let host = &stage.lab.balancer;
    let qdiscs = process::output(host.command("tc").args(["qdisc", "show"]))?;
    ensure!(!qdiscs.contains("clsact"), "a qdisc is left: {qdiscs}");
    let link = host.ip(&["link", "show", "dev", device])?;
    ensure!(!link.contains("xdp"), "XDP is left: {link}");
    let none = || verified().ok().filter(|programs| programs.is_empty());
    wait::until("the kernel has none of the programs", SOON, none).with_context(|| format!("{:?}", verified()))?;
    Ok(String::new())
}
