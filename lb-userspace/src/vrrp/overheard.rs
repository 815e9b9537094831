//! What an advertisement says, in words, and how it agrees with an instance of the configuration:
//! for events, and for an operator who compares a file with the wire before the host joins.

use std::net::IpAddr;

use super::{
    messages::Trouble,
    receive::{Agreement, RefusedAdvert, router_of},
    setup::Setup,
    wire::{Packet, View, v2, v3},
};

/// The most addresses that are written out.
const SHOWN: usize = 4;

/// An advertisement's fields; they may be anybody's, and wrong.
pub fn described(packet: &Packet, ipv4: bool) -> String {
    let Some(view) = View::new(packet.payload) else { return format!("{} bytes", packet.payload.len()) };
    let timing = match view.version() {
        v2::VERSION => {
            let password = if v2::authentication(view) == v2::PASSWORD { "a password" } else { "no password" };
            format!("every {} s, {password}", v2::seconds(view))
        }
        _ => format!("every {} ms", u32::from(v3::centiseconds(view)) * 10),
    };
    let addresses = view.addresses(ipv4).unwrap_or_default();
    let mut shown: Vec<_> = addresses.iter().take(SHOWN).map(ToString::to_string).collect();
    if addresses.len() > SHOWN {
        shown.push(format!("and {} more", addresses.len() - SHOWN));
    }
    let (version, router, priority) = (view.version(), view.router(), view.priority());
    let shown = if shown.is_empty() { "no address".into() } else { shown.join(" ") };
    format!("version {version}, virtual_router_id {router}, priority {priority}, {timing}, {shown}")
}

/// The first of our addresses that is advertised under another number than ours: one of the two
/// hosts has a wrong `virtual_router_id`, and both will be MASTER.
pub fn under_another_number(setup: &Setup, packet: &Packet) -> Option<IpAddr> {
    let expectation = &setup.expectation;
    let view = View::new(packet.payload).filter(|view| view.router() != setup.router())?;
    let is_own = expectation.own == Some(packet.source);
    let advertised = view.addresses(setup.ipv4).filter(|_| !is_own)?;
    advertised.into_iter().find(|address| expectation.addresses.contains(address))
}

/// How an advertisement that was heard agrees with an instance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overheard {
    /// Whether the two would not work together.
    pub differs: bool,
    /// In words.
    pub text: String,
}

/// Compares an advertisement on an instance's interface with it.
pub fn compare(setup: &Setup, packet: &Packet) -> Overheard {
    let (from, said) = (packet.source, described(packet, setup.ipv4));
    let trouble = match (router_of(packet) == Some(setup.router()), setup.expectation.judge(packet)) {
        (false, _) => under_another_number(setup, packet).map(|address| Trouble::OtherNumber {
            from,
            address,
            said: said.clone(),
        }),
        (true, Ok(heard)) if heard.agreement == Agreement::Same => None,
        (true, Ok(_)) => Some(Trouble::Disagrees { from, said: said.clone() }),
        (true, Err(RefusedAdvert { why, agreement })) => {
            Some(Trouble::Refused { why, from, agreement, said: said.clone() })
        }
    };
    match trouble {
        Some(trouble) => Overheard { differs: true, text: trouble.words(setup.router()).1 },
        None if router_of(packet) == Some(setup.router()) => {
            Overheard { differs: false, text: format!("hears {from}, which agrees with it: {said}") }
        }
        None => Overheard { differs: false, text: format!("hears {from}, another virtual router: {said}") },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vrrp::{receive::Voice, wire};

    fn setup(text: &str) -> Setup {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("evenkeel.toml");
        let text = format!("[[vrrp]]\nname = \"VI\"\ninterface = \"eth0\"\npriority = 100\n{text}");
        std::fs::write(&file, text).unwrap();
        let loaded = crate::config::load(&file).unwrap_or_else(|problems| panic!("{problems}"));
        Setup::of(&loaded.config.vrrp[0])
    }

    fn heard(ours: &Setup, theirs: &Voice) -> Overheard {
        let source = IpAddr::from([10, 0, 1, 2]);
        let bytes = theirs.advertisement(150, source, theirs.destinations(source)[0]);
        compare(ours, &wire::ipv4::parse(&bytes).unwrap())
    }

    #[test]
    fn what_differs_is_told_with_what_was_heard() {
        let ours = setup("virtual_router_id = 51\naddresses = [\"10.0.1.100/24\"]\nversion = 3\n");
        let voice = |text: &str| setup(text).voice;
        let same = heard(&ours, &voice("virtual_router_id = 51\naddresses = [\"10.0.1.100/24\"]\nversion = 3\n"));
        assert!(!same.differs && same.text.contains("agrees"), "{same:?}");
        for (theirs, words) in [
            ("virtual_router_id = 51\naddresses = [\"10.0.1.100/24\"]\nversion = 2\n", &["`version`", "version 2"][..]),
            (
                "virtual_router_id = 52\naddresses = [\"10.0.1.100/24\"]\nversion = 3\n",
                &["virtual_router_id 52", "10.0.1.100"],
            ),
            ("virtual_router_id = 51\naddresses = [\"10.0.1.101/24\"]\nversion = 3\n", &["10.0.1.101"]),
            (
                "virtual_router_id = 51\naddresses = [\"10.0.1.100/24\", \"10.0.1.101/24\"]\nversion = 3\n",
                &["other `addresses`", "10.0.1.100 10.0.1.101"],
            ),
        ] {
            let overheard = heard(&ours, &voice(theirs));
            assert!(overheard.differs && words.iter().all(|word| overheard.text.contains(word)), "{overheard:?}");
        }
        let other = heard(&ours, &voice("virtual_router_id = 7\naddresses = [\"10.0.1.9/24\"]\nversion = 3\n"));
        assert!(!other.differs && other.text.contains("another virtual router"), "{other:?}");
    }

    #[test]
    fn random_bytes_are_described_without_a_panic_and_in_bounds() {
        let ours = setup("virtual_router_id = 51\naddresses = [\"10.0.1.100/24\"]\n");
        let mut state = 7_u64;
        for _ in 0..5_000 {
            let mut byte = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            };
            let length = usize::from(byte()) * 5;
            let bytes: Vec<u8> = (0..length).map(|_| byte()).collect();
            let (source, destination) = (IpAddr::from([10, 0, 1, 2]), wire::GROUP_V4.into());
            let text = compare(&ours, &Packet { source, destination, hop_limit: 255, payload: &bytes }).text;
            assert!(text.len() < 600, "{text}");
        }
    }
}
