//! Debian's kernels: what the package registry has, and what was fetched before.
//!
//! apt gets its own lists and sources; the machine's stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};

use crate::process;

/// The distributions whose kernels are looked at: suites of the main archive and of the security
/// archive.
const SUITES: [&str; 6] = ["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid"];
const SECURITY_SUITES: [&str; 3] = ["bullseye-security", "bookworm-security", "trixie-security"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What comes before and after a kernel's name. This flavour has no drivers of real cards, and all
/// that the checks use.
const PREFIX: &str = "linux-image-";
const FLAVOUR: &str = "-cloud-amd64";
/// A kernel is in one package, or newer ones in four.
const PARTS: [&str; 4] = ["image", "base", "binary", "modules"];
/// Lists that are younger are not fetched again.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// A kernel's name: `6.1.0-57-cloud-amd64`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(pub String);

impl Name {
    fn parse(package: &str) -> Option<Name> {
        let name = package.strip_prefix(PREFIX)?;
        let is_kernel = name.ends_with(FLAVOUR) && numbers(name).len() > 3;
        is_kernel.then(|| Name(name.to_owned()))
    }

    /// `[6, 1]`
    pub fn series(&self) -> [u64; 2] {
        let numbers = numbers(&self.0);
        [numbers[0], numbers[1]]
    }

    /// What people call it.
    pub fn short(&self) -> &str {
        self.0.strip_suffix(FLAVOUR).unwrap_or(&self.0)
    }
}

fn is_image(file: &Path) -> bool {
    file.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX))
}

/// All numbers in a version, in their order: a newer kernel's compare greater.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn newest(names: impl IntoIterator<Item = Name>) -> Option<Name> {
    names.into_iter().max_by_key(|name| numbers(&name.0))
}

/// The kernels below a folder, and the registry's.
pub struct Registry {
    folder: PathBuf,
    /// What the registry has; `None` until somebody asks.
    listed: Option<Vec<Name>>,
}

