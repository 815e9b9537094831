//! Lines on their way to the target. It is always known how many of them it has taken, even when it
//! takes half a line and then nothing more.

/// Lines that are written together.
#[derive(Default)]
pub struct Batch {
    text: String,
    /// Where each line ends.
    ends: Vec<usize>,
    /// Bytes that the target has taken.
    taken: usize,
}

impl Batch {
    /// Adds a line: what `write` appends.
    pub fn add(&mut self, write: impl FnOnce(&mut String)) {
        write(&mut self.text);
        self.ends.push(self.text.len());
    }

    /// What is still to be written.
    pub fn rest(&self) -> &[u8] {
        &self.text.as_bytes()[self.taken..]
    }

    /// The next line, or what is left of it.
    pub fn line(&self) -> Option<&[u8]> {
        let end = self.ends.get(self.lines_taken())?;
        Some(&self.text.as_bytes()[self.taken..*end])
    }

    /// The target has taken this many more bytes.
    pub fn take(&mut self, bytes: usize) {
        self.taken += bytes;
    }

    /// The line of which the target has taken only a part is to be written from its beginning.
    pub fn rewind(&mut self) {
        self.taken = self.lines_taken().checked_sub(1).map_or(0, |last| self.ends[last]);
    }

    /// Lines that the target has not taken.
    pub fn lines_left(&self) -> u64 {
        (self.ends.len() - self.lines_taken()) as u64
    }

    /// Bytes, including those that were taken.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Begins a new one.
    pub fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.taken = 0;
    }

    fn lines_taken(&self) -> usize {
        self.ends.partition_point(|end| *end <= self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_is_written_again_from_its_beginning() {
        let mut batch = Batch::default();
        ["one\n", "two\n", "three\n"].iter().for_each(|line| batch.add(|text| text.push_str(line)));
        assert_eq!((batch.lines_left(), batch.line(), batch.len()), (3, Some(&b"one\n"[..]), 14));
        batch.take(6);
        assert_eq!((batch.lines_left(), batch.line(), batch.rest()), (2, Some(&b"o\n"[..]), &b"o\nthree\n"[..]));
        batch.rewind();
        assert_eq!((batch.lines_left(), batch.rest()), (2, &b"two\nthree\n"[..]));
        batch.take(10);
        assert_eq!((batch.lines_left(), batch.line(), batch.rest()), (0, None, &b""[..]));
        batch.rewind();
        assert_eq!(batch.lines_left(), 0, "nothing was cut");
        batch.clear();
        assert_eq!((batch.lines_left(), batch.line(), batch.len()), (0, None, 0));
    }
}
