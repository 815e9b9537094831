//! The control socket: who holds it, and who may open it.

use super::orders::Peer;
use super::routes::{self, Daemon};
use anyhow::{Context, Result, bail};
use std::fs::{File, Permissions, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// How long answers under way may still take when the daemon ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a daemon that no longer listens may take to end, before its successor gives up.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// The socket of a daemon, ready to be served. It is held by a lock, so that there is one daemon to a `state_dir`.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Unlocked when it is dropped, even by SIGKILL.
    _lock: File,
}

impl Server {
    /// Takes the folder of the socket for this process and opens the socket: the first thing a daemon does, before it
    /// touches the datapath. Must be called within a tokio runtime.
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
        Ok(Server { listener, path: socket.into(), _lock: lock })
    }

    /// Serves until `shutdown`, finishes the answers under way and removes the socket.
    pub async fn serve(self, daemon: Daemon, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<()> {
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
        let routes = routes::all(daemon).into_make_service_with_connect_info::<Peer>();
        let served = tokio::select! {
            served = axum::serve(self.listener, routes).with_graceful_shutdown(signal) => served,
            () = patience => Ok(()),
        };
        // Before the lock goes, so that it cannot be the next daemon's.
        let removed = std::fs::remove_file(&self.path);
        served.and(removed).with_context(|| format!("control socket {}", self.path.display()))
    }
}

/// Locks the folder for this process; waits a little for a daemon that is ending.
fn lock(folder: &Path, socket: &Path) -> Result<File> {
    let path = folder.join("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(&path);
    let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
    let began = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        if UnixStream::connect(socket).is_ok() || began.elapsed() > PREDECESSOR {
            bail!(
                "another evenkeel runs with state_dir {0}: end it first (evenkeel stop --socket {1}), \
                 or give this one a state_dir of its own",
                folder.display(),
                socket.display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The group's number; nothing if there is no such group, then the socket is root's alone.
fn group_id(group: &str) -> Option<u32> {
    nix::unistd::Group::from_name(group).ok().flatten().map(|group| group.gid.as_raw())
}
