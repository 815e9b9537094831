//! Running other programs.

use std::{
    env,
    ffi::OsStr,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The top folder of the repository.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace").to_owned()
}

/// Builds evenkeel and the whole lab, as tests and benchmarks use them.
pub const BUILD_ALL: [&str; 7] = ["build", "--release", "--package", "lb-userspace", "--package", "tests", "--bins"];

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// Where setup puts programs that it does not install into the system.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// The cargo that runs us, in the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).args(args);
    // `cargo run` sets these for xtask itself; build scripts would run again because of them.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    cargo
}

pub fn command(program: impl AsRef<OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs to the end. The output goes to ours.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", name(command)))?;
    if !status.success() {
        bail!("{}: {status}", name(command));
    }
    Ok(())
}

/// Runs to the end and returns the output. An error carries the end of what was printed to stderr.
pub fn run_quietly(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", name(command)))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = errors.lines().collect();
        let end = &lines[lines.len().saturating_sub(12)..];
        bail!("{}: {}\n{}", name(command), output.status, end.join("\n"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Becomes that program: signals go to it, and its exit code is ours. Returns only if it cannot
/// start.
pub fn replace_us(command: &mut Command) -> Result<()> {
    Err(command.exec()).with_context(|| format!("cannot start {}", name(command)))
}

fn name(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Network namespaces and BPF programs are root's.
pub fn need_root(command: &str) -> Result<()> {
    if !is_root() {
        bail!("network namespaces and BPF programs need root: run it as root (sudo -E {command})");
    }
    Ok(())
}

/// `/proc/self` belongs to the user that the process runs as.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|proc| proc.uid() == 0)
}
