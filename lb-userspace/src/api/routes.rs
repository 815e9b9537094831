//! The routes. They only pass questions on: every answer comes from the daemon.
//!
//! The routes of [`reading`] change nothing: `[api]` serves them to every client. [`all`] also has
//! the routes that act on the daemon.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{
    TOTAL_HEADER, commands,
    hosts::{self, Hosts},
    metrics::Metrics,
    page,
    report::Report,
    request::{Conns, ConnsFilter, EventsFilter, Reply, Request},
    trace::TraceQuery,
    types::{Meaning, Refused, meanings},
};
use crate::{notice::History, words::Event};

/// A request that the daemon does not answer within this time gets 503. Detaching and reloading
/// take far less.
const ANSWER_WITHIN: Duration = Duration::from_secs(9);
/// The same for an upgrade, which takes as long as the new daemon's start; its own limits are
/// shorter.
const UPGRADE_WITHIN: Duration = Duration::from_secs(60);

/// The loop must take a request within this time to count as alive.
const TURN_WITHIN: Duration = Duration::from_secs(2);
/// Age up to which one report answers several public requests, so that many requests cost no more
/// than a few.
const SHARED_FOR: Duration = Duration::from_millis(200);
/// Rows of `conns` for public requests: default and maximum.
const ROWS: (usize, usize) = (1000, 10_000);

/// The daemon as the routes see it.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The queue of its loop.
    pub requests: mpsc::Sender<Request>,
    /// The source of `evenkeel events`; needs no loop.
    pub history: Arc<History>,
    /// Renders `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For public requests: answers are limited and the last report is shared. Its lock lets only
    /// one of them ask at a time.
    shared: Option<Arc<Mutex<Shared>>>,
}

/// The last report for public requests, and when it was made.
type Shared = Option<(Instant, Arc<Report>)>;

impl Daemon {
    /// For requests that may do everything.
    pub fn new(requests: mpsc::Sender<Request>, history: Arc<History>) -> Daemon {
        Daemon { requests, history, metrics: Arc::default(), shared: None }
    }

    /// The same daemon for public requests.
    pub fn for_anybody(&self) -> Daemon {
        Daemon { shared: Some(Arc::default()), ..self.clone() }
    }
}

/// The routes that change nothing, for everybody who asks by one of the host's names.
pub fn reading(daemon: Daemon, hosts: Hosts) -> Router {
    finish(reading_routes(), daemon).layer(middleware::from_fn_with_state(Arc::new(hosts), hosts::check))
}

fn reading_routes() -> Router<Daemon> {
    Router::new()
        .route("/", get(page::page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/api/v1/status", get(status))
        .route("/api/v1/backends", get(backends))
        .route("/api/v1/conns", get(conns))
        .route("/api/v1/counters", get(counters))
        .route("/api/v1/vrrp", get(vrrp))
        .route("/api/v1/events", get(events))
        .route("/api/v1/reasons", get(reasons))
        .route("/api/v1/admin", get(in_force))
        .route("/api/v1/tasks/{id}", get(task))
}

/// Every route, for the control socket, whose file mode decides who may use it.
pub fn all(daemon: Daemon) -> Router {
    let router = reading_routes()
        .route("/api/v1/reload", post(reload))
        .route("/api/v1/upgrade", post(upgrade))
        .route("/api/v1/stop", post(stop))
        // Changes nothing, but runs the program and reveals rules, so it is not public.
        .route("/api/v1/trace", get(trace));
    finish(router.merge(commands::routes()), daemon)
}

fn finish(router: Router<Daemon>, daemon: Daemon) -> Router {
    router
        .fallback(async || failure(StatusCode::NOT_FOUND, "no such resource"))
        .method_not_allowed_fallback(async || {
            failure(StatusCode::METHOD_NOT_ALLOWED, "method not allowed for this resource")
        })
        .with_state(daemon)
}

impl Daemon {
    /// Asks the daemon and waits for the answer, for a limited time.
    pub async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Response> {
        self.ask_within(ANSWER_WITHIN, request).await
    }

    async fn ask_within<T>(&self, limit: Duration, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Response> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(request(reply)).map_err(|_| again("the daemon is busy or stopping: try again"))?;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(again("the daemon is stopping")),
            Err(_) => Err(failure(StatusCode::SERVICE_UNAVAILABLE, "the daemon did not answer in time: see its log")),
        }
    }

    /// The same; public requests wait until no other one asks.
    async fn ask_in_turn<T: Send + 'static>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request + Send + 'static,
    ) -> Result<T, Response> {
        let Some(shared) = &self.shared else { return self.ask(request).await };
        let (turn, daemon) = (shared.clone().lock_owned().await, self.clone());
        to_its_end(async move {
            let answer = daemon.ask(request).await;
            drop(turn);
            answer
        })
        .await
    }

    async fn conns(&self, filter: ConnsFilter) -> Result<Result<Conns, Refused>, Response> {
        let limit = match self.shared {
            Some(_) => Some(filter.limit.unwrap_or(ROWS.0).min(ROWS.1)),
            None => filter.limit,
        };
        self.ask_in_turn(move |reply| Request::Conns(ConnsFilter { limit, ..filter }, reply)).await
    }

    /// The report. Public requests share one that was made a moment ago.
    async fn report(&self) -> Result<Arc<Report>, Response> {
        let Some(shared) = &self.shared else { return Ok(Arc::new(self.ask(Request::Report).await?)) };
        let (mut last, daemon) = (shared.clone().lock_owned().await, self.clone());
        if let Some((_, report)) = last.as_ref().filter(|(made, _)| made.elapsed() < SHARED_FOR) {
            return Ok(report.clone());
        }
        to_its_end(async move {
            let report = Arc::new(daemon.ask(Request::Report).await?);
            *last = Some((Instant::now(), report.clone()));
            Ok(report)
        })
        .await
    }
}

