//! The daemon's own figures: how soon it forwards, how fast it reloads, and what it needs while
//! 100,000 connections are idle.

use std::{fs, net::SocketAddrV4, thread, time::Duration, time::Instant};

use anyhow::{Context, Result};

use super::{
    Idle, idle,
    memory::{Held, kib},
    systems::{Servers, server},
};
use crate::{
    Evenkeel, Lab, Plan, Process,
    bench::results::Results,
    binaries,
    daemon::Service,
    topology::{PORT, Topology, VIP},
};

/// How many client hosts and backends this many connections need: a process holds at most 20,000,
/// and above 32,000 connections from an address to one port each connect searches among the taken
/// ports.
const CLIENTS: u8 = 4;
const BACKENDS: u8 = 8;
const VIP_PORT: SocketAddrV4 = SocketAddrV4::new(VIP, PORT);

/// Measures each of them this many times, with this many connections.
pub fn measure(rounds: usize, idle: Idle, results: &mut Results) -> Result<()> {
    start(rounds, results).context("start to first connection")?;
    reload(rounds, results).context("reload of 64 backends")?;
    at_rest(idle, results).context("the idle daemon")
}

/// From the start of the process, with nothing pinned, to a client's first answer.
fn start(rounds: usize, results: &mut Results) -> Result<()> {
    for datapath in ["tc", "xdp"] {
        let plan = Plan::new(Topology::Segment);
        let lab = Lab::build(&if datapath == "tc" { plan } else { plan.for_xdp() })?;
        let _servers = lab.backends.iter().map(|host| server(host, Servers::Answering)).collect::<Result<Vec<_>>>()?;
        let mut evenkeel = Evenkeel::stopped(&lab, &Service::new(&lab, datapath).toml())?;
        for _ in 0..rounds {
            // On native XDP the daemon's own answer counts: that is what the figure has always meant.
            let until = if datapath == "tc" { first_answer(&lab, &mut evenkeel)? } else { ready(&mut evenkeel)? };
            let name = if datapath == "tc" { "first connection" } else { "answers, xdp" };
            results.add(&format!("lab/daemon/{name}"), "ms", until);
            evenkeel.stop_detach()?;
        }
    }
    Ok(())
}

fn first_answer(lab: &Lab, evenkeel: &mut Evenkeel) -> Result<f64> {
    let client = lab.client();
    let mut command = client.command(binaries::lab()?);
    command.args(["bench-first", &VIP_PORT.to_string()]);
    let (mut process, mut talk) = Process::start_talking("first", &mut command, &client.log("first"))?;
    talk.hear()?;
    let began = idle::now_ns();
    evenkeel.run()?;
    let answered: u128 = talk.hear().map_err(|error| error.context(process.log()))?.trim().parse()?;
    process.succeed(Duration::from_secs(5))?;
    Ok(answered.saturating_sub(began) as f64 / 1e6)
}

fn ready(evenkeel: &mut Evenkeel) -> Result<f64> {
    let began = Instant::now();
    evenkeel.run()?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// `evenkeel reload` of a file that changes the weight of all 64 backends, and of one that replaces
/// 63 of them.
fn reload(rounds: usize, results: &mut Results) -> Result<()> {
    let lab = Lab::build(&Plan::new(Topology::Segment).backends(1))?;
    let service = |backends: u16, weight: u32| {
        let mut text =
            format!("[[service]]\nname = \"kube-apiserver\"\nlisten = \"{VIP}:{PORT}\"\ndatapath = \"tc\"\n");
        for number in 0..backends {
            let address = SocketAddrV4::new(lab.backends[0].address(), PORT + number);
            text +=
                &format!("[[service.backend]]\nname = \"cp{number:02}\"\naddress = \"{address}\"\nweight = {weight}\n");
        }
        text
    };
    let evenkeel = Evenkeel::start(&lab, &service(1, 1))?;
    let timed = |text: &str| -> Result<f64> {
        evenkeel.write(text)?;
        let began = Instant::now();
        evenkeel.done(&["reload"])?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    for round in 0..rounds {
        results.add("lab/daemon/reload, 63 backends added", "ms", timed(&service(64, 1))?);
        results.add("lab/daemon/reload, 64 backends changed", "ms", timed(&service(64, 2 + round as u32))?);
        timed(&service(1, 1))?;
    }
    Ok(())
}

/// Memory and processor time with this many idle connections.
fn at_rest(idle: Idle, results: &mut Results) -> Result<()> {
    let lab = Lab::build(&Plan::new(Topology::Segment).clients(CLIENTS).backends(BACKENDS))?;
    for client in &lab.clients {
        client.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    }
    let _servers = lab.backends.iter().map(|host| server(host, Servers::Idle)).collect::<Result<Vec<_>>>()?;
    let service = Service::new(&lab, "tc").line("snat_ports = \"1024-65535\"");
    let evenkeel = Evenkeel::start(&lab, &service.toml())?;
    look(&evenkeel, "none", idle.seconds, results)?;
    let each = idle.own / u32::from(CLIENTS);
    let held = lab.clients.iter().map(|client| Held::open(client, &[VIP_PORT], each)).collect::<Result<Vec<_>>>()?;
    // Lets the daemon finish what opening them caused: events, the access log.
    thread::sleep(Duration::from_secs(2));
    look(&evenkeel, &idle.own.to_string(), idle.seconds, results)?;
    held.into_iter().try_for_each(Held::close)
}

fn look(evenkeel: &Evenkeel, connections: &str, seconds: f64, results: &mut Results) -> Result<()> {
    let id = evenkeel.id().context("evenkeel does not run")?;
    let before = processor_seconds(id)?;
    thread::sleep(Duration::from_secs_f64(seconds));
    let used = processor_seconds(id)? - before;
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let anonymous = kib(&status, "RssAnon:").context("no RssAnon")? / 1024.0;
    results.add(&format!("lab/daemon/cpu, {connections} idle"), "% of a core", used / seconds * 100.0);
    results.add(&format!("lab/daemon/RssAnon, {connections} idle"), "MiB", anonymous);
    Ok(())
}

/// The processor time of all its threads, to the nanosecond.
fn processor_seconds(id: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for task in fs::read_dir(format!("/proc/{id}/task")).context("the daemon has ended")? {
        let path = task?.path().join("schedstat");
        // A thread may end in the meantime.
        let text = fs::read_to_string(path).unwrap_or_default();
        nanoseconds += text.split_whitespace().next().and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    }
    Ok(nanoseconds / 1e9)
}
