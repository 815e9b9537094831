//! The daemon's side of the control socket. It knows the routes and nothing else: every answer comes from the daemon.

use super::TOTAL_HEADER;
use super::request::{Conns, ConnsFilter, Reply, Request};
use super::types::Refused;
use anyhow::{Context, Result, bail};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use std::fs::{File, Permissions, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

/// A request that the daemon has not answered by then gets 503. Detaching and reloading are done in far less.
const ANSWER_WITHIN: Duration = Duration::from_secs(9);

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
    pub async fn serve(
        self,
        requests: mpsc::Sender<Request>,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<()> {
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
        let served = tokio::select! {
            served = axum::serve(self.listener, routes(requests)).with_graceful_shutdown(signal) => served,
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

#[derive(Clone)]
struct Daemon(mpsc::Sender<Request>);

fn routes(requests: mpsc::Sender<Request>) -> Router {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/backends", get(backends))
        .route("/api/v1/conns", get(conns))
        .route("/api/v1/counters", get(counters))
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/stop", post(stop))
        .fallback(async || failure(StatusCode::NOT_FOUND, "there is no such resource"))
        .method_not_allowed_fallback(async || {
            failure(StatusCode::METHOD_NOT_ALLOWED, "this resource has another method")
        })
        .with_state(Daemon(requests))
}

impl Daemon {
    /// Asks the daemon and waits for the answer, but not for ever.
    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Response> {
        let (reply, answer) = oneshot::channel();
        self.0
            .try_send(request(reply))
            .map_err(|_| failure(StatusCode::SERVICE_UNAVAILABLE, "the daemon is busy or about to end: try again"))?;
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(failure(StatusCode::SERVICE_UNAVAILABLE, "the daemon is about to end")),
            Err(_) => Err(failure(StatusCode::SERVICE_UNAVAILABLE, "the daemon did not answer in time: see its log")),
        }
    }
}

fn failure(status: StatusCode, what: &str) -> Response {
    (status, Json(Refused { errors: vec![what.into()] })).into_response()
}

/// 200 with what was done, or 409 with why nothing was.
fn outcome<T: Serialize>(outcome: Result<T, Refused>) -> Response {
    match outcome {
        Ok(done) => Json(done).into_response(),
        Err(refused) => (StatusCode::CONFLICT, Json(refused)).into_response(),
    }
}

async fn status(State(daemon): State<Daemon>) -> Result<Response, Response> {
    Ok(Json(daemon.ask(Request::Status).await?).into_response())
}

async fn backends(State(daemon): State<Daemon>) -> Result<Response, Response> {
    Ok(Json(daemon.ask(Request::Backends).await?).into_response())
}

async fn counters(State(daemon): State<Daemon>) -> Result<Response, Response> {
    Ok(Json(daemon.ask(Request::Counters).await?).into_response())
}

async fn conns(
    State(daemon): State<Daemon>,
    filter: Result<Query<ConnsFilter>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(filter) = filter.map_err(|error| failure(StatusCode::BAD_REQUEST, &error.body_text()))?;
    let conns = daemon.ask(|reply| Request::Conns(filter, reply)).await?;
    // 100,000 rows take tens of milliseconds: not on the thread that serves the others.
    let written = tokio::task::spawn_blocking(move || write_conns(&conns)).await;
    written.map_err(|_| failure(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written"))
}

fn write_conns(conns: &Conns) -> Response {
    let body = match serde_json::to_vec(&conns.rows) {
        Ok(body) => body,
        Err(error) => return failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    };
    let json = (CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = ([json], body).into_response();
    response.headers_mut().insert(TOTAL_HEADER, HeaderValue::from(conns.total));
    response
}

async fn reload(State(daemon): State<Daemon>) -> Result<Response, Response> {
    daemon.ask(Request::Reload).await.map(outcome)
}

/// The query string of `/api/v1/stop`.
#[derive(Deserialize)]
struct Stop {
    #[serde(default)]
    detach: bool,
}

async fn stop(State(daemon): State<Daemon>, query: Result<Query<Stop>, QueryRejection>) -> Result<Response, Response> {
    let Query(Stop { detach }) = query.map_err(|error| failure(StatusCode::BAD_REQUEST, &error.body_text()))?;
    daemon.ask(|reply| Request::Stop { detach, reply }).await.map(outcome)
}
