//! A frame on the XDP hook: the bytes of the wire.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_redirect, bpf_xdp_adjust_head},
};
use lb_common::{checksum::update, layout::Interface};

use super::{
    ERROR_WORDS, Frame, Headers, QUOTED, Translation, difference_at, differences, field, icmp, without_options, write,
    write_translation,
};
use crate::records::Held;

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
    fn quote(self, headers: &mut Headers) -> bool {
        let surplus = self.length() as i32 - icmp::END as i32 - QUOTED as i32;
        // SAFETY: the helper takes the kernel's context and any difference; pointers are read again
        // below.
        if unsafe { bpf_xdp_adjust_head(self.0, surplus) } != 0 {
            return false;
        }
        headers.seal_error(false);
        let start = self.start();
        if start + icmp::END + QUOTED > self.end() {
            return false;
        }
        // SAFETY: checked above.
        unsafe {
            for i in 0..7 {
                write(start, i * 2, headers.ethernet[i]);
            }
            for i in 0..5 {
                write(start, field::IP + i * 4, headers.ip[i]);
            }
            for i in 0..ERROR_WORDS {
                write(start, field::TCP + i * 4, headers.tcp[i]);
            }
        }
        true
    }

    #[inline(always)]
    fn exceeds(self, most: u32, _header: u32) -> bool {
        self.network_length() > most
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
