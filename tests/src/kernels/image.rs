//! What a guest boots: a kernel out of Debian's packages, and an initramfs with our programs, those
//! that the lab starts, and the kernel's modules.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::said::{MODULES, ORDERS, Orders};
use crate::{binaries, process};

/// What the lab starts in a guest.
const PROGRAMS: [&str; 11] =
    ["bpftool", "cat", "ethtool", "ip", "mount", "nsenter", "sh", "ss", "sysctl", "tc", "umount"];
/// The modules that the lab needs, if they are not part of the kernel itself.
const NEEDED: [&str; 8] = ["veth", "bridge", "sch_ingress", "cls_bpf", "act_bpf", "af_packet", "8021q", "bonding"];

/// A kernel that can be booted with orders.
pub struct Image {
    pub kernel: PathBuf,
    folder: PathBuf,
    modules: Vec<String>,
}

impl Image {
    /// Unpacks a kernel's packages.
    pub fn unpack(packages: &[PathBuf], folder: &Path) -> Result<Image> {
        _ = fs::remove_dir_all(folder);
        let root = folder.join("package");
        fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        for package in packages {
            process::output(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&root))?;
        }
        // Newer packages have their files in /usr.
        if !root.join("lib").exists() {
            symlink("usr/lib", root.join("lib"))?;
        }
        let version = only(&root.join("lib/modules"))?;
        let modules = root.join("lib/modules").join(&version);
        let kernel = [root.join(format!("boot/vmlinuz-{version}")), modules.join("vmlinuz")];
        let kernel = kernel.into_iter().find(|file| file.is_file()).context("the packages contain no kernel")?;
        process::output(Command::new("depmod").arg("-b").arg(&root).arg(&version))?;
        let mut image = Image { kernel, folder: folder.to_owned(), modules: Vec::new() };
        image.take_modules(&root, &version)?;
        Ok(image)
    }

    /// Copies the modules, each after those that it needs, and decompresses them.
    fn take_modules(&mut self, root: &Path, version: &str) -> Result<()> {
        let place = self.tree().join(&MODULES[1..]);
        fs::create_dir_all(&place)?;
        for module in NEEDED {
            let mut modprobe = Command::new("modprobe");
            modprobe.arg("-d").arg(root).args(["-S", version, "--show-depends", module]);
            let shown = process::output(&mut modprobe).with_context(|| format!("kernel {version} has no {module}"))?;
            // `insmod FILE OPTIONS`, or `builtin NAME`.
            let files = shown.lines().filter_map(|line| line.strip_prefix("insmod ")?.split(' ').next());
            for file in files {
                self.take_module(Path::new(file), &place)?;
            }
        }
        Ok(())
    }

    fn take_module(&mut self, file: &Path, place: &Path) -> Result<()> {
        let name = file.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
        let plain = name.trim_end_matches(".xz").trim_end_matches(".zst").to_owned();
        if self.modules.contains(&plain) {
            return Ok(());
        }
        let unpack = match name.rsplit('.').next() {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            _ => "cat",
        };
        let mut command = Command::new(unpack);
        if unpack != "cat" {
            command.arg("-dc");
        }
        let status = command.arg(file).stdout(File::create(place.join(&plain))?).status();
        ensure!(status.with_context(|| unpack.to_owned())?.success(), "{unpack} cannot unpack {}", file.display());
        self.modules.push(plain);
        Ok(())
    }

    /// Files of this kernel in the initramfs.
    fn tree(&self) -> PathBuf {
        self.folder.join("tree")
    }

    /// Writes the initramfs: what all kernels share, and what is this one's.
    pub fn initramfs(&self, shared: &Path, mut orders: Orders) -> Result<PathBuf> {
        orders.modules.clone_from(&self.modules);
        fs::write(self.tree().join(&ORDERS[1..]), serde_json::to_vec(&orders)?)?;
        let initramfs = self.folder.join("initramfs");
        // The kernel unpacks archives that follow each other.
        let mut whole = File::create(&initramfs)?;
        io::copy(&mut File::open(shared)?, &mut whole)?;
        archive(&self.tree(), whole)?;
        Ok(initramfs)
    }

    /// Removes what was unpacked.
    pub fn remove(&self) {
        _ = fs::remove_dir_all(&self.folder);
    }
}

/// The name of the only entry of a folder.
fn only(folder: &Path) -> Result<String> {
    let entry = fs::read_dir(folder).with_context(|| folder.display().to_string())?.next();
    entry.context("an empty folder")??.file_name().into_string().map_err(|name| anyhow::anyhow!("{name:?}"))
}

/// Writes the part of the initramfs that all kernels share.
pub fn shared(folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("shared");
    _ = fs::remove_dir_all(&tree);
    for inner in ["bin", "etc", "var/log"] {
        fs::create_dir_all(tree.join(inner)).with_context(|| tree.display().to_string())?;
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n")?;
    fs::write(tree.join("etc/group"), "root:x:0:\n")?;
    symlink("/run", tree.join("var/run"))?;
    let mut libraries = BTreeSet::new();
    for (name, program) in [("evenkeel", binaries::evenkeel()?), ("evenkeel-lab", std::env::current_exe()?)] {
        libraries.extend(libraries_of(&program)?);
        // The debug information would fill the guest's memory.
        process::output(Command::new("strip").arg("-o").arg(tree.join("bin").join(name)).arg(&program))?;
    }
    for name in PROGRAMS {
        let program = find(name)?;
        libraries.extend(libraries_of(&program)?);
        copy(&program, &tree.join("bin").join(name))?;
    }
    for library in libraries {
        let place = tree.join(library.strip_prefix("/")?);
        fs::create_dir_all(place.parent().context("a library in no folder")?)?;
        copy(&library, &place)?;
    }
    let file = folder.join("shared.cpio");
    archive(&tree, File::create(&file)?)?;
    Ok(file)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("{} to {}", from.display(), to.display()))
}

fn find(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder| folder.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("there is no {program}: run `cargo xtask setup --for kernels`"))
}

/// The shared libraries of a program, with its loader.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let shown = process::output(Command::new("ldd").arg(program))?;
    if shown.contains("not found") {
        bail!("{}: {shown}", program.display());
    }
    // `NAME => FILE (ADDRESS)`, or `FILE (ADDRESS)`.
    let files = shown.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(files.map(PathBuf::from).collect())
}

/// Appends a folder's files to `into`, as an archive that the kernel unpacks.
fn archive(tree: &Path, into: File) -> Result<()> {
    let mut names = Vec::new();
    walk(tree, tree, &mut names)?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--create", "--format=newc", "--owner=0:0", "--quiet"]).current_dir(tree);
    let mut child = cpio.stdin(Stdio::piped()).stdout(into).spawn().context("cannot start cpio")?;
    child.stdin.take().context("no pipe to cpio")?.write_all(names.join("\n").as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "cpio: {status}");
    Ok(())
}

/// The names of all files below `folder`, each after the folder that contains it.
fn walk(tree: &Path, folder: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.path().strip_prefix(tree)?.to_str().context("a name that is not UTF-8")?.to_owned();
        names.push(name);
        if entry.file_type()?.is_dir() {
            walk(tree, &entry.path(), names)?;
        }
    }
    Ok(())
}
