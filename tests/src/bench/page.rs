//! The page with all figures and plots, which the benchmarks write themselves.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{
    bars,
    lab::{systems::System, works},
    packets,
    plots::{self, Curve, Row, Words},
    results::Results,
    statistics::{Summary, differences, ratios},
    tables::{middle, number, spread, table},
};

/// The files that a run leaves for later runs.
pub const LAB: &str = "lab.json";
pub const PACKETS: &str = "packets.json";
pub const PAGE: &str = "README.md";
/// The page's prose is wrapped at this width.
const WIDTH: usize = 100;

/// Writes the page and its plots to a folder, from the results of the last run of each kind there.
pub fn write(folder: &Path) -> Result<()> {
    let read = |name: &str| {
        let file = folder.join(name);
        file.exists().then(|| Results::read(&file)).transpose()
    };
    let (lab, packets) = (read(LAB)?, read(PACKETS)?);
    let mut text = String::from(
        "# How fast it is\n\n`cargo xtask bench` and `cargo xtask bench --packets` write this page; the next run overwrites \
         manual changes.\nAll figures are medians, with the lowest and the highest round in parentheses. A ratio compares \
         what two systems add to their base, and is computed within each round.\n\n",
    );
    for (name, results) in [("The lab", &lab), ("The packets", &packets)] {
        if let Some(results) = results {
            text += &format!("{name}: `{}` on {}.\n\n", results.command, results.machine.line());
        }
    }
    text += &format!("## Goals\n\n{}\n", bars::report(&bars::all(lab.as_ref(), packets.as_ref())));
    if let Some(lab) = &lab {
        text += &works_of(lab);
        text += &idle_of(lab);
        text += &daemon_of(lab);
        plot_lab(folder, lab)?;
    }
    if let Some(results) = &packets {
        text += &packets::report(results);
        plot_packets(folder, results)?;
    }
    let file = folder.join(PAGE);
    fs::write(&file, wrapped(&text)).with_context(|| format!("cannot write {}", file.display()))
}

/// Wraps prose; tables and headings stay as they are.
fn wrapped(text: &str) -> String {
    let mut wrapped = String::new();
    for line in text.lines() {
        let is_prose = !line.starts_with(['|', '#', '!']);
        let mut width = 0;
        for (index, word) in line.split(' ').enumerate() {
            let breaks = is_prose && width + 1 + word.chars().count() > WIDTH;
            if index > 0 {
                wrapped.push(if breaks { '\n' } else { ' ' });
            }
            width = if breaks || index == 0 { 0 } else { width + 1 } + word.chars().count();
            wrapped.push_str(word);
        }
        wrapped.push('\n');
    }
    wrapped
}

/// What a system adds to its base in a work, in each round.
fn added(lab: &Results, work: &str, system: System, what: &str) -> Vec<f64> {
    let rounds = |system: System| lab.rounds(&format!("lab/{work}/{}/{what}", system.name()));
    differences(rounds(system), rounds(system.base()))
}

/// How many bytes more an idle connection takes than without a balancer, in each round.
pub fn idle_added(lab: &Results, system: System) -> Vec<f64> {
    let rounds = |system: System, what: &str| lab.rounds(&format!("lab/idle/{}/{what}", system.name()));
    let slab = differences(rounds(system, "slab"), rounds(system.base(), "slab"));
    slab.iter().zip(rounds(system, "processes")).map(|(slab, processes)| slab + processes).collect()
}

fn works_of(lab: &Results) -> String {
    let mut text = String::from(
        "## Side by side\n\nEvery system has the same hosts, cables and servers, each in its own lab on one segment. \
         Everything runs on the processors named above, so the rate at saturation depends on the processor time of \
         clients, servers, kernel and balancer together. \"CPU\" is that of the whole system, per request (bulk: per GB); \
         \"added\" is the difference to no balancer. `direct-xdp` is the base of `evenkeel-xdp`: hosts without \
         offloads, as native XDP on veth needs them. \"load\" is the CPU that the load generator itself uses, which is \
         the same for all. `bare-tc` rewrites addresses for one client and does nothing else: it costs what the way \
         through a host costs.\n\n![CPU added](added-cpu.svg)\n\n![Latency added](added-latency.svg)\n\n",
    );
    for work in &works::ALL {
        let systems: Vec<_> = System::ALL.into_iter().filter(|system| is_measured(lab, work.name, *system)).collect();
        if systems.is_empty() {
            continue;
        }
        text += &format!("### {}\n\n{}.", work.name, work.told());
        if let Some(asked) = lab.summary(&format!("lab/{}/asked", work.name)) {
            text += &format!(" The rate is {} requests per second.", number(asked.median));
        }
        let unit = if work.is_bulk() { "s/GB" } else { "µs" };
        let (cpu, plus) = (format!("CPU {unit}"), format!("added {unit}"));
        let head = [
            "system",
            "per second",
            "p50 µs",
            "p99 µs",
            &cpu,
            &plus,
            "× nginx's",
            "× nft's",
            "p50 added µs",
            "load",
            "failed",
        ];
        let rows: Vec<_> = systems.iter().map(|system| row(lab, work.name, *system)).collect();
        text += &format!("\n\n{}\n", table(&head, &rows));
    }
    text
}

fn is_measured(lab: &Results, work: &str, system: System) -> bool {
    !lab.rounds(&format!("lab/{work}/{}/rate", system.name())).is_empty()
}

