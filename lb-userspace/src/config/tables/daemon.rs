//! `[daemon]`, `[api]` and `[sync]`, each allowed in one file only.

use std::{
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use log::LevelFilter;
use nix::unistd::{getegid, geteuid};

use super::{millis, seconds};
use crate::config::{
    cross::Once,
    model::{Api, Daemon, OnExit, Sync},
    problem::Findings,
    raw::{At, Table, Value, values},
    units,
};

/// The default of `state_dir`.
pub const DEFAULT_STATE_DIR: &str = "/run/evenkeel";

impl Default for Daemon {
    fn default() -> Self {
        Daemon {
            state_dir: DEFAULT_STATE_DIR.into(),
            bpffs: default_bpffs(Path::new(DEFAULT_STATE_DIR)),
            on_exit: OnExit::Keep,
            socket_group: "evenkeel".into(),
            log_level: LevelFilter::Info,
            max_connections: 262_144,
        }
    }
}

/// Reads `[daemon]`.
pub fn daemon(mut table: Table) -> Daemon {
    let default = Daemon::default();
    let state_dir = table.or("state_dir", default.state_dir, units::absolute_path);
    let daemon = Daemon {
        bpffs: table.or("bpffs", default_bpffs(&state_dir), units::absolute_path),
        state_dir,
        on_exit: table.or(
            "on_exit",
            OnExit::Keep,
            units::choice(&[("keep", OnExit::Keep), ("detach", OnExit::Detach)]),
        ),
        socket_group: table.or("socket_group", default.socket_group, |value| units::name(value).map(str::to_owned)),
        log_level: table.or("log_level", default.log_level, units::choice(LEVELS)),
        max_connections: table.or("max_connections", default.max_connections, units::number(1024..=16_777_216)),
    };
    table.finish();
    daemon
}

const LEVELS: &[(&str, LevelFilter)] = &[
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

/// The default folder for pins: named after the path of state_dir, so that two instances do not
/// collide. `/run/evenkeel` → `evenkeel`, `/srv/lab.a/state` → `srv-lab_a-state` (a bpffs takes no
/// dots in names).
fn default_bpffs(state_dir: &Path) -> PathBuf {
    let path = state_dir.strip_prefix("/run").unwrap_or(state_dir);
    let name = path.to_string_lossy().trim_matches('/').replace('/', "-").replace('.', "_");
    Path::new("/sys/fs/bpf").join(if name.is_empty() { "evenkeel".into() } else { name })
}

/// Reads `[api]`.
pub fn api(mut table: Table) -> Api {
    let api = Api {
        listen: table.or("listen", SocketAddr::from(([127, 0, 0, 1], 9643)), units::socket_address),
        hosts: values(table.list("hosts", host_name).unwrap_or_default()),
    };
    table.finish();
    api
}

fn host_name(value: Value) -> Result<String, String> {
    let text = units::text(value)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if text.is_empty() || !text.chars().all(is_name) {
        return Err(format!("\"{text}\" is not a host name: write it without scheme and port, \"lb1.example.com\""));
    }
    Ok(text.trim_end_matches('.').to_owned())
}

/// Reads `[sync]`.
pub fn sync(mut table: Table) -> Option<Sync> {
    let batch = table.or("batch", millis(20), units::duration(millis(1)..=seconds(1)));
    let listen = table.required("listen", "\"10.0.1.1:9644\"", units::socket_address);
    let peers = table.required_list("peers", "\"10.0.1.2:9644\"", units::socket_address);
    let key_file = table.required("key_file", "\"/etc/evenkeel/sync.key\"", units::absolute_path);
    if let Some(key_file) = &key_file {
        match key_problem(&key_file.value) {
            Ok(None) => {}
            Ok(Some(what)) => table.findings.error(key_file.pos.problem(format!("key_file: {what}"))),
            Err(error) => {
                let what = format!("key_file: {} cannot be read: {error}", key_file.value.display());
                table.findings.here(key_file.pos.problem(what));
            }
        }
    }
    if let Some(listen) = &listen {
        check_hosts(listen, &peers, table.findings);
    }
    table.finish();
    Some(Sync { batch, listen: listen?.value, peers: values(peers), key_file: key_file?.value })
}

/// The hosts know each other by these addresses.
fn check_hosts(listen: &At<SocketAddr>, peers: &[At<SocketAddr>], findings: &Findings) {
    let own = listen.value;
    let mut named = Once::new("peer");
    for peer in peers {
        named.enter(peer.value, peer.pos, findings);
        if peer.value == own {
            let what = format!("peers: {own} is `listen`, this host itself: write the `listen` of the other host");
            findings.error(peer.pos.problem(what));
        }
    }
}

/// What is wrong with a key file: who may read or change it, or the length of the key.
fn key_problem(path: &Path) -> std::io::Result<Option<String>> {
    let metadata = std::fs::metadata(path)?;
    let shown = path.display();
    if let Some(who) = strangers(&metadata, geteuid().as_raw(), getegid().as_raw()) {
        let mode = metadata.mode() & 0o7777;
        return Ok(Some(format!("{shown} has mode {mode:04o}, so {who}: chown root:root {shown}; chmod 600 {shown}")));
    }
    let key = std::fs::read_to_string(path)?;
    let key = key.trim();
    if key.len() < 32 || !key.len().is_multiple_of(2) || !key.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(Some(format!(
            "{shown} holds no key: write an even number of hexadecimal digits, at least 32, such as the output of `openssl rand -hex 32`"
        )));
    }
    Ok(None)
}

/// Who else than root and this process may read or change a file.
fn strangers(file: &std::fs::Metadata, user: u32, group: u32) -> Option<String> {
    if file.mode() & 0o007 != 0 {
        return Some("other users can read it or change it".into());
    }
    if file.uid() != 0 && file.uid() != user {
        return Some(format!("its owner, user {}, can read and change it", file.uid()));
    }
    let by_group = file.mode() & 0o070 != 0 && file.gid() != 0 && file.gid() != group;
    // The unit's group is the daemon's own; root, who checks the file, has another.
    let is_daemon_s =
        nix::unistd::Group::from_gid(file.gid().into()).ok().flatten().is_some_and(|it| it.name == "evenkeel");
    (by_group && !is_daemon_s).then(|| format!("its group {} can read or change it", file.gid()))
}
