//! Runs clippy on the programs for the BPF target, with the compiler that builds them: only that
//! one has `core` for the target.

use std::{env::consts::ARCH, path::Path};

use anyhow::{Result, anyhow};

use crate::{
    ebpf::{Compiler, DEBIAN_CLIPPY, PROGRAMS, Toolchain},
    shell,
};

/// Lints each program, or says why it does not.
pub fn kernel_programs() -> Result<()> {
    let tools = Toolchain::find().map_err(|error| anyhow!(error))?;
    for program in PROGRAMS {
        if let Some(reason) = lack(&tools.compiler) {
            println!("{} not linted: {reason}", program.package);
            continue;
        }
        let target = shell::target().join("bpf");
        let mut clippy = tools.cargo("clippy", &program, &shell::workspace(), &target, ARCH);
        shell::run(clippy.args(["--", "--deny", "warnings"]))?;
    }
    Ok(())
}

/// Why nothing can be linted: clippy has to be of the compiler's own version.
fn lack(compiler: &Compiler) -> Option<String> {
    match compiler {
        Compiler::Debian if Path::new(DEBIAN_CLIPPY).exists() => None,
        Compiler::Debian => Some("the clippy of Debian's compiler is not installed (package rust-web-clippy)".into()),
        Compiler::Rustup { toolchain } => {
            let version = ["run", toolchain, "cargo", "clippy", "--version"];
            let found = shell::run_quietly(&mut shell::command("rustup", &version)).is_ok();
            (!found).then(|| {
                format!("rustup's {toolchain} has no clippy (rustup component add clippy --toolchain {toolchain})")
            })
        }
    }
}
