//! Links, widths and sizes of the pages.

use std::path::Path;

use super::page::{pages, read, root, rows, section};

/// What a newcomer reads at once.
const README_BYTES: usize = 8 * 1024;
const WIDTH: usize = 100;

#[test]
fn the_readme_is_at_most_8_kib() {
    let bytes = read("README.md").len();
    assert!(bytes <= README_BYTES, "{bytes} bytes");
}

#[test]
fn relative_links_lead_to_files_and_headings() {
    for page in pages() {
        let text = read(&page);
        let folder = root().join(&page).parent().expect("a folder").to_owned();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() { root().join(&page) } else { folder.join(file) };
            assert!(file.exists(), "{page}: {target}");
            assert!(anchor.is_empty() || has_heading(&file, anchor), "{page}: {target} has no such heading");
        }
    }
}

fn has_heading(file: &Path, anchor: &str) -> bool {
    let text = std::fs::read_to_string(file).expect("text");
    text.lines().filter(|line| line.starts_with('#')).any(|line| anchor_of(line.trim_start_matches('#')) == anchor)
}

/// As GitHub makes them: small letters, hyphens for spaces, no other punctuation.
fn anchor_of(heading: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || c == ' ';
    heading.trim().to_lowercase().chars().filter(|c| kept(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn text_wraps_at_100_columns() {
    for page in pages() {
        let mut is_code = false;
        for (number, line) in read(&page).lines().enumerate() {
            is_code ^= line.starts_with("```");
            let may_be_long = is_code || line.starts_with(['|', '!']) || line.contains("](http");
            let length = line.chars().count();
            assert!(may_be_long || length <= WIDTH, "{page}:{}: {length} columns", number + 1);
        }
    }
}

#[test]
fn the_map_of_the_code_has_every_crate_and_every_module() {
    let page = read("docs/architecture.md");
    let mut named = Vec::new();
    for row in rows(section(&page, "Map of the code")) {
        named.extend(row[0].split('`').skip(1).step_by(2).map(str::to_owned));
    }
    let modules = read("lb-userspace/src/lib.rs");
    let modules = modules.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let workspace: toml::Table = read("Cargo.toml").parse().expect("TOML");
    let members = workspace["workspace"]["members"].as_array().expect("a list");
    // tests/ebpf is in the row of tests.
    let members = members.iter().filter_map(|member| member.as_str()).filter(|member| !member.contains('/'));
    let mut wanted: Vec<_> = members.chain(modules).chain(["packaging"]).map(str::to_owned).collect();
    wanted.sort();
    named.sort();
    named.retain(|name| !name.contains(' ') && !name.contains('/') && name != "no_std");
    assert_eq!(named, wanted, "the page on the left, the code on the right");
}
