//! The routes. They know how to ask, and nothing else: every answer comes from the daemon.
//!
//! [`reading`] are those that change nothing, [`all`] has those that act on the daemon as well.

use super::TOTAL_HEADER;
use super::orders;
use super::request::{Conns, ConnsFilter, EventsFilter, Reply, Request};
use super::types::{Event, Refused};
use crate::notice::History;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A request that the daemon has not answered by then gets 503. Detaching and reloading are done in far less.
const ANSWER_WITHIN: Duration = Duration::from_secs(9);

/// The daemon as the routes see it.
#[derive(Clone)]
pub struct Daemon {
    /// The queue of its loop.
    pub requests: mpsc::Sender<Request>,
    /// What there is to `evenkeel events`; needs no loop.
    pub history: Arc<History>,
}

/// Routes that change nothing.
fn reading() -> Router<Daemon> {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/backends", get(backends))
        .route("/api/v1/conns", get(conns))
        .route("/api/v1/counters", get(counters))
        .route("/api/v1/events", get(events))
        .route("/api/v1/admin", get(in_force))
        .route("/api/v1/tasks/{id}", get(task))
}

/// Every route: for the control socket, whose mode says who may use it.
pub fn all(daemon: Daemon) -> Router {
    let router = reading().route("/api/v1/reload", post(reload)).route("/api/v1/stop", post(stop));
    finish(router.merge(orders::routes()), daemon)
}

fn finish(router: Router<Daemon>, daemon: Daemon) -> Router {
    router
        .fallback(async || failure(StatusCode::NOT_FOUND, "there is no such resource"))
        .method_not_allowed_fallback(async || {
            failure(StatusCode::METHOD_NOT_ALLOWED, "this resource has another method")
        })
        .with_state(daemon)
}

impl Daemon {
    /// Asks the daemon and waits for the answer, but not for ever.
    pub async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Response> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .try_send(request(reply))
            .map_err(|_| failure(StatusCode::SERVICE_UNAVAILABLE, "the daemon is busy or about to end: try again"))?;
        match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(failure(StatusCode::SERVICE_UNAVAILABLE, "the daemon is about to end")),
            Err(_) => Err(failure(StatusCode::SERVICE_UNAVAILABLE, "the daemon did not answer in time: see its log")),
        }
    }
}

pub fn failure(status: StatusCode, what: &str) -> Response {
    (status, Json(Refused { errors: vec![what.into()] })).into_response()
}

/// 200 with what was done, or 409 with why nothing was.
pub fn outcome<T: Serialize>(outcome: Result<T, Refused>) -> Response {
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

async fn in_force(State(daemon): State<Daemon>) -> Result<Response, Response> {
    Ok(Json(daemon.ask(Request::InForce).await?).into_response())
}

async fn task(State(daemon): State<Daemon>, Path(id): Path<u64>) -> Result<Response, Response> {
    daemon.ask(|reply| Request::Task(id, reply)).await.map(outcome)
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

/// What there is, or (`follow`) line by line what comes as well, until the daemon or the reader ends.
async fn events(
    State(daemon): State<Daemon>,
    filter: Result<Query<EventsFilter>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(filter) = filter.map_err(|error| failure(StatusCode::BAD_REQUEST, &error.body_text()))?;
    let mut events = daemon.history.after(filter.after);
    let hidden = events.len().saturating_sub(filter.limit.unwrap_or(usize::MAX));
    events.drain(..hidden);
    if !filter.follow {
        return Ok(Json(events).into_response());
    }
    let last = events.last().map_or(filter.after, |event| event.number);
    let first = lines(&events);
    let more = stream::unfold((daemon.history, last), async |(history, last)| {
        let events = history.wait(last).await?;
        let last = events.last().map_or(last, |event| event.number);
        Some((lines(&events), (history, last)))
    });
    let body = stream::StreamExt::chain(stream::iter([first]), more);
    let body = Body::from_stream(stream::StreamExt::map(body, Ok::<_, Infallible>));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// A line of JSON each.
fn lines(events: &[Arc<Event>]) -> Bytes {
    let mut text = Vec::new();
    for event in events {
        // Strings and numbers can always be written.
        _ = serde_json::to_writer(&mut text, event);
        text.push(b'\n');
    }
    text.into()
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
