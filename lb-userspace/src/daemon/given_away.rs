//! Which VRRP instances an operator has given away: a file in `state_dir`, so that a restart does
//! not take back what was given.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use lb_common::time::Instant;
use serde::{Deserialize, Serialize};

use super::admin_file::replace;
use crate::vrrp::{
    machine::{Past, State, Why},
    report::{InstanceReport, Remembered},
};

/// Far more than the most instances there can be need.
const MOST_BYTES: u64 = 1024 * 1024;

/// An instance that was given away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct GivenAway {
    name: Arc<str>,
    router: u8,
    interface: String,
}

/// The file, and what it says.
pub struct GivenAwayFile {
    path: PathBuf,
    known: BTreeSet<GivenAway>,
}

impl GivenAwayFile {
    /// The file in this folder, and what an instance has to remember of it. A file that cannot be
    /// read is as good as none: the instances elect as if nothing had been given away.
    pub fn load(state_dir: &Path) -> (GivenAwayFile, Vec<Remembered>, Result<()>) {
        let path = state_dir.join("given-away.json");
        let (known, result) = match read(&path) {
            Ok(known) => (known, Ok(())),
            Err(error) => (BTreeSet::new(), Err(error.context(format!("{} cannot be used", path.display())))),
        };
        let remembered = known.iter().map(|given| Remembered {
            name: given.name.clone(),
            router: given.router,
            interface: given.interface.clone(),
            why: Why::Started,
            past: Past { state: State::Init, since: Instant::ZERO, transitions: 0, yields: true },
        });
        let remembered = remembered.collect();
        (GivenAwayFile { path, known }, remembered, result)
    }

    /// Brings the file in line with the instances.
    pub fn keep(&mut self, reports: &[InstanceReport]) -> Result<()> {
        let given = reports.iter().filter(|report| report.given_away).map(|report| GivenAway {
            name: report.name.clone(),
            router: report.router,
            interface: report.interface.clone(),
        });
        let given: BTreeSet<_> = given.collect();
        if given == self.known {
            return Ok(());
        }
        let written = if given.is_empty() {
            fs::remove_file(&self.path).or_else(|error| absent(error, ()))
        } else {
            replace(&self.path, &serde_json::to_vec_pretty(&given)?)
        };
        written.with_context(|| format!("{} cannot be written", self.path.display()))?;
        self.known = given;
        Ok(())
    }
}

fn read(path: &Path) -> Result<BTreeSet<GivenAway>> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) => return Ok(absent(error, BTreeSet::new())?),
    };
    anyhow::ensure!(found.is_file() && found.len() <= MOST_BYTES, "it is not a regular file of a sensible size");
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn absent<T>(error: io::Error, value: T) -> io::Result<T> {
    if error.kind() == io::ErrorKind::NotFound { Ok(value) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::VrrpVersion;

    fn report(name: &str, given_away: bool) -> InstanceReport {
        InstanceReport {
            name: name.into(),
            interface: "eth0".into(),
            router: 51,
            version: VrrpVersion::V3,
            state: State::Backup,
            since: Instant(7),
            why: Why::GivenAway,
            priority: 100,
            base_priority: 100,
            weights: Vec::new(),
            faults: Vec::new(),
            addresses: Vec::new(),
            transitions: 2,
            master: None,
            source: None,
            lease: Instant::ZERO,
            given_away,
            waits_for_flows: false,
            peers: Vec::new(),
            counters: Default::default(),
        }
    }

    #[test]
    fn what_was_given_away_is_remembered_by_the_next_process_until_it_is_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, remembered, result) = GivenAwayFile::load(folder.path());
        assert!(remembered.is_empty() && result.is_ok());
        file.keep(&[report("VI_1", true), report("VI_2", false)]).unwrap();
        let (mut file, remembered, result) = GivenAwayFile::load(folder.path());
        assert!(result.is_ok());
        let [one] = &remembered[..] else { panic!("{remembered:?}") };
        assert_eq!((&*one.name, one.router, &*one.interface, one.past.yields), ("VI_1", 51, "eth0", true));
        file.keep(&[report("VI_1", false), report("VI_2", false)]).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(GivenAwayFile::load(folder.path()).1, []);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_reported_and_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        for content in ["", "{}", "[{\"name\":\"VI_1\"}]", "\u{0}"] {
            fs::write(folder.path().join("given-away.json"), content).unwrap();
            let (_, remembered, result) = GivenAwayFile::load(folder.path());
            assert!(remembered.is_empty() && result.is_err(), "{content}");
        }
    }
}
