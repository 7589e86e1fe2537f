//! Gzip, undone as it comes: neither the compressed bytes nor what is over the limit are kept.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use flate2::write::GzDecoder;

use super::{HEADER, MAX_SKIPPED, header, sequence::Sequence};

/// So many times its own size may a message expand to...
const MAX_RATIO: usize = 100;
/// ...and to so many bytes, however small it is.
const ALWAYS: usize = 256 * 1024;

/// A compressed message that is coming in.
pub(super) struct Expanding {
    decoder: GzDecoder<Expanded>,
}

/// Why it is no use to go on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    NotGzip,
    /// It grows beyond [`MAX_RATIO`] or [`MAX_SKIPPED`].
    Bomb,
}

/// What came out.
pub(super) struct Expanded {
    /// Room for the frame's header, then the message; empty once it is too large.
    kept: BytesMut,
    /// Bytes that came out.
    size: usize,
    /// Bytes that a message may have.
    limit: usize,
    /// Bytes that may come out at all.
    most: usize,
    /// Looked for once it is too large.
    sequence: Option<Sequence>,
}

impl Expanding {
    /// Of `compressed` bytes, to a message of at most `limit`.
    pub(super) fn new(compressed: usize, limit: usize) -> Self {
        let ratio = compressed.saturating_mul(MAX_RATIO).max(ALWAYS);
        let most = ratio.min(MAX_SKIPPED.max(limit));
        Self {
            decoder: GzDecoder::new(Expanded {
                kept: BytesMut::zeroed(HEADER),
                size: 0,
                limit,
                most,
                sequence: None,
            }),
        }
    }

    /// Takes some of `bytes`, and says how many. What comes out of one call is bounded.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<usize, Failed> {
        match self.decoder.write(bytes) {
            Ok(taken) if taken > 0 => Ok(taken),
            // Something follows its end.
            Ok(_) => Err(Failed::NotGzip),
            Err(_) => Err(self.why()),
        }
    }

    /// Whether it is over the limit by now.
    pub(super) fn is_too_large(&self) -> bool {
        self.decoder.get_ref().sequence.is_some()
    }

    /// Its sequence, if that has come out by now.
    pub(super) fn sequence(&self) -> Option<u64> {
        let out = self.decoder.get_ref();
        match &out.sequence {
            Some(sequence) => sequence.so_far(),
            None => {
                let mut sequence = Sequence::default();
                sequence.feed(&out.kept[HEADER..]);
                sequence.so_far()
            }
        }
    }

    /// Bytes that came out so far.
    pub(super) fn size(&self) -> usize {
        self.decoder.get_ref().size
    }

    /// After all of it was fed.
    pub(super) fn finish(mut self) -> Result<Expanded, Failed> {
        match self.decoder.try_finish() {
            Ok(()) => self.decoder.finish().map_err(|_| Failed::NotGzip),
            Err(_) => Err(self.why()),
        }
    }

    fn why(&self) -> Failed {
        let out = self.decoder.get_ref();
        if out.size > out.most {
            Failed::Bomb
        } else {
            Failed::NotGzip
        }
    }
}

impl Expanded {
    /// The message in a frame of its own; the error: it is too large, and this is its sequence.
    pub(super) fn frame(mut self) -> Result<Bytes, Sequence> {
        if let Some(sequence) = self.sequence {
            return Err(sequence);
        }
        self.kept[..HEADER].copy_from_slice(&header(self.size));
        Ok(self.kept.freeze())
    }
}

impl Write for Expanded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.size += bytes.len();
        if self.size > self.most {
            return Err(io::Error::other("it expands too much"));
        }
        if self.size > self.limit && self.sequence.is_none() {
            let mut sequence = Sequence::default();
            sequence.feed(&self.kept[HEADER..]);
            self.sequence = Some(sequence);
            self.kept = BytesMut::new();
        }
        match &mut self.sequence {
            Some(sequence) => sequence.feed(bytes),
            None => self.kept.extend_from_slice(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
