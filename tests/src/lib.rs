//! What the tests, the live screen and the benchmarks share.

pub mod packet;
pub mod program;
