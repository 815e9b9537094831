//! Asking the daemon over its control socket: one request, bounded time.

use super::exit::Failure;
use crate::api::TOTAL_HEADER;
use crate::api::types::Refused;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// Longer than the daemon takes to say that it is too busy, so that this is what is shown.
const WITHIN: Duration = Duration::from_secs(10);

/// The way to one daemon.
pub struct Client {
    socket: PathBuf,
}

/// An answer as it came.
pub struct Answer {
    pub body: Bytes,
    /// Of `conns`: how many there are without the limit.
    pub total: Option<u64>,
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
        self.ask(Method::GET, path)
    }

    pub fn post(&self, path: &str) -> Result<Answer, Failure> {
        self.ask(Method::POST, path)
    }

    fn ask(&self, method: Method, path: &str) -> Result<Answer, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::Refused(format!("cannot begin: {error}")))?;
        runtime.block_on(async {
            let (status, answer) = match tokio::time::timeout(WITHIN, self.exchange(method, path)).await {
                Ok(exchanged) => exchanged.map_err(|error| self.unreachable(&error.to_string()))?,
                Err(_) => return Err(self.unreachable("no answer within 10 s")),
            };
            judge(status, answer)
        })
    }

    async fn exchange(&self, method: Method, path: &str) -> anyhow::Result<(StatusCode, Answer)> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request =
            Request::builder().method(method).uri(path).header("host", "evenkeel").body(Empty::<Bytes>::new())?;
        // The connection is driven here, beside the answer it carries: without it nothing moves.
        let exchange = async {
            let response = sender.send_request(request).await?;
            let total = response.headers().get(TOTAL_HEADER).and_then(|total| total.to_str().ok()?.parse().ok());
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, Answer { body, total }))
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            biased;
            exchanged = &mut exchange => exchanged,
            ended = &mut connection => {
                ended?;
                exchange.await
            }
        }
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
