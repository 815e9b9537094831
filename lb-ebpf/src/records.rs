//! The records of the tables, as handles.
//!
//! A [`Held`] is made by a map look-up of this file and by nothing else, so the code that has one
//! may read and write the record without `unsafe`: the map value is whole, aligned, and stays as
//! long as the program runs (arrays are never freed under it; an inner map that is taken out of its
//! outer one lives until the programs that have looked it up are done). What a record *means* may
//! change in that time: a slot changes hands. That is what its word is for, see `lb_common::slot`.
//!
//! Two ways to a field. `shared` ones are words that other CPUs or the controller change while they
//! are read: read and written exactly once. `plain` ones are written before the record is found, or
//! by its one owner, or can be a little old without harm; the compiler may read them as it likes.

use core::arch::asm;

use aya_ebpf::btf_maps::lpm_trie;
use lb_common::{
    address::Family,
    flow::{HalfOpenCell, Key, SlotAt},
    hash::{Entry, PROBES, listener_start, pool_start, probe},
    layout::{
        Address, Backend, CHALLENGES, ClientLine, CookieKey, DELETED, EMPTY, EXTENT_BITS, ExemptKey, Failures,
        FreeLine, Hop, Interface, LISTENER_BITS, Lease, Listener, Opening, POOL_BITS, Pool, Ring, Service, Slot,
        SlowStart, Trace,
    },
    time::{Instant, Ticks},
};

use crate::{
    atomic,
    maps::{self, Bucket, RstTokens},
};

/// A record that a map look-up has found.
pub struct Held<T>(*mut T);

impl<T> Clone for Held<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Held<T> {}

/// A number of a table, cut to `MASK`, a power of two minus one. LLVM knows where the mask is
/// superfluous and deletes it; the verifier does not know, and refuses the access behind it.
#[inline(always)]
pub fn masked<const MASK: i32>(number: u32) -> u32 {
    let mut number = number;
    // SAFETY: touches one register.
    unsafe { asm!("{0} &= {1}", inout(reg) number, const MASK) };
    number
}

/// The highest bit of a number: 1 or 0. Written as Rust, LLVM would turn arithmetic about it into a
/// comparison again, and BPF has none without a jump.
#[inline(always)]
pub fn highest_bit(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: touches one register.
    unsafe { asm!("{0} >>= 63", inout(reg) number) };
    number
}

// ---- look-ups ----

/// The listener at an address and port, and its row.
#[inline(always)]
pub fn listener_at<V: Family>(address: V::Address, port: u16) -> Option<(u32, Held<Listener>)> {
    for row in probe(listener_start(V::word(address), port, LISTENER_BITS), LISTENER_BITS, PROBES) {
        let listener = listener(row)?;
        match listener.plain_state() {
            EMPTY => return None,
            DELETED => continue,
            _ => {}
        }
        if listener.port() == port && listener.address::<V>() == address && listener.family() == V::NUMBER {
            return Some((row, listener));
        }
    }
    None
}

/// The pool of a backend's address and port and a SNAT address, and its row.
#[inline(always)]
pub fn pool_of<V: Family>(backend: V::Address, port: u16, snat: V::Address) -> Option<(u32, Held<Pool>)> {
    for row in probe(pool_start(V::word(backend), port, V::word(snat), POOL_BITS), POOL_BITS, PROBES) {
        let pool = pool(row)?;
        match pool.state() {
            EMPTY => return None,
            DELETED => continue,
            _ => {}
        }
        if pool.backend_port() == port
            && pool.backend::<V>() == backend
            && pool.snat::<V>() == snat
            && pool.family() == V::NUMBER
        {
            return Some((row, pool));
        }
    }
    None
}

/// The listener in a row.
#[inline(always)]
pub fn listener(row: u32) -> Option<Held<Listener>> {
    maps::LISTENERS.get_ptr_mut(row).map(Held)
}

/// The pool in a row.
#[inline(always)]
pub fn pool(row: u32) -> Option<Held<Pool>> {
    maps::POOLS.get_ptr_mut(row).map(Held)
}

/// A slot. Nothing has checked whether its pool has that many: the slots behind the last one are
/// `Free` and in no ring.
#[inline(always)]
pub fn slot(at: SlotAt) -> Option<Held<Slot>> {
    let record = maps::SLOTS.get_value_ptr_mut(at.0 >> EXTENT_BITS, &(at.0 & ((1 << EXTENT_BITS) - 1)))?;
    Some(Held(record.cast()))
}

