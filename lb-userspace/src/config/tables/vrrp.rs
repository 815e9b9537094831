//! `[[vrrp]]`

use std::{
    net::IpAddr,
    num::{NonZeroU8, NonZeroU32},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use toml::de::DeValue;

use super::{DAY, HOUR, check_interface, millis, seconds};
use crate::{
    config::{
        cross::Cross,
        model::{TrackDatapath, TrackScript, Vrrp, VrrpChecksum, VrrpVersion},
        problem::Findings,
        raw::{At, Table, Value},
        units,
    },
    words::OWNER_PRIORITY,
};

/// Bytes of a version-2 password that count (RFC 2338 section 5.3.10).
const AUTH_BYTES: usize = 8;

/// Reads `[[vrrp]]`.
pub fn vrrp<'a>(mut table: Table<'a>, cross: &mut Cross<'a>) -> Option<Vrrp> {
    let findings = table.findings;
    let name = table.required("name", "\"VI_1\"", units::name);
    let interface = table.required("interface", "\"eth0\"", units::interface);
    interface.iter().for_each(|at| check_interface(at, table.findings));
    let router = table.required("virtual_router_id", "251", units::number(1..=255_u8));
    if let Some(name) = &name {
        cross.instances.enter(name.value.to_owned(), name.pos, findings);
    }
    let priority = table.or("priority", 100, units::number(1..=255_u8));
    let version = table.or("version", VrrpVersion::V3, version);
    let advert_interval = advert_interval(&mut table, version);
    let preempt = table.or("preempt", true, units::boolean);
    let preempt_delay = table.or("preempt_delay", Duration::ZERO, units::duration(Duration::ZERO..=seconds(1000)));
    let auth_pass = auth_pass(&mut table, version);
    let unicast_source = table.optional("unicast_source", units::address);
    let unicast_peers = table.list("unicast_peers", units::address).unwrap_or_default();
    let min_ttl = table.optional("min_ttl", units::number(0..=255_u8));
    if let Some(at) = min_ttl.as_ref().filter(|at| at.value > 0 && unicast_peers.is_empty()) {
        let what = "min_ttl has no effect without unicast_peers: what was multicast must have 255";
        findings.warning(at.pos.problem(what));
    }
    let addresses = addresses(&mut table, version);
    check_families(&addresses, unicast_source.iter().chain(&unicast_peers), findings);
    check_unicast(&addresses, unicast_source.as_ref(), &unicast_peers, findings);
    if let (Some(interface), Some(router), Some(first)) = (&interface, &router, addresses.first()) {
        // IPv4 and IPv6 are separate virtual routers (RFC 9568 section 5.2.3).
        let family = if first.value.addr().is_ipv4() { "IPv4" } else { "IPv6" };
        let key = format!("{} on interface {} ({family})", router.value, interface.value);
        cross.routers.enter(key, router.pos, findings);
    }
    for at in &addresses {
        cross.virtual_addresses.enter(at.value.addr(), at.pos, findings);
    }
    let garp_repeat = table.or("garp_repeat", 5, units::number(1..=100));
    let garp_delay = table.or("garp_delay", seconds(5), units::duration(Duration::ZERO..=HOUR));
    let garp_refresh = table.or("garp_refresh", seconds(60), units::duration(Duration::ZERO..=DAY));
    let checksum = table.or("checksum", VrrpChecksum::PseudoHeader, units::choice(CHECKSUMS));
    let group = table.optional("group", units::name);
    let track_backends = table.or("track_backends", -60, units::number(WEIGHTS));
    let track_datapath = table.or("track_datapath", TrackDatapath::Fault, track_datapath);
    let track_interface = table.list("track_interface", units::interface).unwrap_or_default();
    let scripts = table.tables("track_script", "[[vrrp.track_script]]");
    let track_script = scripts.into_iter().filter_map(track_script).collect();
    let notify = table.optional("notify", units::absolute_path);
    if let Some(notify) = &notify {
        warn_of_program("notify", notify, findings);
    }
    let pos = table.pos;
    table.finish();
    let instance = Vrrp {
        name: name?.value.into(),
        interface: interface?.value,
        virtual_router_id: NonZeroU8::new(router?.value)?,
        priority: NonZeroU8::new(priority)?,
        version,
        advert_interval,
        preempt,
        preempt_delay,
        auth_pass,
        unicast_source: unicast_source.map(|at| at.value),
        min_ttl: min_ttl.map_or(0, |at| at.value),
        unicast_peers: unicast_peers.into_iter().map(|at| at.value).collect(),
        addresses: addresses.into_iter().map(|at| at.value).collect(),
        garp_repeat,
        garp_delay,
        garp_refresh,
        checksum,
        group: group.map(|at| at.value.to_owned()),
        track_backends,
        track_datapath,
        track_interface: track_interface.into_iter().map(|at| at.value).collect(),
        notify: notify.map(|at| at.value),
        track_script,
    };
    lint(&instance).into_iter().for_each(|what| findings.warning(pos.problem(what)));
    cross.groups.enter(&instance, pos);
    Some(instance)
}

