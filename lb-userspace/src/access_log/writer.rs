//! Writing the lines, on a separate thread for each target. Whatever a target does, nothing else
//! waits for it: lines wait in a queue, and those that find it full are lost and counted.
//!
//! A target that fails (a full disk, a FIFO without a reader, a journal that is restarted) is
//! opened again and again until it takes lines; what has waited is then written, and no line is
//! torn.

use super::batch::Batch;
use super::format::{Format, Surroundings};
use super::limit::Limit;
use super::output::{JOURNAL, Output, may_pass};
use super::record::Record;
use super::settings::{AccessLog, LogTarget};
use crate::notice::{History, Kind, Notice};
use anyhow::{Result, anyhow};
use jiff::{Timestamp, tz::TimeZone};
use log::Level;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Lines that wait for a target: some 10 MB at most, and half a megabyte when none does.
const QUEUE: usize = 32_768;
/// Bytes handed to the kernel at once.
const BATCH_BYTES: usize = 64 * 1024;
/// How long a configuration waits to hear that a target cannot be opened. One that hangs is opened
/// later.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a target that fails is left alone.
const RETRY: Duration = Duration::from_millis(250);
/// How long the end waits for a target that hangs.
const FAREWELL: Duration = Duration::from_secs(5);

/// All targets. Dropping it waits for the last lines, but not for a target that hangs; its writers
/// have to be dropped first.
pub struct Targets {
    open: Vec<(LogTarget, Weak<Target>)>,
    losses: Arc<Losses>,
    history: Arc<History>,
    journal: PathBuf,
    /// Nothing is sent: the threads hold ends of it, so it hangs up with the last of them.
    alive: Option<SyncSender<()>>,
    ended: Receiver<()>,
}

/// What no line was written of.
#[derive(Default)]
struct Losses {
    lost: AtomicU64,
    suppressed: AtomicU64,
}

/// The log of one service.
pub struct Writer {
    target: Arc<Target>,
    format: Arc<Format>,
    limit: Limit,
    losses: Arc<Losses>,
    /// Held twice while a listing is under way.
    listing: Arc<()>,
}

/// A target as seen by those that write to it. Dropping it lets its thread end after the lines that
/// wait.
struct Target {
    queue: SyncSender<Message>,
    flags: Arc<Flags>,
    history: Arc<History>,
    name: String,
}

/// What is said to a thread that may be too busy to read its queue, and what the thread says.
#[derive(Default)]
struct Flags {
    reopen: AtomicBool,
    closing: AtomicBool,
    overflowing: AtomicBool,
}

/// What a thread is woken by.
enum Message {
    Line(Box<Record>, Arc<Format>),
    Listing(Listing),
    /// Look at the flags.
    Wake,
}

/// Lines that are formatted only when they are written, because there may be more than the queue
/// holds.
struct Listing {
    records: Box<dyn Iterator<Item = Record> + Send>,
    format: Arc<Format>,
    _under_way: Arc<()>,
}

impl Targets {
    /// Reports to `history` when a target fails and when it is well again.
    pub fn new(history: Arc<History>) -> Targets {
        Targets::with_journal(history, JOURNAL.into())
    }

    /// The journal's socket is another one.
    pub fn with_journal(history: Arc<History>, journal: PathBuf) -> Targets {
        let (alive, ended) = sync_channel(0);
        Targets { open: Vec::new(), losses: Arc::default(), history, journal, alive: Some(alive), ended }
    }

    /// A writer for a log, whose target is opened unless it is open. The folder of a file has to
    /// exist.
    pub fn writer(&mut self, log: &AccessLog) -> Result<Writer> {
        self.open.retain(|(_, target)| target.strong_count() > 0);
        let known = self.open.iter().find(|(target, _)| *target == log.target).and_then(|(_, known)| known.upgrade());
        let target = match known {
            Some(target) => target,
            None => {
                let target = Arc::new(self.open(&log.target)?);
                self.open.push((log.target.clone(), Arc::downgrade(&target)));
                target
            }
        };
        let (format, losses) = (Arc::new(log.format.clone()), self.losses.clone());
        Ok(Writer { target, format, limit: Limit::default(), losses, listing: Arc::default() })
    }

