//! Requests to the daemon over its control socket, each with a time limit.

use std::{
    io::{self, ErrorKind},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HOST, RETRY_AFTER},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::exit::Failure;
use crate::api::{TOTAL_HEADER, types::Refused};

/// Longer than the daemon takes to answer that it is too busy, so that this answer is shown.
const WITHIN: Duration = Duration::from_secs(10);
/// How long an unread request is repeated: during an upgrade one daemon hands over to the next.
const AGAIN_FOR: Duration = Duration::from_secs(2);
/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// A client of one daemon.
pub struct Client {
    socket: PathBuf,
}

/// A successful answer.
pub struct Answer {
    pub body: Bytes,
    /// For `conns`: how many there are without the limit.
    pub total: Option<u64>,
    /// The daemon did not read the request, so it may be sent again.
    again: bool,
}

impl Answer {
    /// Parses the answer.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::Refused(format!("unexpected answer from the daemon (a different evenkeel version?): {error}"))
        })
    }
}

impl Client {
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.into() }
    }

    pub fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.ask(Method::GET, path, Bytes::new(), WITHIN)
    }

    /// `get` with another time limit, for callers that ask again soon.
    pub fn get_within(&self, path: &str, limit: Duration) -> Result<Answer, Failure> {
        self.ask(Method::GET, path, Bytes::new(), limit)
    }

    pub fn post(&self, path: &str) -> Result<Answer, Failure> {
        self.ask(Method::POST, path, Bytes::new(), WITHIN)
    }

    /// `post` with another time limit, for requests that take long.
    pub fn post_within(&self, path: &str, limit: Duration) -> Result<Answer, Failure> {
        self.ask(Method::POST, path, Bytes::new(), limit)
    }

    /// Posts a request as JSON.
    pub fn order(&self, path: &str, asked: &impl Serialize) -> Result<Answer, Failure> {
        let body = serde_json::to_vec(asked).map_err(|error| Failure::Refused(format!("cannot be sent: {error}")))?;
        self.ask(Method::POST, path, body.into(), WITHIN)
    }

    /// Calls `each` with every line of an endless answer until it breaks. The end of the daemon is
    /// a failure.
    pub fn follow<T: DeserializeOwned>(
        &self,
        path: &str,
        mut each: impl FnMut(T) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        run(async {
            let (sender, connection) = self.begin().await.map_err(|error| self.unreachable(&error.to_string()))?;
            let lines = async {
                let sent = send(sender, Method::GET, path, Bytes::new()).await;
                let response = sent.map_err(|error| self.unreachable(&error.to_string()))?;
                if !response.status().is_success() {
                    let status = response.status();
                    let answer = read(response).await.map_err(|error| self.unreachable(&error.to_string()))?;
                    return judge(status, answer).map(drop);
                }
                let mut body = response.into_body();
                let mut text = Vec::new();
                while let Some(Ok(frame)) = body.frame().await {
                    text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                    while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                        let line = text.drain(..=end).collect::<Bytes>();
                        if each(Answer { body: line, total: None, again: false }.read()?)?.is_break() {
                            return Ok(());
                        }
                    }
                }
                Err(Failure::Unreachable("the daemon has stopped".into()))
            };
            beside(lines, connection).await
        })
    }

    fn ask(&self, method: Method, path: &str, body: Bytes, limit: Duration) -> Result<Answer, Failure> {
        run(async {
            match tokio::time::timeout(limit, self.exchange_patiently(method, path, body)).await {
                Ok(exchanged) => {
                    let (status, answer) = exchanged.map_err(|error| self.unreachable(&error.to_string()))?;
                    judge(status, answer)
                }
                Err(_) => Err(self.unreachable(&format!("no answer within {} s", limit.as_secs()))),
            }
        })
    }

    async fn exchange_patiently(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Answer)> {
        let began = Instant::now();
        loop {
            let exchanged = self.exchange(method.clone(), path, body.clone()).await;
            let again = match &exchanged {
                Ok((_, answer)) => answer.again,
                Err(error) => is_unread(error),
            };
            if !again || began.elapsed() > AGAIN_FOR {
                return exchanged;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn begin(&self) -> anyhow::Result<(Sender, impl Future<Output = hyper::Result<()>>)> {
        let stream = UnixStream::connect(&self.socket).await.map_err(not_connected)?;
        Ok(hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?)
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<(StatusCode, Answer)> {
        let (sender, connection) = self.begin().await?;
        let exchange = async {
            let response = send(sender, method, path, body).await?;
            Ok((response.status(), read(response).await?))
        };
        beside(exchange, connection).await
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::Unreachable(format!(
            "the daemon cannot be reached at {}: {why}\nIs it running (evenkeel run), and with this state_dir? \
             For another socket, use --socket or EVENKEEL_SOCKET.",
            self.socket.display()
        ))
    }

    /// The path of the control socket.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// Waits up to 10 s until nothing listens on the socket; whether the daemon has stopped.
    pub fn wait_until_gone(&self) -> bool {
        let began = Instant::now();
        while began.elapsed() < WITHIN {
            if std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

fn not_connected(error: io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{error}: only root and members of the socket's group (socket_group) may use it")
        }
        _ => error.into(),
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

fn run<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::Refused(format!("cannot start: {error}")))?.block_on(future)
}

/// Drives a connection while the exchange on it runs; without this nothing is sent.
async fn beside<T>(exchange: impl Future<Output = T>, connection: impl Future<Output = hyper::Result<()>>) -> T {
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        exchanged = &mut exchange => exchanged,
        // The connection has ended; the exchange knows its own outcome.
        _ = &mut connection => exchange.await,
    }
}

async fn send(mut sender: Sender, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
    let request = Request::builder().method(method).uri(path).header(HOST, "evenkeel");
    // A body is either JSON or empty.
    let request = if body.is_empty() { request } else { request.header(CONTENT_TYPE, "application/json") };
    Ok(sender.send_request(request.body(Full::new(body))?).await?)
}

async fn read(response: Response<Incoming>) -> anyhow::Result<Answer> {
    let total = response.headers().get(TOTAL_HEADER).and_then(|total| total.to_str().ok()?.parse().ok());
    let again = response.headers().contains_key(RETRY_AFTER);
    Ok(Answer { body: response.into_body().collect().await?.to_bytes(), total, again })
}

/// Whether the daemon closed the connection before the first byte of an answer: then it has not
/// read the request.
fn is_unread(error: &anyhow::Error) -> bool {
    let by_hyper = |error: &hyper::Error| error.is_incomplete_message() || error.is_canceled();
    let by_kernel = |error: &io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    error.chain().any(|cause| cause.downcast_ref().is_some_and(by_hyper) || cause.downcast_ref().is_some_and(by_kernel))
}

fn judge(status: StatusCode, answer: Answer) -> Result<Answer, Failure> {
    if status.is_success() {
        return Ok(answer);
    }
    let errors = serde_json::from_slice::<Refused>(&answer.body).map(|refused| refused.errors.join("\n"));
    let errors = errors.unwrap_or_else(|_| format!("the daemon answered with status {status}"));
    match status {
        StatusCode::SERVICE_UNAVAILABLE => Err(Failure::Unreachable(errors)),
        _ => Err(Failure::Refused(errors)),
    }
}
