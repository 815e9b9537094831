//! Version 2 (RFC 3768), with the passwords of RFC 2338, which keepalived still supports.
//!
//! ```text
//!  0                   1                   2                   3
//! |version|  type |    router     |   priority    |     count     |
//! | authentication|    seconds    |           checksum            |
//! |                      addresses, 4 bytes each                  |
//! |             8 bytes of password, zero without one             |
//! ```
//! The checksum covers the whole message, including the password, and no pseudo-header.

use std::net::IpAddr;

use super::{View, adds_up, begin, field, seal};

/// The version number, in the first four bits.
pub const VERSION: u8 = 2;
/// No authentication; the eight bytes are zero.
pub const NO_AUTHENTICATION: u8 = 0;
/// A password in the clear: "Simple Text Password" (RFC 2338 section 5.3.6).
pub const PASSWORD: u8 = 1;
/// Bytes of a password that count.
pub const PASSWORD_BYTES: usize = 8;

/// A password as the packet carries it: cut, or padded with zeros.
pub type Password = [u8; PASSWORD_BYTES];

/// The bytes of a password that are sent.
pub fn password(text: &str) -> Password {
    let mut password = Password::default();
    for (to, from) in password.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    password
}

/// Encodes an advertisement.
pub fn encode(router: u8, priority: u8, seconds: u8, password: Option<Password>, addresses: &[IpAddr]) -> Vec<u8> {
    let authentication = if password.is_some() { PASSWORD } else { NO_AUTHENTICATION };
    let mut message = begin(VERSION, router, priority, [authentication, seconds], addresses);
    message.extend(password.unwrap_or_default());
    seal(&mut message, 0);
    message
}

/// How the sender authenticates itself.
pub fn authentication(view: View) -> u8 {
    view.0[field::TIMING]
}

/// The sender's interval in seconds.
pub fn seconds(view: View) -> u8 {
    view.0[field::TIMING + 1]
}

/// The eight bytes after the addresses; `None`: the message is cut short.
pub fn trailer(view: View) -> Option<Password> {
    let at = view.end(true);
    view.0.get(at..at + PASSWORD_BYTES)?.try_into().ok()
}

/// Whether the message is complete and its checksum right.
pub fn is_intact(view: View) -> bool {
    view.0.get(..view.end(true) + PASSWORD_BYTES).is_some_and(|message| adds_up(message, 0))
}
