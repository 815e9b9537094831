//! Builds the kernel programs of the benchmarks: `env!("LAB_BPF")` is the path of their object.

#[path = "../xtask/src/ebpf.rs"]
mod ebpf;

fn main() {
    if std::env::var_os("CARGO_FEATURE_FULL").is_some() {
        ebpf::Toolchain::build_from_script("tests-ebpf");
    }
}
