//! By which names `[api]` may be asked.
//!
//! A page in an operator's browser may have a name that leads to this host (DNS rebinding), and
//! could then read clients' addresses: to the browser it asks its own server. What it cannot change
//! is the name in the request. So a request by a name that is not this host's is refused. An
//! address is nobody's name. `/metrics`, `/healthz` and `/readyz`, which monitoring asks by
//! whatever name it knows, say nothing about clients and are answered always.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{StatusCode, header::HOST, uri::Authority},
    middleware::Next,
    response::Response,
};

use super::routes::failure;

/// What is answered whatever the name.
const ANY_NAME: [&str; 3] = ["/metrics", "/healthz", "/readyz"];

/// The names, beside every address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// `localhost`, this host's own name and the configured ones.
    pub fn new(own: Option<String>, configured: &[String]) -> Hosts {
        Hosts(own.into_iter().chain(configured.iter().cloned()).chain([String::from("localhost")]).collect())
    }

    fn has(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        let host = authority.host();
        let is_address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        let name = host.strip_suffix('.').unwrap_or(host);
        is_address || self.0.iter().any(|known| known.eq_ignore_ascii_case(name))
    }
}

/// Refuses a request by another name. HTTP/1.0 has none, and no browser speaks it.
pub async fn check(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let named = |authority: &str| hosts.has(authority);
    let in_header = request.headers().get_all(HOST).iter().all(|host| host.to_str().is_ok_and(named));
    let in_target = request.uri().authority().is_none_or(|authority| named(authority.as_str()));
    if in_header && in_target || ANY_NAME.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let what = "this host is not known by that name: ask by its address, or add the name to `hosts` of [api]";
    failure(StatusCode::MISDIRECTED_REQUEST, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_known_names_are_answered_and_other_names_are_not() {
        let hosts = Hosts::new(Some("lb1".into()), &["lb.example.com".into()]);
        for good in [
            "127.0.0.1:9643",
            "127.0.0.1",
            "[::1]:9643",
            "[fd00::1]",
            "localhost:9643",
            "LOCALHOST",
            "lb1:9643",
            "lb1.",
            "lb.example.com",
        ] {
            assert!(hosts.has(good), "{good}");
        }
        for bad in
            ["evil.example", "evil.example:9643", "lb1.evil.example", "127.0.0.1.evil.example", "", ":9643", "a b"]
        {
            assert!(!hosts.has(bad), "{bad}");
        }
    }
}
