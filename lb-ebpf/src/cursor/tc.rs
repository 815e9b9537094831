//! A frame on the TC hook, whose checksum may be unfinished and whose tag is outside its bytes.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::{BPF_ADJ_ROOM_MAC, BPF_ADJ_ROOM_NET},
    },
    helpers::{
        bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_pull_data,
        bpf_skb_store_bytes, bpf_skb_vlan_pop,
    },
};
use lb_common::{
    address::{Family, V4},
    checksum::{is_unfinished, update},
    layout::Interface,
};

use super::{
    Frame, Headers, Translation, difference_at, differences, field, icmp, without_options, write, write_translation,
};
use crate::records::Held;

/// A frame on the TC hook (tcx or clsact).
#[derive(Clone, Copy)]
pub struct TcFrame(pub *mut __sk_buff);

/// Go on to the next program, or to the host (TCX_NEXT and TC_ACT_UNSPEC are the same number).
const TC_NEXT: i32 = -1;
const TC_SHOT: i32 = 2;
/// Segments of a packet that is still to be cut stay as long as they are, and a checksum that was
/// found right stays so.
const SAME_SEGMENTS: u64 = (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET) as u64;

/// Bytes of the headers in front of what an ICMP error quotes.
const ERROR_HEADERS: u32 = (icmp::END - field::IP) as u32;

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

    /// Room is made in front, so that an unfinished checksum stays where it is: in the quote.
    #[inline(always)]
    fn quote(self, headers: &mut Headers) -> bool {
        let Some(partial) = self.is_partial() else { return false };
        // SAFETY: the helpers take the kernel's context; `headers` is at least 14 and 28 bytes
        // long.
        unsafe {
            if bpf_skb_change_tail(self.0, field::PAYLOAD as u32, 0) != 0
                || bpf_skb_adjust_room(self.0, ERROR_HEADERS as i32, BPF_ADJ_ROOM_MAC, 0) != 0
            {
                return false;
            }
            headers.seal_error(partial);
            let ethernet = (&raw const headers.ethernet).cast();
            let rest = (&raw const headers.ip).cast();
            bpf_skb_store_bytes(self.0, 0, ethernet, 14, 0) == 0
                && bpf_skb_store_bytes(self.0, 14, rest, ERROR_HEADERS, BPF_F_RECOMPUTE_CSUM as u64) == 0
        }
    }

    /// A packet that is still to be cut has segments.
    #[inline(always)]
    fn exceeds(self, most: u32, header: u32) -> bool {
        if self.network_length() <= most {
            return false;
        }
        match self.skb().gso_size {
            0 => true,
            payload => payload + V4::HEADER as u32 + header > most,
        }
    }

    #[inline(always)]
    fn send(self, ifindex: u32) -> i32 {
        // SAFETY: the helper takes any interface's number.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }
}
