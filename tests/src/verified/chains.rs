//! Chains of calls, and the stack that they take.

use super::Function;

/// The most that all frames of a chain may take together.
pub const STACK: u32 = 512;
/// The most functions in a chain, the entry included.
pub const FRAMES: usize = 8;

/// How a kernel rounds each frame up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To 16 bytes: kernels from 6.9 on, if they compile the program.
    Compiled,
    /// To 32 bytes, and an empty frame too: older kernels, and every kernel that interprets the
    /// program.
    Interpreted,
}

impl Rounding {
    fn up(self, frame: u32) -> u32 {
        match self {
            Rounding::Compiled => frame.next_multiple_of(16),
            Rounding::Interpreted => frame.max(1).next_multiple_of(32),
        }
    }
}

/// A chain of calls from the entry on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub bytes: u32,
    /// By their positions in the program.
    pub functions: Vec<usize>,
}

/// The chain that takes the most stack. Calls count whether they can be reached or not, as for the
/// kernel (`check_max_stack_depth`).
pub fn deepest(functions: &[Function], rounding: Rounding) -> Chain {
    from(functions, 0, &|frame| rounding.up(frame), |chain| chain.bytes as usize)
}

/// The chain with the most calls.
pub fn longest(functions: &[Function]) -> Chain {
    from(functions, 0, &|frame| Rounding::Interpreted.up(frame), |chain| chain.functions.len())
}

/// The greatest chain that begins with a function. A program has no recursion: the kernel refuses
/// it.
fn from(functions: &[Function], first: usize, up: &dyn Fn(u32) -> u32, size: fn(&Chain) -> usize) -> Chain {
    let function = &functions[first];
    let chains = function.calls.iter().map(|callee| from(functions, *callee, up, size));
    let mut chain = chains.max_by_key(size).unwrap_or_default();
    chain.bytes += up(function.frame.unwrap_or(0));
    chain.functions.insert(0, first);
    chain
}
