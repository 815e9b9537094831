//! The same connections through nginx and through evenkeel with one `log_format`: every line is the
//! same.

use std::{collections::BTreeMap, fs, io::Read, net::TcpStream, path::Path};

use lab::{
    Evenkeel, Lab, Plan,
    daemon::Service,
    peers::{self, NGINX_PORT},
    topology::{PORT, Topology, VIP},
    wait,
};

use super::{
    log_to,
    traffic::{self, End, Servers, Talk},
};
use crate::cluster::SOON;

/// All variables that both have, with bars between them.
const FORMAT: &str = "$remote_port|$remote_addr|$server_addr|$server_port|$protocol|$status|$bytes_sent|$bytes_received|\
                      $session_time|$upstream_addr|$upstream_connect_time|$upstream_bytes_sent|$upstream_bytes_received|\
                      $time_local|$time_iso8601|$msec|$hostname|$connection|$pid";

/// The line of one connection, by variable.
type Line = BTreeMap<String, String>;

fn parse(line: &str) -> Line {
    let names = FORMAT.split('|').map(|name| name.trim_start_matches('$').to_owned());
    let line: Line = names.zip(line.split('|').map(ToOwned::to_owned)).collect();
    assert_eq!(line.len(), 19, "{line:?}");
    line
}

struct Beside {
    lab: Lab,
    ours: std::path::PathBuf,
    evenkeel: Evenkeel,
}

impl Beside {
    /// Runs the talks through a port of the VIP, one after the other, and returns their lines in
    /// that order.
    fn lines(&self, port: u16, log: &Path, talks: &[Talk]) -> Vec<Line> {
        let seen = traffic::all(self.lab.client(), (VIP, port), talks, 1);
        self.lines_of(log, seen.iter().map(|(_, seen)| seen.port).collect())
    }

    fn lines_of(&self, log: &Path, ports: Vec<u16>) -> Vec<Line> {
        let line_of = |text: &str, port: u16| {
            let begin = format!("{port}|");
            text.lines().rev().find(|line| line.starts_with(&begin)).map(parse)
        };
        let all = || {
            let text = fs::read_to_string(log).ok()?;
            let whole = &text[..text.rfind('\n')? + 1];
            ports.iter().map(|port| line_of(whole, *port)).collect()
        };
        wait::until("a line of each", SOON, all).unwrap_or_else(|error| {
            panic!("{error:#}: {ports:?}\n{:?}\n{}", fs::read_to_string(log), self.evenkeel.log())
        })
    }

    fn compare(&self, talks: &[Talk]) {
        let ours = self.lines(PORT, &self.ours, talks);
        let theirs = self.lines(NGINX_PORT, &peers::nginx_log(&self.lab), talks);
        for ((talk, ours), theirs) in talks.iter().zip(&ours).zip(&theirs) {
            same(&format!("{talk:?}"), ours, theirs);
        }
    }
}

