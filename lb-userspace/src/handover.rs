//! One daemon hands over to another while connections go on: an upgrade (SIGUSR2, `evenkeel
//! upgrade`).
//!
//! ```text
//! old, acts                                     new
//!   │ starts the program that is on disk now,
//!   │ which inherits the control socket,
//!   │ the locks and a channel
//!   │────────────────────────────────────────────▶│ does all that can fail and changes nothing:
//!   │ goes on as before                           │ reads its configuration, compares the tables'
//!   │                                             │ layout, loads its programs, opens its logs
//!   │◀────────────────────────────────── Ready ───│
//!   │ stops acting                                │
//!   │─── Go(memory) ─────────────────────────────▶│ acts: tables, hooks, events, control socket
//!   │◀───────────────────────────────── Acting ───│
//!   ▼ ends                                        ▼
//! ```
//! The two never act at the same time, except that where this host is VRRP's MASTER, the old one
//! advertises until the new one does. Any failure before `Acting` ends the new daemon, and the old
//! one acts again. If the old one dies in between, the new one acts at once. The datapath notices
//! none of this; commands that arrive in between wait in the socket's queue.
//!
//! Messages are lines of JSON. A field that only the other version knows is ignored; one that the
//! other version lacks has its default.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt, fs,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{self, Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

use crate::{sys::inherit, vrrp::report::Remembered, words::Event};

/// The variable that names the process that hands over and the descriptors that the new one
/// inherits: `parent=1 channel=3 lock=4 ...`
const VARIABLE: &str = "EVENKEEL_HANDOVER";
/// How long the new daemon may take to get ready. Most of it is the verifier's time, and the
/// machine may be busy or slow: on a 6.1 in an emulator it takes 28 s.
const READY_WITHIN: Duration = Duration::from_secs(40);
/// How long it may take from then until it acts.
const ACTING_WITHIN: Duration = Duration::from_secs(15);
/// How long to wait for the exit code of a process that has closed its channel.
const END_WITHIN: Duration = Duration::from_secs(2);
/// The longest message, in bytes.
const MESSAGE: u64 = 1 << 26;

/// What only the old daemon's memory holds and the new one continues with. Everything else is in
/// the tables.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The history of `evenkeel events`.
    #[serde(deserialize_with = "those_understood")]
    pub events: Vec<Event>,
    /// The instances of VRRP.
    #[serde(deserialize_with = "those_understood")]
    pub vrrp: Vec<Remembered>,
}

/// Drops the elements that this version does not understand: better a gap than no upgrade.
fn those_understood<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Vec<T>, D::Error> {
    let values = Vec::<serde_json::Value>::deserialize(from)?;
    Ok(values.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect())
}

/// A message from the new daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromNew {
    Ready { version: String },
    Refused { why: String },
    Acting,
}

/// A message from the old daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromOld {
    Go(Memory),
}

/// The path from which this process was started; by now, another file may be there. Call it before
/// the working directory changes.
pub fn own_path() -> Result<PathBuf> {
    let given = PathBuf::from(env::args_os().next().context("this process was started without a name")?);
    if given.components().count() > 1 {
        return std::path::absolute(&given).with_context(|| format!("cannot find {}", given.display()));
    }
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders).map(|folder| folder.join(&given)).find(|file| file.is_file());
    found.map_or_else(|| env::current_exe().context("cannot find the file that this process was started from"), Ok)
}

/// The old daemon's side: the process that is to take over. If this is dropped before that process
/// acts, it is killed.
pub struct Successor {
    child: Child,
    channel: tokio::io::BufReader<tokio::net::UnixStream>,
    acts: bool,
}

/// The daemon that has taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The version of the program that acts now.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
}

