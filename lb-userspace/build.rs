//! Builds the kernel program into the binary: `env!("EVENKEEL_BPF")` is the path of its object.

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

fn main() {
    ebpf::Toolchain::build_from_script("lb-ebpf");
}
