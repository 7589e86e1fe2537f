//! Which names of exchanges and queues the gateway accepts.
//!
//! Rights and the broker must see the same name, and two names that look alike must not be two: so control and invisible
//! characters, blanks around and unnormalised text are refused, not mended.

use unicode_normalization::is_nfc;

/// The exchanges that every broker has: a direct, a topic and a fanout exchange, and two headers exchanges. They are used like any
/// other, and never declared or deleted (<https://www.rabbitmq.com/docs/exchanges>).
pub const STANDARD_EXCHANGES: [&str; 5] = [
    "amq.direct",
    "amq.topic",
    "amq.fanout",
    "amq.headers",
    "amq.match",
];

/// The queues whose names the broker made up: those that clients wait in for replies.
const MADE_UP: &str = "amq.gen-";

/// The addresses at which clients wait for replies without a queue (<https://www.rabbitmq.com/docs/direct-reply-to>).
pub const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to.";

/// AMQP's short strings hold so many bytes.
pub const MAX_BYTES: usize = 255;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Malformed.
    #[error("{0}")]
    Invalid(&'static str),
    /// Well-formed, and not for clients.
    #[error("names that begin with \"amq.\" belong to the broker")]
    Reserved,
}

/// Checks the name of a queue that is consumed, declared or changed.
pub fn queue(name: &str) -> Result<(), Refused> {
    if name.is_empty() {
        // The broker would take it for "the queue declared last on this channel".
        return Err(Refused::Invalid("must not be empty"));
    }
    name_of_either(name)
}

/// Checks the name of a queue that is published to: another client's, with a name that the broker made up, is allowed, for replies,
/// and so is an address of direct reply-to.
pub fn target(queue: &str) -> Result<(), Refused> {
    let waits = queue.starts_with(MADE_UP) || queue.starts_with(DIRECT_REPLY);
    match self::queue(queue) {
        Err(Refused::Reserved) if waits => Ok(()),
        checked => checked,
    }
}

/// Whether a message goes to a client that waits for a reply without a queue. Only the default exchange knows such addresses.
pub fn is_direct_reply(exchange: &str, routing_key: &str) -> bool {
    exchange.is_empty() && routing_key.starts_with(DIRECT_REPLY)
}

/// Checks the name of an exchange that is published or bound to; empty is the default exchange.
pub fn exchange(name: &str) -> Result<(), Refused> {
    match own_exchange(name) {
        Err(Refused::Reserved) if STANDARD_EXCHANGES.contains(&name) => Ok(()),
        checked => checked,
    }
}

/// Checks the name of an exchange that is declared or deleted.
pub fn own_exchange(name: &str) -> Result<(), Refused> {
    name_of_either(name)
}

/// Checks a routing key: any text without control characters that fits.
pub fn routing_key(key: &str) -> Result<(), Refused> {
    short_text(key)
}

/// Checks a text that travels as an AMQP short string.
pub fn short_text(text: &str) -> Result<(), Refused> {
    if text.len() > MAX_BYTES {
        return Err(Refused::Invalid("must be at most 255 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(Refused::Invalid("must not contain control characters"));
    }
    Ok(())
}

fn name_of_either(name: &str) -> Result<(), Refused> {
    short_text(name)?;
    if name.chars().any(is_invisible) {
        return Err(Refused::Invalid(
            "must not contain invisible or direction-changing characters",
        ));
    }
    if name.trim() != name {
        return Err(Refused::Invalid("must not begin or end with a blank"));
    }
    if !is_nfc(name) {
        return Err(Refused::Invalid("must be in Unicode normal form C"));
    }
    if name.starts_with("amq.") {
        return Err(Refused::Reserved);
    }
    Ok(())
}

/// Zero-width characters, joiners, bidirectional marks and the byte order mark (<https://www.unicode.org/reports/tr36/>).
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_accepted() {
        for name in ["orders_queue", "a/b.c", "é", "x", &"q".repeat(255)] {
            assert_eq!(queue(name), Ok(()), "{name}");
        }
        assert_eq!(exchange(""), Ok(()));
    }

    #[test]
    fn names_that_could_be_mistaken_are_refused() {
        let hostile = [
            "",
            " q",
            "q ",
            "q\n",
            "q\r",
            "q\0",
            "q\u{7f}",
            "q\u{85}",
            "q\u{202e}",
            "q\u{200b}",
            "e\u{301}",
            &"q".repeat(256),
        ];
        for name in hostile {
            assert!(matches!(queue(name), Err(Refused::Invalid(_))), "{name:?}");
        }
        assert_eq!(queue("amq.gen-1"), Err(Refused::Reserved));
        assert_eq!(own_exchange("amq.topic"), Err(Refused::Reserved));
        assert_eq!(exchange("amq.rabbitmq.log"), Err(Refused::Reserved));
        // It stands for "here", and works only on the channel that waits.
        assert_eq!(target("amq.rabbitmq.reply-to"), Err(Refused::Reserved));
    }

    #[test]
    fn what_every_broker_has_is_used_like_any_other() {
        for name in STANDARD_EXCHANGES {
            assert_eq!(exchange(name), Ok(()));
        }
        assert_eq!(target("amq.gen-JzTY20BRgKO-HjmUJj0wLg"), Ok(()));
        assert_eq!(target("amq.rabbitmq.reply-to.g2dkAA==.x"), Ok(()));
        for name in ["amq.gen-\n", "amq.rabbitmq.reply-to.\n"] {
            assert!(target(name).is_err());
            assert!(queue(name.trim()).is_err(), "it is only published to");
        }
    }
}
