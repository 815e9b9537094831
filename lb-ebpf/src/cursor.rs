//! The only packet arithmetic: where the headers are, and how a frame is read, rewritten, replaced
//! and sent on both hooks.
//!
//! The engine is generic over [`Frame`]. What differs between XDP and TC is here and nowhere else:
//! on TC a checksum may be unfinished (CHECKSUM_PARTIAL), which only the kernel's helpers know; XDP
//! sees the bytes of the wire.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_NET, xdp_action, xdp_md,
    },
    helpers::{
        bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data,
        bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_xdp_adjust_head,
    },
};
use lb_common::{
    checksum::{difference, finish, fold, is_unfinished, update},
    layout::{Hop, Interface},
};
use network_types::ip::IpProto;

use crate::records::Held;

/// Offsets in a frame with an Ethernet header, an IPv4 header without options and a TCP header.
pub mod field {
    use core::mem::offset_of;

    use network_types::{eth::EthHdr, ip::Ipv4Hdr, tcp::TcpHdr};

    pub const ETHERNET_SOURCE: usize = offset_of!(EthHdr, src_addr);
    pub const ETHERTYPE: usize = offset_of!(EthHdr, ether_type);
    pub const IP: usize = EthHdr::LEN;
    pub const TOS: usize = IP + offset_of!(Ipv4Hdr, tos);
    pub const TOTAL_LENGTH: usize = IP + offset_of!(Ipv4Hdr, tot_len);
    pub const FRAGMENT: usize = IP + offset_of!(Ipv4Hdr, frags);
    pub const TTL: usize = IP + offset_of!(Ipv4Hdr, ttl);
    pub const PROTOCOL: usize = IP + offset_of!(Ipv4Hdr, proto);
    pub const IP_CHECKSUM: usize = IP + offset_of!(Ipv4Hdr, check);
    pub const SOURCE: usize = IP + offset_of!(Ipv4Hdr, src_addr);
    pub const DESTINATION: usize = IP + offset_of!(Ipv4Hdr, dst_addr);
    pub const TCP: usize = IP + Ipv4Hdr::LEN;
    pub const SOURCE_PORT: usize = TCP + offset_of!(TcpHdr, source);
    pub const DESTINATION_PORT: usize = TCP + offset_of!(TcpHdr, dest);
    pub const SEQUENCE: usize = TCP + offset_of!(TcpHdr, seq);
    pub const ACKNOWLEDGEMENT: usize = TCP + offset_of!(TcpHdr, ack_seq);
    pub const DATA_OFFSET: usize = TCP + offset_of!(TcpHdr, _bitfield_1);
    pub const FLAGS: usize = DATA_OFFSET + 1;
    pub const WINDOW: usize = TCP + offset_of!(TcpHdr, window);
    pub const TCP_CHECKSUM: usize = TCP + offset_of!(TcpHdr, check);
    /// End of the TCP header without options.
    pub const PAYLOAD: usize = TCP + TcpHdr::LEN;
}

/// Offsets in a frame with an ARP packet about IPv4 addresses on Ethernet (RFC 826).
pub mod arp {
    use core::mem::offset_of;

    use network_types::{arp::ArpHdr, eth::EthHdr};

    /// The kind of network address, then the lengths of both kinds.
    pub const KIND: usize = EthHdr::LEN + offset_of!(ArpHdr, ptype);
    pub const OPERATION: usize = EthHdr::LEN + offset_of!(ArpHdr, oper);
    pub const SENDER_MAC: usize = EthHdr::LEN + offset_of!(ArpHdr, sha);
    pub const SENDER: usize = EthHdr::LEN + offset_of!(ArpHdr, spa);
    pub const TARGET: usize = EthHdr::LEN + offset_of!(ArpHdr, tpa);
    pub const END: usize = EthHdr::LEN + ArpHdr::LEN;
}

