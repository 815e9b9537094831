//! Controllers come and go, the datapath stays: restarts, upgrades, and what happens when they
//! fail.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use lab::{Process, StandIn, binaries, wait};
use nix::sys::signal::Signal;

use crate::cluster::{Cluster, SOON, VIP, all_served, full};

/// The API's certificates, for held connections over TLS.
fn tls(cluster: &Cluster) -> String {
    cluster.lab.folder().display().to_string()
}

/// Starts evenkeel from its own path, where another program can be installed; returns the path of
/// the built one.
fn move_in(cluster: &mut Cluster) -> PathBuf {
    let built = binaries::evenkeel().expect("evenkeel");
    cluster.evenkeel.terminate().expect("its end");
    cluster.evenkeel.install(&built).expect("a binary");
    cluster.evenkeel.run().expect("a start from another place");
    built
}

/// Restarts in every way, and upgrades between two builds, while connections are held and others
/// come and go.
fn controllers_come_and_go(hook: &str, restarts: usize, upgrades: usize) {
    let mut cluster = Cluster::new(hook, |service| service);
    let client = cluster.lab.client().clone();
    let builds = [binaries::another_evenkeel().expect("another build"), move_in(&mut cluster)];
    let mut held = cluster.hold(&["--tls", &tls(&cluster)]);
    all_served(&held.open(150).expect("open"), 150, hook);
    let retransmitted = client.tcp_counter("RetransSegs").expect("a counter");
    let storm = cluster.storm(&["--seconds", "300", "--rate", "300", "--close", "mixed"]);
    for round in 0..restarts {
        match round % 3 {
            0 => cluster.evenkeel.upgrade_by_signal(),
            1 => cluster.evenkeel.terminate().and_then(|()| cluster.evenkeel.run()),
            _ => {
                cluster.evenkeel.kill();
                cluster.evenkeel.run()
            }
        }
        .unwrap_or_else(|error| panic!("{hook}, restart {round}: {error:#}\n{}", cluster.evenkeel.log()));
    }
    for build in builds.iter().cycle().take(upgrades) {
        cluster.evenkeel.install(build).expect("a binary");
        cluster.evenkeel.upgrade().unwrap_or_else(|error| panic!("{hook}: {error:#}\n{}", cluster.evenkeel.log()));
    }
    let report = storm.stop(Duration::from_secs(60)).expect("its report");
    let retransmitted = client.tcp_counter("RetransSegs").expect("a counter") - retransmitted;
    println!("{hook}: {restarts} restarts, {upgrades} upgrades: {report:?}, {retransmitted} retransmissions");
    assert_eq!(report.failures(), 0, "{hook}: {report:?}");
    let status = held.status().expect("status");
    assert_eq!((status.open, held.ask().expect("ask").answered), (150, 150), "{hook}: {status:?}");
    cluster.active([50, 50, 50]);
    let total: u64 = cluster.evenkeel.backends().expect("backends").iter().map(|backend| backend.total).sum();
    assert_eq!(total, report.done + 150, "{hook}: the counters go on");
    // A busy machine makes clients repeat packets too; a gap in the datapath would show in every
    // connection of one moment.
    assert!(retransmitted <= report.done / 200, "{hook}: {retransmitted} retransmissions");
}

#[test]
fn restarts_and_upgrades_under_load_lose_no_connection() {
    // Twenty and five on all of them together; at full size on each.
    for (hook, restarts, upgrades) in [("tc", 8, 2), ("clsact", 6, 1), ("xdp", 6, 2)] {
        let (restarts, upgrades) = if full() { (20, 5) } else { (restarts, upgrades) };
        controllers_come_and_go(hook, restarts, upgrades);
    }
}