/// The rest of the flow in a slot.
#[inline(always)]
pub fn opening(at: SlotAt) -> Option<Held<Opening>> {
    let record = maps::OPENINGS.get_value_ptr_mut(at.0 >> EXTENT_BITS, &(at.0 & ((1 << EXTENT_BITS) - 1)))?;
    Some(Held(record.cast()))
}

/// The ring of free slots of a pool.
#[inline(always)]
pub fn ring(pool: u32) -> Option<Held<Ring>> {
    maps::RINGS.get_ptr_mut(pool).map(Held)
}

/// A backend.
#[inline(always)]
pub fn backend(number: u32) -> Option<Held<Backend>> {
    maps::BACKENDS.get_ptr_mut(number).map(Held)
}

/// The slow start of a backend.
#[inline(always)]
pub fn slow_start(backend: u32) -> Option<Held<SlowStart>> {
    maps::SLOW_STARTS.get_ptr_mut(backend).map(Held)
}

/// The failures of a backend.
#[inline(always)]
pub fn failures(backend: u32) -> Option<Held<Failures>> {
    maps::FAILURES.get_ptr_mut(backend).map(Held)
}

/// A service.
#[inline(always)]
pub fn service(number: u32) -> Option<Held<Service>> {
    maps::SERVICES.get_ptr_mut(number).map(Held)
}

/// An interface, by its number among ours.
#[inline(always)]
pub fn interface(link: u32) -> Option<Held<Interface>> {
    maps::INTERFACES.get_ptr_mut(link).map(Held)
}

/// Which of our interfaces the kernel calls `ifindex`.
#[inline(always)]
pub fn link_of(ifindex: u32) -> Option<u32> {
    // SAFETY: from the look-up; an aligned word.
    maps::LINKS.get_ptr_mut(ifindex).map(|link| unsafe { *link })
}

/// The next hop by which this host reaches an address, if it knows one.
#[inline(always)]
pub fn way_to<V: Family>(address: V::Address) -> Hop {
    const { assert!(V::WORD_IS_ADDRESS, "an IPv6 address is its own key") };
    let [a, b, c, d] = V::word(address).to_ne_bytes();
    let key = lpm_trie::Key::new(128, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]);
    // SAFETY: from the look-up; an aligned word.
    maps::WAYS.get(&key).map_or(Hop(0), |way| Hop(unsafe { atomic::load(way) }))
}

/// What we use an address for: see `layout::IS_LISTENER` and those below it.
#[inline(always)]
pub fn uses_of<V: Family>(address: V::Address) -> u32 {
    // SAFETY: from the look-up; an aligned word.
    maps::ADDRESSES.get_ptr_mut(mapped::<V>(address)).map_or(0, |uses| unsafe { *uses })
}

/// An address as a key.
#[inline(always)]
fn mapped<V: Family>(address: V::Address) -> Address {
    const { assert!(V::WORD_IS_ADDRESS, "the halves of an IPv6 address are its key") };
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]) | (V::word(address) as u64) << 32]
}

/// The lease in a row.
#[inline(always)]
pub fn lease(row: u32) -> Option<Held<Lease>> {
    maps::LEASES.get_ptr_mut(row).map(Held)
}

/// The one record for a question and its answer.
#[inline(always)]
pub fn trace() -> Option<Held<Trace>> {
    maps::TRACE.get_ptr_mut(0).map(Held)
}

/// What SYN cookies are made of.
#[inline(always)]
pub fn cookie_key() -> Option<Held<CookieKey>> {
    maps::COOKIES.get_ptr_mut(0).map(Held)
}

/// The mark of a client that has answered a cookie.
#[inline(always)]
pub fn verified(row: u32) -> Option<Word<u64>> {
    maps::VERIFIED.get_ptr_mut(row).map(Word)
}

/// The mark of a client that was sent a cookie; a row of VERIFIED is folded.
#[inline(always)]
pub fn challenged(row: u32) -> Option<Word<u64>> {
    maps::CHALLENGED.get_ptr_mut(row % CHALLENGES).map(Word)
}

