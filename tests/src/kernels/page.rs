//! The table of docs/kernels.md.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

use super::{
    Booted, Rounded,
    said::{KERNEL, Outcome},
    without,
};

/// What is between them is written by the command, the rest of the page by people.
const BEGIN: &str = "<!-- table -->";
const END: &str = "<!-- /table -->";
/// The characters of a reason.
const LONGEST: usize = 400;
/// How many functions of a program the page names.
const COSTLIEST: usize = 5;

/// Replaces the table of a page. Without a page there is a new one.
pub fn write(page: &Path, booted: &[Booted]) -> Result<()> {
    let before = fs::read_to_string(page).unwrap_or_else(|_| format!("# Kernels\n\n{BEGIN}\n{END}\n"));
    let (head, rest) = before.split_once(BEGIN).with_context(|| format!("{} has no {BEGIN}", page.display()))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("{} has no {END}", page.display()))?;
    let text = format!("{head}{BEGIN}\n{}{END}{tail}", table(booted));
    fs::write(page, text).with_context(|| page.display().to_string())
}

/// One row per kernel and hook, and below them what failed.
pub fn table(booted: &[Booted]) -> String {
    let mut text = String::from(
        "| kernel | hook | verified instructions | stack by 32 / 16 | load, s | result |\n|---|---|---|---|---|---|\n",
    );
    // What is about the whole boot is worth a row only if it failed.
    let is_shown = |row: &&Rounded| row.name != KERNEL || row.failures().next().is_some();
    let rows = || booted.iter().flat_map(|boot| boot.rows.iter().filter(is_shown).map(move |row| (boot, row)));
    for (boot, row) in rows() {
        let kernel = format!("{}{}", short(&boot.release), without(boot.jit));
        let load = row.load_seconds.map_or_else(|| "–".into(), |seconds| format!("{seconds:.1}"));
        let (verified, stack) = (verified(row), stack(booted, boot, row));
        _ = writeln!(text, "| {kernel} | {} | {verified} | {stack} | {load} | {} |", row.name, result(row));
    }
    let failures: Vec<_> =
        rows().flat_map(|(boot, row)| row.failures().map(move |failure| (boot, row, failure))).collect();
    if !failures.is_empty() {
        text += "\n| kernel | hook | failed | why |\n|---|---|---|---|\n";
        for (boot, row, (name, why)) in failures {
            let kernel = format!("{}{}", short(&boot.release), without(boot.jit));
            _ = writeln!(text, "| {kernel} | {} | {name} | {} |", row.name, in_a_cell(why));
        }
    }
    text += &by_function(booted);
    _ = writeln!(text, "\nWritten by `cargo xtask kernels` with evenkeel {}.", env!("CARGO_PKG_VERSION"));
    text
}

fn short(release: &str) -> &str {
    release.strip_suffix("-cloud-amd64").unwrap_or(release)
}

/// The program of a row: frames pass through it.
fn program(row: &Rounded) -> &'static str {
    if row.name.starts_with("xdp") { "xdp" } else { "tc" }
}

fn verified(row: &Rounded) -> String {
    row.verified.get(program(row)).map_or_else(|| "–".into(), |count| in_thousands(*count))
}

/// The deepest chain of the row's program. The same with and without the JIT: the kernel's rounding
/// differs, not the frames.
fn stack(booted: &[Booted], boot: &Booted, row: &Rounded) -> String {
    let name = format!("evenkeel_{}", program(row));
    let mut programs = booted.iter().filter(|other| other.release == boot.release).flat_map(|boot| &boot.programs);
    let measured = programs.find(|measured| measured.name == name);
    measured.map_or_else(|| "–".into(), |measured| format!("{} / {}", measured.stack[0], measured.stack[1]))
}

/// The functions that cost most, on each kernel.
fn by_function(booted: &[Booted]) -> String {
    let mut text = String::new();
    for (boot, measured) in booted.iter().flat_map(|boot| boot.programs.iter().map(move |it| (boot, it))) {
        if text.is_empty() {
            text += "\n| kernel | program | its costliest functions, verified instructions |\n|---|---|---|\n";
        }
        let functions = measured.functions.iter().take(COSTLIEST);
        let functions: Vec<_> = functions.map(|(name, count)| format!("{name} {}", in_thousands(*count))).collect();
        _ = writeln!(text, "| {} | {} | {} |", short(&boot.release), measured.name, functions.join(", "));
    }
    text
}

/// `107,813`
fn in_thousands(count: u32) -> String {
    let digits = count.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

fn result(row: &Rounded) -> String {
    let failures: Vec<_> = row.failures().map(|(name, _)| name).collect();
    if !failures.is_empty() {
        return format!("**failed**: {}", failures.join(", "));
    }
    match row.checks.as_slice() {
        [(_, Outcome::Absent(why))] => in_a_cell(why),
        // The only check of a kernel that is too old.
        [(name, Outcome::Ok(seen))] if name.starts_with("refused") => format!("refused: {}", in_a_cell(seen)),
        checks => format!("ok, {} checks", checks.len()),
    }
}

/// Text that does not end the cell, and not too much of it.
fn in_a_cell(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let is_long = words.chars().count() > LONGEST;
    if is_long { words.chars().take(LONGEST).chain(['…']).collect() } else { words }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_row_says_what_failed_and_the_reason_stays_in_its_cell() {
        let failed = ("stop leaves nothing".to_owned(), Outcome::Failed("pins:\na | b".to_owned()));
        let verified = BTreeMap::from([("tc".to_owned(), 107_813), ("xdp".to_owned(), 999)]);
        let checks = vec![("hook".to_owned(), Outcome::Ok("tcx".to_owned())), failed];
        let row = Rounded { name: "tcx".into(), load_seconds: Some(4.25), verified, checks };
        let booted =
            [Booted { release: "6.1.0-57-cloud-amd64".into(), jit: false, programs: Vec::new(), rows: vec![row] }];
        let text = table(&booted);
        assert!(
            text.contains("| 6.1.0-57, JIT off | tcx | 107,813 | – | 4.2 | **failed**: stop leaves nothing |\n"),
            "{text}"
        );
        assert!(text.contains("| 6.1.0-57, JIT off | tcx | stop leaves nothing | pins: a \\| b |\n"), "{text}");
    }
}