/// A program that the daemon is upgraded to.
fn script(cluster: &Cluster, text: &str) -> PathBuf {
    let path = cluster.lab.folder().join("script");
    fs::write(&path, text).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    path
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_daemon_where_it_was_and_says_why() {
    let mut cluster = Cluster::new("tc", |service| service);
    let evenkeel = move_in(&mut cluster);
    let mut held = cluster.hold(&[]);
    all_served(&held.open(9).expect("open"), 9, "before");
    let pid = cluster.evenkeel.pid().expect("pid");
    // It becomes ready, is handed the control, and dies.
    let dies = "#!/bin/bash\nfor pair in $EVENKEEL_HANDOVER; do declare \"${pair%%=*}=${pair##*=}\"; done\n\
                echo '{\"ready\":{\"version\":\"9.9.9\"}}' >&$channel\nread -u $channel go\nexit 3\n";
    let cases = [
        ("#!/bin/sh\nexit 7\n", "it ended without a word (exit status: 7)"),
        ("no program\n", "it ended without a word (exit status: 127)"),
        ("#!/bin/sh\nexec /nonexistent\n", "it ended without a word (exit status: 127)"),
        (dies, "it ended without a word (exit status: 3)"),
    ];
    for (text, why) in cases {
        let path = script(&cluster, text);
        cluster.evenkeel.install(&path).expect("a script");
        let refused = cluster.evenkeel.command_of(&evenkeel, &["upgrade"]).expect("upgrade");
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.err.contains("no upgrade, this daemon goes on") && refused.err.contains(why), "{refused:?}");
        let answer = cluster.evenkeel.command_of(&evenkeel, &["status", "-o", "json"]).expect("status");
        assert!(answer.out.contains(&format!("\"pid\":{pid},")), "{answer:?}");
    }
    cluster.evenkeel.install(&evenkeel).expect("the binary");
    cluster.evenkeel.write("[[service]]\nname = 5\n").expect("a configuration");
    let refused = cluster.evenkeel.command(&["upgrade"]).expect("upgrade");
    assert!(refused.code == 1 && refused.err.contains("evenkeel.toml:7:8: name: "), "{refused:?}");
    cluster.evenkeel.write(&cluster.service.toml()).expect("the configuration");

    // Everything is as before: events, reloads, new connections, and an upgrade to a working
    // program.
    let service = cluster.service.clone().line("idle_timeout = \"5m\"");
    cluster.reload(&service);
    all_served(&held.open(9).expect("open"), 9, "after");
    assert_eq!(held.ask().expect("ask").answered, 18);
    held.close(9, "-", "fin").expect("close");
    cluster.active([3, 3, 3]);
    cluster.evenkeel.upgrade().unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.evenkeel.log()));
    assert_ne!(cluster.evenkeel.pid().expect("pid"), pid);
}

#[test]
fn a_daemon_told_to_end_takes_the_one_with_it_that_gets_ready_beside_it() {
    let mut cluster = Cluster::new("tc", |service| service);
    let evenkeel = move_in(&mut cluster);
    let waits = cluster.lab.folder().join("waits");
    let path =
        script(&cluster, &format!("#!/bin/sh\necho $$ >{0}.new; mv {0}.new {0}\nexec sleep 300\n", waits.display()));
    cluster.evenkeel.install(&path).expect("a script");
    cluster.evenkeel.signal(Signal::SIGUSR2).expect("SIGUSR2");
    let child = wait::until("it is started", SOON, || fs::read_to_string(&waits).ok()).expect("started");
    let reload = cluster.evenkeel.command_of(&evenkeel, &["reload"]).expect("reload");
    assert!(reload.code == 1 && reload.err.contains("an upgrade is under way"), "{reload:?}");
    cluster.evenkeel.terminate().expect("its end");
    assert!(!PathBuf::from(format!("/proc/{}", child.trim())).exists(), "it was left behind");
}

#[test]
fn no_command_fails_while_one_daemon_hands_over_to_another() {
    let mut cluster = Cluster::new("tc", |service| service);
    let (program, socket) = (binaries::evenkeel().expect("evenkeel"), cluster.evenkeel.socket());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let follower = cluster.evenkeel.client(&["events", "-f", "-o", "json"]).expect("events -f");
    let asked = std::thread::scope(|scope| {
        let askers = [["status"].as_slice(), &["reload"], &["conns", "-o", "json"]].map(|command| {
            let (program, socket, stop) = (&program, &socket, &stop);
            scope.spawn(move || {
                let mut asked = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut asking = std::process::Command::new(program);
                    let answer = asking.args(command).arg("--socket").arg(socket).output().expect("a command");
                    let told = String::from_utf8_lossy(&answer.stderr).into_owned();
                    // A reload is refused, not lost, while another daemon reads the file.
                    assert!(answer.status.success() || told.contains("an upgrade is under way"), "{command:?}: {told}");
                    asked += 1;
                }
                asked
            })
        });
        for _ in 0..5 {
            cluster
                .evenkeel
                .upgrade_by_signal()
                .unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.evenkeel.log()));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        askers.map(|asker| asker.join().expect("its commands")).iter().sum::<u32>()
    });
    println!("{asked} commands");
    let events = cluster.evenkeel.json(&["events"]).expect("events");
    let ready = |event: &&serde_json::Value| event["text"].as_str().is_some_and(|text| text.contains("is ready after"));
    assert_eq!(events.as_array().expect("a list").iter().filter(ready).count(), 6, "the history goes on: {events}");
    let all = || {
        let followed: Vec<serde_json::Value> =
            follower.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (followed == *events.as_array().expect("a list")).then_some(())
    };
    wait::until("what is followed goes on too", SOON, all)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", follower.log()));
}

