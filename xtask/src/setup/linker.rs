//! bpf-linker, built against Debian's LLVM because no package registry has its binaries.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Outcome, apt};
use crate::{ebpf, shell};

/// The newest version that builds with Rust 1.95 and supports LLVM 22.
const VERSION: &str = "0.13.0";

pub fn provide() -> Result<Outcome> {
    if let Some(linker) = ebpf::program("bpf-linker") {
        return Ok(Outcome::Found(linker.display().to_string()));
    }
    let llvm = llvm()?;
    println!("building bpf-linker {VERSION} (about a minute) ...");
    let feature = format!("llvm-{}", ebpf::LLVM);
    let install = ["install", "bpf-linker", "--version", VERSION, "--locked", "--no-default-features", "--features"];
    let mut cargo = shell::cargo(&install);
    shell::run_quietly(cargo.arg(feature).env("LLVM_PREFIX", llvm).env_remove("CARGO_TARGET_DIR"))?;
    let linker = ebpf::program("bpf-linker").context("bpf-linker was installed but cannot be found")?;
    Ok(Outcome::Installed(format!("{} {VERSION}, by cargo install", linker.display())))
}

/// The prefix of LLVM's libraries, installed if they are missing.
fn llvm() -> Result<PathBuf> {
    let prefix = format!("/usr/lib/llvm-{}", ebpf::LLVM);
    let prefix = Path::new(&prefix);
    // llvm-sys also links Polly, which is in a separate package.
    if !prefix.join("include/llvm-c").is_dir() || !prefix.join("lib/libPolly.a").is_file() {
        let packages = [format!("llvm-{}-dev", ebpf::LLVM), format!("libpolly-{}-dev", ebpf::LLVM)];
        apt::install(&packages.each_ref().map(String::as_str))?;
    }
    Ok(prefix.to_owned())
}
