//! An FRR that speaks both dialects of VRRP version 3's checksum.
//!
//! The option came with FRR 8.5, and Debian 12 has 8.4. There, setup unpacks Debian 13's FRR with
//! its libraries next to the system's and leaves the system alone; both use the users that the
//! system's package has made.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use super::Outcome;
use crate::shell;

/// The path in Debian's package.
const SYSTEM: &str = "/usr/lib/frr/vrrpd";
const OPTION: &[u8] = b"checksum-with-ipv4-pseudoheader";
const RELEASE: &str = "trixie";
/// FRR and all that it is linked with, down to the C library.
const PACKAGES: [&str; 22] = [
    "frr",
    "libatomic1",
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcares2",
    "libcrypt1",
    "libelf1t64",
    "libgcc-s1",
    "libjson-c5",
    "liblua5.3-0",
    "liblzma5",
    "libpam0g",
    "libpcre2-8-0",
    "libprotobuf-c1",
    "libreadline8t64",
    "libtinfo6",
    "libunwind8",
    "libxxhash0",
    "libyang3",
    "zlib1g",
];

pub fn provide() -> Result<Outcome> {
    if knows_the_option(Path::new(SYSTEM)) {
        return Ok(Outcome::Found(SYSTEM.into()));
    }
    let root = shell::tools().join("frr");
    let vrrpd = root.join(&SYSTEM[1..]);
    if knows_the_option(&vrrpd) {
        return Ok(Outcome::Found(vrrpd.display().to_string()));
    }
    println!("unpacking Debian {RELEASE}'s FRR ...");
    let download = shell::tools().join("download");
    // An earlier run may have left an unfinished one.
    _ = fs::remove_dir_all(&download);
    let unpacked = download.join("root");
    let taken = take(&download, &unpacked);
    // Renamed at the end: a broken download never looks like an FRR.
    let moved = taken.and_then(|()| fs::rename(&unpacked, &root).with_context(|| root.display().to_string()));
    _ = fs::remove_dir_all(&download);
    moved?;
    if !knows_the_option(&vrrpd) {
        bail!("{RELEASE}'s FRR was unpacked, but {} does not know the option", vrrpd.display());
    }
    Ok(Outcome::Installed(format!("{}, from Debian {RELEASE}'s package", vrrpd.display())))
}

fn knows_the_option(vrrpd: &Path) -> bool {
    fs::read(vrrpd).is_ok_and(|bytes| bytes.windows(OPTION.len()).any(|window| window == OPTION))
}

/// Downloads with separate package lists; the system's stay as they are.
fn take(download: &Path, unpacked: &Path) -> Result<()> {
    let (lists, packages) = (download.join("lists"), download.join("packages"));
    for folder in [&lists.join("partial"), &packages, &unpacked.to_owned()] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let sources = download.join("sources.list");
    fs::write(&sources, format!("deb http://deb.debian.org/debian {RELEASE} main\n"))?;
    let options = [
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "Dir::Etc::sourceparts=/dev/null".into(),
        format!("Dir::State::lists={}", lists.display()),
        format!("Dir::Cache={}", download.display()),
        "APT::Sandbox::User=root".into(),
    ];
    let apt = |args: &[&str]| {
        let mut apt = shell::command("apt-get", &["-qq"]);
        options.iter().for_each(|option| _ = apt.args(["-o", option]));
        shell::run_quietly(apt.args(args).current_dir(&packages)).map(drop)
    };
    apt(&["update"])?;
    apt(&[&["download"], &PACKAGES[..]].concat())?;
    for package in fs::read_dir(&packages)? {
        let package = package?.path();
        shell::run_quietly(shell::command("dpkg-deb", &["--extract"]).arg(&package).arg(unpacked))?;
    }
    Ok(())
}