    fn open(&self, target: &LogTarget) -> Result<Target> {
        let name = match target {
            LogTarget::File(path) => format!("access log {}", path.display()),
            LogTarget::Stdout => "access log on standard output".into(),
            LogTarget::Journald => "access log in the journal".into(),
        };
        let (queue, messages) = sync_channel(QUEUE);
        let (told, opened) = sync_channel(0);
        let flags = Arc::new(Flags::default());
        let mut lines = Lines {
            output: None,
            target: target.clone(),
            name: name.clone(),
            journal: self.journal.clone(),
            messages,
            listings: VecDeque::new(),
            batch: Batch::default(),
            surroundings: surroundings(),
            flags: flags.clone(),
            losses: self.losses.clone(),
            history: self.history.clone(),
            failing_since: None,
        };
        let alive = self.alive.clone();
        std::thread::Builder::new().name("access-log".into()).spawn(move || {
            if lines.begin(&told) {
                lines.run();
            }
            drop(alive);
        })?;
        match opened.recv_timeout(PATIENCE) {
            Ok(Err(error)) if *target == LogTarget::Journald => {
                Err(anyhow!("path = \"journald\", but {} does not answer: {error}", self.journal.display()))
            }
            Ok(Err(error)) => Err(anyhow!("{name} cannot be opened: {error}")),
            Ok(Ok(())) | Err(_) => Ok(Target { queue, flags, history: self.history.clone(), name }),
        }
    }

    /// Reopens every target (SIGUSR1). If one cannot be reopened, its lines still go to the old
    /// one.
    pub fn reopen(&self) {
        for target in self.open.iter().filter_map(|(_, target)| target.upgrade()) {
            target.flags.reopen.store(true, Ordering::Release);
            // If the queue is full, the thread is awake as it is.
            _ = target.queue.try_send(Message::Wake);
        }
    }

    /// Lines that could not be written, because the queue was full or the target failed until the
    /// end; and lines left out by the limit.
    pub fn losses(&self) -> (u64, u64) {
        (self.losses.lost.load(Ordering::Relaxed), self.losses.suppressed.load(Ordering::Relaxed))
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.alive = None;
        if self.ended.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            log::error!("access log: a target hangs, queued lines are lost");
        }
    }
}

impl Writer {
    /// Queues a line; never waits. Lines of connections that were turned away are limited to 100 a
    /// second.
    pub fn write(&mut self, record: Record, now: Instant) {
        if record.is_turned_away() && !self.limit.allows(now) {
            self.losses.suppressed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let line = Message::Line(Box::new(record), self.format.clone());
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.target.queue.try_send(line) {
            self.losses.lost.fetch_add(1, Ordering::Relaxed);
            self.target.overflows();
        }
    }

    /// Lets the target's thread make and write as many lines as there are, and returns at once.
    /// `false`: it does not, because it is still busy with the previous listing.
    pub fn list(&self, records: impl Iterator<Item = Record> + Send + 'static) -> bool {
        let (records, format) = (Box::new(records), self.format.clone());
        let listing = Listing { records, format, _under_way: self.listing.clone() };
        Arc::strong_count(&self.listing) == 2 && self.target.queue.try_send(Message::Listing(listing)).is_ok()
    }
}

impl Target {
    /// Says it once, until the thread has caught up.
    fn overflows(&self) {
        if !self.flags.overflowing.swap(true, Ordering::Relaxed) {
            tell(&self.history, Level::Warn, format!("{}: its target does not keep up, lines are lost", self.name));
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.flags.closing.store(true, Ordering::Release);
    }
}

fn tell(history: &History, level: Level, text: String) {
    history.tell(Notice::daemon(level, Kind::Lifecycle, text), Timestamp::now());
}

fn surroundings() -> Surroundings {
    let hostname = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    Surroundings::new(TimeZone::system(), hostname.as_deref().unwrap_or("-"), std::process::id())
}

/// The thread's side.
struct Lines {
    output: Option<Output>,
    target: LogTarget,
    name: String,
    journal: PathBuf,
    messages: Receiver<Message>,
    listings: VecDeque<Listing>,
    batch: Batch,
    surroundings: Surroundings,
    flags: Arc<Flags>,
    losses: Arc<Losses>,
    history: Arc<History>,
    failing_since: Option<Instant>,
}

impl Lines {
    /// Opens the target and says how that went, if the caller still waits to hear it. Returns
    /// whether there is anything to be done.
    fn begin(&mut self, told: &SyncSender<io::Result<()>>) -> bool {
        match Output::open(&self.target, &self.journal) {
            Ok(output) => {
                self.output = Some(output);
                // The requester may have given up waiting.
                _ = told.send(Ok(()));
                true
            }
            Err(error) if may_pass(&error) => {
                self.failed(&error);
                _ = told.send(Ok(()));
                true
            }
            Err(error) => match told.send(Err(error)) {
                Ok(()) => false,
                Err(_) => true,
            },
        }
    }

