use std::{
    io::{Read, Write},
    net::Ipv4Addr,
    time::Instant,
};

use tokio::sync::mpsc;

use super::*;
use crate::api::{QUEUE, tests::answer};

/// Nothing here takes longer, however busy the machine.
const SOON: Duration = Duration::from_secs(20);

const SHORT: Limits = Limits { connections: 3, head: Duration::from_millis(300), life: Duration::from_millis(900) };

fn free_address() -> SocketAddr {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// A daemon that answers with fixed values, 20,000 connections among them.
fn daemon() -> Daemon {
    let (requests, asked) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(answer(asked, 20_000, oneshot::channel().0));
    });
    Daemon::new(requests, Arc::default()).for_anybody()
}

fn listen(limits: Limits) -> Listener {
    let (listener, warning) = Listener::with_limits(free_address(), Hosts::default(), daemon(), limits);
    assert_eq!(warning, None);
    listener
}

fn connect(listener: &Listener) -> std::net::TcpStream {
    let stream = std::net::TcpStream::connect(listener.address()).expect("connect");
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// What comes back until the other side closes.
fn rest(mut stream: std::net::TcpStream) -> String {
    let mut text = Vec::new();
    // A reset counts as the end: the answer to data that is no longer read is a reset.
    _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

fn say(listener: &Listener, bytes: &[u8]) -> String {
    let mut stream = connect(listener);
    _ = stream.write_all(bytes);
    rest(stream)
}

fn get(listener: &Listener, path: &str) -> (String, String) {
    ask(listener, "GET", path)
}

/// The first line and the body.
fn ask(listener: &Listener, method: &str, path: &str) -> (String, String) {
    let text =
        say(listener, format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n").as_bytes());
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

#[test]
fn anybody_may_read_and_change_nothing() {
    let listener = listen(Limits::default());
    for path in [
        "/",
        "/api/v1/reasons",
        "/metrics",
        "/healthz",
        "/readyz",
        "/api/v1/status",
        "/api/v1/backends",
        "/api/v1/counters",
    ] {
        assert_eq!(get(&listener, path).0, "HTTP/1.1 200 OK", "{path}");
    }
    for (method, path, status) in [
        ("POST", "/api/v1/stop", "404 Not Found"),
        ("POST", "/api/v1/reload", "404 Not Found"),
        ("GET", "/api/v1/stop", "404 Not Found"),
        ("DELETE", "/api/v1/status", "405 Method Not Allowed"),
        ("GET", "/api/v1/events?follow=true", "403 Forbidden"),
        ("GET", "/api/v1/events?after=-1", "400 Bad Request"),
        ("GET", "/api/v1/conns?limit=x", "400 Bad Request"),
        ("GET", "/api/v1/conns?client=10.0.0.0.1", "400 Bad Request"),
        ("GET", "/../../etc/passwd", "404 Not Found"),
        ("GET", "/%00%ff", "404 Not Found"),
    ] {
        assert_eq!(ask(&listener, method, path).0, format!("HTTP/1.1 {status}"), "{method} {path}");
    }
    let rows = |query: &str| get(&listener, &format!("/api/v1/conns{query}")).1.matches("\"client\"").count();
    assert_eq!([rows(""), rows("?limit=2"), rows("?limit=4000000000")], [1000, 2, 10_000]);
}

#[test]
fn a_name_that_is_not_this_host_s_reads_nothing_about_clients_and_monitoring_may_have_any() {
    let (listener, _) =
        Listener::with_limits(free_address(), Hosts::new(None, &["lb.example".into()]), daemon(), Limits::default());
    let status = |target: &str, host: &str| {
        let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        say(&listener, request.as_bytes()).split(' ').nth(1).map(str::to_owned)
    };
    for path in ["/", "/api/v1/conns", "/api/v1/status", "/api/v1/nothing"] {
        assert_eq!(status(path, "evil.example").as_deref(), Some("421"), "{path}");
        assert_ne!(status(path, "lb.example:9643").as_deref(), Some("421"), "{path}");
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(status(path, "evil.example").as_deref(), Some("200"), "{path}");
    }
    assert_eq!(status("http://evil.example/api/v1/conns", "127.0.0.1").as_deref(), Some("421"));
}

#[test]
fn the_page_allows_its_own_script_and_no_other_and_names_nothing_outside() {
    let listener = listen(Limits::default());
    let ask = || say(&listener, b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n");
    let (first, second) = (ask(), ask());
    let nonce = |page: &str| page.split("script-src 'nonce-").nth(1).expect("a policy")[..32].to_owned();
    let number = nonce(&first);
    assert!(number.bytes().all(|digit| digit.is_ascii_hexdigit()) && number != nonce(&second), "{number}");
    assert!(first.contains("default-src 'none'") && first.contains("frame-ancestors 'none'"));
    assert_eq!(first.matches(&format!("nonce=\"{number}\"")).count(), 2, "the style and the script");
    assert!(!first.contains("{{"), "a part of the page is missing");
    // The names of the SVG language are not places to fetch from.
    let outside = first.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http://") && !outside.contains("https://") && !outside.contains("src=\""));
}

#[test]
fn what_is_no_request_is_refused_and_the_next_one_answered() {
    let listener = listen(Limits { head: Duration::from_millis(500), ..Limits::default() });
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1000));
    for (hostile, status) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], "400"),
        (b"GET\r\n\r\n", "400"),
        (b"GET /healthz HTTP/9.9\r\n\r\n", "400"),
        (b"GET /healthz HTTP/1.1\r\ncontent-length: -5\r\n\r\n", "400"),
        (b"GET /healthz HTTP/1.1\r\nx\0y: z\r\n\r\n", "400"),
        (long.as_bytes(), "4"),
        (many.as_bytes(), "431"),
    ] {
        let shown = String::from_utf8_lossy(&hostile[..hostile.len().min(40)]);
        let told = say(&listener, hostile);
        assert!(told.starts_with(&format!("HTTP/1.1 {status}")), "{shown:?}: {told:?}");
    }
    // Half a request, and a body that never comes.
    assert_eq!(say(&listener, b"GET /healthz HT"), "");
    let told = say(&listener, b"GET /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\nabc");
    assert!(told.starts_with("HTTP/1.1 200"), "{told:?}");
    assert_eq!(get(&listener, "/healthz").1, "ok\n");
}

