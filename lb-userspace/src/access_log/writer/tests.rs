use super::super::record::Status;
use super::super::tests::{served, turned_away};
use super::*;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

fn log_to(path: &Path) -> AccessLog {
    log_with(LogTarget::File(path.into()), "$connection $status")
}

fn log_with(target: LogTarget, format: &str) -> AccessLog {
    AccessLog { target, interval: Duration::ZERO, format: Format::parse(format).unwrap() }
}

fn targets() -> (Targets, Arc<History>) {
    let history = Arc::new(History::default());
    (Targets::new(history.clone()), history)
}

fn numbered(connection: u64) -> Record {
    Record { connection, ..served() }
}

fn poll(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}

fn fifo(folder: &Path) -> PathBuf {
    let path = folder.join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

fn told(history: &History) -> Vec<String> {
    history.after(0).iter().map(|event| event.text.clone()).collect()
}

#[test]
fn lines_are_appended_and_go_to_a_new_file_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let rotated = folder.path().join("access.log.1");
    fs::write(&path, "old\n").unwrap();
    let (mut targets, history) = targets();
    let mut log = targets.writer(&log_to(&path)).unwrap();
    log.write(numbered(42), Instant::now());
    poll("the first line is written", || fs::read_to_string(&path).unwrap() == "old\n42 200\n");
    fs::rename(&path, &rotated).unwrap();
    targets.reopen();
    poll("the file is made anew", || path.exists());
    log.write(numbered(43), Instant::now());
    drop(log);
    assert_eq!(targets.losses(), (0, 0));
    drop(targets);
    assert_eq!(fs::read_to_string(&path).unwrap(), "43 200\n");
    assert_eq!(fs::read_to_string(&rotated).unwrap(), "old\n42 200\n");
    assert_eq!(told(&history), [""; 0]);
}

#[test]
fn only_lines_of_connections_that_were_turned_away_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let (mut targets, _) = targets();
    let mut log = targets.writer(&log_to(&path)).unwrap();
    let now = Instant::now();
    for _ in 0..150 {
        log.write(turned_away(Status::NoBackend), now);
        log.write(served(), now);
        // A backend was tried: that is no flood.
        log.write(Record { status: Status::NoBackend, ..served() }, now);
    }
    assert_eq!(targets.losses(), (0, 50));
    drop(log);
    drop(targets);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 400);
}

#[test]
fn services_that_log_to_one_file_share_it_each_with_its_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let (mut targets, _) = targets();
    let mut one = targets.writer(&log_to(&path)).unwrap();
    let mut other = targets.writer(&log_with(LogTarget::File(path.clone()), "other $connection")).unwrap();
    assert!(Arc::ptr_eq(&one.target, &other.target));
    one.write(numbered(1), Instant::now());
    other.write(numbered(2), Instant::now());
    one.write(numbered(3), Instant::now());
    drop((one, other));
    drop(targets);
    assert_eq!(fs::read_to_string(&path).unwrap(), "1 200\nother 2\n3 200\n");
}

#[test]
fn a_line_that_was_left_cut_does_not_run_into_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    fs::write(&path, "whole\nha").unwrap();
    let (mut targets, _) = targets();
    targets.writer(&log_to(&path)).unwrap().write(numbered(1), Instant::now());
    drop(targets);
    assert_eq!(fs::read_to_string(&path).unwrap(), "whole\nha\n1 200\n");
}

#[test]
fn lines_wait_for_the_reader_of_a_fifo_and_those_that_are_too_many_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(folder.path());
    let (mut targets, history) = targets();
    let began = Instant::now();
    let mut log = targets.writer(&log_to(&path)).unwrap();
    let written = 100_000;
    for number in 0..written {
        log.write(numbered(number), began);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "waited: {:?}", began.elapsed());
    let (lost, _) = targets.losses();
    assert!((60_000..written).contains(&lost), "{lost}");
    let reader = read_to_the_end(&path);
    drop(log);
    drop(targets);
    let read = reader.join().unwrap();
    assert_eq!(read.lines().count() as u64 + lost, written);
    assert!(read.starts_with("0 200\n1 200\n2 200\n") && read.ends_with(" 200\n"));
    let told = told(&history);
    assert!(told[0].contains("pipe: No such device or address"), "{told:?}");
    assert!(told[1].ends_with("does not keep up, lines are lost"), "{told:?}");
    assert!(told[2].contains("written again after"), "{told:?}");
    assert_eq!(told.len(), 3, "{told:?}");
}

