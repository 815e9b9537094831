//! The only packet arithmetic: where the headers stand, how a frame is read, rewritten, replaced and sent, on both hooks.
//!
//! The engine is generic over [`Frame`]. What differs between XDP and TC is here and nowhere else: TC has checksums that
//! may be unfinished (CHECKSUM_PARTIAL), which only the kernel's helpers know; XDP sees the bytes of the wire.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, xdp_action, xdp_md},
    helpers::{
        bpf_l4_csum_replace, bpf_redirect, bpf_skb_change_tail, bpf_skb_pull_data, bpf_skb_store_bytes,
        bpf_xdp_adjust_head,
    },
};
use lb_common::{
    checksum::{difference, finish, fold, is_unfinished, update},
    layout::{Hop, Interface},
};

/// Offsets in a frame with an Ethernet, an IPv4 header without options and a TCP header.
pub mod field {
    pub const ETHERNET_SOURCE: usize = 6;
    pub const ETHERTYPE: usize = 12;
    pub const IP: usize = 14;
    pub const TOS: usize = 15;
    pub const TOTAL_LENGTH: usize = 16;
    pub const FRAGMENT: usize = 20;
    pub const TTL: usize = 22;
    pub const PROTOCOL: usize = 23;
    pub const IP_CHECKSUM: usize = 24;
    pub const SOURCE: usize = 26;
    pub const DESTINATION: usize = 30;
    pub const TCP: usize = 34;
    pub const SOURCE_PORT: usize = 34;
    pub const DESTINATION_PORT: usize = 36;
    pub const SEQUENCE: usize = 38;
    pub const ACKNOWLEDGEMENT: usize = 42;
    pub const DATA_OFFSET: usize = 46;
    pub const FLAGS: usize = 47;
    pub const WINDOW: usize = 48;
    pub const TCP_CHECKSUM: usize = 50;
    /// End of the TCP header without options.
    pub const PAYLOAD: usize = 54;
}

/// Offsets in an ARP packet about IPv4 addresses on Ethernet (RFC 826).
pub mod arp {
    /// Kind of network address, then the lengths of both kinds.
    pub const KIND: usize = 16;
    pub const OPERATION: usize = 20;
    pub const SENDER_MAC: usize = 22;
    pub const SENDER: usize = 28;
    pub const TARGET: usize = 38;
    pub const END: usize = 42;
}

/// Offsets in a neighbour solicitation or advertisement without IPv6 extension headers, which are not permitted in one
/// (RFC 4861 section 6.1, RFC 6980 for fragments).
pub mod nd {
    pub const NEXT_HEADER: usize = 20;
    pub const SOURCE: usize = 22;
    pub const TYPE: usize = 54;
    pub const TARGET: usize = 62;
    pub const END: usize = 78;
}

/// Bytes of the longest headers that are read: Ethernet, IPv4 without options, TCP with 40 bytes of options.
pub const LONGEST_HEADERS: u32 = 94;

/// What a translated segment is to look like.
pub struct Translation {
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
    pub hop: Hop,
    pub interface: *const Interface,
}

/// The headers of a frame that is written anew. Words as they lie in memory; `tcp` is zero behind the header.
#[repr(C)]
pub struct Headers {
    /// Puts the IP header on a word boundary.
    pub align: [u8; 2],
    pub ethernet: [u8; 14],
    pub ip: [u32; 5],
    pub tcp: [u32; 15],
}

impl Headers {
    /// Puts both checksums into the headers. `tcp_length` in bytes; with `partial` the TCP one is left as the sum of the
    /// pseudo-header for the sending device to finish.
    #[inline(always)]
    fn seal(&mut self, tcp_length: u32, partial: bool) {
        let mut sum = 0;
        for word in self.ip {
            sum += word as u64;
        }
        self.ip[2] |= (finish(sum) as u32) << 16;
        let mut sum = self.ip[3] as u64 + self.ip[4] as u64 + 6_u16.to_be() as u64 + (tcp_length as u16).to_be() as u64;
        if partial {
            self.tcp[4] = self.tcp[4] & 0xffff_0000 | fold(sum) as u32;
            return;
        }
        for word in self.tcp {
            sum += word as u64;
        }
        self.tcp[4] |= finish(sum) as u32;
    }
}

/// A frame on one of the hooks.
pub trait Frame: Copy {
    /// The verdict that leaves the frame to the host.
    const PASS: i32;
    /// The verdict that ends the frame.
    const DROP: i32;

