//! The files in `packaging/`: what systemd says about the unit, and evenkeel with the rights that
//! the unit leaves it.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lab::{Evenkeel, Lab, Plan, Process, StandIn, client::hold::Holding, daemon, topology::Topology, wait};

use crate::cluster::{SOON, VIP, all_served, both};

const UNIT: &str = include_str!("../../packaging/evenkeel.service");

/// The value of a key of the unit.
fn unit(key: &str) -> &'static str {
    let mut lines = UNIT.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let value = lines.next().unwrap_or_else(|| panic!("the unit has no {key}"));
    assert_eq!(lines.next(), None, "{key} stands twice");
    value
}

fn capabilities() -> Vec<String> {
    let names = unit("CapabilityBoundingSet").split(' ');
    names.map(|name| name.strip_prefix("CAP_").expect("a capability").to_lowercase()).collect()
}

/// A program that becomes evenkeel with these capabilities and no others, irrevocably.
fn confined(lab: &Lab, capabilities: &[String]) -> PathBuf {
    let path = lab.folder().join("confined");
    let set: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let program = lab::binaries::evenkeel().expect("the program");
    let script = format!(
        "#!/bin/sh\numask {}\nexec setpriv --no-new-privs --inh-caps=-all --ambient-caps=-all --bounding-set=-all{set} {} \"$@\"\n",
        unit("UMask"),
        program.display(),
    );
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may be run");
    path
}

fn segment(hook: &str) -> Lab {
    let plan = Plan::new(Topology::Segment);
    Lab::build(&if hook == "xdp" { plan.for_xdp() } else { plan }).expect("the lab")
}

fn configuration(lab: &Lab, hook: &str) -> String {
    let log = lab.folder().join("access.log");
    let instance = "name = \"VI_1\"\ninterface = \"eth0\"\nvirtual_router_id = 77\naddresses = [\"10.0.1.200/24\"]";
    let service = daemon::Service::new(lab, hook).toml();
    format!("{service}\n[service.access_log]\npath = \"{}\"\n\n[[vrrp]]\n{instance}\n", log.display())
}

#[test]
fn systemd_accepts_the_unit_and_the_group() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packaging");
    // An earlier run may have left it.
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder");
    let there = fs::canonicalize(lab::binaries::evenkeel().expect("the program")).expect("its path");
    // The program is not at the package's path here; nothing else is changed.
    let path = folder.join("evenkeel.service");
    fs::write(&path, UNIT.replace("/usr/sbin/evenkeel", &there.display().to_string())).expect("a file");
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().expect("systemd");
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("evenkeel.service"), "{said}");

    let root = folder.join("root");
    fs::create_dir_all(root.join("etc")).expect("folders");
    let made = |program: &str, options: &[&str], file: &str| {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file);
        let mut command = Command::new(program);
        let output =
            command.args(options).arg(format!("--root={}", root.display())).arg(file).output().expect("systemd");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    made("systemd-sysusers", &[], "sysusers.d/evenkeel.conf");
    assert!(fs::read_to_string(root.join("etc/group")).expect("groups").contains("evenkeel:"));
    made("systemd-tmpfiles", &["--create"], "tmpfiles.d/evenkeel.conf");
    for (folder, mode) in [("run/evenkeel", 0o755), ("var/log/evenkeel", 0o750), ("etc/evenkeel", 0o755)] {
        let found = fs::metadata(root.join(folder)).expect(folder).permissions().mode() & 0o777;
        assert_eq!(found, mode, "{folder}");
    }
    assert_eq!((unit("Group"), unit("Type")), ("evenkeel", "notify"));
}

/// What systemd is notified of.
struct Manager(UnixDatagram);

impl Manager {
    fn hears(&self, wanted: &str) -> String {
        let mut buffer = [0; 4096];
        loop {
            let length = self.0.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted} was not said: {error}"));
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if said.contains(wanted) {
                return said;
            }
        }
    }
}

#[test]
fn with_the_capabilities_of_the_unit_everything_works_and_systemd_is_notified() {
    both(|hook| {
        let lab = segment(hook);
        let standins: Vec<_> = lab.backends.iter().map(|host| StandIn::start(host).expect("a stand-in")).collect();
        let socket = lab.folder().join("notify");
        let manager = Manager(UnixDatagram::bind(&socket).expect("a socket"));
        manager.0.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        let mut evenkeel = Evenkeel::stopped(&lab, &configuration(&lab, hook)).expect("a configuration");
        evenkeel.install(&confined(&lab, &capabilities())).expect("a program");
        evenkeel.run_with("NOTIFY_SOCKET", &socket.display().to_string());
        evenkeel.run().expect("a start");
        manager.hears("READY=1");
        let mut held = Holding::start(lab.client(), &[VIP]).expect("hold");
        all_served(&held.open(3).expect("open"), 3, hook);
        let master = || (evenkeel.json(&["vrrp"]).ok()?[0]["state"] == "MASTER").then_some(());
        wait::until("it is master", SOON, master).unwrap_or_else(|error| panic!("{error:#}\n{}", evenkeel.log()));

        // What ExecReload does, with the same rights.
        assert!(unit("ExecReload").ends_with("evenkeel reload"));
        evenkeel.done(&["reload"]).expect("reload");
        evenkeel.hang_up().expect("SIGHUP");
        assert!(manager.hears("RELOADING=1").contains("MONOTONIC_USEC="));
        manager.hears("READY=1");
        evenkeel.done(&["trace", "10.0.1.101:7"]).expect("trace");
        is_at_ease(&evenkeel);

        evenkeel.kill();
        evenkeel.run().expect("a start that takes over what is pinned");
        manager.hears("READY=1");
        assert_eq!(held.ask().expect("ask").answered, 3);
        is_at_ease(&evenkeel);

        Process::inherit_orphans().expect("orphans");
        evenkeel.done(&["upgrade"]).expect("upgrade");
        let told = manager.hears("MAINPID=");
        evenkeel.after_upgrade().expect("another process");
        assert!(told.contains(&format!("MAINPID={}", evenkeel.pid().expect("a pid"))), "{told}");
        all_served(&held.open(3).expect("open"), 3, hook);

        evenkeel.terminate().expect("SIGTERM");
        manager.hears("STOPPING=1");
        assert_eq!(held.ask().expect("ask").answered, 6, "the datapath stays");
        drop(standins);
    });
}

/// Checks that nothing was refused, except systemd's limits, which this test cannot raise.
fn is_at_ease(evenkeel: &Evenkeel) {
    let log = evenkeel.log();
    let limits =
        |line: &str| line.contains("no real-time priority for VRRP") || line.contains("VRRP's memory is not locked");
    let refused: Vec<_> = log.lines().filter(|line| is_refusal(line) && !limits(line)).collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

/// EPERM or EACCES, in the words of the C library.
fn is_refusal(text: &str) -> bool {
    text.contains("Operation not permitted") || text.contains("Permission denied")
}

#[test]
fn it_needs_each_of_these_capabilities() {
    let lab = segment("tc");
    let all = capabilities();
    for without in &all {
        let mut evenkeel = Evenkeel::stopped(&lab, &configuration(&lab, "tc")).expect("a configuration");
        let left: Vec<_> = all.iter().filter(|name| *name != without).cloned().collect();
        evenkeel.install(&confined(&lab, &left)).expect("a program");
        let refused = evenkeel.run().err().map(|error| format!("{error:#}")).unwrap_or_default();
        let why = format!("this process lacks the right to balance (CAP_{})", without.to_uppercase());
        assert!(refused.contains(&why), "{why:?} is not said, but: {refused} {}", evenkeel.log());
    }
}
