//! Asking the daemon over its control socket: one request, bounded time.

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

/// Longer than the daemon takes to say that it is too busy, so that this is what is shown.
const WITHIN: Duration = Duration::from_secs(10);
/// How long a request that was not looked at is sent again: the daemon may just give its place to another one.
const AGAIN_FOR: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(50);

/// The way to one daemon.
pub struct Client {
    socket: PathBuf,
}

/// An answer as it came.
pub struct Answer {
    pub body: Bytes,
    /// Of `conns`: how many there are without the limit.
    pub total: Option<u64>,
    /// The request was not looked at and may be sent again.
    again: bool,
}

impl Answer {
    /// The answer as a value.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::Refused(format!("the daemon answers in other words (another version of evenkeel?): {error}"))
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

    /// For who asks again soon.
    pub fn get_within(&self, path: &str, limit: Duration) -> Result<Answer, Failure> {
        self.ask(Method::GET, path, Bytes::new(), limit)
    }

    pub fn post(&self, path: &str) -> Result<Answer, Failure> {
        self.ask(Method::POST, path, Bytes::new(), WITHIN)
    }

    /// For what takes the daemon longer than most things.
    pub fn post_within(&self, path: &str, limit: Duration) -> Result<Answer, Failure> {
        self.ask(Method::POST, path, Bytes::new(), limit)
    }

    /// Posts what is asked as JSON.
    pub fn order(&self, path: &str, asked: &impl Serialize) -> Result<Answer, Failure> {
        let body = serde_json::to_vec(asked).map_err(|error| Failure::Refused(format!("cannot be asked: {error}")))?;
        self.ask(Method::POST, path, body.into(), WITHIN)
    }

    /// Gives every line of an answer to `each` as it comes, until that breaks or the daemon ends, which is a failure.
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
                Err(Failure::Unreachable("the daemon has ended".into()))
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
             Another socket is named by --socket or EVENKEEL_SOCKET.",
            self.socket.display()
        ))
    }

    /// Waits until nobody listens any more, 10 s at most: whether the daemon has ended.
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
            anyhow::anyhow!("{error}: it is for root and for who is in the group of the socket (socket_group)")
        }
        _ => error.into(),
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

fn run<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::Refused(format!("cannot begin: {error}")))?.block_on(future)
}

/// Drives a connection beside the exchange it carries: without it nothing moves.
async fn beside<T>(exchange: impl Future<Output = T>, connection: impl Future<Output = hyper::Result<()>>) -> T {
    tokio::pin!(exchange, connection);
    tokio::select! {
        biased;
        exchanged = &mut exchange => exchanged,
        // Whatever ended it, the exchange knows what became of itself.
        _ = &mut connection => exchange.await,
    }
}

async fn send(mut sender: Sender, method: Method, path: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
    let request = Request::builder().method(method).uri(path).header(HOST, "evenkeel");
    // A body is JSON here, or empty.
    let request = if body.is_empty() { request } else { request.header(CONTENT_TYPE, "application/json") };
    Ok(sender.send_request(request.body(Full::new(body))?).await?)
}

async fn read(response: Response<Incoming>) -> anyhow::Result<Answer> {
    let total = response.headers().get(TOTAL_HEADER).and_then(|total| total.to_str().ok()?.parse().ok());
    let again = response.headers().contains_key(RETRY_AFTER);
    Ok(Answer { body: response.into_body().collect().await?.to_bytes(), total, again })
}

/// Whether the daemon closed the connection before the first byte of an answer: nobody has read the request.
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
    let errors = errors.unwrap_or_else(|_| format!("the daemon answers with status {status}"));
    match status {
        StatusCode::SERVICE_UNAVAILABLE => Err(Failure::Unreachable(errors)),
        _ => Err(Failure::Refused(errors)),
    }
}
