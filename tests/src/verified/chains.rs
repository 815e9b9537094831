//! Chains of calls, and the stack that they take. Calls count whether they can be reached or not,
//! as for the kernel (`check_max_stack_depth` in kernel/bpf/verifier.c).

use super::Function;

/// The most that all frames of a chain may take together.
pub const STACK: u32 = 512;
/// The most functions in a chain, the entry included.
pub const FRAMES: usize = 8;

/// How a kernel rounds each frame up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To 16 bytes: kernels from 6.9 on, if they compile the program. They count nothing for a
    /// function that the verifier did not come to.
    Compiled,
    /// To 32 bytes, an empty frame too: kernels before 6.9, and every kernel that interprets the
    /// program.
    Interpreted,
}

impl Rounding {
    fn charge(self, function: &Function) -> u32 {
        match self {
            Rounding::Compiled if function.instructions == 0 => 0,
            Rounding::Compiled => function.stack().next_multiple_of(16),
            Rounding::Interpreted => function.stack().max(1).next_multiple_of(32),
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

/// The chain that takes the most stack.
pub fn deepest(functions: &[Function], rounding: Rounding) -> Chain {
    from(functions, 0, rounding, |chain| chain.bytes as usize)
}

/// The chain with the most calls.
pub fn longest(functions: &[Function]) -> Chain {
    from(functions, 0, Rounding::Interpreted, |chain| chain.functions.len())
}

/// The greatest chain that begins with a function. A program has no recursion: the kernel refuses
/// it.
fn from(functions: &[Function], first: usize, rounding: Rounding, size: fn(&Chain) -> usize) -> Chain {
    let function = &functions[first];
    let chains = function.calls.iter().map(|callee| from(functions, *callee, rounding, size));
    let mut chain = chains.max_by_key(size).unwrap_or_default();
    chain.bytes += rounding.charge(function);
    chain.functions.insert(0, first);
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(frame: u32, calls: &[usize]) -> Function {
        Function {
            name: String::new(),
            instructions: 1,
            pass: None,
            frame,
            verified_frame: Some(frame),
            calls: calls.to_vec(),
        }
    }

    #[test]
    fn the_deepest_chain_depends_on_how_frames_are_rounded() {
        // By one large frame 16 + 112 = 128, by four small ones 16 + 4 * 16 = 80; by 32 the small
        // ones are deeper: 32 + 4 * 32 = 160 and 32 + 128 = 160 with one more of nothing.
        let functions =
            [function(8, &[1, 2]), function(112, &[]), function(8, &[3]), function(8, &[4]), function(16, &[5])];
        let functions = [&functions[..], &[function(0, &[6]), function(0, &[])]].concat();
        assert_eq!(deepest(&functions, Rounding::Compiled), Chain { bytes: 128, functions: vec![0, 1] });
        let chain = Chain { bytes: 192, functions: vec![0, 2, 3, 4, 5, 6] };
        assert_eq!(deepest(&functions, Rounding::Interpreted), chain);
        assert_eq!(longest(&functions), chain);
    }

    #[test]
    fn a_function_that_was_not_looked_at_counts_where_old_kernels_look_at_it() {
        let other = Function { instructions: 0, verified_frame: None, ..function(48, &[]) };
        let functions = [function(40, &[1]), other];
        assert_eq!(deepest(&functions, Rounding::Compiled).bytes, 48);
        assert_eq!(deepest(&functions, Rounding::Interpreted).bytes, 64 + 64);
    }

    #[test]
    fn a_function_that_is_called_twice_is_on_a_chain_once() {
        let functions = [function(32, &[1, 2]), function(32, &[3]), function(64, &[3]), function(32, &[])];
        assert_eq!(deepest(&functions, Rounding::Interpreted), Chain { bytes: 128, functions: vec![0, 2, 3] });
    }
}