fn row(lab: &Results, work: &str, system: System) -> Vec<String> {
    let of = |what: &str| lab.summary(&format!("lab/{work}/{}/{what}", system.name()));
    let cpu = added(lab, work, system, "cpu");
    let share = |other: System| middle(Summary::of(&ratios(&cpu, &added(lab, work, other, "cpu"))));
    let is_base = system.base() == system;
    let only = |text: String| if is_base { "–".to_owned() } else { text };
    vec![
        system.name().to_owned(),
        spread(of("rate")),
        spread(of("p50")),
        spread(of("p99")),
        spread(of("cpu")),
        only(spread(Summary::of(&cpu))),
        only(share(System::Nginx)),
        only(share(System::Nft)),
        only(spread(Summary::of(&added(lab, work, system, "p50")))),
        middle(of("own")),
        middle(of("failed")),
    ]
}

fn idle_of(lab: &Results) -> String {
    let of = |system: System, what: &str| lab.summary(&format!("lab/idle/{}/{what}", system.name()));
    let systems: Vec<_> = System::ALL.into_iter().filter(|system| of(*system, "slab").is_some()).collect();
    if systems.is_empty() {
        return String::new();
    }
    let row = |system: &System| {
        let more = idle_added(lab, *system);
        let more = if *system == system.base() { "–".to_owned() } else { spread(Summary::of(&more)) };
        let Some(count) = of(*system, "connections") else { return Vec::new() };
        vec![
            system.name().to_owned(),
            number(count.median),
            spread(of(*system, "slab")),
            spread(of(*system, "processes")),
            more,
        ]
    };
    let rows: Vec<_> = systems.iter().map(row).collect();
    let head = ["system", "connections", "kernel slabs", "processes", "added"];
    let tables = |what: &str| lab.summary(&format!("lab/idle/evenkeel-tc/{what}"));
    let own = match (tables("tables"), tables("slots"), tables("per slot")) {
        (Some(bytes), Some(slots), Some(per_slot)) => format!(
            "Evenkeel allocates its tables when it starts: {} bytes for {} connections, which is {} bytes per slot, \
             including the index and everything else.\n\n",
            number(bytes.median),
            number(slots.median),
            number(per_slot.median)
        ),
        _ => String::new(),
    };
    format!(
        "## Memory of idle connections\n\nBytes per connection: objects in the kernel's slabs (including the sockets of clients \
         and servers, which `direct` has too) and the balancer's processes. In their usual \
         configuration nginx holds 4,094 connections and resets more, and HAProxy holds 4,000.\n\n{}\n{own}",
        table(&head, &rows)
    )
}

fn daemon_of(lab: &Results) -> String {
    let figures: Vec<_> = lab.figures.iter().filter(|figure| figure.name.starts_with("lab/daemon/")).collect();
    if figures.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = figures
        .iter()
        .map(|figure| {
            vec![
                figure.name["lab/daemon/".len()..].to_owned(),
                spread(Summary::of(&figure.rounds)),
                figure.unit.clone(),
            ]
        })
        .collect();
    format!(
        "## The daemon\n\nThe time from its start, with nothing pinned, to a client's first answer; the time of the command \
         `evenkeel reload`; its own memory, and its processor time over ten seconds in which nothing happens.\n\n{}\n",
        table(&["figure", "measured", "unit"], &rows)
    )
}

fn plot_lab(folder: &Path, lab: &Results) -> Result<()> {
    let balancers = System::ALL.into_iter().filter(|system| *system != system.base());
    let balancers: Vec<_> = balancers.filter(|system| is_measured(lab, "kept-tcp", *system)).collect();
    let rows = |works: &[&str], what: &str| -> Vec<Row> {
        let values = |system: System| works.iter().map(|work| Summary::of(&added(lab, work, system, what))).collect();
        balancers.iter().map(|system| Row { name: system.name().to_owned(), values: values(*system) }).collect()
    };
    let measured = |names: &[&'static str]| -> Vec<&'static str> {
        names.iter().copied().filter(|work| is_measured(lab, work, System::Direct)).collect()
    };
    let works = measured(&["kept-tcp", "kept-tls", "new-tcp", "new-tls", "new-tcp-fixed"]);
    let words = Words { title: "CPU of the whole system that a balancer adds, per request", x: "", y: "µs" };
    plots::bars(&folder.join("added-cpu.svg"), &words, &works, &rows(&works, "cpu"))?;
    let works = measured(&["one", "kept-tcp-fixed", "kept-tls-fixed", "new-tcp-fixed", "new-tls-fixed"]);
    let words = Words { title: "Median latency that a balancer adds, below saturation", x: "", y: "µs" };
    plots::bars(&folder.join("added-latency.svg"), &words, &works, &rows(&works, "p50"))
}

fn plot_packets(folder: &Path, results: &Results) -> Result<()> {
    let curve = |name: &str, path: &str| {
        let prefix = format!("packets/{path}/");
        let point = |figure: &super::results::Figure| {
            let flows: f64 = figure.name.strip_prefix(&prefix)?.parse().ok()?;
            Some((flows, Summary::of(&figure.rounds)?.median))
        };
        let mut points: Vec<_> = results.figures.iter().filter_map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Curve { name: name.to_owned(), points }
    };
    let all = [
        curve("XDP, forward", "xdp/forward"),
        curve("XDP, reply", "xdp/reply"),
        curve("TC, forward", "tc/forward"),
        curve("TC, reply", "tc/reply"),
        curve("one lookup in the kernel's hash table", "xdp/hash"),
        curve("one read from a table of cache lines", "xdp/lines"),
    ];
    let curves: Vec<_> = all.into_iter().filter(|curve| !curve.points.is_empty()).collect();
    if curves.is_empty() {
        return Ok(());
    }
    let words =
        Words { title: "An established flow's packet", x: "flows, visited in scattered order", y: "ns per packet" };
    plots::curves(&folder.join("packets.svg"), &words, &curves)
}

#[cfg(test)]
mod tests;
