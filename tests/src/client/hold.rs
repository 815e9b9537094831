//! `evenkeel-lab hold`: holds connections open, and reports on request which servers serve them and
//! how they ended.
//!
//! It reads commands from standard input, one per line, and answers each with one line of JSON:
//!
//! | command | does |
//! |---|---|
//! | `open N` | opens N more, `--parallel` at a time; each has to be served once |
//! | `status` | counts |
//! | `ask` | asks for an answer on every one of them |
//! | `close N NAME fin\|rst` | ends N of the connections that NAME serves (`-`: any server) from our side |
//!
//! When standard input ends, it closes all its connections with a FIN and exits.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time,
};
use tokio_rustls::TlsConnector;

use super::{
    Target,
    connection::{Connection, End, Failure},
};

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    pub target: Target,
    /// How many connections are opened at the same time
    #[arg(long, default_value_t = 32)]
    pub parallel: usize,
    /// Hold a watch with events on each connection instead of leaving it idle (TLS only)
    #[arg(long)]
    pub watch: bool,
}

/// The answer to `open`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Opened {
    pub opened: u64,
    pub failed: BTreeMap<String, u64>,
    /// The longest time until one of them was served.
    pub slowest_ms: f64,
    /// The longest time until one of them had failed.
    pub slowest_failed_ms: f64,
    /// How many of the new ones each server serves.
    pub by: BTreeMap<String, u64>,
}

/// The answer to `status`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Status {
    pub open: u64,
    /// How many of the open ones each server serves.
    pub by: BTreeMap<String, u64>,
    /// How the others ended: `fin` or a failure's name if the other side did it, `closed` if we
    /// did.
    pub ended: BTreeMap<String, u64>,
    /// Bytes received by watches.
    pub bytes: u64,
}

/// The answer to `ask`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Asked {
    pub answered: u64,
    pub failed: BTreeMap<String, u64>,
    /// The longest time from a request to its answer.
    pub slowest_ms: f64,
}

/// The answer to `close`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Closed {
    pub closed: u64,
}

/// How many connections are asked at the same time.
const ASKED: usize = 250;

/// A command to a connection's task.
enum Command {
    Ask(oneshot::Sender<Result<Duration, Failure>>),
    End(End, oneshot::Sender<()>),
}

/// A task's report.
enum Told {
    Ended(u64, String),
    Bytes(u64),
}

struct Held {
    served_by: String,
    commands: mpsc::Sender<Command>,
}

struct Holder {
    options: Options,
    tls: Option<TlsConnector>,
    held: BTreeMap<u64, Held>,
    next: u64,
    status: Status,
    tell: mpsc::UnboundedSender<Told>,
}

pub async fn run(options: Options) -> Result<()> {
    let tls = options.target.connector()?;
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut holder = Holder { options, tls, held: BTreeMap::new(), next: 0, status: Status::default(), tell };
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            Some(told) = told.recv() => holder.note(told),
            line = lines.next_line() => match line? {
                Some(line) => {
                    while let Ok(told) = told.try_recv() {
                        holder.note(told);
                    }
                    println!("{}", holder.obey(&line).await?);
                }
                None => return Ok(()),
            },
        }
    }
}

impl Holder {
    async fn obey(&mut self, line: &str) -> Result<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        Ok(match words[..] {
            ["open", count] => serde_json::to_string(&self.open(count.parse()?).await)?,
            ["status"] => serde_json::to_string(&self.status())?,
            ["ask"] => serde_json::to_string(&self.ask().await)?,
            ["close", count, by, how] => {
                let how = if how == "rst" { End::Rst } else { End::Fin };
                serde_json::to_string(&self.close(count.parse()?, by, how).await)?
            }
            _ => bail!("unknown command: {line}"),
        })
    }

    fn status(&mut self) -> &Status {
        self.status.open = self.held.len() as u64;
        self.status.by.clear();
        for held in self.held.values() {
            *self.status.by.entry(held.served_by.clone()).or_default() += 1;
        }
        &self.status
    }

    fn note(&mut self, told: Told) {
        let (id, how) = match told {
            Told::Ended(id, how) => (id, how),
            Told::Bytes(bytes) => return self.status.bytes += bytes,
        };
        // A connection that we have closed is no longer held.
        if self.held.remove(&id).is_some() {
            *self.status.ended.entry(how).or_default() += 1;
        }
    }

    async fn open(&mut self, count: u64) -> Opened {
        let permits = Arc::new(Semaphore::new(self.options.parallel));
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let permits = Arc::clone(&permits);
            let opening = open(self.options.clone(), self.tls.clone(), number);
            tasks.spawn(async move {
                // Never closed: the semaphore lives as long as the tasks.
                let _permit = permits.acquire_owned().await;
                opening.await
            });
        }
        let mut opened = Opened::default();
        while let Some(done) = tasks.join_next().await {
            let Ok((took, ended)) = done else { continue };
            let took_ms = took.as_secs_f64() * 1e3;
            match ended {
                Ok((connection, served_by)) => {
                    opened.opened += 1;
                    opened.slowest_ms = opened.slowest_ms.max(took_ms);
                    *opened.by.entry(served_by.clone()).or_default() += 1;
                    self.hold(connection, served_by);
                }
                Err(failure) => {
                    opened.slowest_failed_ms = opened.slowest_failed_ms.max(took_ms);
                    *opened.failed.entry(failure.to_string()).or_default() += 1;
                }
            }
        }
        opened
    }

    fn hold(&mut self, connection: Connection, served_by: String) {
        let (commands, received) = mpsc::channel(1);
        let id = self.next;
        self.next += 1;
        self.held.insert(id, Held { served_by, commands });
        tokio::spawn(keep(id, connection, received, self.tell.clone(), self.options.target.timeout()));
    }

    async fn ask(&mut self) -> Asked {
        let mut asked = Asked::default();
        let all: Vec<_> = self.held.values().map(|held| held.commands.clone()).collect();
        // A few at a time; with all at once this host's own work would dominate the time.
        for some in all.chunks(ASKED) {
            let mut answers = Vec::with_capacity(some.len());
            for commands in some {
                let (reply, answer) = oneshot::channel();
                if commands.send(Command::Ask(reply)).await.is_ok() {
                    answers.push(answer);
                }
            }
            for answer in answers {
                match answer.await.unwrap_or(Err(Failure::Closed)) {
                    Ok(took) => {
                        asked.answered += 1;
                        asked.slowest_ms = asked.slowest_ms.max(took.as_secs_f64() * 1e3);
                    }
                    Err(failure) => *asked.failed.entry(failure.to_string()).or_default() += 1,
                }
            }
        }
        asked
    }

    async fn close(&mut self, count: usize, by: &str, how: End) -> Closed {
        let ours = self.held.iter().filter(|(_, held)| by == "-" || held.served_by == by);
        let ids: Vec<_> = ours.map(|(id, _)| *id).take(count).collect();
        let mut closed = Closed::default();
        for id in ids {
            let Some(held) = self.held.remove(&id) else { continue };
            let (reply, done) = oneshot::channel();
            if held.commands.send(Command::End(how, reply)).await.is_ok() && done.await.is_ok() {
                closed.closed += 1;
                *self.status.ended.entry("closed".to_owned()).or_default() += 1;
            }
        }
        closed
    }
}