    /// First byte of the frame; what is read behind it was checked against [`end`](Frame::end).
    fn start(self) -> usize;
    /// Behind the last byte that can be read directly.
    fn end(self) -> usize;
    /// Makes the first `bytes` readable, as far as the frame has them. Pointers into the frame are void afterwards.
    fn pull(self, bytes: u32);
    /// Bytes of the frame behind the Ethernet header, padding included.
    fn network_length(self) -> u32;
    /// The interface it came in on.
    fn ingress(self) -> u32;
    /// Whether it carries a VLAN tag beside its bytes.
    fn is_tagged(self) -> bool;
    /// Whether it was flooded to us: its destination is not the MAC address of the interface.
    fn is_flooded(self, interface: *const Interface) -> bool;
    /// Rewrites addresses, ports, MAC addresses and checksums, and takes one from the time to live.
    fn translate(self, old: &Translation, new: &Translation) -> bool;
    /// Replaces the whole frame by `headers` with a TCP header of `tcp_length` bytes and no payload.
    fn replace(self, headers: &mut Headers, tcp_length: u32) -> bool;
    /// The verdict that sends the frame out of an interface.
    fn send(self, ifindex: u32) -> i32;

    /// The bytes that can be read directly, until the frame is changed.
    #[inline(always)]
    fn bytes(self) -> Bytes {
        Bytes { start: self.start(), end: self.end() }
    }
}

/// The readable bytes of a frame. A range is checked once with [`has`](Bytes::has); what is read stays behind that check.
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

    /// Reads a field. The caller has checked that the frame has it.
    #[inline(always)]
    pub fn read<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the verifier refuses a program in which this was not checked.
        unsafe { *((self.start + offset) as *const T) }
    }
}

/// Writes a field; the caller has checked the bounds.
#[inline(always)]
unsafe fn write<T>(start: usize, offset: usize, value: T) {
    // SAFETY: the verifier refuses a program in which this was not checked.
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

/// Writes everything of a translation but the TCP checksum. The caller has checked the bounds up to `PAYLOAD`.
#[inline(always)]
unsafe fn write_translation(start: usize, new: &Translation, addresses: u64) {
    let mac = new.hop.0;
    // SAFETY: bounds checked by the caller; the interface is an element of INTERFACES.
    unsafe {
        write(start, 0, mac as u32);
        write(start, 4, (mac >> 32) as u16);
        let own = &raw const (*new.interface).mac;
        write(start, 6, *own.cast::<u32>());
        write(start, 10, *own.cast::<u16>().add(2));
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
        // LLVM would subtract in 32 bits where the result is used so; the verifier allows that for no pointer.
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
    fn is_tagged(self) -> bool {
        false
    }

    #[inline(always)]
    fn is_flooded(self, interface: *const Interface) -> bool {
        let bytes = self.bytes();
        if !bytes.has(field::PAYLOAD) {
            return true;
        }
        // SAFETY: an element of INTERFACES.
        let own = unsafe { (*interface).mac };
        bytes.read::<[u8; 6]>(0) != own
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

    /// Always by the head: a small frame has hardly any room at its tail on native veth.
    #[inline(always)]
    fn replace(self, headers: &mut Headers, tcp_length: u32) -> bool {
        let wanted = field::TCP as i32 + tcp_length as i32;
        let surplus = self.length() as i32 - wanted;
        // SAFETY: the context is the kernel's.
        if unsafe { bpf_xdp_adjust_head(self.0, surplus) } != 0 {
            return false;
        }
        headers.seal(tcp_length, false);
        let start = self.start();
        let end = self.end();
        if start + field::PAYLOAD > end {
            return false;
        }
        // SAFETY: the fixed part was checked above, every option word is checked where it is written.
        unsafe {
            let ethernet = &raw const headers.ethernet;
            for i in 0..7 {
                write(start, i * 2, *ethernet.cast::<u16>().add(i));
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
        // SAFETY: plain helper.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
}

/// A frame on the TC hook (tcx or clsact).
#[derive(Clone, Copy)]
pub struct TcFrame(pub *mut __sk_buff);

/// Go on to the next program, or to the host (TCX_NEXT and TC_ACT_UNSPEC are the same number).
const TC_NEXT: i32 = -1;
const TC_SHOT: i32 = 2;

impl TcFrame {
    #[inline(always)]
    fn skb(&self) -> &__sk_buff {
        // SAFETY: the kernel's context, valid while the program runs.
        unsafe { &*self.0 }
    }

    /// The EtherType, without a look at the bytes.
    #[inline(always)]
    pub fn protocol(self) -> u16 {
        self.skb().protocol as u16
    }

    /// Whether the TCP checksum is left for the sending device to finish. BPF cannot ask, but it can try: a change that
    /// is no change of the pseudo-header is not applied to an unfinished checksum (inet_proto_csum_replace_by_diff).
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

    /// Brings the TCP checksum up to date, by one helper call mostly: its outcome shows whether the ports are in the sum.
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
        // SAFETY: plain helper on the kernel's context.
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
        // SAFETY: plain helper on the kernel's context.
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
    fn is_tagged(self) -> bool {
        self.skb().vlan_present != 0
    }

    #[inline(always)]
    fn is_flooded(self, _interface: *const Interface) -> bool {
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

    #[inline(always)]
    fn replace(self, headers: &mut Headers, tcp_length: u32) -> bool {
        let Some(partial) = self.is_partial() else { return false };
        // SAFETY: helpers on the kernel's context; `headers` holds as many bytes as are stored from it.
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
        // SAFETY: plain helper.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
}
