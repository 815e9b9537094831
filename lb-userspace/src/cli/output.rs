//! Writing to standard output.

use std::{
    io::{self, ErrorKind, Write},
    ops::ControlFlow,
};

use crate::client::Failure;

/// Prints a text; see [`print_bytes`].
pub fn print(text: &str) -> Result<(), Failure> {
    print_bytes(&[text.as_bytes()])
}

/// Prints pieces one after the other. A closed pipe (`| head`) is not a failure.
pub fn print_bytes(pieces: &[&[u8]]) -> Result<(), Failure> {
    print_on(pieces).map(drop)
}

/// The same for endless output: breaks when the reader has closed the pipe.
pub fn print_on(pieces: &[&[u8]]) -> Result<ControlFlow<()>, Failure> {
    let mut stdout = io::stdout().lock();
    let written = pieces.iter().try_for_each(|piece| stdout.write_all(piece)).and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(Failure::Refused(format!("cannot write to standard output: {error}"))),
    }
}
