//! `[daemon]`, `[api]` and `[sync]`, each allowed in one file only.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use log::LevelFilter;

use super::{millis, seconds};
use crate::config::{
    cross::Once,
    model::{Api, Daemon, OnExit, Sync},
    problem::Findings,
    raw::{At, Table},
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
    let api = Api { listen: table.or("listen", SocketAddr::from(([127, 0, 0, 1], 9643)), units::socket_address) };
    table.finish();
    api
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
                table.findings.warning(key_file.pos.problem(what));
            }
        }
    }
    if let Some(listen) = &listen {
        check_hosts(listen, &peers, table.findings);
    }
    table.finish();
    Some(Sync {
        batch,
        listen: listen?.value,
        peers: peers.into_iter().map(|peer| peer.value).collect(),
        key_file: key_file?.value,
    })
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

/// What is wrong with a key file: its permissions, or the length of the key.
fn key_problem(path: &Path) -> std::io::Result<Option<String>> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path)?.permissions().mode();
    let shown = path.display();
    if mode & 0o007 != 0 {
        return Ok(Some(format!(
            "{shown} has mode {:04o}, so other users can read it: chmod 600 {shown}",
            mode & 0o7777
        )));
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
