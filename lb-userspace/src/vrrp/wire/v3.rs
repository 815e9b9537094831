//! Version 3 (RFC 9568, before it RFC 5798).
//!
//! ```text
//!  0                   1                   2                   3
//! |version|  type |    router     |   priority    |     count     |
//! |   0   | hundredths of a second|           checksum            |
//! |                 addresses, 4 or 16 bytes each                 |
//! ```
//! Over IPv6 the checksum covers the pseudo-header too. Over IPv4 there are two dialects:
//! keepalived and FRR include the pseudo-header, as RFC 5798 can be read; RFC 9568 section 5.2.8
//! excludes it.

use std::net::IpAddr;

use super::{PROTOCOL, View, adds_up, begin, field, pseudo_header, seal};

/// The version number, in the first four bits.
pub const VERSION: u8 = 3;
/// The longest interval that fits, in hundredths of a second.
pub const MAX_CENTISECONDS: u16 = 0x0fff;

/// What the checksum covers over IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The message and the pseudo-header.
    PseudoHeader,
    /// The message alone.
    MessageOnly,
}

/// Encodes an advertisement from `source` to `destination`, which the checksum may cover.
pub fn encode(
    (router, priority, centiseconds): (u8, u8, u16),
    addresses: &[IpAddr],
    (source, destination): (IpAddr, IpAddr),
    dialect: Dialect,
) -> Vec<u8> {
    let timing = (centiseconds & MAX_CENTISECONDS).to_be_bytes();
    let mut message = begin(VERSION, router, priority, timing, addresses);
    let beside = match (source, dialect) {
        (IpAddr::V4(_), Dialect::MessageOnly) => 0,
        _ => pseudo_header(source, destination, PROTOCOL, message.len()),
    };
    seal(&mut message, beside);
    message
}

/// The sender's interval in hundredths of a second.
pub fn centiseconds(view: View) -> u16 {
    u16::from_be_bytes([view.0[field::TIMING], view.0[field::TIMING + 1]]) & MAX_CENTISECONDS
}

/// Whether the message is complete and its checksum right; over IPv4 in either dialect.
pub fn is_intact(view: View, source: IpAddr, destination: IpAddr) -> bool {
    let Some(message) = view.0.get(..view.end(source.is_ipv4())) else { return false };
    adds_up(message, pseudo_header(source, destination, PROTOCOL, message.len()))
        || (source.is_ipv4() && adds_up(message, 0))
}
