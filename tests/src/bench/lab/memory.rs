//! The memory that an idle connection costs: the balancer's processes and the kernel's slabs,
//! compared with no balancer.

use std::{collections::BTreeMap, fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    idle::PER_PROCESS,
    systems::{Servers, Stage, System},
};
use crate::{
    Host, Process,
    bench::results::Results,
    binaries,
    process::{self, Talk},
};

/// With 4,096 `worker_connections` each of nginx's two workers holds 2,047 clients, and they do not
/// get equally many.
const MOST_OF_A_PROXY: u32 = 3000;
/// The time until freed memory is given back: the kernel frees many objects only after every CPU
/// has moved on.
const SETTLE: Duration = Duration::from_millis(700);

/// Bytes of slabs and of processes.
#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    slab: f64,
    processes: f64,
}

/// Runs several rounds through every system, each in its own lab that holds nothing else.
pub fn measure(systems: &[System], connections: u32, rounds: usize, results: &mut Results) -> Result<()> {
    let idle = |system: &&System| system.base() == System::Direct;
    let stages =
        systems.iter().filter(idle).map(|system| Stage::start(*system, Servers::Idle)).collect::<Result<Vec<_>>>()?;
    for round in 0..rounds {
        for turn in 0..stages.len() {
            let stage = &stages[(turn + round) % stages.len()];
            let count = if stage.system.is_proxy() { connections.min(MOST_OF_A_PROXY) } else { connections };
            let taken =
                one(stage, count).with_context(|| format!("idle connections through {}", stage.system.name()))?;
            let mut add = |what: &str, unit: &str, value: f64| {
                results.add(&format!("lab/idle/{}/{what}", stage.system.name()), unit, value);
            };
            add("connections", "", f64::from(count));
            add("slab", "bytes", taken.slab / f64::from(count));
            add("processes", "bytes", taken.processes / f64::from(count));
        }
    }
    for stage in &stages {
        if let Some(evenkeel) = &stage.evenkeel {
            tables(evenkeel.bpffs(), slots(stage)?, results)?;
        }
    }
    Ok(())
}

fn one(stage: &Stage, count: u32) -> Result<Taken> {
    thread::sleep(SETTLE);
    // Looking at processes leaves objects in the slabs, so the slabs are read after the first look
    // and before the second.
    let processes = processes(stage);
    let slab = slabs()?;
    let held = Held::open(stage.lab.client(), &stage.targets, count)?;
    thread::sleep(SETTLE);
    let taken = Taken { slab: slabs()? - slab, processes: self::processes(stage) - processes };
    held.close()?;
    Ok(taken)
}

/// The processes of a client that hold connections.
pub struct Held(Vec<(Process, Talk)>);

impl Held {
    /// Opens `count` connections from a host.
    pub fn open(client: &Host, targets: &[std::net::SocketAddrV4], count: u32) -> Result<Held> {
        let mut held = Vec::new();
        let mut left = count;
        while left > 0 {
            let share = left.min(PER_PROCESS);
            let mut command = client.command(binaries::lab()?);
            command.arg("bench-hold").args(targets.iter().map(ToString::to_string));
            command.args(["--count", &share.to_string()]);
            let name = format!("hold{}", held.len());
            let log = client.log(&name);
            held.push(Process::start_talking(&name, &mut command, &log)?);
            left -= share;
        }
        let mut open = 0;
        for (process, talk) in &mut held {
            let line = talk.hear().map_err(|error| error.context(process.log()))?;
            open += line.trim().parse::<u32>().with_context(|| line.clone())?;
        }
        ensure!(open == count, "{open} of {count} connections are open");
        Ok(Held(held))
    }

    /// Ends them; an error if one had ended before.
    pub fn close(self) -> Result<()> {
        for (mut process, talk) in self.0 {
            drop(talk);
            process.succeed(Duration::from_secs(20))?;
        }
        Ok(())
    }
}

fn slabs() -> Result<f64> {
    Ok(slab_bytes(&fs::read_to_string("/proc/slabinfo").context("/proc/slabinfo")?))
}

fn processes(stage: &Stage) -> f64 {
    let evenkeel = stage.evenkeel.as_ref().and_then(|evenkeel| evenkeel.id());
    let roots = stage.balancer.iter().map(Process::id).chain(evenkeel);
    let parents = parents();
    roots.flat_map(|root| family(root, &parents)).map(proportional).sum()
}

/// How the names of slabs begin that files and processes fill: they change with whatever else the
/// machine does.
const OTHERS: [&str; 23] = [
    "anon_vma",
    "bdev_cache",
    "btrfs_",
    "buffer_head",
    "cred_jar",
    "ext4_",
    "files_cache",
    "fs_cache",
    "inode_cache",
    "jbd2_",
    "kernfs_",
    "lsm_",
    "maple_node",
    "mm_struct",
    "ovl_",
    "pid",
    "proc_inode_cache",
    "radix_tree_node",
    "shmem_inode_cache",
    "sighand_cache",
    "signal_cache",
    "task_struct",
    "vm_area",
];

