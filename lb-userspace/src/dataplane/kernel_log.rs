//! What the kernel program says to a developer (`evenkeel run --kernel-log LEVEL`): refusals,
//! failed tries, moves and state changes, each with its connection. `aya-log` carries the records
//! in a separate ring buffer, which ends with the process; the level is a constant of the loaded
//! program, so a program loaded without one has no logging code left.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use lb_common::{slot::State, verdict::Reason};
use log::{LevelFilter, Log, Metadata, Record, error};

use crate::sys::readiness::Readiness;

/// The target of every record, for `RUST_LOG`.
pub const TARGET: &str = "kernel";

/// The map that `aya-log` makes in the object.
pub(super) const MAP: &str = "AYA_LOGS";
/// Bytes of that map while nothing is logged: the least a ring buffer may have. The loader rounds
/// it up to a page.
const UNUSED_BYTES: u32 = 4096;

/// The number that the program compares a record's level with; 0 is below all of them.
pub(super) fn level_number(level: LevelFilter) -> u8 {
    level as u8
}

/// Sets the level of the program that is about to be loaded.
pub(super) fn set_level<'a>(loader: &mut EbpfLoader<'a>, level: &'a u8) {
    loader.override_global(aya_log::LEVEL, level, true);
    if *level == 0 {
        loader.map_max_entries(MAP, UNUSED_BYTES);
    }
}

/// The reading end.
pub struct KernelLog {
    logger: EbpfLogger<Named<&'static dyn Log>>,
}

impl KernelLog {
    /// The log of the program in `ebpf`.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<KernelLog> {
        let logger =
            EbpfLogger::init_with_logger(ebpf, Named(log::logger())).context("the kernel program has no log")?;
        Ok(KernelLog { logger })
    }

    /// Passes records on to the daemon's own log until the process ends. Inside a tokio runtime.
    pub async fn run(mut self) {
        if let Err(error) = self.read().await {
            error!("the kernel program's log cannot be read: {error:#}");
        }
    }

    async fn read(&mut self) -> Result<()> {
        let readiness = Readiness::of(self.logger.as_fd())?;
        loop {
            let mut ready = readiness.readable().await?;
            self.logger.flush();
            ready.clear_ready();
        }
    }
}

/// A logger that puts names in place of the numbers which the kernel program writes: `reason#12`
/// and `state#3`.
struct Named<L>(L);

impl<L: Log> Log for Named<L> {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record) {
        let text = with_names(&record.args().to_string());
        self.0.log(&Record::builder().metadata(record.metadata().clone()).args(format_args!("{text}")).build());
    }

    fn flush(&self) {
        self.0.flush();
    }
}

fn with_names(text: &str) -> String {
    let words = text.split(' ').map(|word| match word.split_once('#') {
        Some(("reason", number)) => number.parse().ok().and_then(reason_name).unwrap_or(word),
        Some(("state", number)) => number.parse().ok().map_or(word, |number| State::from_number(number).name()),
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

fn reason_name(number: u8) -> Option<&'static str> {
    Reason::ALL.iter().find(|reason| **reason as u8 == number).map(|reason| reason.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_reasons_and_states_become_their_names() {
        let text = format!("refused: 10.0.0.9:4711 reason#{} state#3 tried 2", Reason::NoBackend as u8);
        assert_eq!(with_names(&text), "refused: 10.0.0.9:4711 no_backend established tried 2");
        assert_eq!(with_names("reason#255 reason#x #"), "reason#255 reason#x #");
    }

    #[test]
    fn every_level_has_the_number_that_aya_log_gives_it() {
        use aya_log::Level;
        let levels = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
        let filters = LevelFilter::iter().skip(1);
        assert!(levels.into_iter().zip(filters).all(|(level, filter)| level as u8 == level_number(filter)));
        assert_eq!(level_number(LevelFilter::Off), 0);
    }
}
