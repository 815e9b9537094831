//! The paths of our own binaries and of the tools that `cargo xtask setup` installs.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// The release build of evenkeel, or the build of this program's profile.
pub fn evenkeel() -> Result<PathBuf> {
    ours("EVENKEEL_BIN", "evenkeel")
}

/// A different build of evenkeel: the debug build if ours is the release build, and the other way
/// round.
pub fn another_evenkeel() -> Result<PathBuf> {
    if let Some(path) = env::var_os("EVENKEEL_OTHER_BIN") {
        return Ok(path.into());
    }
    let ours = evenkeel()?;
    let target = ours.parent().and_then(Path::parent).context("no target folder")?;
    let other = if ours.parent().is_some_and(|profile| profile.ends_with("release")) { "debug" } else { "release" };
    let found = Some(target.join(other).join("evenkeel")).filter(|file| file.is_file());
    found.with_context(|| format!("no {other} build of evenkeel: `cargo build --package lb-userspace`"))
}

/// The binary of this package; stand-ins and clients are processes of it.
pub fn lab() -> Result<PathBuf> {
    ours("EVENKEEL_LAB_BIN", "evenkeel-lab")
}

/// A current kubectl.
pub fn kubectl() -> Result<PathBuf> {
    let kubectl = tools()?.join("kubectl");
    if !kubectl.is_file() {
        bail!("{} is missing: run `cargo xtask setup`", kubectl.display());
    }
    Ok(kubectl)
}

/// How to start one of FRR's programs: the words before its path, and the path. The system's own
/// needs no words; the unpacked one needs its loader and its libraries.
pub fn frr(program: &str) -> Result<(Vec<PathBuf>, PathBuf)> {
    let root = tools()?.join("frr");
    let place = Path::new("usr/lib/frr").join(program);
    if !root.is_dir() {
        return Ok((Vec::new(), Path::new("/").join(place)));
    }
    let libraries = root.join("usr/lib").join(format!("{}-linux-gnu", env::consts::ARCH));
    let loader = std::fs::read_dir(&libraries)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-linux-")));
    let own = libraries.join("frr");
    let path = format!("{}:{}", libraries.display(), own.display());
    let loader = loader.with_context(|| format!("no loader in {}", libraries.display()))?;
    Ok((vec![loader, "--library-path".into(), path.into()], root.join(place)))
}

fn tools() -> Result<PathBuf> {
    let target = |exe: &Path| exe.ancestors().find(|dir| dir.join("tools").is_dir()).map(|dir| dir.join("tools"));
    let tools = env::var_os("EVENKEEL_TOOLS").map(PathBuf::from).or_else(|| target(&env::current_exe().ok()?));
    tools.context("no tools folder: run `cargo xtask setup`")
}

fn ours(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let exe = env::current_exe()?;
    // target/PROFILE/evenkeel-lab, or for a test target/PROFILE/deps/it-HASH.
    let found = exe.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("{name} is not built beside {}: use `cargo xtask test` or `run`", exe.display()))
}
