//! Files that lines are appended to.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Opens a file to append to it, made anew if it is not there; only its owner's group may read it. Opening a FIFO does
/// not wait for a reader (ENXIO if there is none), nor does writing to it when it is full (EAGAIN). A terminal does not
/// become ours.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}
