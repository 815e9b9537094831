//! The ring buffer's reader: a task of its own, for in the loop a wake-up for anything else would
//! begin its wait anew.

use lb_common::event::Event;
use log::error;
use tokio::sync::{mpsc, oneshot};

use crate::dataplane::Events;

/// Batches of events that may wait for the loop; each has at most 4,096.
const BATCHES: usize = 2;

/// The loop's end of it. Dropped without [`stop`](Self::stop), what it has read and the loop has
/// not taken is lost.
pub struct Pump {
    batches: mpsc::Receiver<Vec<Event>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Pump {
    /// Begins to read. Inside a tokio runtime.
    pub fn start(mut events: Events) -> Pump {
        let (sender, batches) = mpsc::channel(BATCHES);
        let (stop, mut stopped) = oneshot::channel();
        tokio::spawn(async move {
            let mut batch = Vec::new();
            loop {
                // Between two batches only: what was taken from the ring is handed on.
                let read = tokio::select! {
                    _ = &mut stopped => return,
                    read = events.next_batch(&mut batch) => read,
                };
                if let Err(error) = read {
                    error!("events: {error:#}");
                    return;
                }
                if !batch.is_empty() && sender.send(std::mem::take(&mut batch)).await.is_err() {
                    return;
                }
            }
        });
        Pump { batches, stop: Some(stop) }
    }

    /// The next batch; nothing after the end.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        self.batches.recv().await
    }

    /// Reads no more: what is in the ring is the next reader's. What was read already is still
    /// given out.
    pub fn stop(&mut self) {
        self.stop = None;
    }
}