/// Offsets in a frame with a neighbour solicitation or advertisement. IPv6 extension headers are
/// not permitted in one (RFC 4861 section 6.1, RFC 6980 for fragments).
pub mod nd {
    use core::mem::offset_of;

    use network_types::{eth::EthHdr, icmp::Icmpv6Hdr, ip::Ipv6Hdr};

    pub const NEXT_HEADER: usize = EthHdr::LEN + offset_of!(Ipv6Hdr, next_hdr);
    pub const SOURCE: usize = EthHdr::LEN + offset_of!(Ipv6Hdr, src_addr);
    pub const TYPE: usize = EthHdr::LEN + Ipv6Hdr::LEN + offset_of!(Icmpv6Hdr, type_);
    pub const TARGET: usize = EthHdr::LEN + Ipv6Hdr::LEN + size_of::<Icmpv6Hdr>();
    pub const END: usize = TARGET + 16;
}

/// Bytes of the longest headers that are read: Ethernet, IPv4 without options, TCP with 40 bytes of
/// options.
pub const LONGEST_HEADERS: u32 = 94;

/// What a translated segment looks like.
pub struct Translation {
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
    pub hop: Hop,
    pub interface: Held<Interface>,
}

/// The headers of a frame that is written from scratch. Words as they lie in memory; `tcp` is zero
/// behind the header.
#[repr(C)]
pub struct Headers {
    /// Puts the IP header on a word boundary.
    pub align: [u8; 2],
    pub ethernet: [u16; 7],
    pub ip: [u32; 5],
    pub tcp: [u32; 15],
}

impl Headers {
    /// Lets the compiler keep the headers as the array that they are. With every word in a variable
    /// of its own they take nearly 300 bytes of stack, in place of 96.
    #[inline(always)]
    fn keep_together(&mut self) {
        let mut address = &raw mut *self as usize;
        // SAFETY: adds nothing to a register; because of the address in it the compiler has to
        // expect that the memory behind it is read and written.
        unsafe { core::arch::asm!("{0} += 0", inout(reg) address) };
        let _ = address;
    }

    /// Puts both checksums into the headers. `tcp_length` is in bytes. With `partial` the TCP
    /// checksum is only the sum of the pseudo-header, for the sending device to finish.
    #[inline(always)]
    fn seal(&mut self, tcp_length: u32, partial: bool) {
        self.keep_together();
        self.sum(tcp_length, partial);
        self.keep_together();
    }

    #[inline(always)]
    fn sum(&mut self, tcp_length: u32, partial: bool) {
        let mut sum = 0;
        for word in &self.ip {
            sum += *word as u64;
        }
        self.ip[2] |= (finish(sum) as u32) << 16;
        let mut sum = self.ip[3] as u64
            + self.ip[4] as u64
            + (IpProto::Tcp as u16).to_be() as u64
            + (tcp_length as u16).to_be() as u64;
        if partial {
            self.tcp[4] = self.tcp[4] & 0xffff_0000 | fold(sum) as u32;
            return;
        }
        for word in &self.tcp {
            sum += *word as u64;
        }
        self.tcp[4] |= finish(sum) as u32;
    }
}

/// A frame on one of the hooks.
pub trait Frame: Copy {
    /// The verdict that passes the frame to the host.
    const PASS: i32;
    /// The verdict that ends the frame.
    const DROP: i32;

