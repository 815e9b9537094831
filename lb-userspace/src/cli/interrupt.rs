//! Ctrl-C and SIGTERM for commands that wait: they end in order instead of abruptly.

use std::time::Duration;

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

use crate::client::Failure;

/// While this exists, these signals do not end the process.
pub struct Interrupt {
    runtime: Runtime,
    signals: [Signal; 2],
}

impl Interrupt {
    pub fn new() -> Result<Interrupt, Failure> {
        let begin = || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let guard = runtime.enter();
            let signals = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
            drop(guard);
            Ok(Interrupt { runtime, signals })
        };
        begin().map_err(|error: std::io::Error| Failure::Refused(format!("cannot start: {error}")))
    }

    /// Waits for the given time; true if a signal arrived.
    pub fn within(&mut self, time: Duration) -> bool {
        let [interrupt, terminate] = &mut self.signals;
        self.runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => true,
                _ = terminate.recv() => true,
                () = tokio::time::sleep(time) => false,
            }
        })
    }
}
