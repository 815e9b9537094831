//! The programs that the lab and the tests run beside ours.

use std::path::Path;

use anyhow::{Result, bail};

use super::{Outcome, apt};
use crate::ebpf;

/// A file or program, and the Debian package that has it.
const NEEDED: [(&str, &str); 16] = [
    ("nginx", "nginx-light"),
    ("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream"),
    ("haproxy", "haproxy"),
    ("keepalived", "keepalived"),
    ("/usr/lib/frr/vrrpd", "frr"),
    ("curl", "curl"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("tcpdump", "tcpdump"),
    ("bpftool", "bpftool"),
    ("promtool", "prometheus"),
    ("chromium", "chromium"),
    ("systemd-analyze", "systemd"),
    ("setpriv", "util-linux"),
    ("groff", "groff-base"),
];

pub fn provide() -> Result<Outcome> {
    let all = NEEDED.map(|(what, _)| what.rsplit('/').next().unwrap_or(what)).join(", ");
    let missing: Vec<_> = missing().map(|(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(Outcome::Found(all));
    }
    apt::install(&missing)?;
    if let Some((what, package)) = self::missing().next() {
        bail!("{package} was installed, but {what} cannot be found");
    }
    Ok(Outcome::Installed(format!("packages {}", missing.join(", "))))
}

fn missing() -> impl Iterator<Item = (&'static str, &'static str)> {
    let is_there =
        |what: &str| if what.starts_with('/') { Path::new(what).exists() } else { ebpf::program(what).is_some() };
    NEEDED.into_iter().filter(move |(what, _)| !is_there(what))
}
