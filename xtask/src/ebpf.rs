//! Finds a compiler for BPF and builds the kernel program with it.
//!
//! Only std is used here, because `lb-userspace/build.rs` includes this file as well: a plain `cargo build` and
//! `cargo xtask` must not disagree about how the object is made. Nothing is ever installed from here.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The newest LLVM whose bitcode the bpf-linker that `cargo xtask setup` installs can read.
pub const LLVM: u32 = 22;
/// Names the compiler to take: `debian` or `rustup`; not set: whichever is there, Debian's first.
pub const CHOICE: &str = "EVENKEEL_BPF_COMPILER";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const TARGET: &str = "bpfel-unknown-none";
/// `debuginfo` and `--btf`: the loader needs BTF. v3 has the atomics with a result and 32-bit jumps (kernel 5.12).
/// rustc passes the CPU to the linker itself. Without the last one LLVM fills and copies by calls that go byte by byte: some
/// 35 ns for each new connection.
const FLAGS: [&str; 4] =
    ["-Cdebuginfo=2", "-Ctarget-cpu=v3", "-Clink-arg=--btf", "-Clink-arg=--disable-expand-memcpy-in-order"];

/// Where `core` for the BPF target comes from.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// Debian's rustc-web with libstd-rust-web-dev-bpf: `core` is there as a library.
    Debian,
    /// A rustup toolchain with rust-src: `core` is built along (`-Z build-std`).
    Rustup { toolchain: String },
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Debian => write!(f, "Debian's {DEBIAN_RUSTC} with {DEBIAN_CORE}"),
            Self::Rustup { toolchain } => write!(f, "rustup's {toolchain} with rust-src"),
        }
    }
}

/// What is built for the BPF target.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    pub name: &'static str,
    pub features: &'static str,
}

/// Everything that makes the object.
#[derive(Clone, Debug)]
pub struct Toolchain {
    pub compiler: Compiler,
    pub linker: PathBuf,
}

impl Toolchain {
    /// What is installed; the error names what is missing and the command that brings it.
    pub fn find() -> Result<Self, String> {
        let lack = |what: &str| format!("{what} is not installed: run `cargo xtask setup`");
        Ok(Self {
            compiler: compiler().ok_or_else(|| lack("a compiler for BPF"))?,
            linker: program("bpf-linker").ok_or_else(|| lack("bpf-linker"))?,
        })
    }

    /// Builds a package of `workspace` whose one binary has its name, in `target_dir`, and leaves the object, without
    /// debug sections, at `object`.
    pub fn build(
        &self,
        package: &Package,
        workspace: &Path,
        target_dir: &Path,
        arch: &str,
        object: &Path,
    ) -> Result<(), String> {
        let mut cargo = self.cargo();
        cargo
            .current_dir(workspace)
            .args(["build", "--quiet", "--release", "--package", package.name, "--features", package.features])
            .args(["--target", TARGET, "--target-dir"])
            .arg(target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags(arch));
        run(&mut cargo)?;
        let built = target_dir.join(TARGET).join("release").join(package.name);
        strip(&built, object)
    }

    fn cargo(&self) -> Command {
        let mut command = match &self.compiler {
            Compiler::Debian => {
                let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
                scrub(&mut cargo);
                // The BPF target's unstable features in a release compiler.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Compiler::Rustup { toolchain } => {
                let mut rustup = Command::new("rustup");
                scrub(&mut rustup);
                rustup.args(["run", toolchain, "cargo", "-Zbuild-std=core"]);
                rustup
            }
        };
        // A jobserver of the outer cargo is not passed on.
        command.env_remove("MAKEFLAGS");
        command
    }

    fn flags(&self, arch: &str) -> String {
        let linker = format!("-Clinker={}", self.linker.display());
        let arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
        FLAGS.into_iter().chain([linker.as_str(), arch.as_str()]).collect::<Vec<_>>().join("\x1f")
    }
}

/// The installed compiler.
pub fn compiler() -> Option<Compiler> {
    let choice = env::var(CHOICE).ok();
    let wanted = |name: &str| choice.as_deref().is_none_or(|choice| choice == name);
    let debian = || (Path::new(DEBIAN_RUSTC).exists() && Path::new(DEBIAN_CORE).is_dir()).then_some(Compiler::Debian);
    wanted("debian").then(debian).flatten().or_else(|| wanted("rustup").then(nightly).flatten())
}

/// A nightly of rustup with rust-src whose bitcode the linker can read.
fn nightly() -> Option<Compiler> {
    let toolchain = "nightly".to_owned();
    let sysroot = output(Command::new("rustup").args(["run", &toolchain, "rustc", "--print", "sysroot"]))?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    (source.is_dir() && llvm_of(&toolchain)? <= LLVM).then_some(Compiler::Rustup { toolchain })
}

/// The major version of LLVM in a rustup toolchain.
pub fn llvm_of(toolchain: &str) -> Option<u32> {
    let version = output(Command::new("rustup").args(["run", toolchain, "rustc", "--version", "--verbose"]))?;
    version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

/// A program in the PATH or where `cargo install` puts it.
pub fn program(name: &str) -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let folders = env::split_paths(&path).chain(cargo_home.map(|home| home.join("bin"))).chain(system);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Drops the debug sections: with them the loader's heap would be 14 MB. BTF stays. Without an LLVM tool that knows
/// BPF the object is taken as it is; it only costs memory.
fn strip(built: &Path, object: &Path) -> Result<(), String> {
    let versioned = PathBuf::from(format!("/usr/lib/llvm-{LLVM}/bin/llvm-objcopy"));
    let Some(objcopy) = Some(versioned).filter(|file| file.is_file()).or_else(|| program("llvm-objcopy")) else {
        return fs::copy(built, object).map(drop).map_err(|error| format!("{}: {error}", built.display()));
    };
    run(Command::new(objcopy).arg("--strip-debug").arg(built).arg(object))
}

/// Removes what cargo and rustup tell a build script about the outer build, which is for another target and compiler.
/// Cargo's folders and network settings stay.
fn scrub(command: &mut Command) {
    const KEPT: [&str; 4] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR"];
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let of_build =
            ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"].iter().any(|p| name.starts_with(p));
        if of_build && !KEPT.iter().any(|kept| name.starts_with(kept)) {
            command.env_remove(name);
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?} failed:\n{told}")) }
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