impl Successor {
    /// Starts `binary` with the arguments and the environment of this process; it inherits
    /// `descriptors` by name. Call it inside a tokio runtime.
    pub fn start(binary: &Path, descriptors: Vec<(&str, OwnedFd)>) -> Result<Successor> {
        // When process 1 ends, its container ends.
        ensure!(process::id() != 1, "evenkeel is process 1 here: restart the container instead");
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut passed = vec![("channel", theirs.into())];
        passed.extend(descriptors);
        let mut command = Command::new(binary);
        command.args(env::args_os().skip(1).collect::<Vec<OsString>>()).env(VARIABLE, variable(&passed));
        inherit::pass_on(&mut command, passed.into_iter().map(|(_, descriptor)| descriptor).collect());
        let child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let channel = tokio::io::BufReader::new(tokio::net::UnixStream::from_std(ours)?);
        Ok(Successor { child, channel, acts: false })
    }

    /// Waits until it is ready; returns its version.
    pub async fn ready(&mut self) -> Result<String> {
        match tokio::time::timeout(READY_WITHIN, self.hear()).await {
            Ok(FromNew::Ready { version }) => Ok(version),
            Ok(other) => Err(self.failure(other)),
            Err(_) => bail!("it was not ready after {} s", READY_WITHIN.as_secs()),
        }
    }

    /// Hands over. This daemon must have stopped acting; after an error it acts again.
    pub async fn hand_over(&mut self, memory: Memory) -> Result<u32> {
        let act = async {
            self.channel.get_mut().write_all(&line(&FromOld::Go(memory))?).await?;
            anyhow::Ok(self.hear().await)
        };
        match tokio::time::timeout(ACTING_WITHIN, act).await {
            Ok(Ok(FromNew::Acting)) => {
                self.acts = true;
                Ok(self.child.id())
            }
            Ok(Ok(other)) => Err(self.failure(other)),
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("it did not act after {} s", ACTING_WITHIN.as_secs()),
        }
    }

    /// Its next message. If the channel is closed or carries nonsense, a refusal that says how the
    /// process ended.
    async fn hear(&mut self) -> FromNew {
        let mut text = Vec::new();
        let read = (&mut self.channel).take(MESSAGE).read_until(b'\n', &mut text).await;
        let why = match read {
            Ok(0) => self.exit().await,
            Ok(_) => match parse(&text) {
                Ok(message) => return message,
                Err(error) => format!("its message is not understood by this version: {error:#}"),
            },
            Err(error) => format!("its channel is broken: {error}"),
        };
        FromNew::Refused { why }
    }

    async fn exit(&mut self) -> String {
        let began = Instant::now();
        while began.elapsed() < END_WITHIN {
            match self.child.try_wait() {
                Ok(Some(status)) => return format!("it ended without a word ({status}): see its output"),
                Ok(None) => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(error) => return format!("cannot wait for it to end: {error}"),
            }
        }
        "it stopped responding".into()
    }

    fn failure(&self, message: FromNew) -> anyhow::Error {
        match message {
            FromNew::Refused { why } => anyhow::anyhow!(why),
            other => anyhow::anyhow!("unexpected message {other:?}"),
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.acts {
            // An error means that it has already ended.
            _ = self.child.kill();
            _ = self.child.wait();
        }
    }
}

/// The new daemon's side: the channel to the process that hands over, and what was inherited from
/// it.
pub struct Predecessor {
    channel: BufReader<UnixStream>,
    descriptors: BTreeMap<String, OwnedFd>,
}

impl Predecessor {
    /// `None` if this process was started in the ordinary way. Call it first of all.
    pub fn inherited() -> Result<Option<Predecessor>> {
        let Some(text) = env::var(VARIABLE).ok() else { return Ok(None) };
        let given = Given::parse(&text).with_context(|| format!("{VARIABLE}={text} is not understood"))?;
        // The variable stays in the environment, our children's included: it is meant for us only
        // if its writer has started us.
        if given.parent != std::os::unix::process::parent_id() {
            return Ok(None);
        }
        let mut descriptors = BTreeMap::new();
        for (name, number) in given.descriptors {
            let descriptor = inherit::take(number).with_context(|| format!("{VARIABLE}: {name}"))?;
            descriptors.insert(name, descriptor);
        }
        let channel =
            descriptors.remove("channel").context("the daemon that hands over has not passed on its channel")?;
        Ok(Some(Predecessor { channel: BufReader::new(UnixStream::from(channel)), descriptors }))
    }

