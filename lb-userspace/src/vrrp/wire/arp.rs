//! Gratuitous ARP: a host tells its segment where an IPv4 address is (RFC 5227 section 3). Both
//! forms are sent, because some hosts learn from only one of them.

use std::net::Ipv4Addr;

const BROADCAST: [u8; 6] = [0xff; 6];
const ETHERTYPE: [u8; 2] = [0x08, 0x06];
/// Ethernet and IPv4, with addresses of 6 and 4 bytes.
const KIND: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// The request form: the host asks for its own address.
pub fn request(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    frame(REQUEST, mac, address, [0; 6])
}

/// The reply form, unrequested. Linux accepts it as gratuitous only if both hardware addresses are
/// the sender's.
pub fn reply(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    frame(REPLY, mac, address, mac)
}

fn frame(operation: [u8; 2], mac: [u8; 6], address: Ipv4Addr, target: [u8; 6]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(BROADCAST);
    frame.extend(mac);
    frame.extend(ETHERTYPE);
    frame.extend(KIND);
    frame.extend(operation);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend(target);
    frame.extend(address.octets());
    frame
}
