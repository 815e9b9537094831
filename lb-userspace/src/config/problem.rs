//! What is wrong with a configuration, and where: file, line, column.

use std::{cell::RefCell, fmt, path::PathBuf};

use serde::Serialize;

/// One file of the configuration as it was read.
#[derive(Debug)]
pub struct Source {
    /// Its path, as it was given or found.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

impl Source {
    /// The place `offset` bytes into the file.
    pub fn at(&self, offset: usize) -> Place<'_> {
        Place { source: self, offset: offset.min(self.text.len()) }
    }
}

/// A byte of a file: what every value that was read carries along, so that errors found later can still point at it.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The file.
    pub source: &'a Source,
    /// Bytes from its beginning.
    pub offset: usize,
}

impl Place<'_> {
    /// Line and column, from 1; a column is a character.
    pub fn line_and_column(&self) -> (usize, usize) {
        let before = &self.source.text.as_bytes()[..self.offset];
        let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
    }

    /// A problem here.
    pub fn problem(&self, what: impl Into<String>) -> Problem {
        let (line, column) = self.line_and_column();
        Problem { file: self.source.path.clone(), line, column, what: what.into() }
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (line, column) = self.line_and_column();
        write!(f, "{}:{line}:{column}", self.source.path.display())
    }
}

/// One thing that is wrong (or, as a warning, doubtful), and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Its line, from 1; 0: the file as a whole (it cannot be read, say).
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// What is wrong and what would be right.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.line == 0 {
            return write!(f, "{}: {}", self.file.display(), self.what);
        }
        write!(f, "{}:{}:{}: {}", self.file.display(), self.line, self.column, self.what)
    }
}

/// Everything that is wrong, in the order of the files and lines. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (number, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if number == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Where the readers put what they find, so that one mistake does not hide the next.
#[derive(Default)]
pub struct Findings {
    errors: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
}

impl Findings {
    /// The configuration cannot be used.
    pub fn error(&self, problem: Problem) {
        self.errors.borrow_mut().push(problem);
    }

    /// The configuration can be used, but may not do what was meant.
    pub fn warning(&self, problem: Problem) {
        self.warnings.borrow_mut().push(problem);
    }

    /// The warnings, or every error.
    pub fn into_result(self) -> Result<Vec<Problem>, Problems> {
        let mut errors = self.errors.into_inner();
        if errors.is_empty() {
            let mut warnings = self.warnings.into_inner();
            warnings.sort();
            return Ok(warnings);
        }
        errors.sort();
        errors.dedup();
        Err(Problems(errors))
    }
}