    /// Takes a descriptor by its name.
    pub fn take(&mut self, name: &str) -> Result<OwnedFd> {
        self.descriptors.remove(name).with_context(|| format!("the daemon that hands over has not passed on {name}"))
    }

    /// Takes the control socket, which must be the one of our configuration.
    pub fn take_socket(&mut self, name: &str, wanted: &Path) -> Result<UnixListener> {
        let listener = UnixListener::from(self.take(name)?);
        let address = listener.local_addr()?;
        let is = address.as_pathname().is_some_and(|path| path == wanted);
        ensure!(is, "the daemon that hands over listens on {address:?}, not on {}: {RESTART}", wanted.display());
        Ok(listener)
    }

    /// Takes an open file or folder, which must be the one of our configuration.
    pub fn take_file(&mut self, name: &str, wanted: &Path) -> Result<fs::File> {
        use std::os::unix::fs::MetadataExt;
        let file = fs::File::from(self.take(name)?);
        let same = |ours: fs::Metadata, theirs: fs::Metadata| (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino());
        let is = fs::metadata(wanted).is_ok_and(|ours| file.metadata().is_ok_and(|theirs| same(ours, theirs)));
        ensure!(is, "the daemon that hands over does not use {}: {RESTART}", wanted.display());
        Ok(file)
    }

    /// Reports ready, and waits for the permission to act. The old daemon's death is permission,
    /// too.
    pub fn ready(&mut self, version: &str) -> Result<Memory> {
        let said = self.say(&FromNew::Ready { version: version.into() });
        let heard = said.and_then(|()| {
            let mut text = Vec::new();
            self.channel.by_ref().take(MESSAGE).read_until(b'\n', &mut text)?;
            anyhow::Ok(text)
        });
        match heard {
            Ok(text) if !text.is_empty() => {
                let FromOld::Go(memory) = parse(&text)?;
                Ok(memory)
            }
            Ok(_) | Err(_) => {
                log::warn!("the daemon that was to hand over is gone");
                Ok(Memory::default())
            }
        }
    }

    /// Reports that this daemon acts.
    pub fn acting(mut self) {
        // The old daemon may be gone.
        _ = self.say(&FromNew::Acting);
    }

    /// Reports that this daemon will not act.
    pub fn refuse(mut self, why: impl fmt::Display) {
        _ = self.say(&FromNew::Refused { why: why.to_string() });
    }

    fn say(&mut self, message: &FromNew) -> Result<()> {
        Ok(self.channel.get_mut().write_all(&line(message)?)?)
    }
}

const RESTART: &str = "this cannot change in an upgrade; stop the old daemon and start the new one";

fn line(message: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec(message)?;
    text.push(b'\n');
    Ok(text)
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T> {
    ensure!(text.ends_with(b"\n"), "a message is cut short");
    Ok(serde_json::from_slice(text)?)
}

fn variable(descriptors: &[(&str, OwnedFd)]) -> String {
    let named = descriptors.iter().map(|(name, descriptor)| format!(" {name}={}", descriptor.as_raw_fd()));
    format!("parent={}{}", process::id(), named.collect::<String>())
}

/// The content of the variable.
#[derive(Debug, PartialEq, Eq)]
struct Given {
    parent: u32,
    descriptors: Vec<(String, RawFd)>,
}

impl Given {
    fn parse(text: &str) -> Result<Given> {
        let (mut parent, mut descriptors) = (None, Vec::new());
        for pair in text.split_whitespace() {
            let (name, number) = pair.split_once('=').context("a pair lacks its `=`")?;
            match name {
                "parent" => parent = Some(number.parse()?),
                _ => descriptors.push((name.to_owned(), number.parse()?)),
            }
        }
        Ok(Given { parent: parent.context("`parent` is missing")?, descriptors })
    }
}

#[cfg(test)]
mod tests;
