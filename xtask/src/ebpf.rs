//! Finds a compiler for BPF and builds the kernel programs with it.
//!
//! Only std is used here because the build scripts of lb-userspace and tests include this file: a
//! plain `cargo build` and `cargo xtask` must agree about how an object is made. Nothing here
//! installs anything.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The newest LLVM whose bitcode the bpf-linker that `cargo xtask setup` installs can read.
pub const LLVM: u32 = 22;
/// Selects the compiler: `debian` or `rustup`. Unset: whichever is installed, Debian's first.
pub const CHOICE: &str = "EVENKEEL_BPF_COMPILER";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
pub const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const TARGET: &str = "bpfel-unknown-none";
/// `debuginfo` and `--btf`: the loader needs BTF. v3 has the atomics that return a value, and
/// 32-bit jumps (kernel 5.12); rustc itself passes the CPU to the linker. Without the last flag
/// LLVM copies and clears memory byte by byte in calls, which costs each new connection some 35 ns.
const FLAGS: [&str; 4] =
    ["-Cdebuginfo=2", "-Ctarget-cpu=v3", "-Clink-arg=--btf", "-Clink-arg=--disable-expand-memcpy-in-order"];

/// Where `core` for the BPF target comes from.
#[derive(Clone, Debug)]
pub enum Compiler {
    /// Debian's rustc-web with libstd-rust-web-dev-bpf, which contains `core` as a library.
    Debian,
    /// A rustup toolchain with rust-src: `core` is built with the program (`-Z build-std`).
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

/// A package of the workspace that is built for the BPF target. It has one binary, named like the
/// package.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub package: &'static str,
    features: &'static str,
    /// The folder of the package.
    folder: &'static str,
    /// The variable that gives the path of the object to the package that loads it: `env!(..)`.
    variable: &'static str,
}

/// The kernel program, and the programs of the benchmarks. Both are made with lb-common.
pub const PROGRAMS: [Program; 2] = [
    Program { package: "lb-ebpf", features: "", folder: "lb-ebpf", variable: "EVENKEEL_BPF" },
    Program { package: "tests-ebpf", features: "bpf", folder: "tests/ebpf", variable: "LAB_BPF" },
];

/// The programs that make an object.
#[derive(Clone, Debug)]
pub struct Toolchain {
    pub compiler: Compiler,
    pub linker: PathBuf,
}

impl Toolchain {
    /// The installed toolchain. The error names what is missing and the command that installs it.
    pub fn find() -> Result<Self, String> {
        let missing = |what: &str| format!("{what} is not installed: run `cargo xtask setup`");
        Ok(Self {
            compiler: compiler().ok_or_else(|| missing("a compiler for BPF"))?,
            linker: program("bpf-linker").ok_or_else(|| missing("bpf-linker"))?,
        })
    }

    /// For the build script of a package whose folder is at the top of the workspace: builds a
    /// program when its sources have changed, and gives the package the path of the object. What
    /// fails becomes an error of the build.
    pub fn build_from_script(package: &str) {
        let program = PROGRAMS.iter().find(|program| program.package == package).expect("one of PROGRAMS");
        let folder = |variable: &str| PathBuf::from(env::var_os(variable).expect("cargo sets it"));
        let workspace = folder("CARGO_MANIFEST_DIR").join("..");
        for folder in [program.folder, "lb-common"].map(|folder| workspace.join(folder)) {
            println!("cargo::rerun-if-changed={}", folder.join("src").display());
            println!("cargo::rerun-if-changed={}", folder.join("Cargo.toml").display());
        }
        println!("cargo::rerun-if-changed={}", workspace.join("xtask/src/ebpf.rs").display());
        println!("cargo::rerun-if-env-changed={CHOICE}");

        // OUT_DIR is target/PROFILE/build/PACKAGE/out. The object is the same in every profile, so
        // all profiles and both programs share one folder for what is built.
        let out = folder("OUT_DIR");
        let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("bpf");
        let object = out.join(program.package).with_extension("o");
        let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
        let tools = Self::find();
        match tools.and_then(|tools| tools.build(program, &workspace, &target_dir, &arch, &object)) {
            Ok(()) => println!("cargo::rustc-env={}={}", program.variable, object.display()),
            Err(message) => message.lines().for_each(|line| println!("cargo::error={line}")),
        }
    }

