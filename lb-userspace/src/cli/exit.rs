//! How a command ends.

use std::process::ExitCode;

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
        let (text, code) = match self {
            Failure::Refused(text) => (text, REFUSED),
            Failure::Unreachable(text) => (text, UNREACHABLE),
        };
        eprintln!("{text}");
        ExitCode::from(code)
    }
}
