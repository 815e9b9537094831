//! Memory with other writers: the maps of the kernel program, mapped into this process.
//!
//! Every access is an atomic access to a whole word, so nothing here is a data race, whatever the
//! kernel program does at the same time. The order between several words is up to the caller: see
//! the `Acquire`s and `Release`s of [`Table`].

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use lb_common::layout;

/// A shared mapping.
struct Mapping {
    base: NonNull<u8>,
    /// Bytes that may be accessed; a multiple of 8.
    len: usize,
}

// SAFETY: the mapping belongs to this value until it is dropped and is accessed through atomics
// only.
unsafe impl Send for Mapping {}
// SAFETY: as above: atomics may be used from several threads.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd`, or fresh zeroed memory without one.
    fn new(fd: Option<BorrowedFd<'_>>, len: usize) -> io::Result<Mapping> {
        let (fd, anonymous) = fd.map_or((-1, libc::MAP_ANONYMOUS), |fd| (fd.as_raw_fd(), 0));
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: no address is requested, so no existing mapping is touched; the kernel checks
        // everything else.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED | anonymous, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Mapping { base, len })
    }

    fn word64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len, "word at {offset} of {}", self.len);
        // SAFETY: the word lies inside the mapping (asserted above), which lives as long as `self`
        // and starts at a page; an AtomicU64 is valid for all bit patterns and may be shared with
        // other writers.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }

    fn word32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len, "word at {offset} of {}", self.len);
        // SAFETY: as in `word64`, for 4 bytes.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this address and length, and no reference into
        // it can outlive `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A record in a map.
///
/// # Safety
/// The type has no padding, is valid for all bit patterns, its size is a multiple of 8 and at most
/// [`MAX_RECORD`].
pub unsafe trait Record: Copy {}

/// The largest record, in bytes.
pub const MAX_RECORD: usize = 256;

macro_rules! records {
    ($($record:ty),* $(,)?) => {$(
        // SAFETY: repr(C) integers and arrays of them; lb-common asserts the sizes, which leave no
        // room for padding.
        unsafe impl Record for $record {}
        const _: () = assert!(size_of::<$record>().is_multiple_of(8) && size_of::<$record>() <= MAX_RECORD);
    )*};
}

records! {
    layout::Meta, layout::Lease, layout::Listener, layout::Interface, layout::Pool, layout::Ring, layout::FreeLine, layout::MaglevLine,
    layout::ConnectTimes, layout::Slot, layout::Opening, layout::Backend, layout::Service, layout::RuleLine, layout::ClientLine, layout::SlowStart, layout::Failures,
    layout::Trace, layout::CookieKey,
    u64,
}

/// A mapped array of records.
pub struct Table<T> {
    mapping: Mapping,
    len: usize,
    record: PhantomData<fn(T) -> T>,
}

impl<T: Record> Table<T> {
    /// Maps an array map of `len` records. The caller has compared the map's value size and
    /// entries.
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Table<T>> {
        Ok(Table { mapping: Mapping::new(Some(fd), len * size_of::<T>())?, len, record: PhantomData })
    }

    /// A table in plain zeroed memory.
    pub fn anonymous(len: usize) -> io::Result<Table<T>> {
        Ok(Table { mapping: Mapping::new(None, len * size_of::<T>())?, len, record: PhantomData })
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the table has no records.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The 64-bit word at byte `offset` of record `index`.
    ///
    /// # Panics
    /// If the record does not exist or the word is not wholly inside it.
    pub fn word64(&self, index: usize, offset: usize) -> &AtomicU64 {
        assert!(index < self.len && offset + 8 <= size_of::<T>(), "record {index} of {}, offset {offset}", self.len);
        self.mapping.word64(index * size_of::<T>() + offset)
    }

    /// The 32-bit word at byte `offset` of record `index`. Panics as [`word64`](Self::word64) does.
    pub fn word32(&self, index: usize, offset: usize) -> &AtomicU32 {
        assert!(index < self.len && offset + 4 <= size_of::<T>(), "record {index} of {}, offset {offset}", self.len);
        self.mapping.word32(index * size_of::<T>() + offset)
    }

    /// A copy of a record, word by word: a concurrent change may show in one word and not yet in
    /// another.
    pub fn read(&self, index: usize) -> T {
        let mut words = [0_u64; MAX_RECORD / 8];
        let count = size_of::<T>() / 8;
        for (place, word) in words.iter_mut().enumerate().take(count) {
            *word = self.word64(index, place * 8).load(Ordering::Relaxed);
        }
        // SAFETY: `Record` promises that all bit patterns are valid and that the size is `count`
        // words, which were filled; `read_unaligned` needs no alignment.
        unsafe { words.as_ptr().cast::<T>().read_unaligned() }
    }

    /// Writes a record word by word, the word that holds byte `last` after all others: a reader
    /// that loads that word with `Acquire` and sees the new value sees the rest new too.
    pub fn publish(&self, index: usize, record: &T, last: usize) {
        let words = words_of(record);
        let count = size_of::<T>() / 8;
        for (place, word) in words.iter().enumerate().take(count) {
            if place != last / 8 {
                self.word64(index, place * 8).store(*word, Ordering::Relaxed);
            }
        }
        self.word64(index, last / 8 * 8).store(words[last / 8], Ordering::Release);
    }
}

fn words_of<T: Record>(record: &T) -> [u64; MAX_RECORD / 8] {
    let mut words = [0_u64; MAX_RECORD / 8];
    // SAFETY: `Record` promises that T has no padding (all its bytes are initialised) and fits into
    // `words`; the two do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(
            std::ptr::from_ref(record).cast::<u8>(),
            words.as_mut_ptr().cast::<u8>(),
            size_of::<T>(),
        );
    }
    words
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use lb_common::layout::{ACTIVE, Listener, Pool};

    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let table = Table::<Listener>::anonymous(4).unwrap();
        let listener =
            Listener { address: [7; 16], port: [25, 43], service: 3, family: 4, state: ACTIVE, reserved: [0; 10] };
        table.publish(2, &listener, offset_of!(Listener, state));
        assert_eq!(table.read(2), listener);
        assert_eq!((table.read(1), table.read(3)), (Listener::default(), Listener::default()));
    }

    #[test]
    fn a_word_is_the_same_memory_as_the_record() {
        let table = Table::<Pool>::anonymous(2).unwrap();
        table.word64(1, offset_of!(Pool, hop)).store(0x0102_0304_0506_0708, Ordering::Relaxed);
        assert_eq!(table.read(1).hop.0, 0x0102_0304_0506_0708);
        table.word32(1, offset_of!(Pool, port)).store(u32::from_ne_bytes([1, 2, 3, 4]), Ordering::Relaxed);
        assert_eq!(table.read(1).port, [1, 2]);
    }

    #[test]
    #[should_panic(expected = "record 2 of 2")]
    fn a_record_beyond_the_end_is_not_reached() {
        Table::<Pool>::anonymous(2).unwrap().word64(2, 0);
    }

    #[test]
    #[should_panic(expected = "offset 60")]
    fn a_word_beyond_its_record_is_not_reached() {
        Table::<Pool>::anonymous(2).unwrap().word64(0, 60);
    }
}