    /// Address of the first byte; whatever is read behind it was checked against
    /// [`end`](Frame::end).
    fn start(self) -> usize;
    /// Address behind the last byte that can be read directly.
    fn end(self) -> usize;
    /// Makes the first `bytes` readable, as far as the frame has them. Earlier [`Bytes`] are void
    /// after it.
    fn pull(self, bytes: u32);
    /// Bytes of the frame behind the Ethernet header, padding included.
    fn network_length(self) -> u32;
    /// The interface it came in on.
    fn ingress(self) -> u32;
    /// The same frame, of which the compiler knows nothing.
    fn anew(self) -> Self;
    /// Whether it carries a tag outside its bytes.
    fn has_tag(self) -> bool;
    /// Whether it carries the tag of a VLAN outside its bytes. VLAN 0 is none: such a tag only says
    /// how urgent the frame is (802.1Q).
    fn is_tagged(self) -> bool;
    /// Removes its tag, the outer one if there are two.
    fn untag(self) -> bool;
    /// Removes the options of an untagged IPv4 packet, which are `bytes` long.
    fn strip(self, bytes: u32) -> bool;
    /// Whether it was flooded to us: its destination is not the MAC address of the interface.
    /// `interface` looks up the one that it came in by.
    fn is_flooded(self, interface: impl FnOnce() -> Option<Held<Interface>>) -> bool;
    /// Rewrites addresses, ports, MAC addresses and checksums, and lowers the time to live by one.
    fn translate(self, old: &Translation, new: &Translation) -> bool;
    /// Replaces a field of the TCP header's options by another, at an offset that is found out at run
    /// time, and updates the TCP checksum. Both as they lie in the packet.
    fn put(self, offset: usize, old: u16, new: u16);
    /// Replaces the whole frame by `headers` with a TCP header of `tcp_length` bytes and no
    /// payload.
    fn replace(self, headers: &mut Headers, tcp_length: u32) -> bool;
    /// The verdict that sends the frame out of an interface.
    fn send(self, ifindex: u32) -> i32;

    /// The bytes that can be read directly, until the frame is changed.
    #[inline(always)]
    fn bytes(self) -> Bytes {
        Bytes { start: self.start(), end: self.end() }
    }
}

/// The readable bytes of a frame. A range is checked once with [`has`](Bytes::has), and whatever is
/// read lies in it.
#[derive(Clone, Copy)]
pub struct Bytes {
    start: usize,
    end: usize,
}

impl Bytes {
    /// Whether the first `length` bytes can be read.
    #[inline(always)]
    pub fn has(self, length: usize) -> bool {
        self.start + length <= self.end
    }

    /// Reads a field. The caller has checked that the frame [has](Bytes::has) it.
    #[inline(always)]
    pub fn read<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the caller's check; the verifier refuses a program in which it is missing.
        unsafe { *((self.start + offset) as *const T) }
    }

    /// Reads a field at an offset that is found out at run time, if the frame has it.
    #[inline(always)]
    pub fn at<T: Copy>(self, offset: usize) -> Option<T> {
        let mut address = self.start + offset;
        // The verifier follows one register from the check to the access; LLVM would add up anew.
        // SAFETY: touches one register.
        unsafe { core::arch::asm!("{0} += 0", inout(reg) address) };
        if address + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: checked just above.
        Some(unsafe { *(address as *const T) })
    }

    /// Leaves out who asks in an ARP request. The caller has checked that the frame [has](Bytes::has)
    /// all of it.
    #[inline(always)]
    pub fn forget_sender(self) {
        // SAFETY: the caller's check; the verifier refuses a program in which it is missing.
        unsafe { write(self.start, arp::SENDER, [0_u8; 4]) }
    }

    /// Replaces a field at an offset that is found out at run time, if it is `old`.
    #[inline(always)]
    fn replace(self, offset: usize, old: u16, new: u16) -> bool {
        let mut address = self.start + offset;
        // As in `at`.
        // SAFETY: touches one register.
        unsafe { core::arch::asm!("{0} += 0", inout(reg) address) };
        if address + size_of::<u16>() > self.end {
            return false;
        }
        // SAFETY: checked just above.
        unsafe {
            let is_old = *(address as *const u16) == old;
            if is_old {
                *(address as *mut u16) = new;
            }
            is_old
        }
    }
}