impl Registry {
    pub fn new(folder: &Path) -> Result<Registry> {
        let registry = Registry { folder: std::path::absolute(folder)?, listed: None };
        for folder in [registry.debs(), registry.lists().join("partial")] {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        Ok(registry)
    }

    fn debs(&self) -> PathBuf {
        self.folder.join("debs")
    }

    fn lists(&self) -> PathBuf {
        self.folder.join("apt/lists")
    }

    /// The newest kernel of a series (`6.1`), or the one with this name. One that was fetched
    /// before is taken without asking the registry.
    pub fn find(&mut self, wanted: &str) -> Result<Option<Name>> {
        let is_wanted = |name: &Name| {
            name.0 == wanted || name.short() == wanted || numbers(wanted) == name.series() && !wanted.contains('-')
        };
        if let Some(found) = newest(self.fetched()?.into_iter().filter(is_wanted)) {
            return Ok(Some(found));
        }
        Ok(newest(self.listed()?.iter().filter(|name| is_wanted(name)).cloned()))
    }

    /// The newest kernels of the newest `count` series. Without a network: of those that were
    /// fetched before.
    pub fn newest_series(&mut self, count: usize) -> Result<Vec<Name>> {
        let all = match self.listed() {
            Ok(listed) => listed.to_vec(),
            Err(error) => {
                println!("the newest of the kernels that were fetched before: {error:#}");
                self.fetched()?
            }
        };
        let mut series: Vec<_> = all.iter().map(Name::series).collect();
        series.sort_unstable();
        series.dedup();
        let last = &series[series.len().saturating_sub(count)..];
        let of = |series| newest(all.iter().filter(|name| name.series() == series).cloned());
        Ok(last.iter().filter_map(|series| of(*series)).collect())
    }

    fn fetched(&self) -> Result<Vec<Name>> {
        let files = fs::read_dir(self.debs())?.flatten().filter_map(|file| file.file_name().into_string().ok());
        Ok(files.filter_map(|file| Name::parse(file.split('_').next()?)).collect())
    }

    /// The packages of a kernel, fetched if they are not there.
    pub fn packages(&mut self, name: &Name) -> Result<Vec<PathBuf>> {
        let found = self.packages_of(name)?;
        if !found.is_empty() {
            return Ok(found);
        }
        println!("fetching {} ...", name.0);
        self.listed()?;
        let wanted = PARTS.map(|part| format!("linux-{part}-{}", name.0));
        // Prints nothing about a package that others only name.
        let has = |package: &&String| {
            self.apt("apt-cache", &["madison", package.as_str()]).is_ok_and(|shown| !shown.trim().is_empty())
        };
        let wanted: Vec<_> = wanted.iter().filter(has).map(String::as_str).collect();
        // Moved when all of it is there: what was left unfinished never looks like a package.
        let part = self.folder.join("part");
        _ = fs::remove_dir_all(&part);
        fs::create_dir_all(&part)?;
        self.apt("apt-get", &[&["download"], &wanted[..]].concat())
            .with_context(|| format!("kernel {} cannot be fetched", name.0))?;
        // The image comes last: a kernel without one does not count as fetched.
        let mut files: Vec<_> = fs::read_dir(&part)?.flatten().collect();
        files.sort_by_key(|file| is_image(&file.path()));
        for file in files {
            fs::rename(file.path(), self.debs().join(file.file_name()))?;
        }
        fs::remove_dir(&part)?;
        self.packages_of(name)
    }

    fn packages_of(&self, name: &Name) -> Result<Vec<PathBuf>> {
        let files = fs::read_dir(self.debs())?.flatten().map(|file| file.path());
        let is_ours = |file: &PathBuf| {
            let package = file.file_name().and_then(|file| file.to_str()?.split('_').next());
            PARTS.iter().any(|part| package == Some(format!("linux-{part}-{}", name.0).as_str()))
        };
        let files: Vec<_> = files.filter(is_ours).collect();
        Ok(if files.iter().any(|file| is_image(file)) { files } else { Vec::new() })
    }

    /// What the registry has.
    fn listed(&mut self) -> Result<&[Name]> {
        if self.listed.is_none() {
            let updated = self.update();
            let shown = self.apt("apt-cache", &["pkgnames", PREFIX])?;
            let listed: Vec<_> = shown.lines().filter_map(Name::parse).collect();
            match updated {
                Err(error) if listed.is_empty() => {
                    return Err(error.context(
                        "Debian's kernels cannot be listed, and no list of before is there: is there a network?",
                    ));
                }
                Err(_) => println!("not all of Debian's package lists can be fetched; what there is is used"),
                Ok(()) => {}
            }
            self.listed = Some(listed);
        }
        Ok(self.listed.as_deref().unwrap_or_default())
    }

    /// Fetches the package lists, unless they are fresh.
    fn update(&self) -> Result<()> {
        let stamp = self.folder.join("apt/updated");
        let age =
            fs::metadata(&stamp).ok().and_then(|file| SystemTime::now().duration_since(file.modified().ok()?).ok());
        if age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        let archive = |address: &str, suite: &str| {
            format!("deb [arch=amd64 signed-by={KEYRING}] http://deb.debian.org/{address} {suite} main\n")
        };
        let main = SUITES.iter().map(|suite| archive("debian", suite));
        let sources: String =
            main.chain(SECURITY_SUITES.iter().map(|suite| archive("debian-security", suite))).collect();
        fs::write(self.sources(), sources)?;
        println!("fetching Debian's package lists ...");
        self.apt("apt-get", &["update", "--error-on=any"])?;
        fs::write(&stamp, "").with_context(|| stamp.display().to_string())
    }

    fn sources(&self) -> PathBuf {
        self.folder.join("apt/sources.list")
    }

    fn apt(&self, program: &str, args: &[&str]) -> Result<String> {
        let mut apt = Command::new(program);
        let options = [
            format!("Dir::Etc::sourcelist={}", self.sources().display()),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("Dir::State::lists={}", self.lists().display()),
            // What is installed on this machine is not in the registry for that.
            "Dir::State::status=/dev/null".into(),
            format!("Dir::Cache={}", self.folder.join("apt").display()),
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
            "Acquire::http::Timeout=30".into(),
            "Acquire::Retries=1".into(),
        ];
        options.iter().for_each(|option| _ = apt.args(["-o", option]));
        process::output(apt.arg("-qq").args(args).current_dir(self.part()?))
    }

    /// Where packages arrive.
    fn part(&self) -> Result<PathBuf> {
        let part = self.folder.join("part");
        fs::create_dir_all(&part)?;
        Ok(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(&format!("linux-image-{text}-cloud-amd64")).unwrap()
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let all =
            ["6.1.0-9", "6.1.0-57", "6.1.0-0.deb11.52", "6.12.9+deb12", "6.12.117+deb12", "6.12.117+deb13"].map(name);
        assert_eq!(newest(all[..3].to_vec()), Some(name("6.1.0-57")));
        assert_eq!(newest(all.to_vec()), Some(name("6.12.117+deb13")));
        assert_eq!((name("6.1.0-57").series(), name("7.3.4+deb13").series()), ([6, 1], [7, 3]));
    }

    #[test]
    fn packages_without_a_whole_version_are_no_kernels() {
        for package in ["linux-image-6.1-cloud-amd64", "linux-image-cloud-amd64", "linux-image-6.1.0-57-amd64"] {
            assert_eq!(Name::parse(package), None, "{package}");
        }
    }
}
