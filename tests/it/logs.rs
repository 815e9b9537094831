//! The access log with the shipped binary: targets that fail or hang, connections that are still
//! open, and losses that are counted to the last line.

mod bytes;
mod nginx;
mod overflow;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lab::{daemon::Service, wait};
use nix::sys::signal::Signal;

use crate::cluster::{Cluster, SOON, all_served};

/// A folder in the lab for a test's files.
fn folder(cluster: &Cluster, name: &str) -> PathBuf {
    let folder = cluster.lab.folder().join(name);
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

fn log_to(service: Service, path: &Path, format: &str) -> Service {
    service.line(&format!("access_log = {{ path = \"{}\", format = '{format}' }}", path.display()))
}

/// Opens this many connections one after the other; all of them are served.
fn connections(cluster: &Cluster, count: u64) {
    let report = cluster.storm(&["--connections", &count.to_string()]).finish(SOON * 3).expect("its report");
    assert_eq!((report.done, report.failures()), (count, 0), "{report:?}");
}

/// Waits until a file contains what is wanted.
fn until(cluster: &Cluster, what: &str, path: &Path, holds: impl Fn(&str) -> bool) -> String {
    let read = || fs::read_to_string(path).ok().filter(|text| holds(text));
    wait::until(what, SOON, read).unwrap_or_else(|error| {
        let text = fs::read_to_string(path).unwrap_or_default();
        panic!("{error:#}: {} lines\n{text}\n{}", text.lines().count(), cluster.evenkeel.log())
    })
}

fn lines(text: &str, is_whole: impl Fn(&str) -> bool) -> usize {
    text.lines().filter(|line| is_whole(line)).count()
}

fn lost(cluster: &Cluster) -> u64 {
    cluster.evenkeel.counter("access_log_lost").expect("counters")
}

fn told(cluster: &Cluster, text: &str) {
    let says = || cluster.evenkeel.done(&["events"]).expect("events").contains(text).then_some(());
    wait::until(text, SOON, says).unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.evenkeel.log()));
}

