//! `evenkeel top` in real terminals, with a real daemon.

use std::{fs, time::Duration};

use lab::{StandIn, Terminal, binaries, wait};
use nix::sys::signal::Signal;

use crate::cluster::{Cluster, SOON};

/// A program on the balancer, started like evenkeel's commands.
fn on_balancer(cluster: &Cluster, program: &std::path::Path, args: &[&str]) -> std::process::Command {
    let mut command = cluster.lab.balancer.command(program);
    command.args(args).env("EVENKEEL_SOCKET", cluster.evenkeel.socket());
    command
}

fn top(cluster: &Cluster, columns: u16, rows: u16) -> Terminal {
    let command = on_balancer(cluster, &binaries::evenkeel().expect("evenkeel"), &["top"]);
    let terminal = Terminal::start(&command, columns, rows).expect("a terminal");
    terminal.wait_for("live ", SOON).expect("the screen");
    terminal
}

fn sees(terminal: &Terminal, texts: &[&str]) {
    texts.iter().for_each(|text| terminal.wait_for(text, SOON).unwrap_or_else(|error| panic!("{error:#}")));
}

/// Seconds of CPU time that a process has used.
fn cpu_s(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let fields: Vec<u64> =
        stat.rsplit(')').next().expect("fields").split(' ').filter_map(|it| it.parse().ok()).collect();
    // utime and stime, in ticks of 10 ms. The state is a letter and not among the numbers.
    (fields[10] + fields[11]) as f64 / 100.0
}

#[test]
fn the_screen_shows_the_backends_and_drains_one_and_gives_the_terminal_back() {
    let mut cluster = Cluster::new("tc", |service| service);
    let mut held = cluster.hold(&[]);
    held.open(30).expect("open");
    cluster.active([10, 10, 10]);
    let mut terminal = top(&cluster, 80, 24);
    let before = terminal.modes().expect("modes");
    sees(&terminal, &["> cp01", "cp02", "cp03", "open 30/", "3 of 3 up, spread 0", "tc on eth0", "is ready after"]);

    // A question is answered with no, then with yes.
    terminal.press("d").expect("a key");
    sees(&terminal, &["Drain cp01 of kube-apiserver?", "10 open connections"]);
    terminal.press("n").expect("a key");
    sees(&terminal, &["nothing was changed"]);
    assert_eq!(cluster.backend("cp01").state, "up");
    terminal.press("dy").expect("keys");
    cluster.wait_state("cp01", "draining", SOON);
    sees(
        &terminal,
        &[
            "cp01 of kube-apiserver is draining (admin), 10 active",
            "draining admin",
            "2 of 3 up",
            "cp01 is drained by uid 0",
        ],
    );
    terminal.press("\x1b[Bmy").expect("keys");
    cluster.wait_state("cp02", "maint", SOON);
    terminal.press("ry").expect("keys");
    cluster.wait_state("cp02", "up", SOON);
    assert_eq!(cluster.backend("cp02").active, 10, "nothing was reset");
    terminal.press("?").expect("a key");
    sees(&terminal, &["Ctrl-Z: suspend"]);
    terminal.press("?s").expect("keys");
    sees(&terminal, &["sorted by state", "*STATE"]);
    terminal.resize(160, 50).expect("a size");
    sees(&terminal, &["10.0.1.12:6443", "TOTAL", "── counters ─"]);
    terminal.resize(40, 10).expect("a size");
    wait::until("a small screen", SOON, || (!terminal.text().contains("10.0.1.12")).then_some(())).expect("redrawn");
    sees(&terminal, &["cp03", "q quit"]);

    // A daemon that hangs is as silent as one that is gone, and neither is asked anything.
    cluster.evenkeel.signal(Signal::SIGSTOP).expect("SIGSTOP");
    sees(&terminal, &["no answer since"]);
    terminal.press("d").expect("a key");
    sees(&terminal, &["does not answer: nothing"]);
    cluster.evenkeel.signal(Signal::SIGCONT).expect("SIGCONT");
    sees(&terminal, &["live "]);
    cluster.evenkeel.upgrade().expect("an upgrade");
    sees(&terminal, &["live "]);
    cluster.evenkeel.kill();
    sees(&terminal, &["no answer since"]);
    cluster.evenkeel.run().expect("a second start");
    sees(&terminal, &["live "]);
    terminal.press("q").expect("a key");
    assert_eq!(terminal.wait(SOON).expect("the end").code(), Some(0));
    wait::until("the terminal as it was", SOON, || terminal.is_given_back().then_some(())).expect("given back");
    // The modes were read while `top` had the screen; now they are a shell's again.
    let after = terminal.modes().expect("modes");
    assert_ne!(before.local_flags, after.local_flags);
    assert!(after.local_flags.contains(nix::sys::termios::LocalFlags::ICANON | nix::sys::termios::LocalFlags::ECHO));
    cluster.standins.iter_mut().for_each(StandIn::kill);
}

