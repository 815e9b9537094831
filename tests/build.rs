//! Builds the kernel programs of the benchmarks: `env!("LAB_BPF")` is the object's path.

use std::{env, path::PathBuf};

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

const PROGRAM: ebpf::Package = ebpf::Package { name: "tests-ebpf", features: "bpf" };

fn main() {
    let workspace = folder("CARGO_MANIFEST_DIR").join("..");
    for part in ["tests/ebpf/src", "tests/ebpf/Cargo.toml", "lb-common/src", "xtask/src/ebpf.rs"] {
        println!("cargo::rerun-if-changed={}", workspace.join(part).display());
    }
    println!("cargo::rerun-if-env-changed={}", ebpf::CHOICE);

    // As lb-userspace/build.rs does it, in the same folder.
    let out = folder("OUT_DIR");
    let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("bpf");
    let object = out.join("lab.bpf.o");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    match ebpf::Toolchain::find().and_then(|tools| tools.build(&PROGRAM, &workspace, &target_dir, &arch, &object)) {
        Ok(()) => println!("cargo::rustc-env=LAB_BPF={}", object.display()),
        Err(message) => message.lines().for_each(|line| println!("cargo::error={line}")),
    }
}

fn folder(variable: &str) -> PathBuf {
    env::var_os(variable).expect("cargo sets it").into()
}