/// Opens one connection; returns how long it took and which server serves it.
async fn open(
    options: Options,
    tls: Option<TlsConnector>,
    number: u64,
) -> (Duration, Result<(Connection, String), Failure>) {
    let started = Instant::now();
    let target = &options.target;
    let opening = async {
        let from = pick(&target.from, number);
        let mut connection = Connection::open(target.transport().socket(), target.address, from, tls.as_ref()).await?;
        let served_by = connection.ask("name", "/version").await?;
        if options.watch {
            connection.request("GET", "/api/v1/pods?watch=1", 0).await?;
        }
        Ok::<_, Failure>((connection, served_by))
    };
    let opened = time::timeout(target.timeout(), opening).await.unwrap_or(Err(Failure::Timeout));
    (started.elapsed(), opened)
}

/// The `number`th address, in turn.
pub(super) fn pick<T: Copy>(from: &[T], number: u64) -> Option<T> {
    let length = u64::try_from(from.len()).ok().filter(|length| *length > 0)?;
    from.get(usize::try_from(number % length).ok()?).copied()
}

/// The life of a held connection. Its last report is how it ended, unless we received the end.
async fn keep(
    id: u64,
    mut connection: Connection,
    mut commands: mpsc::Receiver<Command>,
    tell: mpsc::UnboundedSender<Told>,
    limit: Duration,
) {
    let mut block = [0; 512];
    let ended = loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Ask(reply)) => {
                    let began = Instant::now();
                    let asked = time::timeout(limit, connection.ask("name", "/version")).await;
                    let answer = asked.unwrap_or(Err(Failure::Timeout)).map(|_| began.elapsed());
                    _ = reply.send(answer);
                    if let Err(failure) = answer {
                        break failure.to_string();
                    }
                }
                Some(Command::End(how, reply)) => {
                    _ = connection.end(how, limit).await;
                    _ = reply.send(());
                    return;
                }
                None => return,
            },
            read = connection.read(&mut block) => match read {
                Ok(0) => break "fin".to_owned(),
                Ok(bytes) => _ = tell.send(Told::Bytes(bytes as u64)),
                // A FIN without a close_notify.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break "fin".to_owned(),
                Err(error) => break Failure::from(error).to_string(),
            },
        }
    };
    _ = tell.send(Told::Ended(id, ended));
}

/// A `hold` process and the conversation with it.
pub struct Holding {
    // Dropped first: the end of its input lets the process close everything in order.
    talk: crate::process::Talk,
    process: crate::Process,
}

impl Holding {
    /// Starts one on `host` with these options of `evenkeel-lab hold`.
    pub fn start(host: &crate::Host, options: &[&str]) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hold{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut command = host.command(crate::binaries::lab()?);
        command.arg("hold").args(options);
        let (process, talk) = crate::Process::start_talking(&name, &mut command, &host.log(&name))?;
        Ok(Self { talk, process })
    }

    pub fn open(&mut self, count: u64) -> Result<Opened> {
        self.say(&format!("open {count}"))
    }

    pub fn status(&mut self) -> Result<Status> {
        self.say("status")
    }

    pub fn ask(&mut self) -> Result<Asked> {
        self.say("ask")
    }

    /// `how` is `fin` or `rst`; `by` is a stand-in's name or `-`.
    pub fn close(&mut self, count: u64, by: &str, how: &str) -> Result<Closed> {
        self.say(&format!("close {count} {by} {how}"))
    }

    fn say<T: serde::de::DeserializeOwned>(&mut self, line: &str) -> Result<T> {
        self.talk.say(line)?;
        let answer = self.talk.hear().with_context(|| format!("hold: {line}\n{}", self.process.log()))?;
        serde_json::from_str(&answer).with_context(|| answer)
    }
}
