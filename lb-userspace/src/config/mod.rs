//! The configuration. It is read from files ([`raw`]), understood table by table ([`tables`]) and
//! checked across tables ([`cross`]); the result has types that cannot hold a wrong value
//! ([`model`]). [`load`] is the only way in.

mod authorities;
mod cross;
pub mod memory;
pub mod model;
pub mod problem;
mod raw;
mod tables;
#[cfg(test)]
mod tests;
pub mod units;

pub use authorities::authorities;
pub use model::Config;
pub use problem::{Problem, Problems};

use std::path::{Path, PathBuf};

use toml::{Spanned, de::DeTable};

use cross::Cross;
use model::{Service, Vrrp};
use problem::{Doubts, Findings, Source, SourcePos};
use raw::Table;

/// The default of `-c`.
pub const DEFAULT_PATH: &str = "/etc/evenkeel/evenkeel.toml";
/// The default of `--socket`.
pub const DEFAULT_SOCKET: &str = "/run/evenkeel/control.sock";

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// What is allowed but may not do what was meant.
    pub warnings: Vec<Problem>,
    /// What this host lacks, so that the daemon would not start here.
    pub here: Vec<Problem>,
    /// Every file that was read, the main one first.
    pub files: Vec<PathBuf>,
}

/// Reads the file and its drop-ins. Either everything is valid, or every mistake is reported.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let main = read(path).map_err(|problem| Problems(vec![problem]))?;
    let findings = Findings::default();
    let sources = with_drop_ins(main, &findings);
    let roots: Vec<_> = sources.iter().map(|source| parse(source, &findings)).collect();
    let config = understand(&sources, &roots, &findings);
    let Doubts { warnings, here } = findings.into_result()?;
    let files = sources.iter().map(|source| source.path.clone()).collect();
    Ok(Loaded { config, warnings, here, files })
}

/// A larger file is certainly not a configuration.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

fn read(path: &Path) -> Result<Source, Problem> {
    let whole_file = |what| Problem { file: path.into(), line: 0, column: 0, what };
    let length = std::fs::metadata(path).map_err(|error| whole_file(format!("cannot be read: {error}")))?.len();
    if length > MAX_FILE_BYTES {
        return Err(whole_file(format!("has {length} bytes, more than the {MAX_FILE_BYTES} a configuration may have")));
    }
    match std::fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => Ok(Source { path: path.into(), text }),
        Ok(Err(_)) => Err(whole_file("is not UTF-8 text".into())),
        Err(error) => Err(whole_file(format!("cannot be read: {error}"))),
    }
}

/// Parses the syntax. In a file with errors, whatever can still be read is read.
fn parse<'a>(source: &'a Source, findings: &Findings) -> Spanned<DeTable<'a>> {
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    for error in errors {
        let pos = source.at(error.span().map_or(0, |span| span.start));
        findings.error(pos.problem(error.message()));
    }
    table
}

/// The main file and the files of its `include`, those of each pattern sorted by name.
fn with_drop_ins(main: Source, findings: &Findings) -> Vec<Source> {
    let folder = main.path.parent().unwrap_or(Path::new("")).to_owned();
    // Mistakes in the main file are reported later, when it is understood.
    let (root, _) = DeTable::parse_recoverable(&main.text);
    let reported_later = Findings::default();
    let patterns = Table::root(&main, root.get_ref(), &reported_later).list("include", units::text).unwrap_or_default();
    let mut sources = Vec::new();
    for pattern in patterns {
        match matching(&folder, pattern.value) {
            Ok(paths) => sources.extend(paths),
            Err(what) => findings.error(pattern.pos.problem(format!("include: {what}"))),
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    sources.retain(|path| *path != main.path && seen.insert(path.clone()));
    let drop_ins = sources.iter().filter_map(|path| read(path).map_err(|problem| findings.error(problem)).ok());
    let drop_ins: Vec<Source> = drop_ins.collect();
    std::iter::once(main).chain(drop_ins).collect()
}

/// The files that a pattern of `include` matches. A pattern without `*`, `?` and `[` names a file,
/// which must exist, as in nginx.
fn matching(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let escaped = glob::Pattern::escape(&folder.to_string_lossy());
    let whole = Path::new(&escaped).join(pattern);
    let paths = glob::glob(&whole.to_string_lossy())
        .map_err(|error| format!("\"{pattern}\" is not a valid pattern: {error}"))?;
    let paths = paths.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    if paths.is_empty() && !pattern.contains(['*', '?', '[']) {
        return Err(format!("there is no file {}", folder.join(pattern).display()));
    }
    Ok(paths)
}

/// A table that may appear in one file only.
struct Single<'a, T> {
    read: Option<(T, SourcePos<'a>)>,
}

impl<'a, T> Single<'a, T> {
    fn enter(&mut self, title: &str, table: Option<Table<'a>>, read: impl Fn(Table<'a>) -> T) {
        let Some(table) = table else { return };
        let (pos, findings) = (table.pos, table.findings);
        let value = read(table);
        match &self.read {
            Some((_, first)) => {
                findings.error(pos.problem(format!("{title} appears in two files: first at {first}")));
            }
            None => self.read = Some((value, pos)),
        }
    }

    fn take(self) -> Option<T> {
        self.read.map(|(value, _)| value)
    }
}

/// Reads all files into one configuration, which is used only if there was no error.
fn understand<'a>(sources: &'a [Source], roots: &'a [Spanned<DeTable<'a>>], findings: &'a Findings) -> Config {
    let mut cross = Cross::new();
    let (mut daemon, mut api, mut sync) = (Single { read: None }, Single { read: None }, Single { read: None });
    let mut services: Vec<Service> = Vec::new();
    let mut vrrp: Vec<Vrrp> = Vec::new();
    for (number, (source, root)) in sources.iter().zip(roots).enumerate() {
        let mut root = Table::root(source, root.get_ref(), findings);
        if let Some(include) = root.list("include", units::text).unwrap_or_default().first().filter(|_| number > 0) {
            findings.error(include.pos.problem("include: only the main file may include other files"));
        }
        daemon.enter("[daemon]", root.table("daemon", "[daemon]"), tables::daemon::daemon);
        api.enter("[api]", root.table("api", "[api]"), tables::daemon::api);
        sync.enter("[sync]", root.table("sync", "[sync]"), tables::daemon::sync);
        let tables = root.tables("service", "[[service]]");
        services.extend(tables.into_iter().filter_map(|table| tables::service::service(table, &mut cross)));
        let tables = root.tables("vrrp", "[[vrrp]]");
        vrrp.extend(tables.into_iter().filter_map(|table| tables::vrrp::vrrp(table, &mut cross)));
        root.finish();
    }
    cross.check(findings);
    let config = Config {
        daemon: daemon.take().unwrap_or_default(),
        api: api.take(),
        services,
        vrrp,
        sync: sync.take().flatten(),
    };
    let top = sources[0].at(0);
    cross::check_sizes(&config, top, findings);
    if config.services.is_empty() {
        findings.warning(top.problem("no [[service]]: nothing is balanced"));
    }
    config
}
