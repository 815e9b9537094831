//! What the kernel says of itself and of this process's rights. What cannot be read (no /proc, no
//! securityfs) counts as not restricted.

use std::{fs, ops::RangeInclusive};

/// The host's name, as `hostname` prints it.
pub fn name() -> Option<String> {
    nix::unistd::gethostname().ok().map(|name| name.to_string_lossy().into_owned())
}

/// The ports that the kernel gives to connections of this host: its range without the reserved
/// ones; Linux's default if it cannot be read.
pub fn ephemeral_ports() -> Vec<RangeInclusive<u16>> {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    ephemeral(&read("ip_local_port_range"), &read("ip_local_reserved_ports"))
}

fn ephemeral(range: &str, reserved: &str) -> Vec<RangeInclusive<u16>> {
    let mut bounds = range.split_whitespace().filter_map(|bound| bound.parse().ok());
    let (first, last) = (bounds.next().unwrap_or(32_768), bounds.next().unwrap_or(60_999_u16));
    let mut left = vec![first..=last];
    for part in reserved.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (Ok(from), Ok(to)) = (from.parse::<u16>(), to.parse::<u16>()) else { continue };
        let below = from.checked_sub(1).map(|last| 0..=last);
        let above = to.checked_add(1).map(|first| first..=u16::MAX);
        let beside = |range: RangeInclusive<u16>| {
            let cut = |by: &RangeInclusive<u16>| *range.start().max(by.start())..=*range.end().min(by.end());
            below.iter().chain(&above).map(cut).collect::<Vec<_>>()
        };
        left = left.into_iter().flat_map(beside).filter(|range| !range.is_empty()).collect();
    }
    left
}

/// The kernel's release and machine, as `uname -rm` prints them.
pub fn kernel() -> String {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap_or_default();
    format!("{} {}", read("osrelease").trim(), std::env::consts::ARCH).trim().to_owned()
}

/// The effective capabilities of this thread, one bit each (capabilities(7)).
pub fn capabilities() -> u64 {
    status("CapEff").and_then(|word| u64::from_str_radix(&word, 16).ok()).unwrap_or(u64::MAX)
}

/// Whether system calls of this thread pass a filter (seccomp(2)).
pub fn has_seccomp_filter() -> bool {
    status("Seccomp").is_some_and(|mode| mode == "2")
}

fn status(field: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned())
}

/// Whether this process is in a user namespace other than the first, whose IDs are all mapped to
/// themselves.
pub fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.is_empty() && !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The kernel's lockdown: `none`, `integrity` or `confidentiality`.
pub fn lockdown() -> String {
    let modes = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let chosen = modes.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    chosen.map_or("none", |(mode, _)| mode).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_answers_every_question() {
        assert!(kernel().starts_with(|first: char| first.is_ascii_digit()), "{}", kernel());
        assert!(kernel().ends_with(std::env::consts::ARCH));
        assert_ne!(capabilities(), u64::MAX);
        assert!(status("Seccomp").is_some());
        assert!(["none", "integrity", "confidentiality"].contains(&lockdown().as_str()));
    }

    #[test]
    fn reserved_ports_are_not_given_to_connections() {
        for (range, reserved, ports) in [
            ("32768\t60999\n", "\n", &[32_768..=60_999][..]),
            ("1024 65535", "10240-32767,40000\n", &[1024..=10_239, 32_768..=39_999, 40_001..=65_535]),
            ("1024 2000", "0-1023", &[1024..=2000]),
            ("1024 2000", "1024-65535", &[]),
            ("", "nonsense", &[32_768..=60_999]),
        ] {
            assert_eq!(ephemeral(range, reserved), ports, "{range:?} {reserved:?}");
        }
    }
}