/// The weights that may be added to a priority, as in keepalived.
const WEIGHTS: std::ops::RangeInclusive<i16> = -253..=253;

const CHECKSUMS: &[(&str, VrrpChecksum)] =
    &[("pseudo-header", VrrpChecksum::PseudoHeader), ("rfc9568", VrrpChecksum::Rfc9568)];

fn version(value: Value) -> Result<VrrpVersion, String> {
    match units::number(2..=3)(value)? {
        2 => Ok(VrrpVersion::V2),
        _ => Ok(VrrpVersion::V3),
    }
}

/// Version 2 sends whole seconds in one byte, version 3 hundredths of a second in 12 bits.
fn advert_interval(table: &mut Table, version: VrrpVersion) -> Duration {
    table.or("advert_interval", seconds(1), |value| {
        let interval = units::duration(millis(10)..=seconds(255))(value)?;
        let text = units::write_duration(interval);
        match version {
            VrrpVersion::V2 if interval.subsec_millis() != 0 => {
                Err(format!("\"{text}\" is not possible in version 2: use whole seconds, \"1s\" to \"255s\""))
            }
            VrrpVersion::V3 if interval > millis(40_950) || !interval.as_millis().is_multiple_of(10) => {
                Err(format!("\"{text}\" is not possible in version 3: use \"10ms\" to \"40s950ms\" in steps of 10ms"))
            }
            _ => Ok(interval),
        }
    })
}

fn auth_pass(table: &mut Table, version: VrrpVersion) -> Option<String> {
    let pass = table.optional("auth_pass", units::text)?;
    if version == VrrpVersion::V3 {
        let what =
            "auth_pass: not sent, because version 3 has no authentication (RFC 9568): remove it, or set version = 2";
        table.findings.warning(pass.pos.problem(what));
    }
    if pass.value.is_empty() {
        table.findings.error(pass.pos.problem("auth_pass: the password must not be empty: remove it or set one"));
    }
    if pass.value.len() > AUTH_BYTES {
        let what = format!("auth_pass: only the first {AUTH_BYTES} bytes are used, the rest is not sent");
        table.findings.warning(pass.pos.problem(what));
    }
    Some(pass.value.to_owned())
}

fn addresses<'a>(table: &mut Table<'a>, version: VrrpVersion) -> Vec<At<'a, IpNet>> {
    let addresses = table.required_list("addresses", "\"10.0.1.100/24\"", address_with_prefix);
    let ipv6 = addresses.iter().find(|at| at.value.addr().is_ipv6());
    if let (VrrpVersion::V2, Some(at)) = (version, ipv6) {
        table.findings.error(at.pos.problem("addresses: version 2 carries IPv4 only: set version = 3"));
    }
    if let Some(at) = addresses.get(MAX_ADDRESSES) {
        let what = format!("addresses: {} addresses, an advertisement has room for {MAX_ADDRESSES}", addresses.len());
        table.findings.error(at.pos.problem(what));
    }
    addresses
}

