//! The thread that queries the daemon, so that the screen never waits for an answer.

use std::{
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::state::{Order, Seen, Verb};
use crate::{
    api::admin::{Changed, Drain, Maint, Ready},
    client::{Client, Failure, standing},
    words::Event,
};

/// A later answer counts as none: the next query may reach another daemon.
const WITHIN: Duration = Duration::from_secs(3);
/// Number of past events to show.
const EVENTS: usize = 200;

/// A message from the thread.
#[derive(Debug)]
pub enum Told {
    Seen(Box<Seen>),
    /// The daemon did not answer, for this reason.
    Silent(String),
    /// The outcome of a command.
    Done(String),
}

/// The screen's end of the thread. Dropping it ends the thread.
pub struct Feed {
    pub told: UnboundedReceiver<Told>,
    orders: Sender<Order>,
}

impl Feed {
    /// Queries once, which must succeed, and then after every `period`.
    pub fn start(socket: &Path, period: Duration) -> Result<(Feed, Seen), Failure> {
        let client = Client::new(socket);
        let seen = look(&client)?;
        let (tell, told) = unbounded_channel();
        let (orders, ordered) = channel();
        let asking = move || ask(&client, period, &ordered, &tell);
        let begun = thread::Builder::new().name("asks".into()).spawn(asking);
        begun.map_err(|error| Failure::Refused(format!("cannot start: {error}")))?;
        Ok((Feed { told, orders }, seen))
    }

    pub fn order(&self, order: Order) {
        // Without the thread the screen is about to close as well.
        _ = self.orders.send(order);
    }
}

fn ask(client: &Client, period: Duration, ordered: &Receiver<Order>, tell: &UnboundedSender<Told>) {
    let mut next = Instant::now() + period;
    loop {
        let told = match ordered.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(order) => Told::Done(text(carry_out(client, &order))),
            Err(RecvTimeoutError::Timeout) => {
                next = Instant::now() + period;
                look(client).map_or_else(|why| Told::Silent(why.to_string()), |seen| Told::Seen(Box::new(seen)))
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if matches!(told, Told::Done(_)) {
            next = Instant::now();
        }
        if tell.send(told).is_err() {
            return;
        }
    }
}

fn look(client: &Client) -> Result<Seen, Failure> {
    let status = client.get_within("/api/v1/status", WITHIN)?.read()?;
    let events = client.get_within(&format!("/api/v1/events?limit={EVENTS}"), WITHIN)?;
    Ok(Seen { status, events: events.read::<Vec<Event>>()? })
}

fn carry_out(client: &Client, order: &Order) -> Result<Changed, Failure> {
    let (backend, service) = (order.backend.to_string(), Some(order.service.to_string()));
    let answer = match order.verb {
        Verb::Drain => client.order("/api/v1/drain", &Drain { backend, service, deadline_ms: None, rate: Drain::RATE }),
        Verb::Maint => client.order("/api/v1/maint", &Maint { backend, service, reset: false }),
        Verb::Ready => client.order("/api/v1/ready", &Ready { backend, service }),
    };
    answer?.read()
}

fn text(done: Result<Changed, Failure>) -> String {
    match done {
        Ok(changed) => format!("{}, {} active", standing(&changed), changed.active),
        Err(failure) => failure.to_string().replace('\n', "; "),
    }
}