#[test]
fn a_connection_too_many_is_told_and_counted_and_places_are_freed_by_time() {
    let listener = listen(SHORT);
    let idle: Vec<_> = (0..3).map(|_| connect(&listener)).collect();
    let began = Instant::now();
    let told = loop {
        // The three are accepted in their turn.
        let (told, _) = get(&listener, "/healthz");
        if told.contains("503") || began.elapsed() > SOON {
            break told;
        }
    };
    assert_eq!(told, "HTTP/1.1 503 Service Unavailable");
    assert!(listener.refused() >= 1);
    // They say nothing, so their time is over soon.
    idle.into_iter().for_each(|stream| assert_eq!(rest(stream), ""));
    assert_eq!(get(&listener, "/healthz").0, "HTTP/1.1 200 OK");
}

#[test]
fn a_connection_ends_with_its_life_however_busy_it_is() {
    let listener = listen(SHORT);
    let mut stream = connect(&listener);
    let began = Instant::now();
    let mut byte = [0];
    while stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").is_ok()
        && stream.read(&mut byte).is_ok_and(|n| n > 0)
    {
        assert!(began.elapsed() < SOON, "it goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(began.elapsed() >= SHORT.life - Duration::from_millis(100), "{:?}", began.elapsed());
}

#[test]
fn an_address_that_is_in_use_is_tried_again_until_it_is_free() {
    let other = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = other.local_addr().unwrap();
    let (listener, warning) = Listener::start(address, Hosts::default(), daemon());
    assert!(warning.is_some_and(|warning| warning.contains("cannot listen on") && warning.contains("in use")));
    drop(other);
    let began = Instant::now();
    while std::net::TcpStream::connect(address).is_err() {
        assert!(began.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(get(&listener, "/healthz").1, "ok\n");
    drop(listener);
    std::net::TcpListener::bind(address).expect("the address is free again");
}
