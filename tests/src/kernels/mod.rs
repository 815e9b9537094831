//! `evenkeel-lab kernels`: boots Debian's kernels in qemu and looks at what evenkeel does on each,
//! hook by hook.

mod boot;
mod guest;
mod image;
mod page;
mod registry;
mod said;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use boot::Machine;
use image::Image;
use registry::{Name, Registry};
use said::{Device, Hook, Measured, Orders, Outcome, Row, Said};

/// Where kernels, consoles and the tables of partial runs go.
const FOLDER: &str = "target/kernels";
/// The page whose table a whole run replaces.
const PAGE: &str = "docs/kernels.md";
/// The series of a whole run, besides the registry's newest: Debian's own, and what lies between.
const SERIES: [&str; 5] = ["5.10", "6.1", "6.12", "6.16", "6.18"];
/// How many of the newest series a whole run takes.
const NEWEST: usize = 2;
/// The series that are also run with `net.core.bpf_jit_enable=0`.
const WITHOUT_JIT: [[u64; 2]; 2] = [[6, 1], [6, 12]];
/// Debian 12: the oldest kernel here that evenkeel has to run on.
const QUICK: [u64; 2] = [6, 1];
/// The first kernel that has all that evenkeel needs.
const OLDEST: [u64; 2] = [5, 15];
/// The first kernel with tcx.
const TCX: [u64; 2] = [6, 6];
/// The hooks of a short boot.
const TWO: [Row; 2] = [Row { hook: Hook::Tc, device: Device::Cable }, Row { hook: Hook::Xdp, device: Device::Cable }];
/// How long a boot may take, and each of its rows.
const BOOT: Duration = Duration::from_secs(90);
const ROW: Duration = Duration::from_secs(240);

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Boot only these: a series (6.1) or the name of Debian's package [default: 5.10, Debian's
    /// kernels and the newest, with a table in docs/kernels.md]
    names: Vec<String>,
    /// Boot only 6.1, with two hooks: less than five minutes
    #[arg(long, conflicts_with = "names")]
    quick: bool,
    /// Look only at the hooks whose names contain this: `xdp`, `bond`
    #[arg(long)]
    only: Option<String>,
    /// Use the CPU (KVM) instead of emulating one
    #[arg(long)]
    kvm: bool,
}

/// The part of the lab's command line.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Program {
    /// Boot other kernels and look at what evenkeel does on each
    Kernels(Options),
    /// Process 1 of such a kernel
    #[command(hide = true)]
    KernelsGuest,
}

impl Program {
    pub fn run(self) -> Result<()> {
        match self {
            Program::Kernels(options) => run(&options),
            Program::KernelsGuest => guest::run(),
        }
    }
}

/// What came out of one boot.
pub struct Booted {
    /// As the guest says it; until then the package's name.
    pub release: String,
    pub jit: bool,
    /// What the verifier makes of each program, if that was asked for.
    pub programs: Vec<Measured>,
    pub rows: Vec<Rounded>,
}

/// What came out of one row.
#[derive(Default)]
pub struct Rounded {
    pub name: String,
    pub load_seconds: Option<f64>,
    pub verified: BTreeMap<String, u32>,
    pub checks: Vec<(String, Outcome)>,
}

impl Rounded {
    pub fn failures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.checks.iter().filter_map(|(name, outcome)| match outcome {
            Outcome::Failed(why) => Some((name.as_str(), why.as_str())),
            _ => None,
        })
    }
}

/// A boot that is to be done.
struct Planned {
    name: Name,
    rows: Vec<Row>,
    jit: bool,
    by_function: bool,
}

fn run(options: &Options) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "the kernels are for x86-64, and this machine is not");
    let folder = Path::new(FOLDER);
    let mut registry = Registry::new(folder)?;
    let mut planned = plan(options, &mut registry)?;
    if let Some(only) = &options.only {
        planned.iter_mut().for_each(|boot| boot.rows.retain(|row| row.to_string().contains(only)));
        planned.retain(|boot| !boot.rows.is_empty());
        ensure!(!planned.is_empty(), "no hook has a name with {only:?}");
    }
    let shared = image::shared(folder)?;
    let mut booted = Vec::new();
    for boot in &planned {
        booted.push(one(boot, &mut registry, &shared, options.kvm)?);
    }
    let is_whole = options.names.is_empty() && !options.quick && options.only.is_none();
    let page = if is_whole { PathBuf::from(PAGE) } else { folder.join("kernels.md") };
    page::write(&page, &booted)?;
    println!("\n{}", page::table(&booted));
    println!("written: {}; consoles: {}", page.display(), consoles().display());
    let failed: usize = booted.iter().flat_map(|boot| &boot.rows).map(|row| row.failures().count()).sum();
    ensure!(failed == 0, "{failed} checks failed");
    Ok(())
}

fn consoles() -> PathBuf {
    Path::new(FOLDER).join("consoles")
}

fn plan(options: &Options, registry: &mut Registry) -> Result<Vec<Planned>> {
    if options.quick {
        let wanted = format!("{}.{}", QUICK[0], QUICK[1]);
        let name = registry.find(&wanted)?.with_context(|| format!("Debian has no {wanted} any more"))?;
        return Ok(vec![Planned { name, rows: TWO.to_vec(), jit: true, by_function: false }]);
    }
    let is_whole = options.names.is_empty();
    let names = if is_whole { whole(registry)? } else { named(&options.names, registry)? };
    let newest = names.iter().map(Name::series).max();
    let mut planned = Vec::new();
    for name in names {
        // In a whole run only the oldest and the newest: a device does not change with each kernel.
        let with_devices = !is_whole || name.series() == QUICK || Some(name.series()) == newest;
        let without_jit = WITHOUT_JIT.contains(&name.series()).then(|| name.clone());
        planned.push(Planned { rows: rows(&name, with_devices), name, jit: true, by_function: true });
        planned.extend(without_jit.map(|name| Planned { name, rows: TWO.to_vec(), jit: false, by_function: false }));
    }
    Ok(planned)
}

