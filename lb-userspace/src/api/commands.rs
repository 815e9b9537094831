//! The routes of the commands that act (see [`admin`](super::admin)), and the user behind a
//! request.

use std::fmt;

use axum::{
    Json, Router,
    extract::{ConnectInfo, Path, State, connect_info::Connected, rejection::JsonRejection},
    http::StatusCode,
    response::Response,
    routing::post,
    serve::IncomingStream,
};
use serde::Serialize;
use tokio::net::UnixListener;

use super::{
    admin::{Drain, Failover, Kill, Maint, Ready, Rebalance, Set},
    request::{Order, Reply, Request},
    routes::{Daemon, failure, outcome},
    types::Refused,
};

/// The process at the other end of the control socket, according to the kernel (SO_PEERCRED).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user's number, if the kernel knows it.
    pub uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Peer {
        Peer { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "uid {uid}"),
            None => f.write_str("an unknown user"),
        }
    }
}

/// The routes of all commands. They need the connection's [`Peer`].
pub fn routes() -> Router<Daemon> {
    Router::new()
        .route("/api/v1/drain", post(drain))
        .route("/api/v1/maint", post(maint))
        .route("/api/v1/ready", post(ready))
        .route("/api/v1/set", post(set))
        .route("/api/v1/kill", post(kill))
        .route("/api/v1/rebalance", post(rebalance))
        .route("/api/v1/failover", post(failover))
        .route("/api/v1/tasks/{id}/stop", post(stop_task))
}

/// The body of a request, if it is valid.
type Asked<T> = Result<Json<T>, JsonRejection>;
type From = ConnectInfo<Peer>;
type Answer = Result<Response, Response>;

/// Passes a command to the daemon.
async fn order<A, T: Serialize>(
    daemon: &Daemon,
    ConnectInfo(peer): From,
    asked: Asked<A>,
    order: impl FnOnce(A, Reply<Result<T, Refused>>) -> Order,
) -> Answer {
    let Json(asked) = asked.map_err(|error| failure(StatusCode::BAD_REQUEST, &error.body_text()))?;
    daemon.ask(|reply| Request::Order(order(asked, reply), peer)).await.map(outcome)
}

async fn drain(State(daemon): State<Daemon>, from: From, asked: Asked<Drain>) -> Answer {
    order(&daemon, from, asked, Order::Drain).await
}

async fn maint(State(daemon): State<Daemon>, from: From, asked: Asked<Maint>) -> Answer {
    order(&daemon, from, asked, Order::Maint).await
}

async fn ready(State(daemon): State<Daemon>, from: From, asked: Asked<Ready>) -> Answer {
    order(&daemon, from, asked, Order::Ready).await
}

async fn set(State(daemon): State<Daemon>, from: From, asked: Asked<Set>) -> Answer {
    order(&daemon, from, asked, Order::Set).await
}

async fn kill(State(daemon): State<Daemon>, from: From, asked: Asked<Kill>) -> Answer {
    order(&daemon, from, asked, Order::Kill).await
}

async fn rebalance(State(daemon): State<Daemon>, from: From, asked: Asked<Rebalance>) -> Answer {
    order(&daemon, from, asked, Order::Rebalance).await
}

async fn failover(State(daemon): State<Daemon>, from: From, asked: Asked<Failover>) -> Answer {
    order(&daemon, from, asked, Order::Failover).await
}

async fn stop_task(State(daemon): State<Daemon>, from: From, Path(id): Path<u64>) -> Answer {
    order(&daemon, from, Ok(Json(id)), Order::StopTask).await
}
