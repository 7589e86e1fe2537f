//! Ack ids: opaque texts that name a delivery on its stream, and are worthless anywhere else.

use crate::broker::Tag;

/// What a stream's ack ids begin with: random, known to its client alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(u64);

/// What an ack id turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckId {
    /// Of this stream, as far as its form tells.
    Ours(Tag),
    /// Well-formed, of another stream: perhaps of this client, before it connected anew.
    Foreign,
    /// Not an ack id.
    Malformed,
}

const DIGITS: usize = 16;

impl Nonce {
    /// A fresh one.
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().as_u64_pair().1)
    }

    /// The ack id of a delivery.
    pub fn ack_id(self, tag: Tag) -> String {
        format!("{:016x}{tag:016x}", self.0)
    }

    /// Reads an ack id.
    pub fn read(self, ack_id: &str) -> AckId {
        let hex = |text: &str| {
            let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
        };
        let halves = (ack_id.len() == 2 * DIGITS)
            .then(|| ack_id.split_at_checked(DIGITS))
            .flatten();
        match halves.and_then(|(nonce, tag)| Some((hex(nonce)?, hex(tag)?))) {
            None => AckId::Malformed,
            Some((nonce, tag)) if nonce == self.0 => AckId::Ours(tag),
            Some(_) => AckId::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_id_names_its_delivery_on_its_own_stream_only() {
        let (ours, theirs) = (Nonce(1), Nonce(2));
        assert_eq!(ours.read(&ours.ack_id(7)), AckId::Ours(7));
        assert_eq!(theirs.read(&ours.ack_id(7)), AckId::Foreign);
    }

    #[test]
    fn anything_else_is_malformed() {
        let wide = "é".repeat(16);
        let signed = format!("+{}", "0".repeat(31));
        for text in [
            "",
            "7",
            wide.as_str(),
            signed.as_str(),
            &"0".repeat(1 << 20),
        ] {
            assert_eq!(Nonce(0).read(text), AckId::Malformed);
        }
    }
}