/// Bytes of all objects in use, except those. Whole slabs would come and go with what others free.
fn slab_bytes(slabinfo: &str) -> f64 {
    let bytes = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let active: f64 = fields.next()?.parse().ok()?;
        let size: f64 = fields.nth(1)?.parse().ok()?;
        Some(active * size)
    };
    let is_other = |line: &&str| OTHERS.iter().any(|name| line.starts_with(name));
    slabinfo.lines().filter(|line| !is_other(line)).filter_map(bytes).sum()
}

/// The parent of every process.
fn parents() -> BTreeMap<u32, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let parent = |id: u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The name is in parentheses and may contain anything.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    numbers.filter_map(|id| Some((id, parent(id)?))).collect()
}

/// A process and all its descendants.
fn family(root: u32, parents: &BTreeMap<u32, u32>) -> Vec<u32> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(id) = all.get(next).copied() {
        all.extend(parents.iter().filter(|(_, parent)| **parent == id).map(|(child, _)| *child));
        next += 1;
    }
    all
}

/// Bytes of a process, including its share of what it shares with others; 0 if it has ended.
fn proportional(id: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
    kib(&rollup, "Pss:").unwrap_or_default() * 1024.0
}

/// A field in KiB of a file in /proc.
pub fn kib(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// The number of slots in evenkeel's tables.
fn slots(stage: &Stage) -> Result<f64> {
    let status = stage.evenkeel.as_ref().context("no evenkeel")?.status()?;
    status["services"][0]["connections"]["capacity"].as_f64().with_context(|| format!("no capacity in {status}"))
}

/// What the tables take when nothing is connected.
fn tables(bpffs: &Path, slots: f64, results: &mut Results) -> Result<()> {
    let bytes = table_bytes(bpffs)?;
    results.add("lab/idle/evenkeel-tc/tables", "bytes", bytes);
    results.add("lab/idle/evenkeel-tc/slots", "", slots);
    results.add("lab/idle/evenkeel-tc/per slot", "bytes", bytes / slots);
    Ok(())
}

/// Bytes of all tables, as the kernel counts them.
pub fn table_bytes(bpffs: &Path) -> Result<f64> {
    let mut bytes = 0.0;
    let maps = bpffs.join("maps");
    for map in fs::read_dir(&maps).with_context(|| maps.display().to_string())? {
        let map = map?.path();
        let pinned = ["pinned", map.to_str().context("a map's name")?];
        let shown = bpftool("show", &pinned)?;
        bytes += bytes_of(&shown)?;
        if shown["type"] == "array_of_maps" {
            for entry in bpftool("dump", &pinned)?.as_array().into_iter().flatten() {
                bytes += bytes_of(&bpftool("show", &["id", &inner(entry)?.to_string()])?)?;
            }
        }
    }
    Ok(bytes)
}

fn bpftool(what: &str, of: &[&str]) -> Result<Value> {
    let said = process::output(Command::new("bpftool").args(["-j", "map", what]).args(of))?;
    serde_json::from_str(&said).with_context(|| said.clone())
}

fn bytes_of(shown: &Value) -> Result<f64> {
    shown["bytes_memlock"].as_f64().with_context(|| format!("no bytes_memlock in {shown}"))
}

/// The id of a map that another map contains: four bytes as hexadecimal words.
fn inner(entry: &Value) -> Result<u32> {
    let byte = |value: &Value| u32::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok();
    let bytes = entry["value"].as_array().with_context(|| format!("no value in {entry}"))?;
    let id = bytes.iter().rev().try_fold(0, |id, value| Some(id << 8 | byte(value)?));
    id.with_context(|| format!("no number of a map in {entry}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_in_use_are_counted_with_their_size() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\n\
                    TCP 100 120 2048 13 8 : tunables 0 0 0\nfilp 10 32 256 16 1 : tunables 0 0 0\n\
                    btrfs_inode 5 5 1000 13 1 : tunables 0 0 0\n";
        assert_eq!(slab_bytes(text), 100.0 * 2048.0 + 10.0 * 256.0);
    }

    #[test]
    fn a_family_is_a_process_with_all_its_descendants() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 2), (5, 4), (6, 1)]);
        assert_eq!(family(2, &parents), [2, 3, 4, 5]);
    }

    #[test]
    fn the_number_of_an_inner_map_is_read_from_its_bytes() {
        let entry = serde_json::json!({"key": ["0x2f", "0x01"], "value": ["0xec", "0xef", "0x03", "0x00"]});
        assert_eq!(inner(&entry).unwrap(), 258_028);
        assert!(inner(&serde_json::json!({"value": ["x"]})).is_err());
    }

    #[test]
    fn fields_of_proc_are_found_by_name() {
        assert_eq!(kib("Rss: 12 kB\nPss_Anon:     2048 kB\n", "Pss_Anon:"), Some(2048.0));
        assert_eq!(kib("", "Pss_Anon:"), None);
    }
}
