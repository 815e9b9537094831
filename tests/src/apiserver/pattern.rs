//! The bytes of bulk transfers: both sides can produce them, so a checksum shows whether they
//! arrived.

use std::sync::OnceLock;

use hyper::body::Bytes;
use ring::digest::{Context, SHA256};

const BLOCK: usize = 64 << 10;
const NOISE: usize = 1 << 20;
/// A prime, so that neighbouring blocks begin at different positions in the noise: blocks out of
/// order are noticed.
const STEP: usize = 4099;

/// The first `bytes` bytes of the endless pattern, in blocks.
pub struct Pattern {
    left: u64,
    block: usize,
}

impl Pattern {
    pub fn new(bytes: u64) -> Self {
        Self { left: bytes, block: 0 }
    }
}

impl Iterator for Pattern {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.left).unwrap_or(BLOCK).min(BLOCK);
        let start = self.block * STEP % (NOISE - BLOCK);
        self.block += 1;
        self.left -= length as u64;
        (length > 0).then(|| noise().slice(start..start + length))
    }
}

/// The checksum of the first `bytes` bytes.
pub fn checksum(bytes: u64) -> String {
    let mut sum = Checksum::default();
    Pattern::new(bytes).for_each(|block| sum.add(&block));
    sum.finish()
}

/// A SHA-256 in progress.
pub struct Checksum(Context);

impl Default for Checksum {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Checksum {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> String {
        self.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// xorshift64 from a fixed seed, which both sides share.
fn noise() -> &'static Bytes {
    static NOISE_BYTES: OnceLock<Bytes> = OnceLock::new();
    NOISE_BYTES.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        words.take(NOISE / 8).flatten().collect()
    })
}