/// The IPv4 header at the front of a frame with `bytes` of options behind it, as it is without
/// them; `None` if the frame has none.
#[inline(always)]
fn without_options(frame: Bytes, bytes: u32) -> Option<[u32; 5]> {
    if !frame.has(field::TCP) {
        return None;
    }
    let mut header = [0; 5];
    for (i, word) in header.iter_mut().enumerate() {
        *word = frame.read(field::IP + i * 4);
    }
    let length = u16::from_be((header[0] >> 16) as u16);
    // A packet above 64 KiB (BIG TCP) has no length there.
    let length = if length == 0 { 0 } else { length.wrapping_sub(bytes as u16) };
    header[0] = (length.to_be() as u32) << 16 | header[0] & 0xff00 | 0x45;
    header[2] &= 0xffff;
    let mut sum = 0;
    for word in &header {
        sum += *word as u64;
    }
    header[2] |= (finish(sum) as u32) << 16;
    Some(header)
}

/// Writes a field; the caller has checked the bounds.
#[inline(always)]
unsafe fn write<T>(start: usize, offset: usize, value: T) {
    // SAFETY: the caller's check; the verifier refuses a program in which it is missing.
    unsafe { *((start + offset) as *mut T) = value }
}

/// The differences that a translation makes to the sums over addresses and over ports.
#[inline(always)]
fn differences(old: &Translation, new: &Translation) -> (u64, u64) {
    (
        difference(old.source, new.source) + difference(old.destination, new.destination),
        difference(old.source_port as u32, new.source_port as u32)
            + difference(old.destination_port as u32, new.destination_port as u32),
    )
}

/// The difference that a field makes to the sum over the TCP header, which adds up words.
#[inline(always)]
fn difference_at(offset: usize, old: u16, new: u16) -> u64 {
    let shift = (offset as u32 & 1) * 8;
    difference((old as u32) << shift, (new as u32) << shift)
}

/// Writes everything of a translation except the TCP checksum. The caller has checked the frame up
/// to `PAYLOAD`.
#[inline(always)]
unsafe fn write_translation(start: usize, new: &Translation, addresses: u64) {
    let mac = new.hop.0;
    let (own, own_end) = new.interface.mac_words();
    // SAFETY: every field ends before `PAYLOAD`, up to which the caller has checked the frame.
    unsafe {
        write(start, 0, mac as u32);
        write(start, 4, (mac >> 32) as u16);
        write(start, 6, own);
        write(start, 10, own_end);
        let life = *((start + field::TTL) as *const u16);
        let sum = addresses + difference(life as u32, (life - 1) as u32);
        let check = *((start + field::IP_CHECKSUM) as *const u16);
        write(start, field::TTL, life - 1);
        write(start, field::IP_CHECKSUM, update(check, sum));
        write(start, field::SOURCE, new.source);
        write(start, field::DESTINATION, new.destination);
        write(start, field::SOURCE_PORT, new.source_port);
        write(start, field::DESTINATION_PORT, new.destination_port);
    }
}

/// A frame on the XDP hook.
#[derive(Clone, Copy)]
pub struct XdpFrame(pub *mut xdp_md);

impl XdpFrame {
    #[inline(always)]
    fn md(&self) -> &xdp_md {
        // SAFETY: the kernel's context, valid while the program runs.
        unsafe { &*self.0 }
    }

    /// Bytes of the frame.
    #[inline(always)]
    fn length(self) -> usize {
        let mut length = self.end() - self.start();
        // LLVM would subtract in 32 bits where the result is used in that way, which the verifier
        // does not allow for pointers.
        // SAFETY: touches one register.
        unsafe { core::arch::asm!("{0} += 0", inout(reg) length) };
        length
    }
}

impl Frame for XdpFrame {
    const PASS: i32 = xdp_action::XDP_PASS as i32;
    const DROP: i32 = xdp_action::XDP_DROP as i32;

    #[inline(always)]
    fn start(self) -> usize {
        self.md().data as usize
    }

    #[inline(always)]
    fn end(self) -> usize {
        self.md().data_end as usize
    }

    #[inline(always)]
    fn pull(self, _bytes: u32) {}

