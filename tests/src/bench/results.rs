//! The results of a run, as they are kept in a file.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{machine::Machine, statistics::Summary};

/// One figure, measured once per round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name, from the general to the particular: `packets/xdp/forward/1024`.
    pub name: String,
    /// `ns`, `µs`, `1/s`, `bytes` and others.
    pub unit: String,
    /// The value of each round, in order.
    pub rounds: Vec<f64>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// Where and when it took place.
    pub machine: Machine,
    /// The command that started it.
    pub command: String,
    /// In the order in which they were measured.
    pub figures: Vec<Figure>,
}

impl Results {
    /// A run on this machine, at this moment, without figures yet.
    pub fn new(command: &str) -> Results {
        Results { machine: Machine::this(), command: command.to_owned(), figures: Vec::new() }
    }

    /// A run in which nothing was measured.
    pub fn none() -> Results {
        Results { machine: Machine::default(), command: String::new(), figures: Vec::new() }
    }

    /// Adds one round of a figure.
    pub fn add(&mut self, name: &str, unit: &str, value: f64) {
        match self.figures.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.rounds.push(value),
            None => self.figures.push(Figure { name: name.into(), unit: unit.into(), rounds: vec![value] }),
        }
    }

    /// The rounds of a figure; empty if it was not measured.
    pub fn rounds(&self, name: &str) -> &[f64] {
        self.figures.iter().find(|figure| figure.name == name).map_or(&[], |figure| &figure.rounds)
    }

    /// Median and spread of a figure.
    pub fn summary(&self, name: &str) -> Option<Summary> {
        Summary::of(self.rounds(name))
    }

    /// Reads the results of an earlier run.
    pub fn read(file: &Path) -> Result<Results> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} does not contain results of this benchmark", file.display()))
    }

    /// Writes the results, for a later run to compare with.
    pub fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}
