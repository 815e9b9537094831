//! What a daemon that has ended leaves behind: a program that goes on, perhaps addresses, files. And
//! its removal without a daemon.

use std::{
    fs,
    io::{self, ErrorKind},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{
    config::{self, Config},
    dataplane,
    sys::{netdev, netlink::Addresses},
    vrrp::placing::{self, Step},
};

/// The lock of `state_dir`, in which the daemon writes where its configuration is.
const LOCK: &str = "lock";
/// Every file that a daemon writes into `state_dir`.
const FILES: [&str; 8] = [
    "control.sock",
    "admin.json",
    "admin.json.new",
    "admin.json.bad",
    "given-away.json",
    "given-away.json.new",
    "verifier.log",
    LOCK,
];

/// What was found, and removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Detached {
    /// The interfaces that had a program.
    pub interfaces: Vec<String>,
    /// The addresses of `[[vrrp]]` that were on an interface.
    pub addresses: Vec<IpAddr>,
    /// The files.
    pub files: Vec<PathBuf>,
}

/// What an ended daemon has left on interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// Its configuration.
    pub config: PathBuf,
    /// The interfaces with its program.
    pub interfaces: Vec<String>,
}

/// Notes for commands that find no daemon which configuration this one has.
pub fn note(state_dir: &Path, config: &Path) -> Result<()> {
    let path = state_dir.join(LOCK);
    let config = std::path::absolute(config)?;
    fs::write(&path, format!("{}\n", config.display())).with_context(|| format!("cannot write {}", path.display()))
}

/// What the daemon of a control socket has left on interfaces. `None` if nothing is known of it, or it
/// may not be looked at.
pub fn of(socket: &Path) -> Option<Remains> {
    let noted = fs::read_to_string(socket.parent()?.join(LOCK)).ok()?;
    let config = PathBuf::from(noted.trim_end());
    let bpffs = config::load(&config).ok()?.config.daemon.bpffs;
    let interfaces = dataplane::left_in(&bpffs).ok()?;
    (!interfaces.is_empty()).then_some(Remains { config, interfaces })
}

/// Removes what a daemon with this configuration has left: addresses first, for with the program gone
/// and the address there, the host itself would reset every connection.
pub fn detach(config: &Config) -> Result<Detached> {
    let (socket, bpffs) = (config.daemon.socket(), &config.daemon.bpffs);
    ensure!(
        UnixStream::connect(&socket).is_err(),
        "the daemon runs: `evenkeel stop --detach --socket {}` ends it and detaches",
        socket.display()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let addresses = runtime.block_on(remove_addresses(config))?;
    let interfaces = dataplane::left_in(bpffs)?;
    dataplane::detach_left_behind(bpffs)?;
    config.vrrp.iter().for_each(|instance| dataplane::detach_filters(&instance.interface));
    let files = remove_files(&config.daemon.state_dir)?;
    Ok(Detached { interfaces, addresses, files })
}

async fn remove_addresses(config: &Config) -> Result<Vec<IpAddr>> {
    let known = Addresses::open()?;
    let mut removed = Vec::new();
    for instance in &config.vrrp {
        let Ok(ifindex) = netdev::index_of(&instance.interface) else { continue };
        let placed = known.on(ifindex).await?;
        for address in instance.addresses.iter().map(ipnet::IpNet::addr) {
            for step in placing::to_release(&placed, address) {
                if let Step::TakeOff(address) = step {
                    known.remove(ifindex, address).await?;
                    removed.push(address.addr());
                }
            }
        }
    }
    Ok(removed)
}

/// Removes the files of an ended daemon, and the folder if nothing else is in it.
pub fn remove_files(state_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for path in FILES.map(|name| state_dir.join(name)) {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
    }
    match fs::remove_dir(state_dir) {
        // Somebody else's files are in it, or it is somebody else's: systemd makes it for a unit.
        Err(error) if !is_kept(&error) => Err(error).with_context(|| format!("cannot remove {}", state_dir.display())),
        _ => Ok(removed),
    }
}

fn is_kept(error: &io::Error) -> bool {
    use ErrorKind::{DirectoryNotEmpty, NotFound, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    matches!(error.kind(), DirectoryNotEmpty | NotFound | PermissionDenied | ReadOnlyFilesystem | ResourceBusy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_daemon_go_and_those_of_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        FILES.iter().for_each(|name| fs::write(state.join(name), "").unwrap());
        fs::write(state.join("notes.txt"), "").unwrap();
        assert_eq!(remove_files(&state).unwrap().len(), FILES.len());
        assert!(state.join("notes.txt").exists());
        fs::remove_file(state.join("notes.txt")).unwrap();
        assert_eq!(remove_files(&state).unwrap(), Vec::<PathBuf>::new());
        assert!(!state.exists());
        assert_eq!(remove_files(&state).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_daemon_that_runs_is_not_detached_from() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("evenkeel.toml");
        fs::write(&file, format!("[daemon]\nstate_dir = \"{}\"\n", folder.path().display())).unwrap();
        let config = config::load(&file).unwrap().config;
        let _listener = std::os::unix::net::UnixListener::bind(config.daemon.socket()).unwrap();
        assert!(detach(&config).unwrap_err().to_string().starts_with("the daemon runs: `evenkeel stop --detach"));
        assert!(config.daemon.socket().exists());
    }
}
