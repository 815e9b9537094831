//! The daemon's own log, on standard error. Under systemd that is the journal: lines then carry their priority the way
//! it reads them (sd-daemon(3): `<4>` before the text), and no time, for it has its own.

use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::MetadataExt,
};

use log::{Level, LevelFilter, Record};

/// Begins to log. `RUST_LOG` wins over `level`.
pub fn begin(level: LevelFilter) {
    let mut builder = env_logger::Builder::new();
    // Of other crates only what an operator has to know.
    builder.filter_level(level.min(LevelFilter::Warn)).filter_module("evenkeel", level).parse_default_env();
    if is_journal() {
        builder.format(write_for_journal);
    }
    builder.init();
}

/// Whether standard error leads to the journal: JOURNAL_STREAM names its device and inode (systemd.exec(5)).
fn is_journal() -> bool {
    let stream = env::var("JOURNAL_STREAM").ok();
    let is =
        || fs::metadata("/proc/self/fd/2").is_ok_and(|file| stream == Some(format!("{}:{}", file.dev(), file.ino())));
    stream.is_some() && is()
}

/// Every line of its own, or the journal takes the second one for another message of no known priority.
fn write_for_journal(out: &mut impl Write, record: &Record) -> io::Result<()> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    record.args().to_string().lines().try_for_each(|line| writeln!(out, "<{priority}>{line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
