//! Finds the sequence of a `PublishStreamRequest` that is refused, and may be too large to be kept: it is read as it passes by.

/// The first field, a varint.
const SEQUENCE: u64 = 1 << 3;
/// Longest encoding of a varint, less the last byte's 7 bits.
const MAX_SHIFT: u32 = 63;

/// Fed with the bytes of a message, in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    awaits: Awaits,
    /// The varint that is being read.
    value: u64,
    shift: u32,
    found: Option<u64>,
}

#[derive(Debug, Default)]
enum Awaits {
    #[default]
    Tag,
    /// The value of the sequence, or of a field that does not matter.
    Varint {
        sequence: bool,
    },
    Length,
    /// The end of a value, so many bytes on.
    Rest(u64),
    /// Nothing: this is no such message.
    Nothing,
}

impl Sequence {
    /// Of a whole message. `None`: it cannot be known.
    pub(super) fn of(message: &[u8]) -> Option<u64> {
        let mut sequence = Self::default();
        sequence.feed(message);
        sequence.at_end()
    }

    /// Takes what comes next.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((byte, after)) = bytes.split_first() {
            if let Awaits::Rest(left) = self.awaits {
                let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                bytes = &bytes[skipped..];
                self.skip(left - skipped as u64);
                continue;
            }
            if matches!(self.awaits, Awaits::Nothing) {
                return;
            }
            bytes = after;
            self.value |= u64::from(byte & 0x7f) << self.shift;
            if *byte < 0x80 {
                let value = std::mem::take(&mut self.value);
                self.shift = 0;
                self.read(value);
            } else if self.shift == MAX_SHIFT {
                self.awaits = Awaits::Nothing;
            } else {
                self.shift += 7;
            }
        }
    }

    /// What was read so far; later bytes could only replace it in a message that has the field twice.
    pub(super) fn so_far(&self) -> Option<u64> {
        self.found
    }

    /// After the whole message: a field that is not there is 0, as protobuf has it.
    pub(super) fn at_end(&self) -> Option<u64> {
        match self.awaits {
            Awaits::Tag if self.shift == 0 => Some(self.found.unwrap_or_default()),
            _ => self.found,
        }
    }

    fn read(&mut self, value: u64) {
        match self.awaits {
            Awaits::Tag => match value & 7 {
                0 => {
                    let sequence = value == SEQUENCE;
                    self.awaits = Awaits::Varint { sequence };
                }
                1 => self.skip(8),
                2 => self.awaits = Awaits::Length,
                5 => self.skip(4),
                _ => self.awaits = Awaits::Nothing,
            },
            Awaits::Varint { sequence } => {
                if sequence {
                    self.found = Some(value);
                }
                self.awaits = Awaits::Tag;
            }
            Awaits::Length => self.skip(value),
            Awaits::Rest(_) | Awaits::Nothing => {}
        }
    }

    fn skip(&mut self, bytes: u64) {
        self.awaits = match bytes {
            0 => Awaits::Tag,
            bytes => Awaits::Rest(bytes),
        };
    }
}
