use std::os::unix::fs::PermissionsExt;

use jiff::SignedDuration;
use lb_common::time::Instant;
use tempfile::TempDir;

use super::*;

fn at(seconds: u64) -> Instant {
    Instant(seconds * 1_000_000_000)
}

fn now() -> Now {
    Now { monotonic: at(5_000), wall: Timestamp::from_second(1_800_000_000).expect("a time") }
}

fn name(backend: &str) -> (Arc<str>, Arc<str>) {
    ("kube-apiserver".into(), backend.into())
}

fn some() -> AdminStates {
    let mut admin_states = AdminStates::default();
    let drain = AdminState::Drain { deadline: Some(at(5_060)), rate: 50 };
    let mut say = |backend: &str, order, seconds: u64, by: &str| {
        let said = AdminEntry { order, since: at(seconds), by: by.into() };
        // With the same difference between the two clocks as in `now`.
        admin_states.say(name(backend), said, (1_800_000_000 - 5_000 + seconds) * 1_000);
    };
    say("cp01", drain, 4_990, "uid 0");
    let drain = AdminState::Drain { deadline: None, rate: 7 };
    say("cp02", drain, 10, "uid 1000");
    say("cp03", AdminState::Maint, 5_000, "uid 0");
    admin_states.take_back(&name("cp04"), 1_799_999_999_123);
    admin_states
}

fn file() -> (TempDir, AdminFile) {
    let folder = tempfile::tempdir().unwrap();
    let file = AdminFile::new(folder.path());
    (folder, file)
}

#[test]
fn what_was_saved_is_loaded_and_nobody_else_may_read_it() {
    let (folder, file) = file();
    assert_eq!(file.load(now()).unwrap(), AdminStates::default(), "nothing was ever decided");
    file.save(&some(), now()).unwrap();
    assert_eq!(file.load(now()).unwrap(), some());
    let path = folder.path().join("admin.json");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    file.save(&AdminStates::default(), now()).unwrap();
    assert_eq!(file.load(now()).unwrap(), AdminStates::default());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn deadlines_are_moments_of_the_wall_clock_through_a_restart_of_the_host() {
    let (_folder, file) = file();
    file.save(&some(), now()).unwrap();
    // Forty seconds later, on a host that has been up for twenty.
    let later = Now { monotonic: at(20), wall: now().wall + SignedDuration::from_secs(40) };
    let admin_states = file.load(later).unwrap();
    let first = admin_states.get(&name("cp01")).unwrap();
    assert_eq!(first.order, AdminState::Drain { deadline: Some(at(40)), rate: 50 });
    assert_eq!(first.since, Instant::ZERO, "before the host started");
}

#[test]
fn an_invalid_file_is_reported_moved_aside_and_replaced() {
    let entry = |rest: &str| {
        format!(
            r#"{{"version":1,"backends":[{{"service":"s","backend":"b","since":"2026-11-25T03:00:00Z","by":"uid 0",{rest}}}]}}"#
        )
    };
    let good = entry(r#""order":"maint""#);
    let twice = {
        let one = &good[good.find('[').unwrap() + 1..good.find(']').unwrap()];
        format!(r#"{{"version":1,"backends":[{one},{one}]}}"#)
    };
    let hostile: Vec<(Vec<u8>, &str)> = vec![
        (b"".to_vec(), "EOF"),
        (b"\0\xff\xfe garbage".to_vec(), "expected value"),
        (b"[1,2,3".to_vec(), "trailing characters"),
        (br#"{"version":1}"#.to_vec(), "missing field `backends`"),
        (br#"{"version":2,"backends":[],"new":true}"#.to_vec(), "it has version 2"),
        (br#"{"version":1,"backends":[],"more":1}"#.to_vec(), "unknown field `more`"),
        (entry(r#""order":"explode""#).into(), "unknown variant `explode`"),
        (entry(r#""order":"drain""#).into(), "is invalid"),
        (entry(r#""order":"drain","rate":0"#).into(), "is invalid"),
        (entry(r#""order":"drain","rate":-1"#).into(), "invalid value"),
        (entry(r#""order":"maint","rate":5"#).into(), "is invalid"),
        (entry(r#""order":"drain","rate":5,"deadline":"soon""#).into(), "failed to parse"),
        (good.replace("uid 0", "\\u001b[31mroot").into(), "not plain text"),
        (twice.into(), "twice"),
        (vec![b'['; 200_000], "invalid type: sequence"),
        (vec![b' '; MOST_BYTES as usize + 1], "more than 1048576 bytes"),
    ];
    for (bytes, why) in hostile {
        let (folder, file) = file();
        let path = folder.path().join("admin.json");
        fs::write(&path, &bytes).unwrap();
        let error = format!("{:#}", file.load(now()).expect_err(why));
        assert!(error.contains(why) && error.contains("get connections again"), "{why}: {error}");
        assert_eq!(fs::read(folder.path().join("admin.json.bad")).unwrap(), bytes);
        assert_eq!(file.load(now()).unwrap(), AdminStates::default(), "the next start finds nothing");
        file.save(&some(), now()).unwrap();
        assert_eq!(file.load(now()).unwrap(), some());
    }
    let (folder, file) = file();
    fs::write(folder.path().join("admin.json"), good).unwrap();
    assert_eq!(file.load(now()).unwrap().iter().count(), 1, "the same with nothing wrong in it");
}

#[test]
fn what_is_no_file_is_not_opened() {
    let cases: [fn(&Path); 3] = [
        |path| fs::create_dir(path).unwrap(),
        |path| std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
    ];
    for make in cases {
        let (folder, file) = file();
        make(&folder.path().join("admin.json"));
        let error = format!("{:#}", file.load(now()).expect_err("no file"));
        assert!(error.contains("not a regular file"), "{error}");
        file.save(&some(), now()).unwrap();
        assert_eq!(file.load(now()).unwrap(), some());
    }
}

#[test]
fn a_deadline_that_cannot_be_is_far_away_or_now_and_never_a_panic() {
    let (folder, file) = file();
    for (deadline, expected) in [("9999-12-30T22:00:00Z", Instant::NEVER), ("-009999-01-02T02:00:00Z", Instant::ZERO)] {
        let text = format!(
            r#"{{"version":1,"backends":[{{"service":"s","backend":"b","order":"drain","rate":5,"since":"{deadline}","by":"","deadline":"{deadline}"}}]}}"#
        );
        fs::write(folder.path().join("admin.json"), text).unwrap();
        let admin_states = file.load(now()).unwrap();
        let said = admin_states.get(&("s".into(), "b".into())).unwrap();
        assert_eq!(said.order, AdminState::Drain { deadline: Some(expected), rate: 5 });
        file.save(&admin_states, now()).unwrap();
    }
}

#[test]
fn what_cannot_be_written_changes_nothing() {
    let (folder, file) = file();
    file.save(&some(), now()).unwrap();
    fs::create_dir(folder.path().join("admin.json.new")).unwrap();
    let error = format!("{:#}", file.save(&AdminStates::default(), now()).expect_err("no room for the new one"));
    assert!(error.contains("admin.json cannot be written"), "{error}");
    assert_eq!(file.load(now()).unwrap(), some());
}