/// Most addresses per instance: an advertisement with these fits into any frame, and keepalived
/// accepts them.
const MAX_ADDRESSES: usize = 20;

fn address_with_prefix(value: Value) -> Result<IpNet, String> {
    let text = units::text(value)?;
    let address: IpNet = text
        .parse()
        .map_err(|_| format!("\"{text}\" is not an address with a prefix: write it like \"10.0.1.100/24\""))?;
    units::usable(address.addr())?;
    let ends = [address.network(), address.broadcast()];
    let IpNet::V4(network) = address else { return Ok(address) };
    if network.prefix_len() < 31 && ends.contains(&address.addr()) {
        return Err(format!("\"{text}\" is a network or broadcast address, not a host's address"));
    }
    Ok(address)
}

/// All addresses of an instance, its peers and its source must be of one family.
fn check_families<'a>(
    addresses: &[At<'a, IpNet>],
    unicast: impl Iterator<Item = &'a At<'a, IpAddr>>,
    findings: &Findings,
) {
    let Some(first) = addresses.first() else { return };
    let ipv4 = first.value.addr().is_ipv4();
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    for at in addresses.iter().filter(|at| at.value.addr().is_ipv4() != ipv4) {
        let what =
            format!("addresses: {} is not {family} like the first address: put it in an instance of its own", at.value);
        findings.error(at.pos.problem(what));
    }
    for at in unicast.filter(|at| at.value.is_ipv4() != ipv4) {
        findings.error(at.pos.problem(format!("{} is not {family}, unlike `addresses`", at.value)));
    }
}