/// What both log about one connection, as far as it can be the same.
fn same(what: &str, ours: &Line, theirs: &Line) {
    let shown = format!("{what}\nours:   {ours:?}\ntheirs: {theirs:?}");
    for name in ["remote_addr", "server_addr", "protocol", "status", "bytes_sent", "bytes_received", "hostname"] {
        assert_eq!(ours[name], theirs[name], "{name}: {shown}");
    }
    assert_eq!((&*ours["server_port"], &*theirs["server_port"]), ("6443", "7443"), "{shown}");
    // Which backends they were may differ; how many there were, and what each one did, may not.
    let many = |line: &Line, name: &str| line[name].split(", ").map(ToOwned::to_owned).collect::<Vec<_>>();
    assert_eq!(many(ours, "upstream_addr").len(), many(theirs, "upstream_addr").len(), "{shown}");
    for name in ["upstream_bytes_sent", "upstream_bytes_received"] {
        assert_eq!(many(ours, name), many(theirs, name), "{name}: {shown}");
    }
    let connected = |line: &Line| {
        let times = many(line, "upstream_connect_time");
        times.iter().map(|time| time != "-").collect::<Vec<_>>()
    };
    assert_eq!(connected(ours), connected(theirs), "{shown}");
    let number = |line: &Line, name: &str| line[name].parse::<f64>().unwrap_or_else(|_| panic!("{name}: {shown}"));
    let times = many(ours, "upstream_connect_time").into_iter().chain(many(theirs, "upstream_connect_time"));
    for time in times.filter(|time| time != "-").chain([ours["session_time"].clone()]) {
        assert!(time.split_once('.').is_some_and(|(_, decimals)| decimals.len() == 3), "{time}: {shown}");
    }
    assert!((number(ours, "session_time") - number(theirs, "session_time")).abs() < 1.0, "{shown}");
    assert!((number(ours, "msec") - number(theirs, "msec")).abs() < 60.0, "{shown}");
    for name in ["time_local", "time_iso8601"] {
        let shape = |line: &Line| line[name].replace(|c: char| c.is_ascii_digit(), "0");
        assert_eq!(shape(ours), shape(theirs), "{name}: {shown}");
    }
    for name in ["connection", "pid"] {
        assert!(number(ours, name) > 0.0, "{name}: {shown}");
    }
}

#[test]
fn the_same_connections_leave_the_same_lines_as_at_nginx() {
    let lab = Lab::build(&Plan::new(Topology::Segment)).expect("the lab");
    let _servers = Servers::start(&lab.backends);
    let ours = lab.folder().join("access.log");
    let service = log_to(Service::new(&lab, "tc"), &ours, FORMAT).line("next_upstream_tries = 2");
    let evenkeel = Evenkeel::start(&lab, &service.toml()).expect("evenkeel");
    let _nginx = peers::nginx_logging(&lab, FORMAT).expect("nginx");
    let beside = Beside { lab, ours, evenkeel };
    let talk = |up, down, end| Talk { up, down, end };
    let served = [
        talk(0, 0, End::Silent),
        talk(0, 0, End::Client),
        talk(1000, 1, End::Client),
        talk(1, 500_000, End::Client),
        talk(0, 0, End::Server),
        talk(500_000, 1000, End::Server),
        talk(1000, 1000, End::ClientReset),
        talk(1000, 1000, End::ServerReset),
    ];
    beside.compare(&served);

    // One of three refuses: connections that are given to it need two tries.
    beside.lab.backends[0].reject_syns(PORT).expect("nft");
    let tried_twice = |log: &Path, port: u16| {
        let lines = beside.lines(port, log, &[talk(7, 8, End::Client); 6]);
        lines.into_iter().find(|line| line["upstream_addr"].contains(", ")).expect("one that was refused first")
    };
    let twice = tried_twice(&beside.ours, PORT);
    same("the first try is refused", &twice, &tried_twice(&peers::nginx_log(&beside.lab), NGINX_PORT));
    assert_eq!(twice["upstream_bytes_sent"], "0, 24");

    // All refuse. nginx has accepted the connection before it knows, and closes it; evenkeel
    // refuses the client.
    beside.lab.backends.iter().for_each(|backend| backend.reject_syns(PORT).expect("nft"));
    let refused = |log: &Path, port: u16| {
        let connect = move || TcpStream::connect((VIP, port)).and_then(|mut stream| stream.read(&mut [0]));
        _ = traffic::on(beside.lab.client(), connect).join().expect("a client");
        let line = || fs::read_to_string(log).ok()?.lines().map(parse).find(|line| line["status"] == "502");
        wait::until("its line", SOON, line).unwrap_or_else(|error| panic!("{error:#}\n{}", beside.evenkeel.log()))
    };
    let ours = refused(&beside.ours, PORT);
    same("all refuse", &ours, &refused(&peers::nginx_log(&beside.lab), NGINX_PORT));
    assert_eq!(ours["upstream_connect_time"], "-, -");
}
