//! Probes of servers on loopback: the outcome of each way of answering, and of not answering.

use std::{num::NonZeroU32, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

use super::*;
use crate::controller::probe_count::Unready;

const TIMEOUT: Duration = Duration::from_millis(300);

fn settings(probe: model::Probe, ca: Option<PathBuf>) -> model::Health {
    let tries = |n| NonZeroU32::new(n).expect("not 0");
    let (interval, timeout) = (Duration::from_millis(100), TIMEOUT);
    let expect = vec![200, 401, 403];
    model::Health { probe, path: "/readyz".into(), interval, timeout, rise: tries(2), fall: tries(3), ca, expect }
}

fn https() -> Check {
    Check::new(&settings(model::Probe::Https, None)).expect("a check")
}

/// A CA's certificate, and what a server needs to show a certificate that this CA has signed, for a
/// name that no probe asks for.
fn certificates() -> (String, Arc<ServerConfig>) {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("a key");
    let ca_pem = ca.self_signed(&ca_key).expect("a certificate").pem();
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new(["kubernetes".to_owned()]).expect("a name");
    let server = server.signed_by(&key, &Issuer::new(ca, ca_key)).expect("a certificate");
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let key = key.serialize_der().try_into().expect("a key");
    let config = config.with_no_client_auth().with_single_cert(vec![server.der().clone()], key).expect("a server");
    (ca_pem, Arc::new(config))
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    (listener, address)
}

/// Serves one connection over TLS: reads the request, answers with `answer`, and returns what was
/// asked and how it ended.
async fn serve(listener: &TcpListener, config: Arc<ServerConfig>, answer: &str) -> (String, std::io::Result<usize>) {
    let (stream, _) = listener.accept().await.expect("a connection");
    let mut stream = TlsAcceptor::from(config).accept(stream).await.expect("a handshake");
    let mut request = vec![0; 1024];
    let length = stream.read(&mut request).await.expect("a request");
    stream.write_all(answer.as_bytes()).await.expect("write");
    let end = stream.read(&mut [0; 16]).await;
    request.truncate(length);
    (String::from_utf8(request).expect("text"), end)
}

fn answer(status: u16) -> String {
    format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 2\r\n\r\nok")
}

#[tokio::test]
async fn the_status_decides_and_the_connection_is_closed_in_order() {
    let (_, config) = certificates();
    for (status, outcome) in [
        (200, Outcome::Passed),
        (401, Outcome::Passed),
        (403, Outcome::Passed),
        (500, Outcome::NotReady(Unready::Status)),
        (302, Outcome::NotReady(Unready::Status)),
        (429, Outcome::NotReady(Unready::Status)),
    ] {
        let (listener, address) = listen().await;
        let (check, answer) = (https(), answer(status));
        let (found, (request, end)) =
            tokio::join!(check.run(address, TIMEOUT, Source::any()), serve(&listener, config.clone(), &answer));
        assert_eq!(found.expect("an outcome"), (outcome, format!("status {status}")));
        assert!(request.starts_with("GET /readyz HTTP/1.1\r\n"), "{request}");
        assert!(request.contains(&format!("host: {address}\r\n")), "{request}");
        assert_eq!(end.expect("close_notify, then FIN: no error"), 0);
    }
}

#[tokio::test]
async fn a_certificate_is_verified_up_to_the_ca_whatever_its_name() {
    let (ca, config) = certificates();
    let (other, _) = certificates();
    let folder = tempfile::tempdir().expect("a folder");
    for (pem, outcome) in [(ca, Outcome::Passed), (other, Outcome::NotReady(Unready::Tls))] {
        let file = folder.path().join("ca.crt");
        std::fs::write(&file, pem).expect("write");
        let check = Check::new(&settings(model::Probe::Https, Some(file))).expect("a check");
        let (listener, address) = listen().await;
        let acceptor = TlsAcceptor::from(config.clone());
        let serving = async {
            let (stream, _) = listener.accept().await.expect("a connection");
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            _ = stream.read(&mut [0; 1024]).await;
            _ = stream.write_all(answer(200).as_bytes()).await;
            _ = stream.read(&mut [0; 16]).await;
        };
        let (found, ()) = tokio::join!(check.run(address, TIMEOUT, Source::any()), serving);
        assert_eq!(found.expect("an outcome").0, outcome);
    }
}

#[test]
fn a_ca_that_is_none_is_told_by_its_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.crt");
    let error = || format!("{:#}", Check::new(&settings(model::Probe::Https, Some(file.clone()))).expect_err("no CA"));
    assert!(error().contains("ca.crt"), "{}", error());
    for text in ["", "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n"] {
        std::fs::write(&file, text).expect("write");
        assert!(error().contains("ca.crt"), "{text:?}: {}", error());
    }
}

