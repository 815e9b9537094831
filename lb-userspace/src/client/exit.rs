//! How a command ends.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

/// Why a command did not do what it was asked; the text is for the operator.
#[derive(Debug)]
pub enum Failure {
    /// Refused or wrong input: exit 1.
    Refused(String),
    /// The daemon cannot be reached: exit 2.
    Unreachable(String),
}

/// Exit code of wrong usage too.
pub const REFUSED: u8 = 1;
/// The daemon cannot be reached.
pub const UNREACHABLE: u8 = 2;

impl Failure {
    /// Says what is wrong and gives the exit code.
    pub fn report(&self) -> ExitCode {
        // A terminal that is gone is no reason to panic: nobody is left to be told.
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