    #[inline(always)]
    fn network_length(self) -> u32 {
        self.length() as u32 - field::IP as u32
    }

    #[inline(always)]
    fn ingress(self) -> u32 {
        self.md().ingress_ifindex
    }

    #[inline(always)]
    fn anew(self) -> Self {
        let mut md = self.0;
        // SAFETY: touches one register.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) md) };
        XdpFrame(md)
    }

    #[inline(always)]
    fn has_tag(self) -> bool {
        false
    }

    #[inline(always)]
    fn is_tagged(self) -> bool {
        false
    }

    #[inline(always)]
    fn untag(self) -> bool {
        let bytes = self.bytes();
        if !bytes.has(12) {
            return false;
        }
        let macs: [u32; 3] = [bytes.read(0), bytes.read(4), bytes.read(8)];
        // SAFETY: the helper takes the kernel's context and any difference; the bounds are checked
        // again, because it moves the frame.
        unsafe {
            if bpf_xdp_adjust_head(self.0, 4) != 0 || !self.bytes().has(12) {
                return false;
            }
            let start = self.start();
            for (i, word) in macs.iter().enumerate() {
                write(start, i * 4, *word);
            }
        }
        true
    }

    #[inline(always)]
    fn strip(self, bytes: u32) -> bool {
        let old = self.bytes();
        let Some(header) = without_options(old, bytes) else { return false };
        let macs: [u32; 3] = [old.read(0), old.read(4), old.read(8)];
        let kind: u16 = old.read(field::ETHERTYPE);
        // SAFETY: the helper takes the kernel's context and any difference; the bounds are checked
        // again, because it moves the frame.
        unsafe {
            if bpf_xdp_adjust_head(self.0, bytes as i32) != 0 || !self.bytes().has(field::TCP) {
                return false;
            }
            let start = self.start();
            for (i, word) in macs.iter().enumerate() {
                write(start, i * 4, *word);
            }
            write(start, field::ETHERTYPE, kind);
            for (i, word) in header.iter().enumerate() {
                write(start, field::IP + i * 4, *word);
            }
        }
        true
    }

    #[inline(always)]
    fn is_flooded(self, interface: impl FnOnce() -> Option<Held<Interface>>) -> bool {
        let bytes = self.bytes();
        let Some(interface) = interface() else { return true };
        if !bytes.has(field::IP) {
            return true;
        }
        (bytes.read(0), bytes.read(4)) != interface.mac_words()
    }

    #[inline(always)]
    fn translate(self, old: &Translation, new: &Translation) -> bool {
        let start = self.start();
        if start + field::PAYLOAD > self.end() {
            return false;
        }
        let (addresses, ports) = differences(old, new);
        // SAFETY: bounds checked above.
        unsafe {
            let check = *((start + field::TCP_CHECKSUM) as *const u16);
            write(start, field::TCP_CHECKSUM, update(check, addresses + ports));
            write_translation(start, new, addresses);
        }
        true
    }

    #[inline(always)]
    fn put(self, offset: usize, old: u16, new: u16) {
        let bytes = self.bytes();
        if !bytes.has(field::PAYLOAD) {
            return;
        }
        let check = bytes.read(field::TCP_CHECKSUM);
        if bytes.replace(offset, old, new) {
            // SAFETY: bounds checked above.
            unsafe { write(bytes.start, field::TCP_CHECKSUM, update(check, difference_at(offset, old, new))) };
        }
    }