/// As a log shipper that reads a FIFO.
fn read_to_the_end(path: &Path) -> std::thread::JoinHandle<String> {
    let mut reader = fs::File::open(path).unwrap();
    std::thread::spawn(move || {
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        read
    })
}

#[test]
fn a_reader_that_is_started_anew_gets_whole_lines_and_all_of_those_that_waited() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(folder.path());
    let (mut targets, history) = targets();
    let mut log = targets.writer(&log_with(LogTarget::File(path.clone()), "<$connection>")).unwrap();
    let lines = 20_000;
    (0..lines).for_each(|number| log.write(numbered(number), Instant::now()));
    let mut first = [0; 10_001];
    fs::File::open(&path).unwrap().read_exact(&mut first).unwrap();
    poll("it sees that its reader is gone", || told(&history).iter().any(|text| text.contains("Broken pipe")));
    // What was in the pipe went with the reader, and cannot be counted.
    let reader = read_to_the_end(&path);
    drop(log);
    drop(targets);
    let read = reader.join().unwrap();
    let numbers: Vec<u64> = read.lines().map(|line| line[1..line.len() - 1].parse().unwrap()).collect();
    let began = numbers[0];
    assert!(began > 1_000 && numbers.iter().copied().eq(began..lines), "{began}");
}

#[test]
fn a_target_that_hangs_costs_lines_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(folder.path());
    let (mut targets, _) = targets();
    let mut log = targets.writer(&log_to(&path)).unwrap();
    let began = Instant::now();
    // For the first line it opens the FIFO, which the reader's open waits for.
    log.write(numbered(0), began);
    let reader = fs::File::open(&path).unwrap();
    let written = 100_000;
    (1..written).for_each(|number| log.write(numbered(number), began));
    let (lost, _) = targets.losses();
    assert!((1..written).contains(&lost), "{lost}");
    // A reload that takes the log away, and one that brings it back.
    drop(log);
    targets.writer(&log_with(LogTarget::Stdout, "")).unwrap();
    drop(targets.writer(&log_to(&path)).unwrap());
    assert!(began.elapsed() < Duration::from_secs(5), "waited: {:?}", began.elapsed());
    let losses = targets.losses.clone();
    drop(targets);
    assert!(began.elapsed() < Duration::from_secs(15), "the end waited: {:?}", began.elapsed());
    let lost = || losses.lost.load(Ordering::Relaxed);
    let mut read = String::new();
    // The rest of the pipe comes with its end, when what hung is given up.
    (&reader).read_to_string(&mut read).unwrap();
    // A line that was cut is lost, and the part of it that was written was read.
    let whole = read.bytes().filter(|byte| *byte == b'\n').count() as u64;
    assert_eq!(whole + lost(), written);
}

#[test]
fn a_listing_may_be_longer_than_the_queue_and_waits_for_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(folder.path());
    let (mut targets, _) = targets();
    let mut log = targets.writer(&log_to(&path)).unwrap();
    let listed = 3 * QUEUE as u64;
    assert!(log.list((0..listed).map(numbered)));
    assert!(!log.list((0..listed).map(numbered)), "the first one waits for a reader");
    let ended = 1_000_000;
    log.write(numbered(ended), Instant::now());
    let reader = read_to_the_end(&path);
    poll("another one", || log.list(std::iter::once(numbered(ended + 1))));
    drop(log);
    assert_eq!(targets.losses(), (0, 0));
    drop(targets);
    let read = reader.join().unwrap();
    let mut numbers: Vec<u64> = read.lines().map(|line| line.trim_end_matches(" 200").parse().unwrap()).collect();
    let place = numbers.iter().position(|number| *number == ended).unwrap();
    assert!(place < QUEUE, "the line of a connection that ended does not wait for all of them: {place}");
    numbers.remove(place);
    assert!(numbers.iter().copied().eq((0..listed).chain([ended + 1])));
}

