//! Servers and clients that know to the byte what they sent and received, in threads of this
//! process in the lab's namespaces.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use lab::{Host, topology::PORT};
use nix::{
    libc::linger,
    sched::{CloneFlags, setns},
    sys::socket::{setsockopt, sockopt},
};

/// No read and no write takes longer, whatever is lost on the way.
const LIMIT: Duration = Duration::from_secs(60);

/// What a connection does.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    /// Bytes to the server, in addition to the client's first line.
    pub up: u64,
    /// Bytes to the client.
    pub down: u64,
    pub end: End,
}

/// Which side ends it, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client's FIN comes first.
    Client = 1,
    /// The server's FIN comes first.
    Server = 2,
    /// The client's FIN comes before the server's data.
    Half = 3,
    /// A RST by the client. `down` must be more than 0: it shows that everything has arrived.
    ClientReset = 4,
    /// A RST by the server, after a last byte of the client has shown that everything has arrived.
    ServerReset = 5,
    /// A FIN by a client that has sent nothing at all.
    Silent = 6,
}

/// The result of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its own port.
    pub port: u16,
    pub sent: u64,
    pub received: u64,
}

/// Runs a function in a host's network, on its own thread.
pub fn on<T: Send + 'static>(host: &Host, run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let namespace = format!("/run/netns/{}", host.namespace());
    std::thread::spawn(move || {
        setns(File::open(namespace).expect("a namespace"), CloneFlags::CLONE_NEWNET).expect("setns");
        run()
    })
}

/// A server on each of these hosts, until it is dropped.
pub struct Servers(Arc<AtomicBool>);

impl Servers {
    pub fn start(hosts: &[Host]) -> Servers {
        let over = Arc::new(AtomicBool::new(false));
        for host in hosts {
            let address = SocketAddrV4::new(host.address(), PORT);
            let listener = on(host, move || TcpListener::bind(address)).join().expect("a thread").expect("listen");
            let over = over.clone();
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    // The client sees the errors.
                    std::thread::spawn(move || _ = serve(stream));
                }
            });
        }
        Servers(over)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // A thread that waits in accept() ends with the test's process.
        self.0.store(true, Ordering::Relaxed);
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    limit(&stream)?;
    let mut wanted = [0; 17];
    stream.read_exact(&mut wanted)?;
    let number = |at: usize| u64::from_be_bytes(wanted[at..at + 8].try_into().expect("eight bytes"));
    let (up, down, end) = (number(0), number(8), wanted[16]);
    take(&mut stream, up)?;
    if end == End::Half as u8 {
        to_the_end(&mut stream)?;
    }
    give(&mut stream, down)?;
    if end == End::ServerReset as u8 {
        take(&mut stream, 1)?;
        return reset(stream);
    }
    if end == End::Server as u8 || end == End::Half as u8 {
        stream.shutdown(Shutdown::Write)?;
    }
    to_the_end(&mut stream)
}

/// Talks with the server behind an address.
pub fn talk(to: SocketAddrV4, talk: Talk) -> io::Result<Seen> {
    let mut stream = TcpStream::connect(to)?;
    limit(&stream)?;
    let port = stream.local_addr()?.port();
    if talk.end == End::Silent {
        stream.shutdown(Shutdown::Write)?;
        to_the_end(&mut stream)?;
        return Ok(Seen { port, sent: 0, received: 0 });
    }
    let mut said = Vec::from(talk.up.to_be_bytes());
    said.extend(talk.down.to_be_bytes());
    said.push(talk.end as u8);
    stream.write_all(&said)?;
    give(&mut stream, talk.up)?;
    let mut sent = said.len() as u64 + talk.up;
    if talk.end == End::Half {
        stream.shutdown(Shutdown::Write)?;
    }
    take(&mut stream, talk.down)?;
    match talk.end {
        End::ClientReset => reset(stream)?,
        End::ServerReset => {
            stream.write_all(b"!")?;
            sent += 1;
            // nginx turns it into a FIN.
            let ended = stream.read(&mut [0]).map_err(|error| error.kind());
            assert!(matches!(ended, Ok(0) | Err(io::ErrorKind::ConnectionReset)), "{ended:?}");
        }
        End::Client => {
            stream.shutdown(Shutdown::Write)?;
            to_the_end(&mut stream)?;
        }
        _ => to_the_end(&mut stream)?,
    }
    Ok(Seen { port, sent, received: talk.down })
}

/// Runs each connection of several clients, at most this many at the same time.
pub fn all(host: &Host, to: (Ipv4Addr, u16), talks: &[Talk], parallel: usize) -> Vec<(Talk, Seen)> {
    let to = SocketAddrV4::new(to.0, to.1);
    let share = talks.len().div_ceil(parallel).max(1);
    let workers: Vec<_> = talks
        .chunks(share)
        .map(|talks| {
            let talks = talks.to_vec();
            let seen = move |one| (one, talk(to, one).unwrap_or_else(|error| panic!("{one:?}: {error}")));
            on(host, move || talks.into_iter().map(seen).collect::<Vec<_>>())
        })
        .collect();
    workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
}

fn limit(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))
}

fn give(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(7).take(bytes), stream).map(drop)
}

fn take(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let taken = io::copy(&mut stream.take(bytes), &mut io::sink())?;
    if taken == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn to_the_end(stream: &mut TcpStream) -> io::Result<()> {
    let more = io::copy(stream, &mut io::sink())?;
    assert_eq!(more, 0, "bytes that nobody expects");
    Ok(())
}

fn reset(stream: TcpStream) -> io::Result<()> {
    setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).map_err(io::Error::from)
}
