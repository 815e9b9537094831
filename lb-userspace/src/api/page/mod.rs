//! The status page at `/`: one document without external resources, assembled from three files.

use axum::{
    http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS},
    response::{IntoResponse, Response},
};

use crate::sys::random;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page. A browser may run only its own style and script: they carry a number that is different
/// each time (Content Security Policy level 3, nonces), so that even a name that got into the
/// markup could not run anything.
pub async fn page() -> Response {
    let nonce = match (random::word(), random::word()) {
        (Ok(first), Ok(second)) => format!("{first:016x}{second:016x}"),
        // The kernel has no randomness: the page then shows how to do without a script.
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