/// journald's side of its native protocol.
fn stand_in(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

fn receive(socket: &UnixDatagram) -> String {
    let mut datagram = vec![0; 400_000];
    let length = socket.recv(&mut datagram).unwrap();
    String::from_utf8(datagram[..length].to_vec()).unwrap()
}

#[test]
fn the_journal_gets_a_datagram_a_line_with_fields_to_search_by() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let history = Arc::new(History::default());
    let mut targets = Targets::with_journal(history.clone(), path.clone());
    let to_journal = |format: &str| log_with(LogTarget::Journald, format);
    let error = targets.writer(&to_journal("")).err().expect("nobody listens");
    let wanted = format!("path = \"journald\", but {} does not answer: No such file or directory", path.display());
    assert!(error.to_string().starts_with(&wanted), "{error}");

    let journal = stand_in(&path);
    let mut log = targets.writer(&to_journal("$connection \"$backend\"")).unwrap();
    log.write(numbered(1), Instant::now());
    log.write(turned_away(Status::NoBackend), Instant::now());
    let fields = "SYSLOG_IDENTIFIER=evenkeel\nPRIORITY=6\nEVENKEEL_SERVICE=api\n";
    let served = "EVENKEEL_BACKEND=cp02\nEVENKEEL_REASON=idle_timeout\nMESSAGE=1 \"cp02\"\n";
    assert_eq!(receive(&journal), format!("{fields}{served}"));
    assert_eq!(receive(&journal), format!("{fields}EVENKEEL_REASON=no_backend\nMESSAGE=42 \"-\"\n"));

    // Restarted, as by an update of systemd.
    drop(journal);
    fs::remove_file(&path).unwrap();
    (2..100).for_each(|number| log.write(numbered(number), Instant::now()));
    poll("it sees that nobody listens", || !told(&history).is_empty());
    let journal = stand_in(&path);
    for number in 2..100 {
        assert!(receive(&journal).ends_with(&format!("MESSAGE={number} \"cp02\"\n")), "{number}");
    }
    // A journal that does not read holds nothing up, and what it has no room for waits.
    (100..2000).for_each(|number| log.write(numbered(number), Instant::now()));
    for number in 100..2000 {
        assert!(receive(&journal).ends_with(&format!("MESSAGE={number} \"cp02\"\n")), "{number}");
    }
    assert_eq!(targets.losses(), (0, 0));
}

#[test]
fn a_line_longer_than_a_datagram_can_be_is_lost_alone_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let journal = stand_in(&path);
    let mut targets = Targets::with_journal(Arc::default(), path);
    for (length, lost) in [(100_000, 0), (1_000_000, 1), (10, 1)] {
        let long = "x".repeat(length);
        targets.writer(&log_with(LogTarget::Journald, &long)).unwrap().write(served(), Instant::now());
        poll("it is sent or counted", || targets.losses().0 == lost);
        if length < 1_000_000 {
            assert!(receive(&journal).ends_with(&format!("MESSAGE={long}\n")));
        }
    }
}

#[test]
fn a_long_line_is_whole_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    let (mut targets, _) = targets();
    let long = "x".repeat(1_000_000);
    let mut log = targets.writer(&log_with(LogTarget::File(path.clone()), &long)).unwrap();
    (0..3).for_each(|_| log.write(served(), Instant::now()));
    drop(log);
    drop(targets);
    assert!(fs::read_to_string(&path).unwrap() == format!("{long}\n").repeat(3));
}

#[test]
fn a_folder_that_is_not_there_is_told() {
    let (mut targets, _) = targets();
    let error = targets.writer(&log_to(Path::new("/nonexistent/access.log"))).err().expect("there is no folder");
    assert_eq!(
        error.to_string(),
        "access log /nonexistent/access.log cannot be opened: No such file or directory (os error 2)"
    );
}

#[test]
fn a_full_disk_is_told_once_and_does_not_keep_the_end_waiting() {
    let (mut targets, history) = targets();
    let began = Instant::now();
    let mut log = targets.writer(&log_to(Path::new("/dev/full"))).unwrap();
    (0..10).for_each(|number| log.write(numbered(number), began));
    poll("it is told", || !told(&history).is_empty());
    drop(log);
    let losses = targets.losses.clone();
    drop(targets);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(losses.lost.load(Ordering::Relaxed), 10);
    let told = told(&history);
    let wanted = "access log /dev/full: No space left on device (os error 28): up to 32768 lines are queued, ";
    assert!(told.len() == 1 && told[0].starts_with(wanted), "{told:?}");
}
