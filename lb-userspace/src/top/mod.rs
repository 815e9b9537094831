//! `evenkeel top`: the live screen.
//!
//! [`state`] holds what is known and what keys do; [`draw`] turns it into a picture. Both are pure
//! and tested without a terminal. Around them, [`feed`] queries the daemon in its own thread,
//! [`screen`] owns the terminal and [`run`] is the loop. A [`Companion`] may add its own lines and
//! keys, as `cargo xtask run` does for its clients.

pub mod draw;
mod feed;
pub mod past;
mod screen;
pub mod state;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::client::Failure;
use draw::Look;
use feed::{Feed, Told};
use screen::Screen;
pub use screen::is_there;
use state::{Action, Now, Stage, State};

/// Time between two queries of the daemon.
pub const PERIOD: Duration = Duration::from_secs(1);

/// Adds its own lines and keys to the screen.
pub trait Companion {
    /// Its current lines and keys; queried with every answer of the daemon.
    fn stage(&mut self) -> Stage;
    /// One of its keys was pressed; returns a notice for the operator.
    fn key(&mut self, key: char) -> String;
}

/// Shows the daemon behind `socket` until the operator quits.
pub fn run(socket: &Path, period: Duration, companion: Option<&mut dyn Companion>) -> Result<(), Failure> {
    if !is_there() {
        return Err(Failure::Refused(
            "top needs a terminal: `evenkeel status` shows the same once, and supports -o json".into(),
        ));
    }
    let (feed, seen) = Feed::start(socket, period)?;
    let told = |error: io::Error| Failure::Refused(format!("cannot use the terminal: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(told)?;
    let mut top = Top {
        state: State::new(seen, now()),
        look: Look::of_environment(),
        feed,
        companion,
        screen: Screen::enter().map_err(told)?,
    };
    runtime.block_on(top.turn()).map_err(told)
}

fn now() -> Now {
    Now { at: Instant::now(), time: Timestamp::now() }
}

struct Top<'a> {
    state: State,
    look: Look,
    feed: Feed,
    companion: Option<&'a mut dyn Companion>,
    screen: Screen,
}

/// Whether to continue.
type Goes = io::Result<bool>;

impl Top<'_> {
    async fn turn(&mut self) -> io::Result<()> {
        let mut keys = EventStream::new();
        let mut signals = Signals::new()?;
        self.ask_companion();
        let mut goes = true;
        while goes {
            let Top { state, look, screen, .. } = self;
            screen.draw(|frame| draw::draw(frame, state, look))?;
            goes = tokio::select! {
                told = self.feed.told.recv() => self.told(told),
                event = keys.next() => self.event(event),
                goes = signals.next() => if goes { self.screen.resume().map(|()| true) } else { Ok(false) },
                // Displayed times advance even if nothing else happens.
                () = tokio::time::sleep(PERIOD) => { self.state.passed(now()); Ok(true) },
            }?;
        }
        Ok(())
    }

    fn told(&mut self, told: Option<Told>) -> Goes {
        match told {
            Some(Told::Seen(seen)) => {
                self.state.answered(*seen, now());
                self.ask_companion();
            }
            Some(Told::Silent(why)) => self.state.unanswered(why, now()),
            Some(Told::Done(what)) => {
                self.state.passed(now());
                self.state.notify(what);
            }
            None => return Err(io::Error::other("the thread that queries the daemon has stopped")),
        }
        Ok(true)
    }

    fn ask_companion(&mut self) {
        if let Some(companion) = &mut self.companion {
            self.state.stage = Some(companion.stage());
        }
    }

    fn event(&mut self, event: Option<io::Result<Event>>) -> Goes {
        // The end of the key stream means that the terminal is gone.
        let Some(event) = event.transpose()? else { return Ok(false) };
        let Event::Key(key) = event else { return Ok(true) };
        if key.kind == KeyEventKind::Release {
            return Ok(true);
        }
        match self.state.key(key, now()) {
            Action::Nothing => {}
            Action::Quit => return Ok(false),
            Action::Suspend => self.screen.suspend()?,
            Action::Redraw => self.screen.forget()?,
            Action::Ask(order) => {
                self.state.notify(format!("asking: {}", order.text()));
                self.feed.order(order);
            }
            Action::Stage(key) => {
                let said = self.companion.as_mut().map(|companion| companion.key(key));
                said.into_iter().for_each(|said| self.state.notify(said));
                self.ask_companion();
            }
        }
        Ok(true)
    }
}

/// Signals whose default action would not restore the terminal.
struct Signals {
    end: [Signal; 4],
    go_on: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        let [first, second, third, fourth] = kinds.map(signal);
        Ok(Signals {
            end: [first?, second?, third?, fourth?],
            // tokio has no constructor for SIGCONT.
            go_on: signal(SignalKind::from_raw(nix::sys::signal::Signal::SIGCONT as i32))?,
        })
    }

    /// Waits for the next signal: true means to continue after a stop, false to quit.
    async fn next(&mut self) -> bool {
        let [interrupt, terminate, hangup, quit] = &mut self.end;
        tokio::select! {
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
            _ = hangup.recv() => false,
            _ = quit.recv() => false,
            _ = self.go_on.recv() => true,
        }
    }
}
