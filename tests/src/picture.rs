//! `evenkeel-lab picture`: takes the pictures of the status page and of `evenkeel top` in docs/,
//! from a lab whose traffic makes a hundred seconds look like a day, and prints `top` as text.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    Browser, Lab, Plan, StandIn, Terminal, binaries,
    browser::{DESKTOP, PHONE, Window},
    client::{bulk, hold::Holding, storm},
    daemon::{Evenkeel, Service},
    topology::{PORT, Topology, VIP},
};

/// An address of the balancer itself, at which a browser on another host finds `[api]`.
pub const API: &str = "10.0.1.1:9643";
/// Room for 80 x 24 cells and a margin.
const TERMINAL: Window = Window { width: 744, height: 456, is_phone: false };
const SOON: Duration = Duration::from_secs(20);

/// Takes the pictures and writes them to `folder`.
pub fn take(folder: &Path) -> Result<()> {
    let lab = Lab::build(&Plan::new(Topology::Segment).clients(2))?;
    let mut standins = lab.backends.iter().map(StandIn::start).collect::<Result<Vec<_>>>()?;
    let service = Service::new(&lab, "auto");
    let service = (0..3).fold(service, |service, backend| service.backend_line(backend, "fail_timeout = \"2s\""));
    let evenkeel = Evenkeel::start(&lab, &format!("[api]\nlisten = \"{API}\"\n\n{}", service.toml()))?;
    let mut browser = Browser::start(lab.client(), "chromium")?;
    browser.resize(DESKTOP)?;
    browser.open(&format!("http://{API}/"))?;
    let began = Instant::now();
    let at = |seconds: u64| thread::sleep(Duration::from_secs(seconds).saturating_sub(began.elapsed()));

    let vip = format!("{VIP}:{PORT}");
    let pki = lab.folder().display().to_string();
    let client = &lab.clients[1];
    let mut held = Holding::start(client, &[&vip, "--tls", &pki, "--watch"])?;
    let traffic = |seconds: u64, rate: u64| {
        let (seconds, rate) = (seconds.to_string(), rate.to_string());
        storm::start(client, &[&vip, "--tls", &pki, "--seconds", &seconds, "--rate", &rate])
    };
    held.open(150)?;
    let _steady = traffic(110, 15)?;
    at(8);
    let _wave = traffic(20, 40)?;
    at(20);
    held.open(60)?;
    bulk::transfer(client, &vip, "download", 200 << 10)?;
    at(34);
    standins[1].kill();
    at(46);
    standins[1].revive()?;
    at(52);
    held.open(60)?;
    let _second = traffic(25, 30)?;
    at(66);
    bulk::transfer(client, &vip, "upload", 200 << 10)?;
    at(78);
    evenkeel.done(&["rebalance", "--rate", "20"])?;
    at(92);
    evenkeel.done(&["drain", "cp03"])?;
    at(100);
    for (name, window, scheme) in [("status-page", DESKTOP, "light"), ("status-page-phone", PHONE, "dark")] {
        browser.prefer(scheme)?;
        browser.resize(window)?;
        let height = browser.value("document.documentElement.scrollHeight")?.as_u64().context("a height")?;
        browser.resize(Window { height: u32::try_from(height)?.min(window.height * 3 / 2), ..window })?;
        browser.wait_for("document.documentElement.dataset.live === 'yes'", SOON)?;
        browser.picture(&folder.join(format!("{name}.png")))?;
    }
    let mut command = lab.balancer.command(binaries::evenkeel()?);
    let terminal = Terminal::start(command.arg("top").env("EVENKEEL_SOCKET", evenkeel.socket()), 80, 24)?;
    terminal.wait_for("new 15", SOON)?;
    println!("{}", terminal.text());
    browser.prefer("dark")?;
    browser.resize(TERMINAL)?;
    browser.show(&terminal.page())?;
    browser.picture(&folder.join("top.png"))
}