/// A disk of a fixed size, which its guard unmounts.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path, size: &str) -> Disk {
        let disk = Disk(path.to_owned());
        disk.command("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        disk
    }

    fn grow(&self, size: &str) {
        self.command("mount", &["-o", &format!("remount,size={size}")]);
    }

    fn command(&self, program: &str, args: &[&str]) {
        let status = Command::new(program).args(args).arg(&self.0).status().expect("it runs");
        assert!(status.success(), "{program} {args:?}: {status}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_costs_no_line_while_they_can_wait_and_a_torn_one_stands_alone() {
    let cluster = Cluster::new("tc", |service| service);
    let folder = folder(&cluster, "small");
    let disk = Disk::mount(&folder, "16k");
    let path = folder.join("access.log");
    cluster.reload(&log_to(cluster.service.clone(), &path, "<$remote_addr $remote_port $time_iso8601 $upstream_addr>"));
    let is_whole = |line: &str| line.starts_with('<') && line.ends_with('>');
    // At some 70 bytes per line the disk is full after 240 lines, and takes a part of one more.
    connections(&cluster, 400);
    told(&cluster, "access.log: No space left on device (os error 28): up to 32768 lines are queued");
    let full = fs::read(&path).expect("the log");
    assert!(full.len() == 16 << 10 && full.last() != Some(&b'\n'), "the disk took {} bytes", full.len());
    connections(&cluster, 100);
    disk.grow("1m");
    let all = until(&cluster, "every line", &path, |text| lines(text, is_whole) == 500);
    assert_eq!(lines(&all, |line| !is_whole(line)), 1, "the one that was torn: {all}");
    told(&cluster, "access.log: written again after");

    // Rotated while it is full, as by logrotate: the old file is removed, then the signal comes.
    disk.grow("64k");
    connections(&cluster, 600);
    told(&cluster, "No space left on device");
    fs::remove_file(&path).expect("the old file");
    cluster.evenkeel.signal(Signal::SIGUSR1).expect("SIGUSR1");
    connections(&cluster, 10);
    let rest = until(&cluster, "the lines after", &path, |text| lines(text, is_whole) >= 10);
    assert_eq!(lines(&rest, |line| !is_whole(line)), 0, "{rest}");
    assert_eq!(lost(&cluster), 0);
}

#[test]
fn a_fifo_without_a_reader_holds_up_nobody_and_neither_does_one_that_is_not_read() {
    let mut cluster = Cluster::new("tc", |service| service);
    let path = folder(&cluster, "fifo").join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
    let logged = log_to(cluster.service.clone(), &path, "$connection $remote_addr $status $bytes_sent $time_iso8601");
    cluster.evenkeel.write(&logged.toml()).expect("a configuration");
    cluster.evenkeel.terminate().expect("an end");
    cluster.evenkeel.run().expect("a start without a reader");
    connections(&cluster, 50);
    told(&cluster, "pipe: No such device or address");
    let mut reader = fs::File::open(&path).expect("the reader");
    let mut read = String::new();
    while read.lines().count() < 50 || !read.ends_with('\n') {
        let mut block = [0; 4096];
        let length = reader.read(&mut block).expect("lines");
        assert!(length > 0, "the end after {read}");
        read.push_str(&String::from_utf8_lossy(&block[..length]));
    }
    assert_eq!(lines(&read, |line| line.contains(" 10.0.1.101 200 ")), 50, "{read}");

    // More than a pipe holds, and nothing reads it any longer.
    connections(&cluster, 3000);
    let began = Instant::now();
    cluster.reload(&cluster.service);
    cluster.reload(&logged);
    cluster.evenkeel.status().expect("status");
    assert!(began.elapsed() < Duration::from_secs(3), "two reloads took {:?}", began.elapsed());
    cluster.evenkeel.terminate().expect("an end, though one target hangs");
    assert!(began.elapsed() < Duration::from_secs(12), "the end took {:?}", began.elapsed());
    drop(reader);
}

/// The lines of a log that begins each line with the connection's number, by that number.
fn by_connection(text: &str) -> BTreeMap<u64, Vec<String>> {
    let mut connections = BTreeMap::<u64, Vec<String>>::new();
    for line in text.lines() {
        let (number, rest) = line.split_once(' ').expect("a number and more");
        connections.entry(number.parse().expect("a number")).or_default().push(rest.to_owned());
    }
    connections
}

#[test]
fn connections_that_are_open_are_logged_at_the_interval_under_the_number_they_end_with() {
    let cluster = Cluster::new("tc", |service| service);
    let path = folder(&cluster, "interval").join("access.log");
    let log =
        "access_log = { path = \"PATH\", interval = \"1s\", format = '$connection $remote_port $status $snat_addr' }";
    cluster.reload(&cluster.service.clone().line(&log.replace("PATH", &path.display().to_string())));
    let mut held = cluster.hold(&[]);
    all_served(&held.open(60).expect("open"), 60, "held");
    let twice = |text: &str| {
        let connections = by_connection(text.rsplit_once('\n').map_or("", |(whole, _)| whole));
        connections.values().filter(|lines| lines.len() >= 2).count() == 60
    };
    until(&cluster, "every connection twice", &path, twice);
    held.close(60, "-", "fin").expect("close");
    cluster.active([0, 0, 0]);
    let ended = |text: &str| text.ends_with('\n') && lines(text, |line| line.contains(" 200 ")) == 60;
    let text = until(&cluster, "every end", &path, ended);
    let connections = by_connection(&text);
    assert_eq!(connections.len(), 60, "{text}");
    let mut ports = BTreeSet::new();
    for (number, lines) in &connections {
        assert!(*number > 0, "{lines:?}");
        let (end, open) = lines.split_last().expect("lines");
        assert!(end.contains(" 200 "), "{lines:?}");
        let open_line = end.replace(" 200 ", " - ");
        assert!(open.len() >= 2 && open.iter().all(|line| *line == open_line), "{lines:?}");
        ports.insert(open_line);
    }
    assert_eq!(ports.len(), 60, "each is a connection of its own");
}