#[test]
fn why_and_since_when_a_backend_is_out_survives_every_way_to_restart() {
    let mut cluster = Cluster::new("tc", |service| service.backend_line(0, "fail_timeout = \"10m\""));
    cluster.standins[0].kill();
    let mut held = cluster.hold(&[]);
    all_served(&held.open(30).expect("open"), 30, VIP);
    cluster.wait_state("cp01", "down", SOON);
    let standing = |cluster: &Cluster| {
        let rows = cluster.evenkeel.json(&["backends"]).expect("backends");
        let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == "cp01")).cloned();
        let row = row.expect("cp01");
        let second = row["last_change"].as_str().and_then(|time| time.get(..19)).expect("a time").to_owned();
        (row["state"].clone(), row["reason"].clone(), second)
    };
    let before = standing(&cluster);
    assert_eq!((&before.0, &before.1), (&"down".into(), &"refused".into()));
    cluster.evenkeel.kill();
    cluster.evenkeel.run().expect("a start");
    assert_eq!(standing(&cluster), before);
    cluster.evenkeel.upgrade().expect("an upgrade");
    assert_eq!(standing(&cluster), before);
    cluster.evenkeel.terminate().and_then(|()| cluster.evenkeel.run()).expect("a restart");
    assert_eq!(standing(&cluster), before);
    cluster.standins[0] = StandIn::start(&cluster.lab.backends[0]).expect("a stand-in");
}

/// Marks the pinned tables as those of an unknown version.
fn of_another_layout(bpffs: &Path) {
    let meta = bpffs.join("maps/META");
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["map", "update", "pinned"]).arg(meta).args("key 0 0 0 0 value".split(' ')).args(["9"; 24]);
    assert!(bpftool.status().expect("bpftool").success());
}

#[test]
fn tables_of_another_layout_are_refused_and_go_on_until_new_ones_are_asked_for() {
    let mut cluster = Cluster::new("tc", |service| service);
    let mut held = cluster.hold(&[]);
    all_served(&held.open(9).expect("open"), 9, "before");
    of_another_layout(cluster.evenkeel.bpffs());
    let refused = cluster.evenkeel.command(&["upgrade"]).expect("upgrade");
    let advice = |text: &str| text.contains("layout 0x909090909090909") && text.contains("evenkeel run --reset-state");
    assert!(refused.code == 1 && advice(&refused.err), "{refused:?}");

    cluster.evenkeel.terminate().expect("its end");
    let refused = cluster.evenkeel.run().expect_err("not its tables");
    assert!(advice(&format!("{refused:#}")), "{refused:#}");
    assert_eq!(held.ask().expect("ask").answered, 9, "what they hold goes on");
    all_served(&held.open(3).expect("open"), 3, "and takes more");

    cluster.evenkeel.run_options(&["--reset-state"]);
    cluster.evenkeel.run().expect("new tables");
    assert_eq!(held.ask().expect("ask").answered, 0, "connections of the old tables are reset");
    all_served(&held.open(9).expect("open"), 9, "after");
    cluster.active([3, 3, 3]);
    // The option was meant for this start, not for a daemon that takes over.
    cluster.evenkeel.upgrade().unwrap_or_else(|error| panic!("{error:#}\n{}", cluster.evenkeel.log()));
    assert_eq!(held.ask().expect("ask").answered, 9);
    cluster.active([3, 3, 3]);
}

