//! The stand-in's answers over HTTP.

use std::{convert::Infallible, sync::Arc};

use http_body_util::BodyExt;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
};
use serde_json::json;

use super::{
    Server,
    body::Answer,
    pattern::{Checksum, Pattern},
};

/// The header that names the server.
pub const SERVED_BY: &str = "x-served-by";

type Reply = Response<Answer>;

pub async fn answer(request: Request<Incoming>, server: Arc<Server>) -> Result<Reply, Infallible> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let mut reply = match request.uri().path() {
        "/readyz" if server.mood.readyz() != 200 => not_ready(server.mood.readyz()),
        path @ ("/livez" | "/readyz" | "/healthz") => text(&health(&path[1..], asks(&query, "verbose"))),
        "/version" => json(json!({
            "major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": server.name, "gitTreeState": "clean",
            "buildDate": "2025-04-23T13:00:00Z", "goVersion": "go1.24.2", "compiler": "gc", "platform": "linux/amd64",
        })),
        "/api" => json(json!({"kind": "APIVersions", "versions": ["v1"]})),
        "/apis" => json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})),
        "/api/v1/pods" if asks(&query, "watch") => watch(&server),
        "/api/v1/pods" => json(json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": [],
        })),
        "/bulk" => bulk(&query),
        "/upload" => upload(request.into_body()).await,
        path => not_found(path),
    };
    // `?close`: the server closes first.
    if asks(&query, "close") {
        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Ok(name) = HeaderValue::from_str(&server.name) {
        reply.headers_mut().insert(SERVED_BY, name);
    }
    Ok(reply)
}

/// Whether the query contains `?name`, `?name=1` or `?name=true`.
fn asks(query: &str, name: &str) -> bool {
    let is = |part: &str| part.strip_prefix(name).is_some_and(|rest| matches!(rest, "" | "=" | "=1" | "=true"));
    query.split('&').any(is)
}

fn number(query: &str, name: &str) -> Option<u64> {
    query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

fn health(path: &str, verbose: bool) -> String {
    if verbose { format!("[+]ping ok\n[+]log ok\n[+]etcd ok\n{path} check passed\n") } else { "ok".to_owned() }
}

/// What an API server answers that shuts down, or that wants clients to authenticate.
fn not_ready(status: u16) -> Reply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply(status, "text/plain", b"[-]shutdown failed: reason withheld\nreadyz check failed\n".to_vec())
}

fn text(text: &str) -> Reply {
    reply(StatusCode::OK, "text/plain", text.to_owned().into_bytes())
}

fn json(value: serde_json::Value) -> Reply {
    reply(StatusCode::OK, "application/json", value.to_string().into_bytes())
}

fn not_found(path: &str) -> Reply {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
        "message": format!("the lab's stand-in has no {path}")});
    reply(StatusCode::NOT_FOUND, "application/json", status.to_string().into_bytes())
}

fn reply(status: StatusCode, content: &'static str, body: Vec<u8>) -> Reply {
    let mut reply = Response::new(Answer::Whole(Some(body.into())));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content));
    reply
}

/// A watch that stays open: bookmarks, as an API server sends them for a quiet resource.
fn watch(server: &Server) -> Reply {
    let event = json!({"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1",
        "metadata": {"resourceVersion": "1", "annotations": {"served-by": server.name}}}});
    let mut reply = Response::new(Answer::Watch(tokio::time::interval(server.watch), format!("{event}\n").into()));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// `?bytes=N` bytes of the pattern.
fn bulk(query: &str) -> Reply {
    let bytes = number(query, "bytes").unwrap_or(0);
    Response::new(Answer::Bulk(Pattern::new(bytes), bytes))
}

/// Consumes the body and answers with its length and checksum.
async fn upload(mut body: Incoming) -> Reply {
    let mut sum = Checksum::default();
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(block) = frame.data_ref() {
            sum.add(block);
            bytes += block.len();
        }
    }
    json(json!({"bytes": bytes, "sha256": sum.finish()}))
}
