//! The control socket: who holds it, and who may open it.

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

/// How long answers under way may still take when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a daemon that no longer listens may take to end, before its successor gives up.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// The socket of a daemon. It is held by a lock, so that there is one daemon to a `state_dir`.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Unlocked when it is dropped, even by SIGKILL.
    lock: File,
}

impl Server {
    /// Takes the folder of the socket for this process and opens the socket: the first thing a daemon does, before it
    /// touches the datapath.
    pub fn bind(socket: &Path, group: &str) -> Result<Server> {
        let folder = socket.parent().context("the socket has no folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = lock(folder, socket)?;
        // Whoever listened here is dead: the lock was free.
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

    /// The same from a daemon that hands over: its socket goes on, and so does the lock.
    pub fn inherit(socket: &Path, predecessor: &mut Predecessor) -> Result<Server> {
        let listener = predecessor.take_socket(CONTROL, socket)?;
        let lock = predecessor.take(LOCK)?.into();
        Ok(Server { listener, path: socket.into(), lock })
    }

    /// What [`inherit`](Self::inherit) takes.
    pub fn inheritance(&self) -> std::io::Result<Vec<(&'static str, OwnedFd)>> {
        Ok(vec![(CONTROL, self.listener.try_clone()?.into()), (LOCK, self.lock.try_clone()?.into())])
    }

    /// Serves until `shutdown`, and finishes the answers under way. The socket stays: who connects then waits for the next
    /// one to serve. Must be called within a tokio runtime.
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
        // A client that connected and says nothing must not keep the daemon from ending.
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

    /// Nobody serves here any more: removes the socket, and then lets the folder go.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

/// The names of what is handed over.
const CONTROL: &str = "control";
const LOCK: &str = "lock";

/// Locks the folder for this process; waits a little for a daemon that is ending.
fn lock(folder: &Path, socket: &Path) -> Result<File> {
    let path = folder.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path);
    let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
    let listens = || UnixStream::connect(socket).is_ok();
    let is_ours =
        lock::exclusive(&lock, PREDECESSOR, listens).with_context(|| format!("cannot lock {}", path.display()))?;
    if !is_ours {
        bail!(
            "another evenkeel runs with state_dir {0}: end it first (evenkeel stop --socket {1}), \
             or give this one a state_dir of its own",
            folder.display(),
            socket.display()
        );
    }
    Ok(lock)
}

/// The group's number; nothing if there is no such group, then the socket is root's alone.
fn group_id(group: &str) -> Option<u32> {
    nix::unistd::Group::from_name(group).ok().flatten().map(|group| group.gid.as_raw())
}