#[test]
fn a_second_daemon_is_refused_whatever_it_shares_with_the_first() {
    let cluster = Cluster::new("tc", |service| service);
    let config = cluster.evenkeel.config();
    let start = |config: &Path| {
        let config = config.display().to_string();
        cluster.evenkeel.command(&["run", "-c", &config]).expect("a start")
    };
    let same = start(&config);
    assert!(same.code == 1 && same.err.contains("another evenkeel runs with state_dir"), "{same:?}");
    // A separate state_dir, but the same pins.
    let other = cluster.lab.folder().join("other.toml");
    let text = fs::read_to_string(&config).expect("the configuration");
    let state_dir = cluster.lab.folder().join("other").display().to_string();
    let first = config.parent().expect("its folder").display().to_string();
    let text = text.replace(&format!("state_dir = \"{first}\""), &format!("state_dir = \"{state_dir}\""));
    fs::write(&other, text).expect("a configuration");
    let pins = start(&other);
    assert!(pins.code == 1 && pins.err.contains("another evenkeel has its programs and maps in"), "{pins:?}");
    all_served(&cluster.hold(&[]).open(3).expect("open"), 3, "the first one goes on");
}

#[test]
fn two_daemons_in_two_network_namespaces_do_not_notice_each_other() {
    let mut one = Cluster::new("tc", |service| service);
    let mut two = Cluster::new("clsact", |service| service);
    let (mut by_one, mut by_two) = (one.hold(&[]), two.hold(&[]));
    all_served(&by_one.open(30).expect("open"), 30, "one");
    all_served(&by_two.open(60).expect("open"), 60, "two");
    one.active([10, 10, 10]);
    two.active([20, 20, 20]);
    one.evenkeel.upgrade().expect("an upgrade of one");
    two.evenkeel.kill();
    two.evenkeel.run().expect("a start of two");
    assert_eq!((by_one.ask().expect("ask").answered, by_two.ask().expect("ask").answered), (30, 60));
    one.evenkeel.stop_detach().expect("the end of one");
    assert_eq!(by_two.ask().expect("ask").answered, 60);
    two.active([20, 20, 20]);
}

/// What systemd hears.
struct Systemd(UnixDatagram);

impl Systemd {
    /// Starts evenkeel anew, for this one to hear.
    fn of(cluster: &mut Cluster) -> Systemd {
        let path = cluster.lab.folder().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(SOON)).expect("a limit");
        cluster.evenkeel.terminate().expect("its end");
        cluster.evenkeel.run_with("NOTIFY_SOCKET", &path.display().to_string());
        cluster.evenkeel.run().expect("a start");
        let systemd = Systemd(socket);
        assert_eq!(systemd.hear(), "READY=1");
        systemd
    }

    /// A descriptor that comes along is closed, as systemd closes that of a barrier.
    fn hear(&self) -> String {
        let mut text = [0; 1024];
        let length = self.0.recv(&mut text).expect("a notification");
        String::from_utf8_lossy(&text[..length]).trim().to_owned()
    }
}

#[test]
fn an_end_that_the_old_daemon_is_asked_for_while_systemd_takes_it_for_the_main_one_is_the_new_one_s() {
    let mut cluster = Cluster::new("tc", |service| service);
    let systemd = Systemd::of(&mut cluster);
    Process::inherit_orphans().expect("orphans");
    cluster.evenkeel.signal(Signal::SIGUSR2).expect("SIGUSR2");
    let told = systemd.hear();
    let new = told.strip_prefix("MAINPID=").expect("the new one").to_owned();
    cluster.evenkeel.signal(Signal::SIGTERM).expect("SIGTERM");
    assert_eq!(systemd.hear(), "BARRIER=1");
    assert_eq!(systemd.hear(), "STOPPING=1");
    let is_over = || {
        let status = fs::read_to_string(format!("/proc/{new}/stat")).unwrap_or_default();
        (status.is_empty() || status.contains(") Z ")).then_some(())
    };
    wait::until("the new one ends", SOON, is_over).unwrap_or_else(|late| panic!("{late:#}"));
    let is_over = || (!cluster.evenkeel.is_running()).then_some(());
    wait::until("the old one ends", SOON, is_over).unwrap_or_else(|late| panic!("{late:#}"));
    cluster.evenkeel.kill();
    cluster.evenkeel.run().expect("a start");
    assert_eq!(systemd.hear(), "READY=1");
}