#[test]
fn a_screen_under_traffic_costs_little_and_ends_in_order_whatever_ends_it() {
    let cluster = Cluster::new("tc", |service| service);
    let _traffic = cluster.storm(&["--seconds", "60", "--rate", "50"]);
    let mut terminal = top(&cluster, 80, 24);
    let cooked = Terminal::start(&on_balancer(&cluster, "sleep".as_ref(), &["60"]), 80, 24).expect("a terminal");
    let cooked = cooked.modes().expect("modes");
    sees(&terminal, &["  new 5"]);
    let (written, used, looked) = (terminal.written(), cpu_s(terminal.id()), std::time::Instant::now());
    let seconds = wait::until("five seconds", SOON, || {
        let seconds = looked.elapsed().as_secs_f64();
        (seconds >= 5.0).then_some(seconds)
    })
    .expect("time");
    let bytes = (terminal.written() - written) as f64 / seconds;
    let cpu = (cpu_s(terminal.id()) - used) / seconds;
    println!("a screen of 80 x 24 under traffic: {bytes:.0} bytes and {:.1} ms of CPU a second", cpu * 1e3);
    assert!((10.0..2000.0).contains(&bytes), "{bytes} bytes a second");
    assert!(cpu < 0.1, "{cpu} of a CPU");

    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        terminal.signal(signal).expect("a signal");
        assert_eq!(terminal.wait(SOON).expect("the end").code(), Some(0), "{signal}");
        wait::until("the terminal as it was", SOON, || terminal.is_given_back().then_some(())).expect("given back");
        assert_eq!(terminal.modes().expect("modes"), cooked, "{signal}");
        terminal = top(&cluster, 80, 24);
    }
    terminal.press("\x03").expect("Ctrl-C");
    assert_eq!(terminal.wait(SOON).expect("the end").code(), Some(0));

    // A panic's message is readable, on a terminal in its earlier state.
    let panics = on_balancer(&cluster, &binaries::lab().expect("evenkeel-lab"), &["panicking-screen"]);
    let mut terminal = Terminal::start(&panics, 80, 24).expect("a terminal");
    sees(&terminal, &["cp01", "x panics"]);
    terminal.press("x").expect("a key");
    assert_ne!(terminal.wait(SOON).expect("the end").code(), Some(0));
    sees(&terminal, &["the companion has panicked"]);
    assert!(terminal.is_given_back());
    assert_eq!(terminal.modes().expect("modes"), cooked);
}

#[test]
fn ctrl_z_stops_it_and_the_shell_brings_it_back() {
    let cluster = Cluster::new("tc", |service| service);
    // A shell with job control: it stops with its child, and continues on `fg`.
    let evenkeel = binaries::evenkeel().expect("evenkeel");
    let script = format!("set -m; {} top; echo stopped: $?; fg; echo over: $?", evenkeel.display());
    let mut terminal =
        Terminal::start(&on_balancer(&cluster, "bash".as_ref(), &["-c", &script]), 80, 24).expect("a terminal");
    sees(&terminal, &["> cp01"]);
    terminal.press("\x1a").expect("Ctrl-Z");
    // 148: stopped by SIGTSTP. `fg` brings it back at once, and everything is drawn again.
    let back = || (terminal.text().contains("> cp01") && !terminal.is_given_back()).then_some(());
    wait::until("the screen again", SOON, back).unwrap_or_else(|error| panic!("{error:#}\n{}", terminal.text()));
    terminal.press("q").expect("a key");
    assert_eq!(terminal.wait(SOON).expect("the end").code(), Some(0));
    sees(&terminal, &["stopped: 148", "over: 0"]);
}

