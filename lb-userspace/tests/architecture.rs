//! The invariants of docs/architecture.md that can be read off the source: which room may use
//! which, and where `aya`, `unsafe` and clocks may appear.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The rooms of the crate, from the bottom up. A room may use only rooms that come before it.
const FLOORS: [&str; 17] = [
    "words",
    "sys",
    "notice",
    "access_log",
    "config",
    "tables",
    "dataplane",
    "controller",
    "sync",
    "vrrp",
    "handover",
    "probe",
    "api",
    "client",
    "top",
    "daemon",
    "cli",
];

/// Rooms and files that take the time as an argument.
const WITHOUT_CLOCK: [&str; 14] = [
    "words/",
    "config/",
    "tables/",
    "controller/",
    "notice/",
    "sync/link.rs",
    "sync/mirror.rs",
    "sync/peer.rs",
    "sync/station.rs",
    "vrrp/machine",
    "vrrp/group.rs",
    "vrrp/receive.rs",
    "top/state.rs",
    "top/draw/",
];

/// A source file without its comments and unit tests.
struct Source {
    /// Its path below src.
    path: String,
    text: String,
}

impl Source {
    fn room(&self) -> &str {
        self.path.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    let read = |file: PathBuf| {
        let path = file.strip_prefix(&root).expect("a file below src").to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).expect("a readable file");
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let code = code.lines().map(|line| line.split("//").next().unwrap_or_default());
        Source { path, text: code.collect::<Vec<_>>().join("\n") }
    };
    files.into_iter().map(read).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let is_test = path.file_stem().is_some_and(|name| name == "tests");
        if path.is_dir() && !is_test {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test {
            files.push(path);
        }
    }
}

/// The rooms that a text names after `crate::`, alone or as the outer names in braces.
fn used_rooms(text: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut rooms = BTreeSet::new();
    for (start, _) in text.match_indices("crate::") {
        let rest = &text[start + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => rooms.extend(outer_items(list).iter().map(|item| word(item.trim()))),
            None => _ = rooms.insert(word(rest)),
        }
    }
    rooms.remove("");
    rooms
}

/// The items of a list in braces, without what they have in braces themselves. The text begins
/// behind the first brace.
fn outer_items(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            c if depth == 0 => items.last_mut().expect("never empty").push(c),
            _ => {}
        }
    }
    items
}

/// Whether a text has this word, not only as a part of another one.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .any(|(at, _)| !is_part(text[..at].chars().next_back()) && !is_part(text[at + word.len()..].chars().next()))
}

#[test]
fn a_room_uses_only_rooms_below_it() {
    let floor = |room: &str| FLOORS.iter().position(|name| *name == room);
    for source in sources().iter().filter(|source| !["lib", "main"].contains(&source.room())) {
        let own = floor(source.room()).unwrap_or_else(|| panic!("{} is on no floor", source.path));
        for used in used_rooms(&source.text) {
            let Some(other) = floor(&used) else { continue };
            assert!(other <= own, "{} uses {used}, which is above {}", source.path, source.room());
        }
    }
}

#[test]
fn aya_is_used_only_by_the_dataplane_and_the_dataplane_only_by_the_daemon() {
    for source in sources() {
        let uses_aya = ["aya", "aya_obj"].iter().any(|name| has_word(&source.text, name));
        assert!(!uses_aya || source.room() == "dataplane", "{} uses aya", source.path);
        let uses_dataplane = used_rooms(&source.text).contains("dataplane");
        assert!(
            !uses_dataplane || ["dataplane", "daemon"].contains(&source.room()),
            "{} uses the dataplane",
            source.path
        );
    }
}

#[test]
fn unsafe_code_and_libc_stand_only_in_sys() {
    for source in sources().iter().filter(|source| source.room() != "sys") {
        for word in ["unsafe", "libc"] {
            assert!(!has_word(&source.text, word), "{} has {word}", source.path);
        }
    }
}

#[test]
fn decisions_take_the_time_as_an_argument() {
    for source in sources() {
        if WITHOUT_CLOCK.iter().any(|start| source.path.starts_with(start)) {
            for clock in ["Instant::now", "SystemTime::now", "Timestamp::now", "Zoned::now", "clock::monotonic"] {
                assert!(!source.text.contains(clock), "{} reads a clock: {clock}", source.path);
            }
        }
    }
    for start in WITHOUT_CLOCK {
        assert!(sources().iter().any(|source| source.path.starts_with(start)), "there is no {start}");
    }
}
