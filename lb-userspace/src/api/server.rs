//! The control socket: its lock and its permissions.

use std::{
    fs::{File, Permissions},
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::sync::oneshot;

use super::{
    commands::Peer,
    routes::{self, Daemon},
};
use crate::{handover::Predecessor, sys::lock};

/// How long current answers may still take when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a successor waits for a daemon that no longer listens to end.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// A daemon's control socket. A lock guards it, so that there is one daemon per `state_dir`.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Released when the process ends, even by SIGKILL.
    lock: File,
}

impl Server {
    /// Locks the folder of the socket for this process and opens the socket. A daemon does this
    /// first, before it touches the datapath.
    pub fn bind(socket: &Path, group: &str) -> Result<Server> {
        let folder = socket.parent().context("the socket has no folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let lock = lock(folder, socket)?;
        // The lock was free, so the process that listened here is dead.
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot replace {}", socket.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(socket).with_context(|| format!("cannot open {}", socket.display()))?;
        if let Some(gid) = group_id(group) {
            std::os::unix::fs::chown(socket, None, Some(gid))
                .with_context(|| format!("cannot give {} to the group {group}", socket.display()))?;
        }
        std::fs::set_permissions(socket, Permissions::from_mode(0o660))
            .with_context(|| format!("cannot set the mode of {}", socket.display()))?;
        Ok(Server { listener, path: socket.into(), lock })
    }

    /// Takes the socket and the lock over from a daemon that hands over.
    pub fn inherit(socket: &Path, predecessor: &mut Predecessor) -> Result<Server> {
        let listener = predecessor.take_socket(CONTROL, socket)?;
        let lock = predecessor.take(LOCK)?.into();
        Ok(Server { listener, path: socket.into(), lock })
    }

    /// The descriptors that [`inherit`](Self::inherit) takes over.
    pub fn inheritance(&self) -> std::io::Result<Vec<(&'static str, OwnedFd)>> {
        Ok(vec![(CONTROL, self.listener.try_clone()?.into()), (LOCK, self.lock.try_clone()?.into())])
    }

    /// Serves until `shutdown` and then finishes current answers. The socket stays: clients that
    /// connect after that wait for the next daemon. Must be called within a tokio runtime.
    pub fn serve<F: Future<Output = ()> + Send + 'static>(
        &self,
        daemon: Daemon,
        shutdown: F,
    ) -> Result<impl Future<Output = Result<()>> + Send + use<F>> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let routes = routes::all(daemon).into_make_service_with_connect_info::<Peer>();
        let serving = axum::serve(tokio::net::UnixListener::from_std(listener)?, routes);
        let (begun, ending) = oneshot::channel::<()>();
        let signal = async move {
            shutdown.await;
            drop(begun);
        };
        // A client that is connected but silent must not keep the daemon from stopping.
        let patience = async {
            let _ = ending.await;
            tokio::time::sleep(FAREWELL).await;
        };
        Ok(async move {
            tokio::select! {
                served = serving.with_graceful_shutdown(signal) => served.context("control socket"),
                () = patience => Ok(()),
            }
        })
    }

    /// Removes the socket, then releases the lock.
    pub fn remove(self) -> Result<()> {
        match std::fs::remove_file(&self.path) {
            // Somebody has done so: the folder was cleaned.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.with_context(|| format!("cannot remove {}", self.path.display())),
        }
    }
}

/// The names of the descriptors that are handed over.
const CONTROL: &str = "control";
const LOCK: &str = "lock";

/// Locks the folder for this process; waits a short time for a daemon that is stopping.
fn lock(folder: &Path, socket: &Path) -> Result<File> {
    let path = folder.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path);
    let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
    let listens = || UnixStream::connect(socket).is_ok();
    let is_ours =
        lock::exclusive(&lock, PREDECESSOR, listens).with_context(|| format!("cannot lock {}", path.display()))?;
    if !is_ours {
        bail!(
            "another evenkeel runs with state_dir {0}: stop it first (evenkeel stop --socket {1}), \
             or use another state_dir for this one",
            folder.display(),
            socket.display()
        );
    }
    Ok(lock)
}

/// The group's number; `None` if there is no such group, in which case only root may use the
/// socket.
fn group_id(group: &str) -> Option<u32> {
    nix::unistd::Group::from_name(group).ok().flatten().map(|group| group.gid.as_raw())
}
