//! The ring buffer's reader: a separate task, because in the loop every wake-up for something else
//! would restart its wait.

use lb_common::event::Event;
use log::error;
use tokio::sync::{mpsc, oneshot};

use crate::dataplane::Events;

/// Batches of events that may wait for the loop; a batch has at most 4,096 events.
const BATCHES: usize = 2;

/// The loop's end of the reader. If it is dropped, events that were read and not taken are lost.
pub struct Pump {
    batches: mpsc::Receiver<Vec<Event>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Pump {
    /// Begins to read. Call it inside a tokio runtime.
    pub fn start(mut events: Events) -> Pump {
        let (sender, batches) = mpsc::channel(BATCHES);
        let (stop, mut stopped) = oneshot::channel();
        tokio::spawn(async move {
            let mut batch = Vec::new();
            loop {
                // Stops only between two batches: what was taken from the ring is passed on.
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

    /// The next batch; `None` after the end.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        self.batches.recv().await
    }

    /// Stops reading: what is in the ring is left to the next reader. What was already read is
    /// still handed out.
    pub fn stop(&mut self) {
        self.stop = None;
    }
}