    /// Always at the head: a small frame has hardly any room at its tail on native veth.
    #[inline(always)]
    fn replace(self, headers: &mut Headers, tcp_length: u32) -> bool {
        let wanted = field::TCP as i32 + tcp_length as i32;
        let surplus = self.length() as i32 - wanted;
        // SAFETY: the helper takes the kernel's context and any difference; pointers are read again
        // below.
        if unsafe { bpf_xdp_adjust_head(self.0, surplus) } != 0 {
            return false;
        }
        headers.seal(tcp_length, false);
        let start = self.start();
        let end = self.end();
        if start + field::PAYLOAD > end {
            return false;
        }
        // SAFETY: the fixed part was checked above; every word of options is checked where it is
        // written.
        unsafe {
            for i in 0..7 {
                write(start, i * 2, headers.ethernet[i]);
            }
            for i in 0..5 {
                write(start, field::IP + i * 4, headers.ip[i]);
                write(start, field::TCP + i * 4, headers.tcp[i]);
            }
            for i in 5..15_usize {
                if (i as u32) * 4 >= tcp_length || start + field::TCP + i * 4 + 4 > end {
                    break;
                }
                write(start, field::TCP + i * 4, headers.tcp[i]);
            }
        }
        true
    }

    #[inline(always)]
    fn send(self, ifindex: u32) -> i32 {
        if ifindex == self.ingress() {
            return xdp_action::XDP_TX as i32;
        }
        // SAFETY: the helper takes any interface's number.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
}

/// A frame on the TC hook (tcx or clsact).
#[derive(Clone, Copy)]
pub struct TcFrame(pub *mut __sk_buff);

/// Go on to the next program, or to the host (TCX_NEXT and TC_ACT_UNSPEC are the same number).
const TC_NEXT: i32 = -1;
const TC_SHOT: i32 = 2;
/// Segments of a packet that is still to be cut stay as long as they are, and a checksum that was
/// found right stays so.
const SAME_SEGMENTS: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;

impl TcFrame {
    #[inline(always)]
    fn skb(&self) -> &__sk_buff {
        // SAFETY: the kernel's context, valid while the program runs.
        unsafe { &*self.0 }
    }

    /// The EtherType, without reading the bytes.
    #[inline(always)]
    pub fn protocol(self) -> u16 {
        self.skb().protocol as u16
    }

    /// Whether the TCP checksum is left for the sending device to finish. BPF cannot ask, but it
    /// can try: a change outside of the pseudo-header is not applied to an unfinished checksum
    /// (inet_proto_csum_replace_by_diff).
    #[inline(always)]
    fn is_partial(self) -> Option<bool> {
        let before = self.tcp_checksum()?;
        self.change_checksum(1, 0);
        let after = self.tcp_checksum()?;
        if before != after {
            self.change_checksum(0xfffe, 0);
        }
        Some(before == after)
    }

    /// Updates the TCP checksum, mostly by one helper call: its result shows whether the sum has
    /// the ports in it.
    #[inline(always)]
    fn translate_checksum(self, addresses: u64, ports: u64) -> bool {
        let Some(before) = self.tcp_checksum() else { return false };
        self.change_checksum(addresses, BPF_F_PSEUDO_HDR);
        let bytes = self.bytes();
        if !bytes.has(field::PAYLOAD) {
            return false;
        }
        let after = bytes.read(field::TCP_CHECKSUM);
        match is_unfinished(before, after, addresses) {
            Some(true) => {}
            // SAFETY: bounds checked above.
            Some(false) => unsafe { write(bytes.start, field::TCP_CHECKSUM, update(after, ports)) },
            None => self.change_checksum(ports, 0),
        }
        true
    }

    #[inline(always)]
    fn tcp_checksum(self) -> Option<u16> {
        let bytes = self.bytes();
        if bytes.has(field::PAYLOAD) { Some(bytes.read(field::TCP_CHECKSUM)) } else { None }
    }

    #[inline(always)]
    fn change_checksum(self, difference: u64, flags: u32) {
        let sum = (difference & 0xffff_ffff) + (difference >> 32);
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        // SAFETY: the helper takes the kernel's context and checks the offset itself.
        unsafe { bpf_l4_csum_replace(self.0, field::TCP_CHECKSUM as u32, 0, sum, flags as u64) };
    }
}

impl Frame for TcFrame {
    const PASS: i32 = TC_NEXT;
    const DROP: i32 = TC_SHOT;

