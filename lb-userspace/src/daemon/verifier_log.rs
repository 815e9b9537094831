//! What the kernel's verifier said of a program that it refused: thousands of lines, for a file and
//! not for the terminal.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::anyhow;

use crate::dataplane::Refusal;

const NAME: &str = "verifier.log";

/// Puts the verifier's log, if the error carries one, into a file in `state_dir`, and says where it
/// is. The log of an earlier refusal gives way.
pub fn kept(error: anyhow::Error, state_dir: &Path) -> anyhow::Error {
    let Some(refusal) = error.downcast_ref::<Refusal>().filter(|refusal| !refusal.log.is_empty()) else {
        return error;
    };
    let place = state_dir.join(NAME);
    match write(&place, &refusal.log) {
        Ok(()) => anyhow!("{refusal}. The verifier's log is in {}", place.display()),
        Err(error) => anyhow!("{refusal}. The verifier's log cannot be written to {}: {error}", place.display()),
    }
}

/// A new file each time: what was there may belong to somebody else, or be readable by others.
fn write(place: &Path, log: &str) -> io::Result<()> {
    match fs::remove_file(place) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(place)?.write_all(log.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn refusal(log: &str) -> anyhow::Error {
        Refusal { text: "the kernel refuses it".into(), log: log.into() }.into()
    }

    #[test]
    fn the_log_is_in_a_file_of_its_owner_alone_and_replaces_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join(NAME);
        fs::write(&place, "of yesterday, and longer").unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o644)).unwrap();
        let told = kept(refusal("0: (b7) r0 = 2"), folder.path()).to_string();
        assert_eq!(told, format!("the kernel refuses it. The verifier's log is in {}", place.display()));
        assert_eq!(fs::read_to_string(&place).unwrap(), "0: (b7) r0 = 2");
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_log_that_cannot_be_written_is_no_reason_to_keep_the_refusal_back() {
        let told = kept(refusal("0: (95) exit"), Path::new("/proc/self/no/such/folder")).to_string();
        assert!(told.starts_with("the kernel refuses it. The verifier's log cannot be written to /proc/"), "{told}");
        assert!(told.ends_with("No such file or directory (os error 2)"), "{told}");
    }

    #[test]
    fn without_a_log_there_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(kept(refusal(""), folder.path()).to_string(), "the kernel refuses it");
        assert_eq!(kept(anyhow!("another error"), folder.path()).to_string(), "another error");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