#[test]
fn without_a_terminal_or_a_daemon_it_says_so_with_the_exit_code_for_it() {
    let cluster = Cluster::new("tc", |service| service);
    let answer = cluster.evenkeel.command(&["top"]).expect("a command");
    assert_eq!((answer.code, answer.out.as_str()), (1, ""), "{}", answer.err);
    assert!(answer.err.contains("needs a terminal") && answer.err.contains("evenkeel status"), "{}", answer.err);

    let evenkeel = binaries::evenkeel().expect("evenkeel");
    let mut dumb = on_balancer(&cluster, &evenkeel, &["top"]);
    let mut terminal = Terminal::start(dumb.env("TERM", "dumb"), 80, 24).expect("a terminal");
    assert_eq!(terminal.wait(SOON).expect("the end").code(), Some(1));
    sees(&terminal, &["needs a terminal"]);

    let nobody = on_balancer(&cluster, &evenkeel, &["top", "--socket", "/nowhere/control.sock"]);
    let mut terminal = Terminal::start(&nobody, 80, 24).expect("a terminal");
    assert_eq!(terminal.wait(SOON).expect("the end").code(), Some(2));
    sees(&terminal, &["cannot be reached at /nowhere"]);
    assert!(terminal.is_given_back());
}

#[test]
fn a_terminal_that_says_no_size_is_taken_for_a_small_one() {
    let cluster = Cluster::new("tc", |service| service);
    let evenkeel = binaries::evenkeel().expect("evenkeel");
    let script = format!("stty rows 0 cols 0; exec {} top", evenkeel.display());
    let serial = on_balancer(&cluster, "sh".as_ref(), &["-c", &script]);
    let terminal = Terminal::start(&serial, 80, 24).expect("a terminal");
    sees(&terminal, &["> cp01", "arrows select"]);
}

/// The namespaces of a process's labs.
fn namespaces(process: u32) -> Vec<String> {
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("ek-{process}-"))).collect()
}

#[test]
fn the_lab_has_the_same_screen_with_its_clients_and_removes_everything() {
    const BUILT: Duration = Duration::from_secs(60);
    let lab = binaries::lab().expect("evenkeel-lab");
    let mut command = std::process::Command::new(&lab);
    command.arg("run").env("EVENKEEL_BIN", binaries::evenkeel().expect("evenkeel"));
    for (key, ends_by_key) in [("q", true), ("", false)] {
        let mut terminal = Terminal::start(&command, 100, 30).expect("a terminal");
        terminal.wait_for("watches held", BUILT).unwrap_or_else(|error| panic!("{error:#}"));
        sees(&terminal, &["cp01", "3 of 3 up", "short connections", "longest"]);
        assert!(!namespaces(terminal.id()).is_empty());
        if ends_by_key {
            terminal.press("k2").expect("keys");
            sees(&terminal, &["killed cp02", "cp02    down refused"]);
            terminal.press("b2").expect("keys");
            sees(&terminal, &["brought cp02 back"]);
            terminal.press(key).expect("a key");
        } else {
            terminal.signal(Signal::SIGTERM).expect("a signal");
        }
        assert_eq!(terminal.wait(BUILT).expect("the end").code(), Some(0));
        assert!(terminal.is_given_back());
        assert_eq!(namespaces(terminal.id()), Vec::<String>::new());
    }
}

#[test]
fn the_lab_without_a_terminal_says_it_line_by_line() {
    let mut command = std::process::Command::new(binaries::lab().expect("evenkeel-lab"));
    command.arg("run").env("EVENKEEL_BIN", binaries::evenkeel().expect("evenkeel"));
    let log = std::env::temp_dir().join(format!("evenkeel-lab-run-{}.log", std::process::id()));
    let (mut process, mut talk) = lab::Process::start_talking("lab", &mut command, &log).expect("the lab");
    let mut heard = || talk.hear().expect("a line");
    wait::until("the held watches", SOON, || heard().contains("watches held").then_some(())).expect("a text");
    talk.say("q").expect("a command");
    process.succeed(SOON).expect("its end");
    assert_eq!(namespaces(process.id()), Vec::<String>::new());
    _ = fs::remove_file(log);
}
