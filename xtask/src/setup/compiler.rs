//! A compiler with `core` for BPF: an installed one, else rustup's, else Debian's.

use anyhow::{Context, Result, bail};

use super::{Outcome, apt};
use crate::{ebpf, shell};

pub fn provide() -> Result<Outcome> {
    if let Some(compiler) = ebpf::compiler() {
        return Ok(Outcome::Found(compiler.to_string()));
    }
    let way = match rustup() {
        Ok(()) => String::new(),
        Err(not_rustup) => {
            apt::install(&["rustc-web", "libstd-rust-web-dev-bpf"])
                .with_context(|| format!("neither rustup ({not_rustup:#}) nor packages"))?;
            let reason = not_rustup.to_string();
            format!("; not rustup: {}", reason.lines().next_back().unwrap_or_default())
        }
    };
    let compiler = ebpf::compiler().context("the BPF compiler was installed but cannot be found")?;
    Ok(Outcome::Installed(format!("{compiler}{way}")))
}

/// Installs rust-src for rustup's nightly, and the nightly itself if it is missing.
fn rustup() -> Result<()> {
    if ebpf::program("rustup").is_none() {
        bail!("rustup is not installed");
    }
    println!("installing rustup's nightly with rust-src ...");
    if ebpf::llvm_of("nightly").is_some() {
        shell::run_quietly(&mut shell::command("rustup", &["component", "add", "--toolchain", "nightly", "rust-src"]))?;
    } else {
        let install = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
        shell::run_quietly(&mut shell::command("rustup", &install))?;
    }
    match ebpf::llvm_of("nightly") {
        Some(llvm) if llvm > ebpf::LLVM => bail!("its LLVM {llvm} is newer than bpf-linker's LLVM {}", ebpf::LLVM),
        Some(_) => Ok(()),
        None => bail!("rustup's nightly does not run"),
    }
}
