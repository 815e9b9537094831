//! Loading the programs onto the tables: new ones, or those that an earlier run has pinned.

use std::{fs, mem::offset_of, os::fd::AsFd, panic::resume_unwind, path::PathBuf, thread};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::MapData,
    programs::{Program, SchedClassifier, Xdp},
};
use aya_obj::programs::XdpAttachType;
use lb_common::layout::{self, Meta};
use log::{LevelFilter, warn};

use super::{
    kernel_log::{self, KernelLog},
    pins::{Pins, remove_file},
    refusal::Refusal,
    shapes::{compare, index_buckets, shapes},
};
use crate::sys::{allocator, memory::Table, random};

/// The kernel programs and maps, compiled into this binary.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("EVENKEEL_BPF"));

const XDP: &str = "evenkeel_xdp";
/// The name of the TC program, which a clsact filter carries too.
pub const TC: &str = "evenkeel_tc";
const OUT: &str = "evenkeel_out";

/// The programs in the kernel.
pub struct Programs {
    pub xdp: Xdp,
    pub tc: SchedClassifier,
    /// What this host itself must not say.
    pub out: SchedClassifier,
}

impl Programs {
    /// Pins those whose pins somebody has removed.
    pub fn pin_again(&mut self, pins: &Pins) -> Result<()> {
        let place = |name| pins.programs().join(name);
        if !place(XDP).exists() {
            self.xdp.pin(place(XDP))?;
        }
        if !place(TC).exists() {
            self.tc.pin(place(TC))?;
        }
        if !place(OUT).exists() {
            self.out.pin(place(OUT))?;
        }
        Ok(())
    }
}

/// What was loaded, onto what.
pub struct Loaded {
    pub programs: Programs,
    /// `None`: the programs were loaded without a log.
    pub log: Option<KernelLog>,
    pub meta: Meta,
    /// The tables were already there.
    pub adopted: bool,
}

/// Loads the programs onto the tables that are pinned, or onto new ones for `max_connections`. The
/// programs that an earlier run has pinned stay where they are until [`in_use`].
pub fn load(pins: &Pins, max_connections: u32, kernel_log: LevelFilter) -> Result<Loaded> {
    if let Some(meta) = pinned_tables(pins)? {
        return load_onto(pins, meta, true, kernel_log);
    }
    if let Some(refusal) = Refusal::before_loading() {
        return Err(refusal.into());
    }
    let loaded = load_onto(pins, new_meta(max_connections)?, false, kernel_log);
    if loaded.is_err() {
        // A refused start leaves nothing behind. Why it was refused matters more than what happens
        // here.
        _ = remove_unused(pins);
    }
    loaded
}

fn remove_unused(pins: &Pins) -> Result<()> {
    [XDP, TC, OUT].iter().try_for_each(|name| remove_file(&next(pins, name)))?;
    pins.remove_maps()
}

fn load_onto(pins: &Pins, meta: Meta, adopted: bool, kernel_log: LevelFilter) -> Result<Loaded> {
    let mut ebpf = load_object(pins, &meta, kernel_log)?;
    if !adopted {
        compare(&pins.maps(), meta.buckets).context("this binary's program and its controller do not fit together")?;
        // Written last: tables without it count as half made.
        let table = Table::<Meta>::map(open_meta(pins)?.fd().as_fd(), 1)?;
        table.publish(0, &meta, offset_of!(Meta, layout));
    }
    load_and_pin(&mut ebpf, pins)?;
    let log = (kernel_log != LevelFilter::Off).then(|| KernelLog::of(&mut ebpf)).transpose()?;
    drop(ebpf);
    let programs = Programs {
        xdp: Xdp::from_pin(next(pins, XDP), XdpAttachType::Interface)?,
        tc: SchedClassifier::from_pin(next(pins, TC))?,
        out: SchedClassifier::from_pin(next(pins, OUT))?,
    };
    allocator::trim();
    // Only for the warning: a kernel that does not answer is no reason to stop.
    if programs.tc.info().is_ok_and(|info| info.size_jitted() == 0) {
        warn!(
            "the kernel's compiler for BPF is off: every packet costs several times as much time. Turn it on with \
             `sysctl net.core.bpf_jit_enable=1` and restart evenkeel"
        );
    }
    Ok(Loaded { programs, log, meta, adopted })
}

/// The programs that were loaded take the place of those that an earlier run has pinned. Where
/// those are attached, they go on until their links are given the new ones.
pub fn in_use(pins: &Pins) -> Result<()> {
    for name in [XDP, TC, OUT] {
        let place = pins.programs().join(name);
        fs::rename(next(pins, name), &place)
            .with_context(|| format!("cannot pin the program at {}", place.display()))?;
    }
    Ok(())
}

/// Writes down that the tables have this version's layout: an older version may have made them.
pub fn settle_layout(pins: &Pins, meta: &mut Meta) -> Result<()> {
    if meta.layout != layout::HASH {
        meta.layout = layout::HASH;
        Table::<Meta>::map(open_meta(pins)?.fd().as_fd(), 1)?.publish(0, meta, offset_of!(Meta, layout));
    }
    Ok(())
}

