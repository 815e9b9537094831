//! The only packet arithmetic: where the headers are, and how a frame is read, rewritten, replaced
//! and sent on both hooks.
//!
//! The engine is generic over [`Frame`]. What differs between XDP and TC is here and nowhere else:
//! on TC a checksum may be unfinished (CHECKSUM_PARTIAL), which only the kernel's helpers know; XDP
//! sees the bytes of the wire.

mod fields;
mod tc;
mod xdp;

use lb_common::{
    checksum::{difference, finish, fold, update},
    layout::{Hop, Interface},
};
use network_types::ip::IpProto;

use crate::records::Held;

pub use fields::{LONGEST_HEADERS, LONGEST_QUOTE, QUOTED, arp, field, icmp, nd, quote};
pub use tc::TcFrame;
pub use xdp::XdpFrame;

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
        self.sum_ip();
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

    #[inline(always)]
    fn sum_ip(&mut self) {
        let mut sum = 0;
        for word in &self.ip {
            sum += *word as u64;
        }
        self.ip[2] |= (finish(sum) as u32) << 16;
    }

    /// Puts both checksums into the headers of an ICMP error. With `partial` the sending device is
    /// to finish the TCP checksum in the quote, see [`unfinished_quote`].
    #[inline(always)]
    fn seal_error(&mut self, partial: bool) {
        self.keep_together();
        self.sum_ip();
        let mut sum = 0;
        for word in &self.tcp[..QUOTED_TCP] {
            sum += *word as u64;
        }
        if partial {
            sum += unfinished_quote(self.tcp[QUOTED_TCP + 4] as u16);
        } else {
            for word in &self.tcp[QUOTED_TCP..ERROR_WORDS] {
                sum += *word as u64;
            }
        }
        self.tcp[0] |= (finish(sum) as u32) << 16;
        self.keep_together();
    }
}

/// Words of an ICMP error, its quote included, and where the TCP header stands in it.
const ERROR_WORDS: usize = 2 + QUOTED / 4;
const QUOTED_TCP: usize = 2 + 5;

/// What a quoted TCP header will sum up to, once the sending device has replaced `seed`, the sum of
/// a pseudo-header, by the checksum of it all: the complement of `seed`, whatever else the header
/// says (Linux' local checksum offload).
#[inline(always)]
const fn unfinished_quote(seed: u16) -> u64 {
    !seed as u64
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
    /// Replaces the frame by an ICMP error about it. `headers` are those of the error, and then
    /// those of the frame that it quotes, [`QUOTED`] bytes.
    fn quote(self, headers: &mut Headers) -> bool;
    /// Whether it has packets of more than `most` bytes, with TCP headers of `header` bytes.
    fn exceeds(self, most: u32, header: u32) -> bool;
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

    /// Writes a field. The caller has checked that the frame [has](Bytes::has) it.
    #[inline(always)]
    pub fn write<T>(self, offset: usize, value: T) {
        // SAFETY: the caller's check; the verifier refuses a program in which it is missing.
        unsafe { write(self.start, offset, value) }
    }

    /// Writes a field at an offset that is found out at run time, if the frame has it.
    #[inline(always)]
    pub fn put_at<T>(self, offset: usize, value: T) {
        let mut address = self.start + offset;
        // As in `at`.
        // SAFETY: touches one register.
        unsafe { core::arch::asm!("{0} += 0", inout(reg) address) };
        if address + size_of::<T>() <= self.end {
            // SAFETY: checked just above.
            unsafe { *(address as *mut T) = value };
        }
    }

    /// Addresses a packet anew and sends it to a next hop: addresses, MAC addresses, time to live
    /// and the checksum of its IPv4 header. The caller has checked that the frame [has](Bytes::has)
    /// that.
    #[inline(always)]
    pub fn route(self, hop: Hop, interface: Held<Interface>, source: u32, destination: u32) {
        let addresses =
            difference(self.read(field::SOURCE), source) + difference(self.read(field::DESTINATION), destination);
        // SAFETY: the caller's check; the verifier refuses a program in which it is missing.
        unsafe { write_route(self.start, hop, interface, (source, destination), addresses) }
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
    // SAFETY: every field ends before `PAYLOAD`, up to which the caller has checked the frame.
    unsafe {
        write_route(start, new.hop, new.interface, (new.source, new.destination), addresses);
        write(start, field::SOURCE_PORT, new.source_port);
        write(start, field::DESTINATION_PORT, new.destination_port);
    }
}

/// Writes the MAC addresses of a next hop, and into the IPv4 header its addresses, which make a
/// difference of `addresses` to its sum, and a lower time to live. The caller has checked the frame
/// up to `TCP`.
#[inline(always)]
unsafe fn write_route(
    start: usize,
    hop: Hop,
    interface: Held<Interface>,
    (source, destination): (u32, u32),
    addresses: u64,
) {
    let mac = hop.0;
    let (own, own_end) = interface.mac_words();
    // SAFETY: every field ends before `TCP`, up to which the caller has checked the frame.
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
        write(start, field::SOURCE, source);
        write(start, field::DESTINATION, destination);
    }
}
