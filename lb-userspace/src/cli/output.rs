//! Writing to standard output.

use super::exit::Failure;
use std::io::{self, ErrorKind, Write};

/// Prints a text.
pub fn print(text: &str) -> Result<(), Failure> {
    print_bytes(&[text.as_bytes()])
}

/// Prints pieces one after the other. A reader that has seen enough (`| head`) is no failure.
pub fn print_bytes(pieces: &[&[u8]]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = pieces.iter().try_for_each(|piece| stdout.write_all(piece)).and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Refused(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
