//! `evenkeel-lab bench-hold` and `bench-first`: idle connections, as most watches are; and the
//! first connection that is served.

use std::{
    io::{self, Read, Write},
    net::{SocketAddrV4, TcpStream},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    socket::{setsockopt, sockopt},
};

use super::server::HEAD;
use crate::pki;

/// How many connections one process may hold: fewer than the usual limit of open files.
pub const PER_PROCESS: u32 = 15_000;
/// A connect that takes longer counts as failed.
const LIMIT: Duration = Duration::from_secs(5);
/// The pause between two attempts to get the first answer.
const PAUSE: Duration = Duration::from_millis(1);
const FIRST_LIMIT: Duration = Duration::from_secs(20);

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Addresses to connect to, used in turn
    #[arg(required = true)]
    pub targets: Vec<SocketAddrV4>,
    #[arg(long)]
    pub count: u32,
}

#[derive(clap::Args, Clone, Debug)]
pub struct FirstOptions {
    pub target: SocketAddrV4,
}

/// Whether the other side keeps a connection open.
fn is_open(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).is_ok()
        && stream.peek(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Opens this many connections, reports that, and resets them when its standard input ends.
pub fn hold(options: &Options) -> Result<()> {
    raise_limit()?;
    let mut held = Vec::new();
    for number in 0..options.count {
        let target = options.targets[number as usize % options.targets.len()];
        let stream = TcpStream::connect_timeout(&target.into(), LIMIT)
            .with_context(|| format!("connection {number} of {} to {target}", options.count))?;
        // Leaves no TIME_WAIT behind for the next round.
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&stream, sockopt::Linger, &linger).context("SO_LINGER")?;
        held.push(stream);
    }
    println!("{}", held.len());
    io::stdin().read_to_end(&mut Vec::new())?;
    // A proxy may accept connections and then refuse them.
    let ended = held.iter().filter(|stream| !is_open(stream)).count();
    ensure!(ended == 0, "{ended} of {} connections had ended", held.len());
    Ok(())
}

/// Connects until a request is answered, and prints that moment in nanoseconds since 1970, for
/// another process to compare.
pub fn first(options: &FirstOptions) -> Result<()> {
    let answered = || -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&options.target.into(), Duration::from_millis(20))?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        stream.write_all(format!("GET /2 HTTP/1.1\r\nhost: {}\r\n\r\n", pki::SERVER_NAME).as_bytes())?;
        stream.read_exact(&mut [0; HEAD + 2])
    };
    println!("ready");
    let until = SystemTime::now() + FIRST_LIMIT;
    while answered().is_err() {
        ensure!(SystemTime::now() < until, "no connection to {} within {FIRST_LIMIT:?}", options.target);
        thread::sleep(PAUSE);
    }
    println!("{}", now_ns());
    Ok(())
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos()
}

fn raise_limit() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("setrlimit")
}
