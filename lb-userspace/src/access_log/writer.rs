//! Writing the lines, on a thread of its own: a disk that hangs costs lines, which are counted, and nothing else.

use super::format::{Format, Surroundings};
use super::limit::Limit;
use super::record::Record;
use crate::config::model::{AccessLog, LogTarget};
use anyhow::{Context, Result};
use jiff::tz::TimeZone;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Lines that wait for the disk: some 10 MB at most, and half a megabyte when none does.
const QUEUE: usize = 32_768;
/// Bytes handed to the kernel at once.
const BATCH_BYTES: usize = 64 * 1024;
/// How long dropping a [`Writer`] waits for a target that hangs.
const FAREWELL: Duration = Duration::from_secs(5);

/// The log of one service. Dropping it writes what is queued.
pub struct Writer {
    queue: Option<SyncSender<Message>>,
    /// Hangs up when the thread has ended.
    ended: Receiver<()>,
    shared: Arc<Shared>,
    limit: Limit,
    suppressed: u64,
}

/// What the thread is woken by.
enum Message {
    Line(Box<Record>),
    /// Look at `reopen`.
    Wake,
}

#[derive(Default)]
struct Shared {
    reopen: AtomicBool,
    lost: AtomicU64,
}

impl Writer {
    /// Opens the target and starts the thread. The folder of a file has to exist.
    pub fn start(log: &AccessLog) -> Result<Writer> {
        let output = Output::open(&log.target)?;
        let (queue, messages) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let (alive, ended) = sync_channel(0);
        std::thread::Builder::new().name("access-log".into()).spawn({
            let (shared, format, target) = (shared.clone(), log.format.clone(), log.target.clone());
            move || {
                Lines { output, target, format, surroundings: surroundings(), shared }.run(&messages);
                drop(alive);
            }
        })?;
        Ok(Writer { queue: Some(queue), ended, shared, limit: Limit::default(), suppressed: 0 })
    }

    /// Queues a line; never waits. Lines of connections that were turned away are limited to 100 a second.
    pub fn write(&mut self, record: Record, now: Instant) {
        if record.is_turned_away() && !self.limit.allows(now) {
            self.suppressed += 1;
            return;
        }
        if !self.send(Message::Line(Box::new(record))) {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens the file anew (SIGUSR1), after the lines queued before.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        // If the queue is full, the thread is awake as it is.
        self.send(Message::Wake);
    }

    fn send(&self, message: Message) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.try_send(message).is_ok())
    }

    /// Lines that could not be written: the queue was full or the target failed.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Lines left out by the limit.
    pub fn suppressed(&self) -> u64 {
        self.suppressed
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None; // ends the thread once the queue is empty
        if self.ended.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            log::error!("access log: the target hangs, queued lines are lost");
        }
    }
}

fn surroundings() -> Surroundings {
    let hostname = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    Surroundings {
        zone: TimeZone::system(),
        hostname: hostname.unwrap_or_else(|_| "-".into()),
        pid: std::process::id(),
    }
}

/// Where lines go.
enum Output {
    File(File),
    Stdout,
    Journal(UnixDatagram),
}

impl Output {
    fn open(target: &LogTarget) -> Result<Output> {
        match target {
            LogTarget::File(path) => Ok(Output::File(open_file(path)?)),
            LogTarget::Stdout => Ok(Output::Stdout),
            LogTarget::Journald => Ok(Output::Journal(open_journal()?)),
        }
    }

    fn write(&mut self, lines: &str) -> io::Result<()> {
        match self {
            Output::File(file) => file.write_all(lines.as_bytes()),
            Output::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush())
            }
            Output::Journal(socket) => lines.lines().try_for_each(|line| send_to_journal(socket, line)),
        }
    }
}

fn open_file(path: &Path) -> Result<File> {
    // Who connects to an API server is not everybody's business.
    let options = OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    options.with_context(|| format!("access log {} cannot be opened", path.display()))
}

/// systemd's own protocol: a datagram of `FIELD=value` lines (systemd.io/JOURNAL_NATIVE_PROTOCOL).
fn open_journal() -> Result<UnixDatagram> {
    const SOCKET: &str = "/run/systemd/journal/socket";
    let socket = UnixDatagram::unbound()?;
    socket.connect(SOCKET).with_context(|| format!("path = \"journald\", but {SOCKET} does not answer"))?;
    socket.set_write_timeout(Some(FAREWELL))?;
    Ok(socket)
}

fn send_to_journal(socket: &UnixDatagram, line: &str) -> io::Result<()> {
    let datagram = format!("SYSLOG_IDENTIFIER=evenkeel\nPRIORITY=6\nMESSAGE={line}\n");
    socket.send(datagram.as_bytes()).map(|_| ())
}

/// The thread's side.
struct Lines {
    output: Output,
    target: LogTarget,
    format: Format,
    surroundings: Surroundings,
    shared: Arc<Shared>,
}

impl Lines {
    fn run(mut self, messages: &Receiver<Message>) {
        let mut batch = String::new();
        while let Ok(first) = messages.recv() {
            let more = std::iter::from_fn(|| messages.try_recv().ok());
            let lines = self.gather(std::iter::once(first).chain(more), &mut batch);
            if lines > 0 {
                self.flush(&mut batch, lines);
            }
            if self.shared.reopen.swap(false, Ordering::Acquire) {
                self.reopen();
            }
        }
    }

    /// Formats records until the batch is large enough; returns how many.
    fn gather(&self, messages: impl Iterator<Item = Message>, batch: &mut String) -> u64 {
        let mut lines = 0;
        for message in messages {
            if let Message::Line(record) = message {
                self.format.write(&record, &self.surroundings, batch);
                lines += 1;
            }
            if batch.len() >= BATCH_BYTES {
                break;
            }
        }
        lines
    }

    fn flush(&mut self, batch: &mut String, lines: u64) {
        if let Err(error) = self.output.write(batch) {
            let lost_before = self.shared.lost.fetch_add(lines, Ordering::Relaxed);
            if lost_before == 0 {
                log::error!("access log: lines are lost, the target fails: {error}");
            }
        }
        batch.clear();
    }

    /// Keeps the old file when the new one cannot be opened.
    fn reopen(&mut self) {
        match Output::open(&self.target) {
            Ok(output) => self.output = output,
            Err(error) => log::error!("{error:#}: the lines go on into the old file"),
        }
    }
}