fn whole(registry: &mut Registry) -> Result<Vec<Name>> {
    let newest = registry.newest_series(NEWEST)?;
    let mut names = Vec::new();
    for series in SERIES {
        match registry.find(series)? {
            Some(name) => names.push(name),
            None => println!("Debian has no {series} any more"),
        }
    }
    names.extend(newest.into_iter().filter(|newest| !names.contains(newest)).collect::<Vec<_>>());
    Ok(names)
}

fn named(wanted: &[String], registry: &mut Registry) -> Result<Vec<Name>> {
    let mut found = Vec::new();
    for wanted in wanted {
        match registry.find(wanted)? {
            Some(name) => found.push(name),
            None => bail!("Debian has no kernel {wanted}: say a series, such as 6.1, or the name of a package"),
        }
    }
    Ok(found)
}

/// Every hook, and perhaps the devices on top of a cable.
fn rows(name: &Name, with_devices: bool) -> Vec<Row> {
    let is_too_old = name.series() < OLDEST;
    let hooks: &[Hook] = if is_too_old { &[Hook::Tc] } else { &Hook::ALL };
    let mut rows: Vec<_> = hooks.iter().map(|hook| Row { hook: *hook, device: Device::Cable }).collect();
    if with_devices && !is_too_old {
        for (device, hooks) in [
            // A VLAN device has no native XDP.
            (Device::Vlan, &[Hook::Tc, Hook::XdpGeneric][..]),
            (Device::Bond, &[Hook::Tc, Hook::Xdp, Hook::XdpGeneric]),
        ] {
            rows.extend(hooks.iter().map(|hook| Row { hook: *hook, device }));
        }
    }
    rows
}

/// Boots a kernel and prints what it says while it runs.
fn one(boot: &Planned, registry: &mut Registry, shared: &Path, kvm: bool) -> Result<Booted> {
    let Planned { name, rows, jit, by_function } = boot;
    let packages = registry.packages(name)?;
    let image = Image::unpack(&packages, &Path::new(FOLDER).join("boot"))?;
    let is_too_old = name.series() < OLDEST;
    let by_function = *by_function && !is_too_old;
    let has_tcx = name.series() >= TCX;
    let orders = Orders { modules: Vec::new(), rows: rows.clone(), jit: *jit, by_function, is_too_old, has_tcx };
    let initramfs = image.initramfs(shared, orders)?;
    fs::create_dir_all(consoles())?;
    let console = consoles().join(format!("{}{}.log", name.short(), if *jit { "" } else { "-without-jit" }));
    let limit = BOOT + ROW * u32::try_from(rows.len())?;
    let machine = Machine { kernel: &image.kernel, initramfs: &initramfs, console: &console, limit, kvm };
    println!("── {}{}: at most {} s, {}", name.0, without(*jit), limit.as_secs(), console.display());
    let started = Instant::now();
    let mut booted = Booted { release: name.0.clone(), jit: *jit, programs: Vec::new(), rows: Vec::new() };
    let trouble = machine.boot(|said| booted.hear(said))?;
    if let Some(why) = trouble {
        booted.hear(Said::Check { name: "the boot".into(), outcome: Outcome::Failed(why), seconds: 0.0 });
    }
    println!("── {}{}: {:.0} s", name.0, without(*jit), started.elapsed().as_secs_f64());
    image.remove();
    Ok(booted)
}

fn without(jit: bool) -> &'static str {
    if jit { "" } else { ", JIT off" }
}

impl Booted {
    fn hear(&mut self, said: Said) {
        match said {
            Said::Kernel { release } => self.release = release,
            Said::Verifier { programs } => {
                for Measured { name, instructions, stack, .. } in &programs {
                    println!("  {name}: {instructions} instructions, stack {} by 32, {} by 16", stack[0], stack[1]);
                }
                self.programs = programs;
            }
            Said::Row { name } => {
                println!("  {name}");
                // A row that has shown only what the kernel lacks gets no other checks.
                self.rows.push(Rounded { name, ..Rounded::default() });
            }
            Said::Loaded { seconds, verified } => {
                println!("    loaded after {seconds} s, verified {verified:?}");
                let row = self.row();
                row.load_seconds = Some(seconds);
                row.verified = verified;
            }
            Said::Check { name, outcome, seconds } => {
                let (word, seen) = match &outcome {
                    Outcome::Ok(seen) => ("ok", seen),
                    Outcome::Failed(why) => ("FAILED", why),
                    Outcome::Absent(why) => ("absent", why),
                };
                println!("    {name}: {word} after {seconds} s  {}", seen.replace('\n', "\n      "));
                self.row().checks.push((name, outcome));
            }
            Said::Over => {}
        }
    }

    /// The row that the guest is at.
    fn row(&mut self) -> &mut Rounded {
        if self.rows.is_empty() {
            self.rows.push(Rounded { name: said::KERNEL.into(), ..Rounded::default() });
        }
        self.rows.last_mut().expect("it is not empty")
    }
}
