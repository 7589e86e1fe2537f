//! Which failures are of one kind: same queue, same error type, and the same message once numbers and ids are left out.

use sha2::{Digest, Sha256};

/// How much of a message tells kinds apart, in bytes.
const KIND_BYTES: usize = 500;

/// The kind of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// 32 hexadecimal digits.
    pub fingerprint: String,
    /// The error's message with `#` for numbers and ids.
    pub message: String,
}

/// The kind of an error in `queue`.
pub fn of(queue: &str, error_type: &str, message: &str) -> Kind {
    let message = normalise(message);
    Kind {
        fingerprint: digest(&[queue, error_type, &message]),
        message,
    }
}

/// 32 hexadecimal digits that stand for these texts.
pub fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // With its length, so that ["a", "bc"] and ["ab", "c"] differ.
        hash.update(part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    let half = &hash.finalize()[..16];
    half.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Words that hold a digit become `#`: numbers, times, UUIDs, addresses, hashes.
fn normalise(message: &str) -> String {
    let mut normal = String::with_capacity(message.len().min(KIND_BYTES));
    let mut rest = message;
    while !rest.is_empty() && normal.len() < KIND_BYTES {
        let part_of_word = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        let end = rest.find(|c| !part_of_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let (core, tail) = word.split_at(word.trim_end_matches(['.', ':', '-']).len());
        if core.contains(|c: char| c.is_ascii_digit()) {
            normal.push('#');
        } else {
            normal.push_str(core);
        }
        normal.push_str(tail);
        let gap = after.find(part_of_word).unwrap_or(after.len());
        normal.push_str(&after[..gap]);
        rest = &after[gap..];
    }
    normal.truncate(normal.floor_char_boundary(KIND_BYTES));
    normal
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_and_ids_do_not_tell_kinds_apart() {
        let one = of("q", "Timeout", "order 17 of 3f2a-0b: no answer in 30.5s.");
        let other = of("q", "Timeout", "order 4711 of 9c1e-77: no answer in 2s.");
        assert_eq!(one, other);
        assert_eq!(one.message, "order # of #: no answer in #.");
    }

    #[test]
    fn queue_type_and_words_do() {
        let kinds = [
            of("q", "A", "x"),
            of("p", "A", "x"),
            of("q", "B", "x"),
            of("q", "A", "y"),
            of("qA", "", "x"),
        ];
        for (i, kind) in kinds.iter().enumerate() {
            assert!(!kinds[..i].contains(kind));
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_kind(text in any::<String>()) {
            let kind = of("q", "t", &text);
            prop_assert!(kind.message.len() <= KIND_BYTES);
            prop_assert_eq!(kind.fingerprint.len(), 32);
            prop_assert_eq!(of("q", "t", &kind.message).message, kind.message);
        }
    }
}