#[tokio::test]
async fn a_closed_port_is_a_refusal() {
    let (listener, address) = listen().await;
    drop(listener);
    for check in [https(), Check::Tcp] {
        let found = check.run(address, TIMEOUT, Source::any()).await.expect("an outcome");
        assert_eq!(found, (Outcome::Refused, "connection refused".to_owned()));
    }
}

#[tokio::test]
async fn a_server_that_hangs_anywhere_fails_in_time() {
    let (_, config) = certificates();
    // Accepts, but never answers the handshake; answers the handshake, but not the request; sends
    // half an answer.
    for (stage, expected) in [(0, "TLS handshake"), (1, "HTTP"), (2, "HTTP")] {
        let (listener, address) = listen().await;
        let config = config.clone();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            if stage == 0 {
                return std::future::pending::<()>().await;
            }
            let mut stream = TlsAcceptor::from(config).accept(stream).await.expect("a handshake");
            if stage == 2 {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await.expect("write");
            }
            std::future::pending().await
        });
        let begin = Instant::now();
        let (outcome, detail) = https().run(address, TIMEOUT, Source::any()).await.expect("an outcome");
        assert_eq!((outcome, detail), (Outcome::Failed, format!("{expected}: no answer within 300 ms")));
        assert!(begin.elapsed() < TIMEOUT * 2, "{:?}", begin.elapsed());
        server.abort();
    }
}

#[tokio::test]
async fn what_does_not_speak_tls_or_hangs_up_fails() {
    for bytes in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b""] {
        let (listener, address) = listen().await;
        let check = https();
        let serving = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            _ = stream.write_all(bytes).await;
        };
        let (found, ()) = tokio::join!(check.run(address, TIMEOUT, Source::any()), serving);
        let (outcome, detail) = found.expect("an outcome");
        assert_eq!(outcome, Outcome::Failed);
        assert!(detail.starts_with("TLS handshake: "), "{detail}");
    }
}

#[tokio::test]
async fn a_tcp_probe_passes_without_the_server_ever_hearing_of_it() {
    let (listener, address) = listen().await;
    for _ in 0..20 {
        assert_eq!(Check::Tcp.run(address, TIMEOUT, Source::any()).await.expect("an outcome").0, Outcome::Passed);
    }
    // The first connection that it accepts is the one after the probes.
    let client = TcpStream::connect(address).await.expect("a connection");
    let (_, first) = listener.accept().await.expect("a connection");
    assert_eq!(first, client.local_addr().expect("an address"));
}

#[tokio::test]
async fn findings_come_spread_over_the_interval_at_the_pace_and_end_when_nobody_is_watched() {
    let (prober, mut found) = Prober::start().expect("a thread");
    let (_open, open) = listen().await;
    let (closed_listener, closed) = listen().await;
    drop(closed_listener);
    let mut settings = settings(model::Probe::Tcp, None);
    settings.interval = Duration::from_millis(400);
    let probe = Arc::new(Probe::new(&settings, &[], &[]).expect("a probe"));
    let target = |backend, address| Target { backend, address, probe: probe.clone() };
    let begin = clock::monotonic();
    prober.watch(vec![target(1, open), target(2, closed)]);
    let mut times = HashMap::<u16, Vec<u64>>::new();
    while times.values().map(Vec::len).sum::<usize>() < 10 {
        let finding = found.recv().await.expect("a finding");
        let expected = if finding.backend == 1 { Outcome::Passed } else { Outcome::Refused };
        assert_eq!(finding.outcome, expected);
        times.entry(finding.backend).or_default().push(begin.age(finding.at).as_millis() as u64);
    }
    assert!(times[&2][0] >= 200, "half an interval after the first: {times:?}");
    assert!(times[&2][2] - times[&2][0] < 700, "three failures in less than two intervals: {times:?}");
    assert!(times[&1][3] - times[&1][2] >= 250, "settled: {times:?}");
    prober.watch(Vec::new());
    while let Ok(Some(_)) = tokio::time::timeout(Duration::from_millis(900), found.recv()).await {}
    prober.hurry(1);
    drop(prober);
    assert_eq!(found.recv().await, None, "the thread ends with its owner");
}
