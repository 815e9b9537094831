//! A page of Markdown: its tables, its blocks of code, its headings.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package stands in the repository").to_owned()
}

/// The text of a file of the repository.
pub fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// README and docs that people write; docs/bench is written by the benchmark.
pub fn pages() -> Vec<String> {
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    let names = docs.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    let pages = names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    pages.chain(["README.md".to_owned()]).collect()
}

/// The text under a heading of level 2, up to the next one.
pub fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let title = format!("\n## {heading}\n");
    let from = page.find(&title).unwrap_or_else(|| panic!("no section {heading:?}")) + title.len();
    let rest = &page[from..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

/// The rows of all tables, without their heads: cells without the spaces around them.
pub fn rows(text: &str) -> Vec<Vec<String>> {
    let lines: Vec<_> = text.lines().collect();
    let is_rule = |line: &&str| line.starts_with("|---");
    let is_head = |at: usize| lines.get(at + 1).is_some_and(is_rule);
    let body = |at: &usize| lines[*at].starts_with('|') && !is_rule(&lines[*at]) && !is_head(*at);
    (0..lines.len()).filter(body).map(|at| cells(lines[at])).collect()
}

fn cells(line: &str) -> Vec<String> {
    let hidden = line.replace("\\|", "\0");
    let inner = hidden.trim().trim_start_matches('|').trim_end_matches('|');
    inner.split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
}

/// The text between the first pair of backticks.
pub fn quoted(cell: &str) -> Option<&str> {
    cell.split('`').nth(1)
}

/// The blocks of code in a text, with their language.
pub fn blocks(text: &str) -> Vec<(&str, &str)> {
    let fenced = text.split("\n```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap_or((block, ""))).collect()
}
