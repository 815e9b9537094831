//! Real frames that are no ordinary TCP segments, and the balancer's own kernel, which must not
//! answer any of them.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use evenkeel::sys::{netdev, packet_socket::PacketSocket};
use lab::{
    Host,
    arp::mac,
    capture::Capture,
    packet::{SYN, Segment, checksum},
    wait,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};

use crate::cluster::{Cluster, SOON};

const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 100), 6443);

/// Connects with these IP options on every packet.
fn connect_with(options: &[u8]) -> Result<TcpStream> {
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
    // SAFETY: the kernel reads as many bytes as `options` has.
    let set = unsafe {
        nix::libc::setsockopt(
            socket.as_raw_fd(),
            nix::libc::IPPROTO_IP,
            nix::libc::IP_OPTIONS,
            options.as_ptr().cast(),
            options.len() as u32,
        )
    };
    ensure!(set == 0, "IP_OPTIONS: {}", std::io::Error::last_os_error());
    connect(socket.as_raw_fd(), &SockaddrIn::from(VIP)).context("connect")?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// Sends a record of TLS of the greatest size, which the server reads whole and cannot understand.
/// What it says is more than a RST.
fn is_answered(mut stream: TcpStream) -> Result<()> {
    let mut record = vec![0; 5 + 16_384];
    record[..9].copy_from_slice(&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc]);
    stream.write_all(&record)?;
    let mut answer = [0; 64];
    ensure!(stream.read(&mut answer).context("the answer")? > 0, "closed without a word");
    Ok(())
}

#[test]
fn connections_with_ip_options_are_served_by_real_hosts() {
    for hook in ["tc", "clsact", "xdp"] {
        let cluster = Cluster::new(hook, |service| service);
        for options in [&[148, 4, 0, 0][..], &[1; 8], &[7, 39, 4, 0, 0, 0, 0]] {
            // A recorded route has room for nine addresses.
            let options = if options[0] == 7 { [options, &[0; 33]].concat() } else { options.to_vec() };
            let served = cluster.lab.client().inside(|| is_answered(connect_with(&options)?));
            served.unwrap_or_else(|error| panic!("{hook}, {options:?}: {error:#}"));
        }
        assert_eq!(cluster.evenkeel.counter("ip_options").expect("a counter"), 0, "{hook}");
    }
}

/// Sends frames from a host's eth0 as they are.
fn send(host: &Host, frames: &[Vec<u8>]) {
    let sent = host.inside(|| {
        let (socket, ifindex) = (PacketSocket::open()?, netdev::index_of("eth0")?);
        frames.iter().try_for_each(|frame| Ok(socket.send(ifindex, frame)?))
    });
    sent.expect("frames can be sent");
}

#[test]
fn a_syn_with_the_tag_of_vlan_0_is_answered_and_a_fragmented_one_is_not() {
    for hook in ["tc", "clsact", "xdp"] {
        let cluster = Cluster::new(hook, |service| service);
        let client = cluster.lab.client();
        let macs = (mac(client, "eth0").expect("its MAC"), mac(&cluster.lab.balancer, "eth0").expect("its MAC"));
        let syn = |port| {
            let from = SocketAddrV4::new(client.address(), port);
            Segment::new(from, VIP, SYN).macs(macs.0, macs.1).numbers(7777, 0).bytes()
        };
        let plain = syn(1111);
        let tagged = |tag: [u8; 4]| [&plain[..12], &tag, &plain[12..]].concat();
        let from_vip = Capture::start(client, "eth0", "src host 10.0.1.100 and tcp").expect("tcpdump");
        let fragment = |bits: u16, bytes: std::ops::Range<usize>| {
            let mut frame = [&syn(2222)[..34], &syn(2222)[bytes]].concat();
            let length = frame.len() as u16 - 14;
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            frame[18..22].copy_from_slice(&[0x12, 0x34, (bits >> 8) as u8, bits as u8]);
            frame[24..26].fill(0);
            let sum = checksum(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            frame
        };
        send(client, &[tagged([0x81, 0, 0xe0, 0]), fragment(0x2000, 34..50), fragment(2, 50..54)]);
        let answered =
            || from_vip.lines().iter().any(|line| line.contains("> 10.0.1.101.1111: Flags [S.]")).then_some(());
        wait::until("the tagged SYN is answered", SOON, answered)
            .unwrap_or_else(|error| panic!("{hook}: {error:#}\n{:?}", from_vip.lines()));
        let dropped = || (cluster.evenkeel.counter("fragment").expect("a counter") == 2).then_some(());
        wait::until("both fragments are dropped", SOON, dropped).expect(hook);
        let said = from_vip.lines();
        assert!(!said.iter().any(|line| line.contains(".2222: ")), "{hook}: {said:?}");
        assert_eq!(cluster.evenkeel.counter("fragment").expect("a counter"), 2, "{hook}");
    }
}
