//! Where lines go: a file, a FIFO, standard output, the journal. All of it runs on the target's own
//! thread, because any of it may hang.

use super::batch::Batch;
use super::format::{Format, Surroundings};
use super::record::Record;
use super::settings::LogTarget;
use crate::sys::{append, wake};
use nix::errno::Errno;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

/// systemd's own protocol: a datagram of `FIELD=value` lines (systemd.io/JOURNAL_NATIVE_PROTOCOL).
pub const JOURNAL: &str = "/run/systemd/journal/socket";

/// A target that is open.
pub enum Output {
    Stream {
        file: File,
        /// It ends within a line: the disk was full then, or another process has died.
        cut: bool,
    },
    Journal(UnixDatagram),
}

impl Output {
    /// Does not wait for the reader of a FIFO, but does wait for a disk or a server that hangs.
    pub fn open(target: &LogTarget, journal: &Path) -> io::Result<Output> {
        match target {
            LogTarget::File(path) => {
                let file = append::open(path)?;
                let cut = ends_within_a_line(&file, path);
                Ok(Output::Stream { file, cut })
            }
            LogTarget::Stdout => {
                let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
                Ok(Output::Stream { file, cut: false })
            }
            LogTarget::Journald => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(journal)?;
                socket.set_nonblocking(true)?;
                Ok(Output::Journal(socket))
            }
        }
    }

    /// Adds a record's line in the form that the target wants.
    pub fn add(target: &LogTarget, format: &Format, record: &Record, surroundings: &Surroundings, batch: &mut Batch) {
        batch.add(|text| {
            if *target == LogTarget::Journald {
                text.push_str("SYSLOG_IDENTIFIER=evenkeel\nPRIORITY=6\nEVENKEEL_SERVICE=");
                text.push_str(&record.service);
                if let Some(backend) = &record.backend {
                    text.push_str("\nEVENKEEL_BACKEND=");
                    text.push_str(backend);
                }
                if let Some(reason) = record.reason {
                    text.push_str("\nEVENKEEL_REASON=");
                    text.push_str(reason.name());
                }
                text.push_str("\nMESSAGE=");
            }
            format.write(record, surroundings, text);
        });
    }

    /// Writes what is left of a batch; returns lines that it cannot take at all. `WouldBlock`: it
    /// has no room just now.
    pub fn write(&mut self, batch: &mut Batch) -> io::Result<u64> {
        let mut refused = 0;
        match self {
            Output::Stream { file, cut } => {
                if *cut {
                    file.write_all(b"\n")?;
                    *cut = false;
                }
                while !batch.rest().is_empty() {
                    match file.write(batch.rest()) {
                        Ok(0) => return Err(ErrorKind::WriteZero.into()),
                        Ok(bytes) => batch.take(bytes),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
            }
            Output::Journal(socket) => {
                while let Some(line) = batch.line() {
                    let length = line.len();
                    match socket.send(line) {
                        Ok(_) => batch.take(length),
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        // Longer than a datagram can be: some 200 kB. No second try makes it
                        // shorter.
                        Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => {
                            batch.take(length);
                            refused += 1;
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(refused)
    }

    /// Waits until there may be room again, at most for a given time.
    pub fn wait(&self, time: Duration) {
        let descriptor = match self {
            Output::Stream { file, .. } => file.as_fd(),
            Output::Journal(socket) => socket.as_fd(),
        };
        wake::wait_for_room(descriptor, time);
    }
}

/// Whether a file's last byte does not end a line. A file that cannot be read is taken to end with
/// a whole line.
fn ends_within_a_line(file: &File, path: &Path) -> bool {
    let last_byte = || {
        let about = file.metadata()?;
        let mut last = [b'\n'];
        if about.is_file() && about.len() > 0 {
            File::open(path)?.read_exact_at(&mut last, about.len() - 1)?;
        }
        io::Result::Ok(last[0])
    };
    last_byte().is_ok_and(|last| last != b'\n')
}

/// Whether an error may go away by itself, without a change of the configuration: a FIFO has no
/// reader, a disk is full.
pub fn may_pass(error: &io::Error) -> bool {
    let is_full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
    is_full || error.raw_os_error() == Some(Errno::ENXIO as i32)
}
