//! The daemon's own log, on standard error. Under systemd that is the journal: there each line
//! begins with its priority (`<4>`, sd-daemon(3)) and has no time, because the journal adds its
//! own.
//!
//! The reader may hang, and the daemon must not hang with it: it drops lines instead.

use std::{
    env, fs,
    io::{self, IsTerminal, Write},
    os::{fd::AsFd, unix::fs::MetadataExt},
    time::Duration,
};

use env_logger::Target;
use log::{Level, LevelFilter, Record};

use crate::{dataplane::KERNEL_LOG_TARGET, sys::wake};

/// Begins to log; the kernel program's records have their own level. `RUST_LOG` takes precedence
/// over both.
pub fn begin(level: LevelFilter, kernel_log: LevelFilter) {
    let mut builder = env_logger::Builder::new();
    // From other crates only what an operator has to know.
    builder.filter_level(level.min(LevelFilter::Warn)).filter_module("evenkeel", level);
    builder.filter_module(KERNEL_LOG_TARGET, kernel_log).parse_default_env();
    if is_journal() {
        builder.format(write_for_journal);
    }
    // A terminal gets colours, and may block: the person who stops it sees that.
    if !io::stderr().is_terminal() {
        builder.target(Target::Pipe(Box::new(Impatient::new(io::stderr()))));
    }
    builder.init();
}

/// Whether standard error leads to the journal: JOURNAL_STREAM names its device and inode
/// (systemd.exec(5)).
fn is_journal() -> bool {
    let stream = env::var("JOURNAL_STREAM").ok();
    let is =
        || fs::metadata("/proc/self/fd/2").is_ok_and(|file| stream == Some(format!("{}:{}", file.dev(), file.ino())));
    stream.is_some() && is()
}

/// Each line carries its own priority: to the journal, a second line is another message.
fn write_for_journal(out: &mut impl Write, record: &Record) -> io::Result<()> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    record.args().to_string().lines().try_for_each(|line| writeln!(out, "<{priority}>{line}"))
}

/// How long a line waits for room. The following ones do not wait until there is room again.
const PATIENCE: Duration = Duration::from_millis(100);
/// Bytes that a pipe with any room takes without blocking (PIPE_BUF, pipe(7)).
const CHUNK: usize = 4096;

/// A log that never blocks for long. Each line arrives in one `write_all`.
struct Impatient<L> {
    log: L,
    /// Lines dropped since it last had room.
    lost: u64,
}

impl<L: Write + AsFd> Impatient<L> {
    fn new(log: L) -> Self {
        Impatient { log, lost: 0 }
    }
}

impl<L: Write + AsFd> Write for Impatient<L> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let patience = if self.lost == 0 { PATIENCE } else { Duration::ZERO };
        if !wake::wait_for_room(self.log.as_fd(), patience) {
            self.lost += 1;
            return Ok(line.len());
        }
        if self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            writeln!(self.log, "{lost} log line(s) dropped: the reader did not keep up")?;
        }
        self.log.write(&line[..line.len().min(CHUNK)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, time::Instant};

    use super::*;

    #[test]
    fn a_reader_that_hangs_costs_lines_and_hears_how_many() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut log = Impatient::new(writer);
        let began = Instant::now();
        let line = [&[b'x'; 99][..], b"\n"].concat();
        // A pipe holds 64 KiB.
        (0..2000).for_each(|_| log.write_all(&line).unwrap());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!((1000..2000).contains(&log.lost), "{}", log.lost);
        let (lost, written) = (log.lost, 2000 - log.lost as usize);
        let mut read = vec![0; written * 100];
        reader.read_exact(&mut read).unwrap();
        assert!(read == line.repeat(written));
        let long = [&[b'y'; 10_000][..], b"\n"].concat();
        log.write_all(&long).unwrap();
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let long = String::from_utf8(long).unwrap();
        assert_eq!(rest, format!("{lost} log line(s) dropped: the reader did not keep up\n{long}"));
    }

    #[test]
    fn every_line_for_the_journal_carries_its_priority() {
        let mut written = Vec::new();
        let record = |level, text: &str, written: &mut Vec<u8>| {
            write_for_journal(written, &Record::builder().level(level).args(format_args!("{text}")).build()).unwrap();
        };
        record(Level::Warn, "one\ntwo", &mut written);
        record(Level::Info, "three", &mut written);
        assert_eq!(String::from_utf8(written).unwrap(), "<4>one\n<4>two\n<6>three\n");
    }
}