#[test]
fn systemd_s_watchdog_hears_of_the_loop_before_and_after_an_upgrade_and_not_of_one_that_hangs() {
    let mut cluster = Cluster::new("tc", |service| service);
    let own = std::process::id().to_string();
    cluster.evenkeel.run_with("WATCHDOG_PID", &own);
    cluster.evenkeel.run_with("WATCHDOG_USEC", "600000");
    let systemd = Systemd::of(&mut cluster);
    let beats = || (0..4).for_each(|_| assert_eq!(systemd.hear(), "WATCHDOG=1"));
    beats();
    Process::inherit_orphans().expect("orphans");
    cluster.evenkeel.signal(Signal::SIGUSR2).expect("SIGUSR2");
    // All of it is read meanwhile: the socket holds ten datagrams.
    let mut told = Vec::new();
    while told.len() < 2 {
        told.extend(Some(systemd.hear()).filter(|text| text != "WATCHDOG=1"));
    }
    assert!(told[0].starts_with("MAINPID=") && told[1] == "BARRIER=1", "{told:?}");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(systemd.hear(), "WATCHDOG=1");
            }
        });
        let upgraded = cluster.evenkeel.after_upgrade();
        is_over.store(true, Ordering::Relaxed);
        upgraded.expect("an upgrade");
    });
    beats();
    cluster.evenkeel.signal(Signal::SIGSTOP).expect("SIGSTOP");
    systemd.0.set_read_timeout(Some(Duration::from_millis(900))).expect("a limit");
    let mut text = [0; 64];
    let heard = std::iter::from_fn(|| systemd.0.recv(&mut text).ok()).count();
    assert!(heard <= 12, "those that had been sent before, and no more: {heard}");
    systemd.0.set_read_timeout(Some(SOON)).expect("a limit");
    cluster.evenkeel.signal(Signal::SIGCONT).expect("SIGCONT");
    beats();
}

/// Whether a process has a handler for a signal (SigCgt, proc(5)).
fn handles(process: u32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    caught >> (signal as u32 - 1) & 1 == 1
}

/// A signal that asks for something ends no daemon, whenever it comes.
#[test]
fn logrotate_at_the_moment_of_the_start_does_not_end_the_daemon() {
    let mut cluster = Cluster::new("tc", |service| service);
    // Whoever holds the lock of the folder makes the start wait.
    for signal in [Signal::SIGHUP, Signal::SIGUSR1] {
        cluster.evenkeel.terminate().expect("its end");
        let lock = fs::File::create(cluster.evenkeel.state_dir().join("lock")).expect("the lock");
        lock.lock().expect("the lock");
        let host = &cluster.lab.balancer;
        let mut command = host.command(binaries::evenkeel().expect("evenkeel"));
        command.args(["run", "-c"]).arg(cluster.evenkeel.config());
        let mut process = host.start("waiting", &mut command).expect("a process");
        wait::until("it handles the signal", SOON, || handles(process.id(), signal).then_some(()))
            .unwrap_or_else(|late| panic!("{signal}: {late:#}"));
        process.signal(signal).expect("a signal");
        drop(lock);
        wait::until("it answers", SOON, || cluster.evenkeel.status().ok())
            .unwrap_or_else(|late| panic!("{signal}: {late:#}"));
        assert!(process.is_running(), "{signal}");
        drop(process);
        cluster.evenkeel.run().expect("a start");
    }
}

#[test]
fn systemd_is_told_when_it_is_ready_reloads_gives_its_place_away_and_ends() {
    let mut cluster = Cluster::new("tc", |service| service);
    let systemd = Systemd::of(&mut cluster);
    let hear = || systemd.hear();
    cluster.evenkeel.hang_up().expect("SIGHUP");
    let reloading = hear();
    assert!(reloading.contains("RELOADING=1") && reloading.contains("MONOTONIC_USEC="), "{reloading}");
    assert_eq!(hear(), "READY=1");
    Process::inherit_orphans().expect("orphans");
    cluster.evenkeel.signal(Signal::SIGUSR2).expect("SIGUSR2");
    let new = hear();
    assert_eq!(hear(), "BARRIER=1");
    cluster.evenkeel.after_upgrade().expect("an upgrade");
    let pid = cluster.evenkeel.pid().expect("pid");
    assert_eq!(new, format!("MAINPID={pid}"), "and nothing from a process that is not the main one yet");
    cluster.evenkeel.terminate().expect("its end");
    assert_eq!(hear(), "STOPPING=1");
}
