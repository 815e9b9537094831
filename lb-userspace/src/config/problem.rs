//! Mistakes in a configuration, with their position: file, line, column.

use std::{cell::RefCell, fmt, path::PathBuf};

use serde::Serialize;

/// One file of the configuration.
#[derive(Debug)]
pub struct Source {
    /// Its path, as given or found.
    pub path: PathBuf,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// The position `offset` bytes into the file.
    pub fn at(&self, offset: usize) -> SourcePos<'_> {
        SourcePos { source: self, offset: offset.min(self.text.len()) }
    }
}

/// A position in a file. Every value that was read carries one, so that errors found later can
/// still point at it.
#[derive(Clone, Copy)]
pub struct SourcePos<'a> {
    /// The file the position is in.
    pub source: &'a Source,
    /// Bytes from the start of the file.
    pub offset: usize,
}

impl SourcePos<'_> {
    /// Line and column, both from 1; a column is a character.
    pub fn line_and_column(&self) -> (usize, usize) {
        let before = &self.source.text.as_bytes()[..self.offset];
        let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
    }

    /// A problem at this position.
    pub fn problem(&self, what: impl Into<String>) -> Problem {
        let (line, column) = self.line_and_column();
        Problem { file: self.source.path.clone(), line, column, what: what.into() }
    }
}

impl fmt::Display for SourcePos<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (line, column) = self.line_and_column();
        write!(f, "{}:{line}:{column}", self.source.path.display())
    }
}

/// One mistake (or, as a warning, one doubt), and how to fix it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file with the mistake.
    pub file: PathBuf,
    /// The line, from 1; 0 if it concerns the file as a whole (which cannot be read, for example).
    pub line: usize,
    /// The character within the line, from 1.
    pub column: usize,
    /// What is wrong and how to fix it.
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

/// All mistakes, sorted by file and line. Never empty.
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

/// Collects what the readers find, so that one mistake does not hide the next.
#[derive(Default)]
pub struct Findings {
    errors: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    here: RefCell<Vec<Problem>>,
}

/// What is allowed, and may still not do what was meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// Wherever the configuration is used.
    pub warnings: Vec<Problem>,
    /// On this host: the daemon would not start here.
    pub here: Vec<Problem>,
}

impl Findings {
    /// Adds a mistake: the configuration cannot be used.
    pub fn error(&self, problem: Problem) {
        self.errors.borrow_mut().push(problem);
    }

    /// Adds a doubt: the configuration can be used, but may not do what was meant.
    pub fn warning(&self, problem: Problem) {
        self.warnings.borrow_mut().push(problem);
    }

    /// Adds what this host lacks: the daemon would not start here. It may be another host than the
    /// daemon's, or another user.
    pub fn here(&self, problem: Problem) {
        self.here.borrow_mut().push(problem);
    }

    /// The doubts if there is no error, otherwise every error.
    pub fn into_result(self) -> Result<Doubts, Problems> {
        let mut errors = self.errors.into_inner();
        if errors.is_empty() {
            let (mut warnings, mut here) = (self.warnings.into_inner(), self.here.into_inner());
            warnings.sort();
            here.sort();
            here.dedup();
            return Ok(Doubts { warnings, here });
        }
        errors.sort();
        errors.dedup();
        Err(Problems(errors))
    }
}