    #[inline(always)]
    fn start(self) -> usize {
        self.skb().data as usize
    }

    #[inline(always)]
    fn end(self) -> usize {
        self.skb().data_end as usize
    }

    #[inline(always)]
    fn pull(self, bytes: u32) {
        let length = self.skb().len;
        // SAFETY: the helper takes the kernel's context; pointers are read again by the caller.
        unsafe { bpf_skb_pull_data(self.0, if bytes < length { bytes } else { length }) };
    }

    #[inline(always)]
    fn network_length(self) -> u32 {
        self.skb().len - field::IP as u32
    }

    #[inline(always)]
    fn ingress(self) -> u32 {
        self.skb().ifindex
    }

    #[inline(always)]
    fn anew(self) -> Self {
        let mut skb = self.0;
        // SAFETY: touches one register.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) skb) };
        TcFrame(skb)
    }

    #[inline(always)]
    fn has_tag(self) -> bool {
        self.skb().vlan_present != 0
    }

    #[inline(always)]
    fn is_tagged(self) -> bool {
        self.has_tag() && self.skb().vlan_tci & 0xfff != 0
    }

    #[inline(always)]
    fn untag(self) -> bool {
        // SAFETY: the helper takes the kernel's context; pointers are read again by the caller.
        unsafe { bpf_skb_vlan_pop(self.0) == 0 }
    }

    /// The kernel keeps an unfinished checksum, and the sum of a card over the packet, right.
    #[inline(always)]
    fn strip(self, bytes: u32) -> bool {
        let Some(header) = without_options(self.bytes(), bytes) else { return false };
        // SAFETY: the helpers take the kernel's context; `header` is 20 bytes long.
        unsafe {
            bpf_skb_adjust_room(self.0, -(bytes as i32), BPF_ADJ_ROOM_NET, SAME_SEGMENTS) == 0
                && bpf_skb_store_bytes(
                    self.0,
                    field::IP as u32,
                    header.as_ptr().cast(),
                    size_of_val(&header) as u32,
                    BPF_F_RECOMPUTE_CSUM as u64,
                ) == 0
        }
    }

    #[inline(always)]
    fn is_flooded(self, _interface: impl FnOnce() -> Option<Held<Interface>>) -> bool {
        self.skb().pkt_type != 0
    }

    #[inline(always)]
    fn translate(self, old: &Translation, new: &Translation) -> bool {
        let start = self.start();
        if start + field::PAYLOAD > self.end() {
            return false;
        }
        let (addresses, ports) = differences(old, new);
        // SAFETY: bounds checked above.
        unsafe { write_translation(start, new, addresses) };
        self.translate_checksum(addresses, ports)
    }

    /// An unfinished checksum does not have the options in it.
    #[inline(always)]
    fn put(self, offset: usize, old: u16, new: u16) {
        if self.bytes().replace(offset, old, new) {
            self.change_checksum(difference_at(offset, old, new), 0);
        }
    }

    #[inline(always)]
    fn replace(self, headers: &mut Headers, tcp_length: u32) -> bool {
        let Some(partial) = self.is_partial() else { return false };
        // SAFETY: the helpers take the kernel's context; `headers` is at least 14 and 20 + 60 bytes
        // long, and `tcp_length` is 60 at most.
        unsafe {
            if bpf_skb_change_tail(self.0, field::TCP as u32 + tcp_length, 0) != 0 {
                return false;
            }
            headers.seal(tcp_length, partial);
            let ethernet = (&raw const headers.ethernet).cast();
            let rest = (&raw const headers.ip).cast();
            bpf_skb_store_bytes(self.0, 0, ethernet, 14, 0) == 0
                && bpf_skb_store_bytes(self.0, 14, rest, 20 + tcp_length, BPF_F_RECOMPUTE_CSUM as u64) == 0
        }
    }

    #[inline(always)]
    fn send(self, ifindex: u32) -> i32 {
        // SAFETY: the helper takes any interface's number.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
}