/// A host is not its own peer, and an address that moves cannot be a host's own.
fn check_unicast<'a>(
    addresses: &[At<'a, IpNet>],
    source: Option<&At<'a, IpAddr>>,
    peers: &[At<'a, IpAddr>],
    findings: &Findings,
) {
    for at in peers.iter().filter(|at| source.is_some_and(|source| source.value == at.value)) {
        findings.error(at.pos.problem(format!("unicast_peers: {} is this host's own unicast_source", at.value)));
    }
    for at in peers.iter().chain(source).filter(|at| addresses.iter().any(|vip| vip.value.addr() == at.value)) {
        let what = format!("{} is one of `addresses`, which move: use a host's own address", at.value);
        findings.error(at.pos.problem(what));
    }
}

fn track_datapath(value: Value) -> Result<TrackDatapath, String> {
    match value.toml {
        DeValue::Integer(_) => units::number(WEIGHTS)(value).map(TrackDatapath::Weight),
        _ => units::choice(&[("fault", TrackDatapath::Fault)])(value)
            .map_err(|_| "write \"fault\" or a weight from -253 to 253".into()),
    }
}

fn track_script(mut table: Table) -> Option<TrackScript> {
    let command: Option<At<PathBuf>> = table.required("command", "\"/usr/local/bin/check\"", units::absolute_path);
    if let Some(command) = &command {
        warn_of_program("command", command, table.findings);
    }
    let interval = table.or("interval", seconds(2), units::duration(millis(100)..=HOUR));
    let timeout = table.optional("timeout", units::duration(millis(10)..=HOUR));
    if let Some(timeout) = timeout.filter(|timeout| timeout.value > interval) {
        let (timeout_text, interval_text) = (units::write_duration(timeout.value), units::write_duration(interval));
        let what = format!("timeout: \"{timeout_text}\" is above the interval of \"{interval_text}\"");
        table.findings.error(timeout.pos.problem(what));
    }
    let weight = table.or("weight", 0, units::number(WEIGHTS));
    let rise = table.or("rise", 1, units::number(1..=1000));
    let fall = table.or("fall", 1, units::number(1..=1000));
    table.finish();
    Some(TrackScript {
        command: command?.value,
        interval,
        timeout: timeout.map_or(seconds(1).min(interval), |at| at.value),
        weight,
        rise: NonZeroU32::new(rise)?,
        fall: NonZeroU32::new(fall)?,
    })
}

/// Warns of a program that does not exist here; the file may be checked on another host.
fn warn_of_program(key: &str, at: &At<PathBuf>, findings: &Findings) {
    let shown = at.value.display();
    match std::fs::metadata(&at.value) {
        Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => {
            if let Some(who) = at.value.ancestors().find_map(changeable) {
                let what =
                    format!("{key}: {who}, so others than root decide what runs as root: chown root, chmod go-w");
                findings.warning(at.pos.problem(what));
            }
        }
        _ => findings.warning(at.pos.problem(format!("{key}: no program {shown} on this host"))),
    }
}

/// Says so if others than root may put something else in the place of a file or folder
/// (keepalived's `enable_script_security`).
fn changeable(path: &Path) -> Option<String> {
    let metadata = std::fs::metadata(path).ok()?;
    let shown = path.display();
    // In a folder with the sticky bit everybody changes only what is his own.
    let by_others = metadata.mode() & 0o022 != 0 && !(metadata.is_dir() && metadata.mode() & 0o1000 != 0);
    match metadata.uid() {
        0 => by_others.then(|| format!("{shown} has mode {:04o}", metadata.mode() & 0o7777)),
        user => Some(format!("{shown} belongs to user {user}")),
    }
}

/// keepalived's default priority, which the other host usually has if this one has more.
const USUAL: i16 = 100;
/// The smallest usual difference between two hosts (100 and 90).
const USUAL_GAP: i16 = 10;

/// Settings that are allowed but may not do what was meant.
fn lint(instance: &Vrrp) -> Vec<String> {
    let mut found = Vec::new();
    let name = &instance.name;
    let priority = i16::from(instance.priority.get());
    let scripts = instance.track_script.iter().map(|script| ("track_script", script.weight));
    let datapath = match instance.track_datapath {
        TrackDatapath::Weight(weight) => Some(("track_datapath", weight)),
        TrackDatapath::Fault => None,
    };
    let weights = scripts.chain(datapath).chain([("track_backends", instance.track_backends)]);
    if priority == i16::from(OWNER_PRIORITY) {
        found.push(format!(
            "vrrp instance {name}: priority 255 owns the addresses: no weight changes it, and it always preempts"
        ));
    } else {
        found
            .extend(weights.filter_map(|(key, weight)| Some(format!("{name}: {}", too_small(key, weight, priority)?))));
    }
    if !instance.preempt && instance.preempt_delay > Duration::ZERO {
        found.push(format!("{name}: preempt_delay has no effect with preempt = false"));
    }
    let first = instance.addresses.first().map(|address| address.addr());
    if let Some(IpAddr::V6(address)) = first
        && !instance.addresses.iter().any(|address| is_link_local(address.addr()))
    {
        found.push(format!(
            "{name}: RFC 9568 section 5.2.9 requires a link-local IPv6 address first (fe80::... before {address}); \
             routers other than keepalived and evenkeel may ignore this instance"
        ));
    }
    found
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Warns of a weight that probably changes no election. The other host's priority is not known
/// here; it is usually keepalived's default, or ten less than this one.
fn too_small(key: &str, weight: i16, priority: i16) -> Option<String> {
    let lost = weight.abs();
    let above = priority - USUAL;
    let (limit, peer) = if above > 0 { (above, USUAL) } else { (USUAL_GAP, priority - USUAL_GAP) };
    if weight == 0 || lost > limit {
        return None;
    }
    let left = (priority - lost).max(1);
    Some(format!(
        "{key}: a weight of {weight} lowers the priority {priority} to {left}, which changes no election unless the other \
         host has more than that: against a priority of {peer} it takes more than {limit}"
    ))
}
