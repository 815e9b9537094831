//! `evenkeel-lab bench-server`: answers HTTP requests with as many bytes as they ask for, plain or
//! over TLS, and does nothing else, so that the server's cost does not hide the balancer's.

use std::{
    io::{self, Read, Write},
    net::{SocketAddrV4, TcpListener, TcpStream},
    path::PathBuf,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::apiserver;

/// How many connections are served at the same time.
const WORKERS: usize = 48;
/// The head of every answer. The length always has the same number of digits.
pub const HEAD: usize = "HTTP/1.1 200 OK\r\ncontent-length: 00000000\r\n\r\n".len();
const TLS_HANDSHAKE: u8 = 0x16;
const LONGEST_REQUEST: usize = 1024;

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long)]
    pub listen: SocketAddrV4,
    /// The folder with the lab's certificates
    #[arg(long)]
    pub pki: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    let tls = Arc::new(apiserver::tls_config(&options.pki)?);
    let listener = TcpListener::bind(options.listen).with_context(|| format!("listen on {}", options.listen))?;
    println!("listening on {}", options.listen);
    let listener = Arc::new(listener);
    let workers = (0..WORKERS).map(|_| {
        let (listener, tls) = (Arc::clone(&listener), Arc::clone(&tls));
        thread::spawn(move || work(&listener, &tls))
    });
    // They end with the process.
    workers
        .collect::<Vec<_>>()
        .into_iter()
        .try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a worker of the server panicked")))
}

/// Serves one connection after the other, each until it ends. Errors of a connection matter only to
/// its client.
fn work(listener: &TcpListener, tls: &Arc<ServerConfig>) {
    loop {
        if let Ok((stream, _)) = listener.accept() {
            _ = connection(stream, tls);
        }
    }
}

fn connection(mut stream: TcpStream, tls: &Arc<ServerConfig>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first)? == 1 && first[0] == TLS_HANDSHAKE {
        let connection = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
        return serve(&mut StreamOwned::new(connection, stream));
    }
    serve(&mut stream)
}

fn serve(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut request = [0; LONGEST_REQUEST];
    let mut answer = Vec::new();
    loop {
        let mut read = 0;
        while !request[..read].ends_with(b"\r\n\r\n") {
            let more = stream.read(request.get_mut(read..).unwrap_or_default())?;
            if more == 0 {
                return Ok(());
            }
            read += more;
        }
        let length = wanted(&request[..read]);
        answer.clear();
        answer.extend_from_slice(format!("HTTP/1.1 200 OK\r\ncontent-length: {length:08}\r\n\r\n").as_bytes());
        answer.resize(HEAD + length, b'x');
        stream.write_all(&answer)?;
    }
}

/// The number in `GET /NUMBER`. Any other request gets two bytes.
fn wanted(request: &[u8]) -> usize {
    let path = request.strip_prefix(b"GET /").unwrap_or_default();
    let digits: String =
        path.iter().take(8).take_while(|byte| byte.is_ascii_digit()).map(|byte| *byte as char).collect();
    digits.parse().unwrap_or(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_how_many_bytes_it_wants() {
        assert_eq!(wanted(b"GET /1048576 HTTP/1.1\r\n\r\n"), 1_048_576);
        assert_eq!(wanted(b"GET /healthz HTTP/1.1\r\n\r\n"), 2);
        assert_eq!(wanted(b"nonsense"), 2);
    }

    #[test]
    fn every_answer_has_a_head_of_the_same_length() {
        struct Wire(io::Cursor<Vec<u8>>, Vec<u8>);
        impl Read for Wire {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                self.0.read(into)
            }
        }
        impl Write for Wire {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for length in [0, 7, 300_000] {
            let request = format!("GET /{length} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes();
            let mut wire = Wire(io::Cursor::new(request), Vec::new());
            serve(&mut wire).unwrap();
            assert_eq!(wire.1.len(), HEAD + length);
        }
    }
}
