//! The budget of the kernel program, held on this machine's kernel by `it/datapath/verifier.rs` and
//! on other kernels by `evenkeel-lab kernels`. docs/ebpf.md says why these numbers.

/// Bytes of stack in the deepest chain of calls, of the kernel's 512, with every frame rounded up
/// to 32.
pub const STACK: u32 = 416;
/// Instructions that the verifier looks at in a global function together with the static ones that
/// it calls.
pub const PASS: u32 = 60_000;
/// Instructions that the verifier looks at in a program on the kernel that needs most, of 1,000,000.
pub const PROGRAM: u32 = 400_000;
