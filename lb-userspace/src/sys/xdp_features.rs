//! What an interface can do with XDP frames, as the kernel says it since Linux 6.3 (generic netlink,
//! family `netdev`: Documentation/netlink/specs/netdev.yaml).

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `struct nlmsghdr` and `struct genlmsghdr` (linux/netlink.h, linux/genetlink.h).
const NLMSG_HEADER: usize = 16;
const GENL_HEADER: usize = 4;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
/// The device takes frames that another device redirects to it (`ndo_xdp_xmit`), now.
const NETDEV_XDP_ACT_NDO_XMIT: u64 = 4;

/// More than any answer to these questions.
const ANSWER: usize = 8192;

/// Whether an interface takes frames that XDP programs send out by it, as it is set up now: a veth
/// does only while its other end looks for them, some cards only with a program of their own.
/// `None`: the kernel does not say (before 6.3).
pub fn takes_frames(ifindex: u32) -> io::Result<Option<bool>> {
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let family = match ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        answer => answer?,
    };
    let Some(family) = value(&family, CTRL_ATTR_FAMILY_ID).map(u16::from_ne_bytes) else { return Ok(None) };
    let device = ask(family, NETDEV_CMD_DEV_GET, &attribute(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes()))?;
    let features = value(&device, NETDEV_A_DEV_XDP_FEATURES).map(u64::from_ne_bytes);
    Ok(features.map(|features| features & NETDEV_XDP_ACT_NDO_XMIT != 0))
}

/// Asks for one message; returns its attributes.
fn ask(family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkGeneric)?;
    send(socket.as_raw_fd(), &question(family, command, attributes), MsgFlags::empty())?;
    let mut answer = vec![0; ANSWER];
    // The kernel has answered before `send` returns.
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    answered(answer.get(..length).unwrap_or_default())
}

fn question(family: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = (NLMSG_HEADER + GENL_HEADER + attributes.len()) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(family.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // Number and sender: there is one question on this socket.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    message
}

/// The attributes of an answer, or the error that it is.
fn answered(message: &[u8]) -> io::Result<Vec<u8>> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = bytes(message, 4).map(u16::from_ne_bytes).ok_or_else(broken)?;
    if kind == NLMSG_ERROR {
        let error = bytes(message, NLMSG_HEADER).map(i32::from_ne_bytes).ok_or_else(broken)?;
        return Err(io::Error::from_raw_os_error(-error));
    }
    message.get(NLMSG_HEADER + GENL_HEADER..).map(<[u8]>::to_vec).ok_or_else(broken)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// The value of the first attribute of a kind.
fn value<const N: usize>(mut attributes: &[u8], kind: u16) -> Option<[u8; N]> {
    loop {
        let length = usize::from(bytes(attributes, 0).map(u16::from_ne_bytes)?);
        if bytes(attributes, 2).map(u16::from_ne_bytes)? == kind && length == 4 + N {
            return bytes(attributes, 4);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_behind_others_and_never_outside() {
        let mut answer = attribute(NETDEV_A_DEV_IFINDEX, &7_u32.to_ne_bytes());
        answer.extend(attribute(9, b"odd"));
        answer.extend(attribute(NETDEV_A_DEV_XDP_FEATURES, &6_u64.to_ne_bytes()));
        assert_eq!(value(&answer, NETDEV_A_DEV_XDP_FEATURES).map(u64::from_ne_bytes), Some(6));
        assert_eq!(value::<8>(&answer, 4), None);
        for cut in 0..answer.len() {
            assert_eq!(value::<8>(&answer[..cut], NETDEV_A_DEV_XDP_FEATURES), None, "{cut}");
        }
        assert_eq!(value::<8>(&[0; 64], NETDEV_A_DEV_XDP_FEATURES), None, "attributes without a length");
    }

    #[test]
    fn an_error_is_told_from_an_answer() {
        let mut error = question(NLMSG_ERROR, 0, &[]);
        error.truncate(NLMSG_HEADER);
        error.extend((-libc::ENOENT).to_ne_bytes());
        assert_eq!(answered(&error).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert_eq!(answered(&question(0x17, 1, b"abcd")).unwrap(), b"abcd");
        assert!(answered(&[0; 3]).is_err());
    }

    /// On any kernel: this one's answer, or that it does not know the question.
    #[test]
    fn the_kernel_says_of_the_loopback_that_it_takes_none() {
        assert_ne!(takes_frames(1).unwrap(), Some(true));
        assert!(matches!(takes_frames(u32::MAX), Err(_) | Ok(None)), "no such interface");
    }
}