/// Whether EXEMPT has a client of a service, whose address is as it lies in a packet.
#[inline(always)]
pub fn is_exempt<V: Family>(service: u32, client: V::Address) -> bool {
    const { assert!(V::WORD_IS_ADDRESS, "an IPv6 address is its own key") };
    let ([s, t, u, v], [a, b, c, d]) = (service.to_ne_bytes(), V::word(client).to_ne_bytes());
    let key: ExemptKey = [s, t, u, v, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
    maps::EXEMPT.get(&lpm_trie::Key::new(8 * key.len() as u32, key)).is_some()
}

/// A bucket of the flow index.
#[inline(always)]
pub fn bucket(number: u32) -> Option<Held<Bucket>> {
    maps::INDEX.get_ptr_mut(number).map(Held)
}

/// A bucket of a service's table of clients.
#[inline(always)]
pub fn client_bucket(service: u32, bucket: u32) -> Option<Held<ClientLine>> {
    maps::CLIENTS.get_value_ptr_mut(service, &bucket).map(Held)
}

/// A line of a pool's ring of free slots.
#[inline(always)]
pub fn free_line(pool: u32, line: u32) -> Option<Held<FreeLine>> {
    maps::FREE.get_value_ptr_mut(pool, &line).map(Held)
}

/// A line of a pool's wide ring.
#[inline(always)]
pub fn wide_line(pool: u32, line: u32) -> Option<Held<FreeLine>> {
    maps::WIDE.get_value_ptr_mut(pool, &line).map(Held)
}

/// Which backend is at a point of a service's Maglev table: its position in the list; `u32::MAX` if
/// there is no table.
#[inline(always)]
pub fn maglev(service: u32, point: u32) -> u32 {
    let Some(line) = maps::MAGLEV.get_value_ptr_mut(service, &(point >> 2)) else { return u32::MAX };
    // SAFETY: from the look-up; 0 to 3 lies in the line of four.
    unsafe { *line.cast::<u16>().add(masked::<3>(point) as usize) as u32 }
}

/// Puts a flow into a cell of a service's ring of half-open flows; returns what the cell held
/// before.
#[inline(always)]
pub fn swap_half_open(service: u32, cell: u32, new: HalfOpenCell) -> Option<HalfOpenCell> {
    let word = maps::HALF_OPEN.get_value_ptr_mut(service, &cell)?;
    // SAFETY: from the look-up; an aligned word.
    Some(HalfOpenCell(unsafe { atomic::swap(word, new.0) }))
}

/// A cell of a service's ring of half-open flows.
#[inline(always)]
pub fn half_open(service: u32, cell: u32) -> Option<HalfOpenCell> {
    let word = maps::HALF_OPEN.get_value_ptr_mut(service, &cell)?;
    // SAFETY: from the look-up; an aligned word.
    Some(HalfOpenCell(unsafe { atomic::load(word) }))
}

/// Counts a connect time of a backend in its bucket.
#[inline(always)]
pub fn count_connect_time(backend: u32, bucket: u32) {
    if let Some(times) = maps::CONNECT_TIMES.get_ptr_mut(backend) {
        // SAFETY: from the look-up; 0 to 63 lies in the record of 64.
        unsafe { atomic::add(times.cast::<u32>().add(masked::<63>(bucket) as usize), 1) };
    }
}

/// Adds one to the counter with the number of a reason, on this CPU.
#[inline(always)]
pub fn count(reason: u32) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(reason) {
        // SAFETY: from the look-up; this CPU's own element, and a program is not interrupted by
        // itself.
        unsafe { *counter += 1 };
    }
}

/// This CPU's tokens for RSTs of one kind.
#[inline(always)]
pub fn rst_tokens(bucket: u32) -> Option<Held<RstTokens>> {
    maps::RST_TOKENS.get_ptr_mut(bucket).map(Held)
}

/// This CPU's limit on ICMP errors.
#[inline(always)]
pub fn icmp_tokens() -> Option<Held<RstTokens>> {
    maps::ICMP_TOKENS.get_ptr_mut(0).map(Held)
}

/// This CPU's limit on ICMP errors of our own, of one kind.
#[inline(always)]
pub fn error_tokens(kind: u32) -> Option<Held<RstTokens>> {
    maps::ERROR_TOKENS.get_ptr_mut(kind).map(Held)
}