    /// Builds `program` in `target_dir` and writes it, without debug sections, to `object`.
    fn build(
        &self,
        program: &Program,
        workspace: &Path,
        target_dir: &Path,
        arch: &str,
        object: &Path,
    ) -> Result<(), String> {
        run(&mut self.cargo("build", program, workspace, target_dir, arch))?;
        let built = target_dir.join(TARGET).join("release").join(program.package);
        strip(&built, object)
    }

    /// A cargo command for `program`, with the compiler and the flags that build it.
    pub fn cargo(&self, what: &str, program: &Program, workspace: &Path, target_dir: &Path, arch: &str) -> Command {
        let mut command = match &self.compiler {
            Compiler::Debian => {
                let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
                // A clippy has to be of its compiler's version.
                let mut cargo = Command::new(if what == "clippy" { DEBIAN_CLIPPY.into() } else { cargo });
                scrub(&mut cargo);
                // Lets a release compiler accept the unstable features that the BPF target needs.
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1").arg(what);
                cargo
            }
            Compiler::Rustup { toolchain } => {
                let mut rustup = Command::new("rustup");
                scrub(&mut rustup);
                rustup.args(["run", toolchain, "cargo", what, "-Zbuild-std=core"]);
                rustup
            }
        };
        let linker = format!("-Clinker={}", self.linker.display());
        let arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
        let flags = FLAGS.into_iter().chain([linker.as_str(), arch.as_str()]).collect::<Vec<_>>().join("\x1f");
        command
            .current_dir(workspace)
            .args(["--quiet", "--release", "--package", program.package, "--features", program.features])
            .args(["--target", TARGET, "--target-dir"])
            .arg(target_dir)
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            // The jobserver of the outer cargo is not passed on.
            .env_remove("MAKEFLAGS");
        command
    }
}

/// The installed compiler.
pub fn compiler() -> Option<Compiler> {
    let choice = env::var(CHOICE).ok();
    let wanted = |name: &str| choice.as_deref().is_none_or(|choice| choice == name);
    let debian = || (Path::new(DEBIAN_RUSTC).exists() && Path::new(DEBIAN_CORE).is_dir()).then_some(Compiler::Debian);
    wanted("debian").then(debian).flatten().or_else(|| wanted("rustup").then(nightly).flatten())
}

/// rustup's nightly, if it has rust-src and the linker can read its bitcode.
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

/// A program in PATH, in the folder of `cargo install` or in the system's sbin folders.
pub fn program(name: &str) -> Option<PathBuf> {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let folders = env::split_paths(&path).chain(cargo_home.map(|home| home.join("bin"))).chain(system);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Removes the debug sections, with which the loader's heap would take 14 MB, and keeps BTF.
/// Without an LLVM tool that knows BPF the object stays as it is: that costs memory, nothing else.
fn strip(built: &Path, object: &Path) -> Result<(), String> {
    let versioned = PathBuf::from(format!("/usr/lib/llvm-{LLVM}/bin/llvm-objcopy"));
    let Some(objcopy) = Some(versioned).filter(|file| file.is_file()).or_else(|| program("llvm-objcopy")) else {
        return fs::copy(built, object).map(drop).map_err(|error| format!("{}: {error}", built.display()));
    };
    run(Command::new(objcopy).arg("--strip-debug").arg(built).arg(object))
}

/// Removes the variables by which cargo and rustup describe the outer build: it has another target
/// and another compiler. Those of cargo's folders and network settings stay.
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
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?} failed:\n{errors}")) }
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
