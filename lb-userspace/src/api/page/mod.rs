//! The status page at `/`: one document without outside resources, put together from its three parts.

use axum::{
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    response::{IntoResponse, Response},
};

use crate::sys::random;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page. Its own style and script are the only ones a browser may run: they carry a number that is another one each
/// time (Content Security Policy level 3, nonces), so that not even a name that found its way into the markup could.
pub async fn page() -> Response {
    let nonce = match (random::word(), random::word()) {
        (Ok(first), Ok(second)) => format!("{first:016x}{second:016x}"),
        // A kernel that has no randomness; the page then shows how to do without a script.
        _ => String::new(),
    };
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (REFERRER_POLICY, "no-referrer".to_owned()),
        (CACHE_CONTROL, "no-store".to_owned()),
    ];
    let page = PAGE.replace("{{nonce}}", &nonce).replace("{{style}}", STYLE).replace("{{script}}", SCRIPT);
    (headers, page).into_response()
}
