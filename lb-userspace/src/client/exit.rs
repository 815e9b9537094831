//! How a command ends.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

/// Why a command failed, as text for the operator.
#[derive(Debug)]
pub enum Failure {
    /// Refused or wrong input: exit 1.
    Refused(String),
    /// The daemon cannot be reached: exit 2.
    Unreachable(String),
}

/// Exit code for a refusal, for wrong input and for wrong usage.
pub const REFUSED: u8 = 1;
/// Exit code when the daemon cannot be reached.
pub const UNREACHABLE: u8 = 2;

impl Failure {
    /// Prints what is wrong and returns the exit code.
    pub fn report(&self) -> ExitCode {
        // No panic if the terminal is gone: nobody could read the text anyway.
        _ = writeln!(io::stderr(), "{self}");
        ExitCode::from(match self {
            Failure::Refused(_) => REFUSED,
            Failure::Unreachable(_) => UNREACHABLE,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (Failure::Refused(text) | Failure::Unreachable(text)) = self;
        f.write_str(text)
    }
}

impl std::error::Error for Failure {}
