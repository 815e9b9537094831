use super::*;

fn key(digit: &str) -> SharedKey {
    SharedKey::parse(&digit.repeat(64)).unwrap()
}

fn there() -> Direction {
    Direction { from: "10.0.1.1:9644".parse().unwrap(), to: "10.0.1.2:9644".parse().unwrap() }
}

/// The first datagram of a session in the format before.
pub fn sealed_as_before(key: &SharedKey, session: Session, messages: &[u8]) -> Vec<u8> {
    let header = [&OLDER_MAGIC[..], &session, &1_u64.to_be_bytes()].concat();
    let mut sealed = messages.to_vec();
    let key = key.of_session(&session, OLDER_PURPOSE);
    key.seal_in_place_append_tag(nonce(1), aead::Aad::from(&header), &mut sealed).unwrap();
    [header, sealed].concat()
}

#[test]
fn what_was_sealed_is_opened_by_who_has_the_key() {
    let mut sealer = Sealer::new(&key("a"), [7; 16], there());
    let opener = Opener::new(&key("a"), [7; 16], there());
    for text in [&b""[..], b"one", &[0; 1380]] {
        assert_eq!(opener.open(&sealer.seal(text)).as_deref(), Some(text));
    }
    let datagram = sealer.seal(b"secret");
    assert_eq!(head(&datagram), Some(Head { session: [7; 16], number: 4 }));
    assert!(!datagram.windows(6).any(|part| part == b"secret"));
}

#[test]
fn another_key_another_session_and_any_changed_byte_are_refused() {
    let datagram = Sealer::new(&key("a"), [7; 16], there()).seal(b"drain cp01");
    assert_eq!(Opener::new(&key("b"), [7; 16], there()).open(&datagram), None);
    assert_eq!(Opener::new(&key("a"), [8; 16], there()).open(&datagram), None);
    let Direction { from, to } = there();
    let elsewhere = [1, 2].map(|host| SocketAddr::from(([10, 0, 1, host], 9645)));
    for other in [there().back(), Direction { from, to: elsewhere[1] }, Direction { from: elsewhere[0], to }] {
        assert_eq!(Opener::new(&key("a"), [7; 16], other).open(&datagram), None, "{other:?}");
    }
    let opener = Opener::new(&key("a"), [7; 16], there());
    for place in 0..datagram.len() {
        let mut changed = datagram.clone();
        changed[place] ^= 1;
        assert_eq!(opener.open(&changed), None, "byte {place}");
    }
    for length in 0..datagram.len() {
        assert_eq!(opener.open(&datagram[..length]), None, "{length} bytes");
    }
}

#[test]
fn a_key_for_something_else_is_the_same_on_both_hosts_and_another_for_each_purpose() {
    let derived = key("a").of_purpose(b"one");
    assert_eq!(derived, key("a").of_purpose(b"one"));
    let others = [key("b").of_purpose(b"one"), key("a").of_purpose(b"two"), [0; 16]];
    assert!(!others.contains(&derived));
}

#[test]
fn a_key_file_holds_hexadecimal_digits() {
    assert!(SharedKey::parse(&"0123456789abcdef".repeat(2)).is_some());
    assert!(SharedKey::parse(&format!("{}\n", "0F".repeat(32))).is_some());
    for wrong in ["", "00112233", &"g".repeat(32), &"ä".repeat(32), &"0".repeat(33)] {
        assert!(SharedKey::parse(wrong).is_none(), "{wrong}");
    }
}
