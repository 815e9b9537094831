//! Sealing and opening datagrams: ChaCha20-Poly1305 (RFC 8439) under a key of this session and this
//! direction alone.
//!
//! ```text
//! "EKS2" (4) | session (16) | number (8) | messages, encrypted | tag (16)
//! ```
//! The sender draws the session at random when it starts. The session's key is derived from the
//! shared key, the session, and the addresses of sender and receiver (HKDF-SHA256, RFC 5869). So
//! the number, which counts datagrams, is a nonce that is never used twice with one key, and what
//! one host says to another is opened by nobody else: neither by itself, when somebody sends it
//! back, nor by a third host. Which session of a peer to believe is decided by
//! [`link`](super::link), and what was received before by [`sequence`](super::sequence).
//!
//! Version 1 of the format had one key for both directions. It is recognized, but not believed.

use std::net::{IpAddr, SocketAddr};

use ring::{aead, hkdf};

/// The first bytes of every datagram; the last character is the version of the format.
const MAGIC: [u8; 4] = *b"EKS2";
/// The same in the version before.
const OLDER_MAGIC: [u8; 4] = *b"EKS1";
const HEADER: usize = 4 + 16 + 8;
const TAG: usize = 16;
/// The context of the key derivation (the `info` of HKDF), before the two addresses.
const PURPOSE: &[u8] = b"evenkeel flow sync 2";
/// The same in the version before, without addresses.
const OLDER_PURPOSE: &[u8] = b"evenkeel flow sync 1";

/// The random number that names a session.
pub type Session = [u8; 16];

/// The key that both hosts share, from `key_file`.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKey(Vec<u8>);

impl SharedKey {
    /// Parses the text of a key file: an even number of hexadecimal digits, at least 32.
    pub fn parse(text: &str) -> Option<SharedKey> {
        let text = text.trim();
        if text.len() < 32 || !text.len().is_multiple_of(2) || !text.is_ascii() {
            return None;
        }
        let bytes = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok());
        bytes.collect::<Option<Vec<_>>>().map(SharedKey)
    }

    /// A key of 128 bits for something else than flow sync that both hosts have to agree on.
    pub fn of_purpose(&self, purpose: &[u8]) -> [u8; 16] {
        let mut key = [0; 16];
        let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&self.0);
        let purpose = [purpose];
        let okm = derived.expand(&purpose, Sixteen).expect("HKDF can derive 16 bytes");
        okm.fill(&mut key).expect("as long as was asked for");
        key
    }

    fn of_session(&self, session: &Session, context: &[u8]) -> aead::LessSafeKey {
        let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, session).extract(&self.0);
        let context = [context];
        let okm = derived.expand(&context, &aead::CHACHA20_POLY1305).expect("HKDF can derive 32 bytes");
        aead::LessSafeKey::new(okm.into())
    }
}

/// The length of a key of 128 bits.
struct Sixteen;

impl hkdf::KeyType for Sixteen {
    fn len(&self) -> usize {
        16
    }
}

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("SharedKey")
    }
}

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// The sender's `listen`.
    pub from: SocketAddr,
    /// The receiver's `listen`.
    pub to: SocketAddr,
}

impl Direction {
    /// The other direction between the same two.
    pub fn back(self) -> Direction {
        Direction { from: self.to, to: self.from }
    }

    fn context(self) -> Vec<u8> {
        let mut context = PURPOSE.to_vec();
        for address in [self.from, self.to] {
            match address.ip() {
                IpAddr::V4(ip) => context.extend_from_slice(&ip.to_ipv6_mapped().octets()),
                IpAddr::V6(ip) => context.extend_from_slice(&ip.octets()),
            }
            context.extend_from_slice(&address.port().to_be_bytes());
        }
        context
    }
}

/// The sending side of a session.
pub struct Sealer {
    session: Session,
    key: aead::LessSafeKey,
    number: u64,
}

impl Sealer {
    /// Begins a session.
    pub fn new(key: &SharedKey, session: Session, direction: Direction) -> Sealer {
        Sealer { session, key: key.of_session(&session, &direction.context()), number: 0 }
    }

    /// Seals messages into the next datagram.
    pub fn seal(&mut self, messages: &[u8]) -> Vec<u8> {
        self.number += 1;
        let mut datagram = Vec::with_capacity(HEADER + messages.len() + TAG);
        datagram.extend_from_slice(&MAGIC);
        datagram.extend_from_slice(&self.session);
        datagram.extend_from_slice(&self.number.to_be_bytes());
        let header = aead::Aad::from(<[u8; HEADER]>::try_from(&datagram[..]).expect("just written"));
        let mut sealed = messages.to_vec();
        let sealing = self.key.seal_in_place_append_tag(nonce(self.number), header, &mut sealed);
        sealing.expect("a datagram is far below the limit of the cipher");
        datagram.extend_from_slice(&sealed);
        datagram
    }
}

fn nonce(number: u64) -> aead::Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    aead::Nonce::assume_unique_for_key(nonce)
}

/// The head of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The sender's session.
    pub session: Session,
    /// The datagram's number in the session, from 1.
    pub number: u64,
}

/// Parses the head; `None` if this is no datagram of flow sync.
pub fn head(datagram: &[u8]) -> Option<Head> {
    head_of(datagram, MAGIC)
}

fn head_of(datagram: &[u8], magic: [u8; 4]) -> Option<Head> {
    if datagram.len() < HEADER + TAG || datagram[..4] != magic {
        return None;
    }
    let session = datagram[4..20].try_into().ok()?;
    Some(Head { session, number: u64::from_be_bytes(datagram[20..HEADER].try_into().ok()?) })
}

/// The messages in a datagram of the version before, sealed with our key. Nothing more is known of
/// it: it may be our own, or old.
pub fn open_older(key: &SharedKey, datagram: &[u8]) -> Option<Vec<u8>> {
    let head = head_of(datagram, OLDER_MAGIC)?;
    open(&key.of_session(&head.session, OLDER_PURPOSE), head.number, datagram)
}

fn open(key: &aead::LessSafeKey, number: u64, datagram: &[u8]) -> Option<Vec<u8>> {
    let (header, sealed) = datagram.split_at_checked(HEADER)?;
    let mut sealed = sealed.to_vec();
    let opened = key.open_in_place(nonce(number), aead::Aad::from(header), &mut sealed).ok()?.len();
    sealed.truncate(opened);
    Some(sealed)
}

/// The receiving side of one session of a peer.
pub struct Opener {
    /// The session that it opens.
    pub session: Session,
    key: aead::LessSafeKey,
}

impl Opener {
    /// Opens the datagrams of a session that the peer has begun.
    pub fn new(key: &SharedKey, session: Session, direction: Direction) -> Opener {
        Opener { session, key: key.of_session(&session, &direction.context()) }
    }

    /// The messages in a datagram; `None` unless it was sealed with our key in this session
    /// and this direction.
    pub fn open(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let head = head(datagram).filter(|head| head.session == self.session)?;
        open(&self.key, head.number, datagram)
    }
}

#[cfg(test)]
pub(super) mod tests;