    fn run(mut self) {
        while self.gather() {
            if !self.write() {
                self.give_up();
                return;
            }
            self.batch.clear();
            if self.flags.reopen.swap(false, Ordering::Acquire) {
                self.reopen();
            }
        }
    }

    /// Waits for something to write and formats lines until the batch is large enough. False: there
    /// will be no more.
    fn gather(&mut self) -> bool {
        if self.listings.is_empty() {
            match self.messages.try_recv() {
                Ok(message) => self.take(message),
                Err(_) => {
                    self.flags.overflowing.store(false, Ordering::Relaxed);
                    let Ok(message) = self.messages.recv() else { return false };
                    self.take(message);
                }
            }
        }
        while self.batch.len() < BATCH_BYTES
            && let Ok(message) = self.messages.try_recv()
        {
            self.take(message);
        }
        // Listings get their part of every batch, however many lines there are.
        let Some(mut listing) = self.listings.pop_front() else { return true };
        let enough = self.batch.len() + BATCH_BYTES;
        while self.batch.len() < enough {
            let Some(record) = listing.records.next() else { return true };
            self.add(&record, &listing.format);
        }
        self.listings.push_front(listing);
        true
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Line(record, format) => self.add(&record, &format),
            Message::Listing(listing) => self.listings.push_back(listing),
            Message::Wake => {}
        }
    }

    fn add(&mut self, record: &Record, format: &Format) {
        Output::add(&self.target, format, record, &self.surroundings, &mut self.batch);
    }

    /// Writes the batch, however long that takes. `false`: the target does not take it, and nothing
    /// is to wait any longer.
    fn write(&mut self) -> bool {
        let mut farewell: Option<Instant> = None;
        loop {
            let error = match self.try_to_write() {
                Ok(()) => return true,
                Err(error) => error,
            };
            let is_closing = self.flags.closing.load(Ordering::Acquire);
            if error.kind() == ErrorKind::WouldBlock {
                let since = *farewell.get_or_insert_with(Instant::now);
                if is_closing && since.elapsed() >= FAREWELL {
                    return false;
                }
                self.output.iter().for_each(|output| output.wait(RETRY));
                if self.flags.reopen.swap(false, Ordering::Acquire) {
                    self.reopen();
                }
            } else {
                self.failed(&error);
                if is_closing {
                    return false;
                }
                std::thread::sleep(RETRY);
            }
        }
    }

    fn try_to_write(&mut self) -> io::Result<()> {
        let output = match &mut self.output {
            Some(output) => output,
            None => self.output.insert(Output::open(&self.target, &self.journal)?),
        };
        let refused = output.write(&mut self.batch)?;
        self.losses.lost.fetch_add(refused, Ordering::Relaxed);
        if let Some(since) = self.failing_since.take() {
            let text = format!("{}: written again after {:.0} s", self.name, since.elapsed().as_secs_f64());
            tell(&self.history, Level::Info, text);
        }
        Ok(())
    }

    /// The target is reopened before it gets the rest of the batch, from the beginning of the line
    /// that was cut.
    fn failed(&mut self, error: &io::Error) {
        self.output = None;
        self.batch.rewind();
        if self.failing_since.is_none() {
            self.failing_since = Some(Instant::now());
            let text = format!("{}: {error}: up to {QUEUE} lines are queued, further ones are lost", self.name);
            tell(&self.history, Level::Error, text);
        }
    }

    /// What was not written is lost.
    fn give_up(&self) {
        let is_line = |message: &Message| matches!(message, Message::Line(..));
        let queued = self.messages.iter().filter(is_line).count() as u64;
        let lost = self.batch.lines_left() + queued;
        self.losses.lost.fetch_add(lost, Ordering::Relaxed);
        log::error!("{}: the last {lost} line(s) are lost: the target did not take them", self.name);
    }

    fn reopen(&mut self) {
        match Output::open(&self.target, &self.journal) {
            Ok(output) => {
                self.output = Some(output);
                self.batch.rewind();
            }
            // A failing target is reopened anyway.
            Err(_) if self.output.is_none() => {}
            Err(error) => {
                let text = format!("{}: cannot be reopened, lines still go to the old one: {error}", self.name);
                tell(&self.history, Level::Error, text);
            }
        }
    }
}

#[cfg(test)]
mod tests;