fn new_meta(max_connections: u32) -> Result<Meta> {
    let seed = random::word().context("no random seed")?;
    Ok(Meta { layout: layout::HASH, seed, buckets: index_buckets(max_connections), reserved: 0 })
}

/// The tables of an earlier run, if there are any and this program can work on them.
fn pinned_tables(pins: &Pins) -> Result<Option<Meta>> {
    let meta = if pins.has_map("META") { Some(read_meta(pins)?) } else { None };
    match meta {
        Some(meta) if (layout::OLDEST..=layout::HASH).contains(&meta.layout) => {
            compare(&pins.maps(), meta.buckets).with_context(|| refusal(pins))?;
            Ok(Some(meta))
        }
        Some(meta) if meta.layout != 0 => {
            bail!("{}: they have layout {:#x}, this version works on {:#x}", refusal(pins), meta.layout, layout::HASH)
        }
        // Left by a run that ended while it made the tables. Nothing can be attached to them yet.
        _ => {
            let in_use = !pins.are_new() && !pins.all_links()?.is_empty();
            ensure!(!in_use, "{}: they are incomplete but in use", refusal(pins));
            pins.remove_maps()?;
            Ok(None)
        }
    }
}

fn refusal(pins: &Pins) -> String {
    format!(
        "the tables in {} cannot be taken over; their connections go on meanwhile. Either go on with the version that \
         made them, or start this one with `evenkeel run --reset-state`: it puts new tables in their place, and all \
         connections that are open then are reset. Why",
        pins.maps().display()
    )
}

fn open_meta(pins: &Pins) -> Result<MapData> {
    MapData::from_pin(pins.maps().join("META")).context("cannot open map META")
}

/// What META says.
pub fn read_meta(pins: &Pins) -> Result<Meta> {
    let map = open_meta(pins)?;
    let info = map.info()?;
    // Too small even to say which layout it is.
    if (info.value_size() as usize) < size_of::<Meta>() {
        bail!("{}: map META is not evenkeel's", refusal(pins));
    }
    let table = Table::<Meta>::map(map.fd().as_fd(), 1).context("cannot map META")?;
    Ok(table.read(0))
}

fn load_object(pins: &Pins, meta: &Meta, kernel_log: LevelFilter) -> Result<Ebpf> {
    let maps = pins.maps();
    let known = shapes(meta.buckets);
    let level = kernel_log::level_number(kernel_log);
    let mut loader = loader(meta, &level);
    for (name, _) in &known {
        loader.map_pin_path(name, maps.join(name));
    }
    let ebpf = loader.load(OBJECT).map_err(Refusal::of_maps)?;
    let strange = ebpf.maps().map(|(name, _)| name).find(|name| !is_known(name, &known));
    match strange {
        Some(name) => bail!("the program has a map {name} that its controller does not know"),
        None => Ok(ebpf),
    }
}

/// Loads the object with its constants and with tables of the size in `meta`.
pub fn loader<'a>(meta: &'a Meta, level: &'a u8) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    kernel_log::set_level(&mut loader, level);
    loader.map_max_entries("INDEX", meta.buckets).override_global("SEED", &meta.seed, true).override_global(
        "BUCKETS",
        &meta.buckets,
        true,
    );
    loader
}

/// Maps whose names begin with a dot are the program's own data sections. The log's map ends with
/// the process.
fn is_known<T>(name: &str, known: &[(&str, T)]) -> bool {
    name.starts_with('.') || name == kernel_log::MAP || known.iter().any(|(wanted, _)| *wanted == name)
}

/// Verifying the two large ones takes the kernel longest, so all are loaded at the same time.
fn load_and_pin(ebpf: &mut Ebpf, pins: &Pins) -> Result<()> {
    thread::scope(|scope| {
        let loading: Vec<_> =
            ebpf.programs_mut().map(|(name, program)| scope.spawn(move || load_program(name, program))).collect();
        loading.into_iter().try_for_each(|loaded| loaded.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    for name in [XDP, TC, OUT] {
        let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
        replace_pin(next(pins, name), |path| Ok(program.pin(path)?))?;
    }
    Ok(())
}

fn load_program(name: &str, program: &mut Program) -> Result<()> {
    let loaded = match program {
        Program::Xdp(xdp) => xdp.load(),
        Program::SchedClassifier(tc) => tc.load(),
        _ => bail!("the object has a program {name} of a kind that its controller does not know"),
    };
    loaded.map_err(|error| Refusal::of_program(name, error))
}

fn next(pins: &Pins, program: &str) -> PathBuf {
    pins.programs().join(format!("{program}-next"))
}

/// What is there was left by a run that ended before its programs were in use.
fn replace_pin(path: PathBuf, pin: impl FnOnce(&PathBuf) -> Result<()>) -> Result<()> {
    remove_file(&path)?;
    pin(&path).with_context(|| format!("cannot pin the program at {}", path.display()))
}

#[cfg(test)]
mod tests;
