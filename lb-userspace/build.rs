//! Builds the kernel program, so that the binary carries it: `env!("EVENKEEL_BPF")` is the object's path.

use std::{env, path::PathBuf};

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

const PROGRAM: ebpf::Package = ebpf::Package { name: "lb-ebpf", features: "" };

fn main() {
    let workspace = folder("CARGO_MANIFEST_DIR").join("..");
    for part in ["lb-ebpf", "lb-common"] {
        println!("cargo::rerun-if-changed={}", workspace.join(part).join("src").display());
        println!("cargo::rerun-if-changed={}", workspace.join(part).join("Cargo.toml").display());
    }
    println!("cargo::rerun-if-changed={}", workspace.join("xtask/src/ebpf.rs").display());
    println!("cargo::rerun-if-env-changed={}", ebpf::CHOICE);

    // OUT_DIR is target/PROFILE/build/PACKAGE/out. One folder for all profiles: the object is the same in each.
    let out = folder("OUT_DIR");
    let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("bpf");
    let object = out.join("evenkeel.bpf.o");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    match ebpf::Toolchain::find().and_then(|tools| tools.build(&PROGRAM, &workspace, &target_dir, &arch, &object)) {
        Ok(()) => println!("cargo::rustc-env=EVENKEEL_BPF={}", object.display()),
        Err(message) => message.lines().for_each(|line| println!("cargo::error={line}")),
    }
}

fn folder(variable: &str) -> PathBuf {
    env::var_os(variable).expect("cargo sets it").into()
}