/// Where this CPU keeps the options of the segment at hand.
#[inline(always)]
pub fn options() -> Option<Held<Options>> {
    maps::OPTIONS.get_ptr_mut(0).map(|words| Held(words.cast()))
}

/// The options of a segment, as bytes and as words.
pub struct Options(#[expect(dead_code, reason = "read and written by its address")] [u32; 16]);

impl Held<Options> {
    /// The byte at a position, which is cut to the length of the record.
    #[inline(always)]
    pub fn byte(self, at: u32) -> u8 {
        // SAFETY: the record is held; 0 to 63 lies in its 64 bytes.
        unsafe { *self.0.cast::<u8>().add(masked::<63>(at) as usize) }
    }

    /// Writes the word at a position that a loop counts.
    #[inline(always)]
    pub fn set_word(self, position: usize, word: u32) {
        // SAFETY: the record is held; 0 to 15 lies in its sixteen words.
        unsafe { *self.0.cast::<u32>().add(position & 15) = word }
    }
}

/// The number of a log line within its stretch of time, about a second, and how many lines the
/// stretch before had if this is the first.
#[inline(always)]
pub fn next_log_line(now: Ticks) -> (u32, u32) {
    let stretch = now.0 >> 10;
    let word = &raw mut maps::LOG_LINES;
    // SAFETY: an aligned word of this program's own. Two CPUs that begin a stretch at once may
    // write a line more or less.
    unsafe {
        let lines = atomic::load(word);
        if (lines >> 32) as u32 != stretch {
            atomic::store(word, (stretch as u64) << 32 | 1);
            return (1, lines as u32);
        }
        atomic::add(word, 1);
        (lines as u32 + 1, 0)
    }
}

// ---- fields ----

/// Reads and writes as the compiler likes.
mod plain {
    #[inline(always)]
    pub unsafe fn read<T: Copy>(field: *const T) -> T {
        // SAFETY: the caller's field is of a held record.
        unsafe { *field }
    }

    #[inline(always)]
    pub unsafe fn write<T: Copy>(field: *mut T, value: T) {
        // SAFETY: the caller's field is of a held record.
        unsafe { *field = value }
    }
}

/// Reads and writes exactly once.
mod shared {
    pub use crate::atomic::{load as read, store as write};
}

/// Methods that read a field, write it, or add to it.
macro_rules! fields {
    ($record:ident: $($how:ident $field:ident $($name:ident)?: $type:ty $(, set $set:ident)? $(, add $add:ident)?;)*) => {
        impl Held<$record> { $(
            fields!(read $record $how $field $($name)?: $type);
            $(
                #[inline(always)]
                pub fn $set(self, value: $type) {
                    // SAFETY: the record is held: whole and aligned, and so is its field.
                    unsafe { $how::write(&raw mut (*self.0).$field, value) }
                }
            )?
            $(
                #[inline(always)]
                pub fn $add(self, value: $type) {
                    // SAFETY: the record is held: whole and aligned, and so is its field.
                    unsafe { atomic::add(&raw mut (*self.0).$field, value) }
                }
            )?
        )* }
    };
    (read $record:ident count $field:ident: $type:ty) => {};
    (read $record:ident write $field:ident: $type:ty) => {};
    (read $record:ident $how:ident $field:ident: $type:ty) => {
        fields!(read $record $how $field $field: $type);
    };
    (read $record:ident $how:ident $field:ident $name:ident: $type:ty) => {
        #[inline(always)]
        pub fn $name(self) -> $type {
            // SAFETY: the record is held: whole and aligned, and so is its field.
            unsafe { $how::read(&raw const (*self.0).$field) }
        }
    };
}

/// For fields that are only written here.
mod write {
    pub use super::plain::write;
}

// After the macro that they use.
mod flow;
mod pool;
mod service;

fields! { Listener:
    plain service: u16;
    plain family: u8;
    plain state plain_state: u8;
    shared state: u8;
}

impl Held<Listener> {
    /// The port as it lies in a packet.
    #[inline(always)]
    pub fn port(self) -> u16 {
        // SAFETY: the record is held; the two bytes lie on an even offset.
        unsafe { *(&raw const (*self.0).port).cast() }
    }

    /// The address as it lies in a packet.
    #[inline(always)]
    pub fn address<V: Family>(self) -> V::Address {
        // SAFETY: the record is held; sixteen bytes on a word boundary.
        unsafe { address::<V>(&raw const (*self.0).address) }
    }
}

/// The address of a family in the sixteen bytes of a record.
#[inline(always)]
unsafe fn address<V: Family>(mapped: *const [u8; 16]) -> V::Address {
    const { assert!(V::IN_RECORD + size_of::<V::Address>() == 16) };
    // SAFETY: the caller's sixteen bytes are on a word boundary, and the address ends with them.
    unsafe { *mapped.cast::<u8>().add(V::IN_RECORD).cast() }
}

fields! { Interface:
    plain ifindex: u32;
    plain mac: [u8; 6];
    plain mtu stated_mtu: u16;
}

impl Held<Interface> {
    /// The longest packet that it sends.
    #[inline(always)]
    pub fn mtu(self) -> u32 {
        match self.stated_mtu() {
            0 => u32::MAX,
            mtu => mtu as u32,
        }
    }

    /// The MAC address as two words of memory, its first four bytes and its last two.
    #[inline(always)]
    pub fn mac_words(self) -> (u32, u16) {
        // SAFETY: the record is held; six bytes on a word boundary.
        unsafe {
            let mac = &raw const (*self.0).mac;
            (*mac.cast::<u32>(), *mac.cast::<u16>().add(2))
        }
    }
}

fields! { Lease:
    shared until: Instant;
    plain state: u8;
    plain link: u8;
    write claimed_by: [u8; 6], set set_claimed_by;
    count claims: u32, add add_claims;
}

impl Held<Lease> {
    /// The address, in two words of memory.
    #[inline(always)]
    pub fn address(self) -> (u64, u64) {
        // SAFETY: the record is held; its address is the first field, and its size a multiple of 8.
        unsafe {
            let halves = self.0.cast::<u64>();
            (*halves, *halves.add(1))
        }
    }
}

fields! { CookieKey:
    plain key: [u64; 2];
    plain offset: u64;
}

fields! { Trace:
    plain key: Key;
    shared question: u64;
}

impl Held<Trace> {
    /// Writes the answer. There is one question at a time, and the controller reads the answer when
    /// the program has run.
    #[inline(always)]
    pub fn write(self, answer: impl FnOnce(&mut Trace)) {
        // SAFETY: the record is held, and nothing else uses it now.
        answer(unsafe { &mut *self.0 });
    }
}

fields! { RstTokens:
    plain tokens: u64, set set_tokens;
    plain refilled: u64, set set_refilled;
}

/// A word of a table that others change.
pub struct Word<T>(*mut T);

impl<T> Clone for Word<T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Word<T> {}

impl<T: Copy + PartialEq> Word<T> {
    /// Reads it.
    #[inline(always)]
    pub fn load(self) -> T {
        // SAFETY: made only from a held record, in bounds.
        unsafe { atomic::load(self.0) }
    }

    /// Writes it.
    #[inline(always)]
    pub fn store(self, value: T) {
        // SAFETY: made only from a held record, in bounds.
        unsafe { atomic::store(self.0, value) }
    }

    /// Stores `new` if it holds `old`; returns what it held.
    #[inline(always)]
    pub fn compare_swap(self, old: T, new: T) -> T {
        // SAFETY: made only from a held record, in bounds.
        unsafe { atomic::compare_swap(self.0, old, new) }
    }

    /// Stores `new` if it holds `old`.
    #[inline(always)]
    pub fn swap(self, old: T, new: T) -> bool {
        self.compare_swap(old, new) == old
    }
}

/// Both kinds of buckets: eight words.
impl Held<Bucket> {
    /// The word at a position that a loop counts, which the verifier follows.
    #[inline(always)]
    pub fn word(self, position: u32) -> Word<u64> {
        // SAFETY: the bucket is held; 0 to 7 lies in its eight.
        Word(unsafe { self.0.cast::<u64>().add(position as usize & 7) })
    }

    /// The word at a position, which is cut to the length of the bucket.
    #[inline(always)]
    pub fn masked_word(self, position: u32) -> Word<u64> {
        self.word(masked::<7>(position))
    }

    /// The entry at a position that a loop counts.
    #[inline(always)]
    pub fn entry(self, position: u32) -> Entry {
        Entry(self.word(position).load())
    }
}
