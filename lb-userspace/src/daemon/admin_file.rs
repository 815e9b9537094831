//! Operators' decisions outlive the daemon in `admin.json` in `state_dir`, which is written as a
//! whole and moved into place before a decision is carried out. Its times are wall-clock times,
//! because CLOCK_MONOTONIC restarts with the host.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use lb_common::layout::MAX_BACKENDS;
use serde::{Deserialize, Serialize};

use crate::{
    controller::{
        Now,
        admin_state::{AdminEntry, AdminState, AdminStates, Name},
    },
    words::AdminWord,
};

/// The version of the format below. A file of another version is refused.
const VERSION: u32 = 1;
/// Far more than the most backends there can be need.
const MOST_BYTES: u64 = 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    backends: Vec<Entry>,
    /// What was revoked, and when: the other host of a pair may still hold the opposite.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    ready: Vec<Ready>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ready {
    service: Arc<str>,
    backend: Arc<str>,
    since: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    service: Arc<str>,
    backend: Arc<str>,
    order: AdminWord,
    since: Timestamp,
    by: Arc<str>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    deadline: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    rate: Option<u32>,
}

/// The file.
pub struct AdminFile {
    path: PathBuf,
}

impl AdminFile {
    /// The file in this folder.
    pub fn new(state_dir: &Path) -> AdminFile {
        AdminFile { path: state_dir.join("admin.json") }
    }

    /// Loads what was in force. A file that cannot be used is moved aside, for the operator to look
    /// into, and the error names the consequences.
    pub fn load(&self, now: Now) -> Result<AdminStates> {
        let admin_states =
            self.read().and_then(|bytes| bytes.map_or(Ok(AdminStates::default()), |bytes| decoded(&bytes, now)));
        admin_states.map_err(|error| {
            let aside = self.path.with_extension("json.bad");
            let shown = self.path.display();
            let kept = match fs::rename(&self.path, &aside) {
                Ok(()) => format!("it was moved to {}", aside.display()),
                Err(error) => format!("it cannot be moved aside: {error}"),
            };
            error.context(format!(
                "{shown} cannot be used, {kept}; backends that were drained or in maintenance get connections again \
                 until that is repeated (evenkeel drain, evenkeel maint)"
            ))
        })
    }

    fn read(&self) -> Result<Option<Vec<u8>>> {
        // Checked before it is opened: opening a FIFO would wait for its writer.
        match fs::symlink_metadata(&self.path) {
            Ok(found) => ensure!(found.is_file(), "it is not a regular file"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 <= MOST_BYTES, "it has more than {MOST_BYTES} bytes");
        Ok(Some(bytes))
    }

    /// Replaces the file's content with `admin_states`, completely or not at all.
    pub fn save(&self, admin_states: &AdminStates, now: Now) -> Result<()> {
        replace(&self.path, &encoded(admin_states, now)?)
            .with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

/// The file's content for these states.
pub fn encoded(admin_states: &AdminStates, now: Now) -> Result<Vec<u8>> {
    let entry = |(name, said)| entry(name, said, admin_states.decided_at(name), now);
    let taken_back = admin_states.decided().filter(|(name, _)| admin_states.get(name).is_none());
    let contents = Contents {
        version: VERSION,
        backends: admin_states.iter().map(entry).collect(),
        ready: taken_back.map(ready).collect(),
    };
    Ok(serde_json::to_vec_pretty(&contents)?)
}

/// The states in a file's content.
pub fn decoded(bytes: &[u8], now: Now) -> Result<AdminStates> {
    // First the version alone: in another version anything else may differ.
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(bytes)?;
    ensure!(version == VERSION, "it has version {version}, this evenkeel reads and writes version {VERSION}");
    let contents: Contents = serde_json::from_slice(bytes)?;
    let named = contents.backends.len().max(contents.ready.len());
    ensure!(named <= MAX_BACKENDS as usize, "it names more than {MAX_BACKENDS} backends");
    admin_states(contents, now)
}

/// Replaces a file's content completely or not at all.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("json.new");
    // Left by a process that was killed at this point.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // So that the new name survives a power failure, too.
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn ready(((service, backend), decided_at): (&Name, u64)) -> Ready {
    Ready { service: service.clone(), backend: backend.clone(), since: timestamp(decided_at) }
}

fn entry((service, backend): &Name, said: &AdminEntry, decided_at: u64, now: Now) -> Entry {
    let (order, deadline, rate) = match said.order {
        AdminState::Drain { deadline, rate } => (AdminWord::Drain, deadline.map(|at| now.wall_at(at)), Some(rate)),
        AdminState::Maint => (AdminWord::Maint, None, None),
    };
    let (service, backend) = (service.clone(), backend.clone());
    Entry { service, backend, order, since: timestamp(decided_at), by: said.by.clone(), deadline, rate }
}

fn admin_states(contents: Contents, now: Now) -> Result<AdminStates> {
    let mut admin_states = AdminStates::default();
    for Entry { service, backend, order, since, by, deadline, rate } in contents.backends {
        ensure!(by.len() <= 64 && by.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "a `by` is not plain text");
        let order = match (order, deadline, rate) {
            (AdminWord::Drain, deadline, Some(rate)) if rate > 0 => {
                AdminState::Drain { deadline: deadline.map(|at| now.monotonic_at(at)), rate }
            }
            (AdminWord::Maint, None, None) => AdminState::Maint,
            _ => bail!("the order for backend {backend} of service {service} is invalid"),
        };
        let said = AdminEntry { order, since: now.monotonic_at(since), by };
        ensure!(
            admin_states.say((service.clone(), backend.clone()), said, milliseconds(since)).is_none(),
            "backend {backend} of service {service} is listed twice"
        );
    }
    for Ready { service, backend, since } in contents.ready {
        let taken_back = admin_states.take_back(&(service.clone(), backend.clone()), milliseconds(since));
        ensure!(taken_back.is_none(), "backend {backend} of service {service} is listed twice");
    }
    Ok(admin_states)
}

/// Milliseconds since 1970.
pub fn milliseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}

/// The inverse of [`milliseconds`]; the end of time for anything beyond it.
fn timestamp(milliseconds: u64) -> Timestamp {
    let at = i64::try_from(milliseconds).ok().and_then(|at| Timestamp::from_millisecond(at).ok());
    at.unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