/// Runs a public request to its end, even if the requester hangs up: reading 100,000 slots cannot
/// be cancelled, so the next request must wait for it.
async fn to_its_end<T: Send + 'static>(
    asking: impl Future<Output = Result<T, Response>> + Send + 'static,
) -> Result<T, Response> {
    match tokio::spawn(asking).await {
        Ok(answer) => answer,
        Err(_) => Err(failure(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be prepared")),
    }
}

pub fn failure(status: StatusCode, what: &str) -> Response {
    (status, Json(Refused { errors: vec![what.into()] })).into_response()
}

/// The answer to an unread request: it may be sent again, possibly to the daemon that takes over.
fn again(what: &str) -> Response {
    let mut response = failure(StatusCode::SERVICE_UNAVAILABLE, what);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// 200 with what was done, or 409 with the reason why nothing was.
pub fn outcome<T: Serialize>(outcome: Result<T, Refused>) -> Response {
    match outcome {
        Ok(done) => Json(done).into_response(),
        Err(refused) => (StatusCode::CONFLICT, Json(refused)).into_response(),
    }
}

/// Answers 200 while the daemon's loop runs. It costs the loop nothing, and waits for no other
/// request: what others ask must not look like a loop that hangs.
async fn healthz(State(daemon): State<Daemon>) -> Response {
    match tokio::time::timeout(TURN_WITHIN, daemon.ask(Request::Ping)).await {
        Ok(Ok(())) => "ok\n".into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "the daemon's loop does not respond\n").into_response(),
    }
}

/// Answers 200 if new connections are served, otherwise 503 with one line per reason.
async fn readyz(State(daemon): State<Daemon>) -> Result<Response, Response> {
    let reasons = daemon.report().await?.unready();
    if reasons.is_empty() {
        return Ok("ready\n".into_response());
    }
    let lines: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    Err((StatusCode::SERVICE_UNAVAILABLE, lines).into_response())
}

async fn metrics(State(daemon): State<Daemon>) -> Result<Response, Response> {
    let report = daemon.report().await?;
    let text = daemon.metrics.render(&report);
    let text = text.map_err(|error| failure(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")))?;
    Ok(([(CONTENT_TYPE, super::metrics::CONTENT_TYPE)], text).into_response())
}

async fn status(State(daemon): State<Daemon>) -> Result<Response, Response> {
    Ok(Json(&daemon.report().await?.status).into_response())
}

async fn backends(State(daemon): State<Daemon>) -> Result<Response, Response> {
    let report = daemon.report().await?;
    let backends: Vec<_> = report.status.services.iter().flat_map(|service| &service.backends).collect();
    Ok(Json(backends).into_response())
}

async fn vrrp(State(daemon): State<Daemon>) -> Result<Response, Response> {
    Ok(Json(daemon.ask_in_turn(Request::Vrrp).await?).into_response())
}

async fn counters(State(daemon): State<Daemon>) -> Result<Response, Response> {
    if daemon.shared.is_some() {
        return Ok(Json(&daemon.report().await?.status.counters).into_response());
    }
    Ok(Json(daemon.ask(Request::Counters).await?).into_response())
}

async fn in_force(State(daemon): State<Daemon>) -> Result<Response, Response> {
    Ok(Json(daemon.ask_in_turn(Request::InForce).await?).into_response())
}

async fn task(State(daemon): State<Daemon>, Path(id): Path<u64>) -> Result<Response, Response> {
    daemon.ask_in_turn(move |reply| Request::Task(id, reply)).await.map(outcome)
}

/// The meaning of every reason in the counters.
async fn reasons() -> Json<Vec<Meaning>> {
    Json(meanings())
}

async fn trace(
    State(daemon): State<Daemon>,
    query: Result<Query<TraceQuery>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(query) = query.map_err(|error| failure(StatusCode::BAD_REQUEST, &error.body_text()))?;
    daemon.ask(|reply| Request::Trace(query, reply)).await.map(outcome)
}

async fn conns(
    State(daemon): State<Daemon>,
    filter: Result<Query<ConnsFilter>, QueryRejection>,
) -> Result<Response, Response> {
    let Query(filter) = filter.map_err(|error| failure(StatusCode::BAD_REQUEST, &error.body_text()))?;
    let conns = match daemon.conns(filter).await? {
        Ok(conns) => conns,
        Err(refused) => return Ok(outcome::<()>(Err(refused))),
    };
    // Writing 100,000 rows takes tens of milliseconds, too long for the thread that serves
    // everything.
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

/// Past events; with `follow` also new ones line by line, until the daemon or the reader ends.
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
    if daemon.shared.is_some() {
        return Err(failure(
            StatusCode::FORBIDDEN,
            "follow is available over the control socket only; here, repeat the request with `after`",
        ));
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

/// One line of JSON per event.
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

async fn upgrade(State(daemon): State<Daemon>) -> Result<Response, Response> {
    daemon.ask_within(UPGRADE_WITHIN, Request::Upgrade).await.map(outcome)
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
