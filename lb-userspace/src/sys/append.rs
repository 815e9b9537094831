//! Opening a file to append lines to it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Opens a file to append to it and creates it if it does not exist, readable by its owner and
/// group only. Opening a FIFO does not wait for a reader (ENXIO without one), and neither does
/// writing to a full one (EAGAIN). A terminal does not become our controlling terminal.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}
