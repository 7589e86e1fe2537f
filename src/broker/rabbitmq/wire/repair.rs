//! Makes frames readable for the client library, in place: it ends the whole connection over a frame that it cannot read.
//!
//! AMQP's short strings are bytes to RabbitMQ and to many clients; lapin takes them for UTF-8. Bytes that are none are replaced by
//! `?`, so that no length changes. Tables that are nested deeper than [`MAX_DEPTH`] become byte arrays (which are written alike):
//! the client library reads tables recursively, and its thread's stack ends before the deepest that a frame has room for.
//! Everything else stays as it is (<https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf>, 4.2.5 and 2.3.5).

/// What RabbitMQ itself writes (`x-death`) has two levels.
const MAX_DEPTH: usize = 16;

const BASIC: u16 = 60;
const BASIC_DELIVER: u16 = 60;
const BASIC_GET_OK: u16 = 71;

/// Repairs the payload of a content header frame: class, weight, size, flags, properties. Whether anything was changed.
pub(super) fn header(payload: &mut [u8]) -> bool {
    let mut walk = Walk::new(payload);
    // What does not even have its fields is left to the client library to refuse.
    let _ = walk.header();
    walk.changed
}

/// Repairs the short strings of the methods that carry names which others made: deliveries, returns, and closes with their reasons.
pub(super) fn method(payload: &mut [u8]) -> bool {
    let mut walk = Walk::new(payload);
    let _ = walk.method();
    walk.changed
}

/// The delivery tag of a `basic.deliver` or `basic.get-ok`.
pub(super) fn delivery_tag(payload: &[u8]) -> Option<u64> {
    let (class, rest) = payload.split_first_chunk()?;
    let (method, rest) = rest.split_first_chunk()?;
    let tag = match (u16::from_be_bytes(*class), u16::from_be_bytes(*method)) {
        (BASIC, BASIC_DELIVER) => {
            let (consumer_tag, rest) = rest.split_first()?;
            rest.get(usize::from(*consumer_tag)..)?
        }
        (BASIC, BASIC_GET_OK) => rest,
        _ => return None,
    };
    Some(u64::from_be_bytes(*tag.first_chunk()?))
}

/// A walk over a payload. `None` where it ends too early.
struct Walk<'a> {
    bytes: &'a mut [u8],
    at: usize,
    changed: bool,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            changed: false,
        }
    }

    fn header(&mut self) -> Option<()> {
        self.skip(2 + 2 + 8)?;
        let flags = self.u16()?;
        let has = |property: u16| flags & (1 << (15 - property)) != 0;
        // Content type and encoding, headers, delivery mode, priority, correlation id, reply to, expiration, message id, timestamp,
        // type, user id, app id, cluster id.
        for property in 0..14 {
            if has(property) {
                match property {
                    2 => self.table(1)?,
                    3 | 4 => self.skip(1)?,
                    9 => self.skip(8)?,
                    _ => self.short_string()?,
                }
            }
        }
        Some(())
    }

    fn method(&mut self) -> Option<()> {
        match (self.u16()?, self.u16()?) {
            // Consumer tag, delivery tag, redelivered, exchange, routing key.
            (BASIC, BASIC_DELIVER) => {
                self.short_string()?;
                self.skip(8 + 1)?;
                self.short_string()?;
                self.short_string()
            }
            // `basic.return`: code, text, exchange, routing key.
            (BASIC, 50) => {
                self.skip(2)?;
                self.short_string()?;
                self.short_string()?;
                self.short_string()
            }
            // `basic.get-ok`: delivery tag, redelivered, exchange, routing key.
            (BASIC, BASIC_GET_OK) => {
                self.skip(8 + 1)?;
                self.short_string()?;
                self.short_string()
            }
            // `channel.close` and `connection.close`: code, text.
            (20, 40) | (10, 50) => {
                self.skip(2)?;
                self.short_string()
            }
            _ => Some(()),
        }
    }

    /// A table with its length. `depth`: its own level, from 1.
    fn table(&mut self, depth: usize) -> Option<()> {
        let end = self.end()?;
        while self.at < end {
            self.short_string()?;
            self.value(depth)?;
        }
        Some(())
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        let end = self.end()?;
        while self.at < end {
            self.value(depth)?;
        }
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        let kind = self.at;
        self.skip(1)?;
        match self.bytes[kind] {
            b'V' => Some(()),
            b't' | b'b' | b'B' => self.skip(1),
            b's' | b'U' | b'u' => self.skip(2),
            b'I' | b'i' | b'f' => self.skip(4),
            b'D' => self.skip(5),
            b'L' | b'l' | b'd' | b'T' => self.skip(8),
            b'S' | b'x' => {
                self.at = self.end()?;
                Some(())
            }
            b'A' | b'F' if depth >= MAX_DEPTH => {
                self.bytes[kind] = b'x';
                self.changed = true;
                self.at = self.end()?;
                Some(())
            }
            b'A' => self.array(depth + 1),
            b'F' => self.table(depth + 1),
            _ => None,
        }
    }

    fn short_string(&mut self) -> Option<()> {
        let length = usize::from(*self.bytes.get(self.at)?);
        self.skip(1)?;
        let begin = self.at;
        self.skip(length)?;
        self.changed |= replace(&mut self.bytes[begin..begin + length]);
        Some(())
    }

    /// Reads a length of four bytes: where what has it ends.
    fn end(&mut self) -> Option<usize> {
        let length = self.bytes.get(self.at..)?.first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        self.skip(4)?;
        let end = self.at.checked_add(length)?;
        (end <= self.bytes.len()).then_some(end)
    }

    fn u16(&mut self) -> Option<u16> {
        let number = *self.bytes.get(self.at..)?.first_chunk()?;
        self.skip(2)?;
        Some(u16::from_be_bytes(number))
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        let at = self.at.checked_add(count)?;
        (at <= self.bytes.len()).then(|| self.at = at)
    }
}

/// Replaces what is no UTF-8.
fn replace(mut text: &mut [u8]) -> bool {
    let mut changed = false;
    while let Err(error) = std::str::from_utf8(text) {
        let from = error.valid_up_to();
        let to = error.error_len().map_or(text.len(), |length| from + length);
        text[from..to].fill(b'?');
        changed = true;
        text = &mut text[to..];
    }
    changed
}

#[cfg(test)]
mod tests {
    use lapin::{
        BasicProperties,
        types::{AMQPValue, FieldArray, FieldTable},
    };
    use proptest::prelude::*;

    use super::*;

    /// A content header with a correlation id and headers of these bytes.
    fn with(correlation_id: &[u8], headers: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        payload.extend(((1_u16 << 13) | (1 << 10)).to_be_bytes());
        payload.extend(u32::try_from(headers.len()).expect("small").to_be_bytes());
        payload.extend(headers);
        payload.push(u8::try_from(correlation_id.len()).expect("small"));
        payload.extend(correlation_id);
        payload
    }

    fn entry(name: &[u8], kind: u8, value: &[u8]) -> Vec<u8> {
        let mut entry = vec![u8::try_from(name.len()).expect("small")];
        entry.extend(name);
        entry.push(kind);
        entry.extend(value);
        entry
    }

    fn long(value: &[u8]) -> Vec<u8> {
        let mut long = u32::try_from(value.len())
            .expect("small")
            .to_be_bytes()
            .to_vec();
        long.extend(value);
        long
    }

    /// What the client library reads.
    fn read(payload: &[u8]) -> Option<BasicProperties> {
        let (rest, properties) = lapin::protocol::basic::parse_properties(&payload[12..]).ok()?;
        rest.is_empty().then_some(properties)
    }

    #[test]
    fn bytes_that_are_no_utf8_are_replaced_and_the_rest_stays() {
        let inner = entry(b"k\xffy", b'S', &long(b"\xff\xfe"));
        let mut headers = entry(b"caf\xc3\xa9", b'F', &long(&inner));
        headers.extend(entry(b"\xe9t\xe9", b't', &[1]));
        let mut payload = with(b"\xff\xfe\x01", &headers);
        assert!(
            read(&payload).is_none(),
            "the client library cannot read it"
        );
        assert!(header(&mut payload));
        let properties = read(&payload).expect("readable");
        assert_eq!(
            properties.correlation_id().as_ref().map(|id| id.as_str()),
            Some("??\u{1}")
        );
        let headers = properties.headers().as_ref().expect("there").inner();
        assert_eq!(headers.get("?t?"), Some(&AMQPValue::Boolean(true)));
        let Some(AMQPValue::FieldTable(inner)) = headers.get("café") else {
            panic!("{headers:?}");
        };
        let Some(AMQPValue::LongString(text)) = inner.inner().get("k?y") else {
            panic!("{inner:?}");
        };
        assert_eq!(text.as_bytes(), b"\xff\xfe");
    }

    #[test]
    fn tables_without_bottom_become_bytes() {
        let mut value = entry(b"", b'V', &[]);
        for _ in 0..10_000 {
            value = entry(b"", b'F', &long(&value));
        }
        let mut payload = with(b"", &value);
        let length = payload.len();
        assert!(header(&mut payload));
        assert_eq!(payload.len(), length);
        let properties = read(&payload).expect("readable");
        let mut table = properties.headers().clone().expect("there");
        let mut depth = 1;
        let bytes = loop {
            match table.inner().get("").expect("one entry") {
                AMQPValue::FieldTable(inner) => {
                    table = inner.clone();
                    depth += 1;
                }
                AMQPValue::ByteArray(bytes) => break bytes.clone(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(depth, MAX_DEPTH);
        assert!(bytes.len() > 50_000);
    }

    #[test]
    fn the_tag_of_a_delivery_is_read() {
        let mut payload = vec![0, 60, 0, 60, 3];
        payload.extend(b"a#0");
        payload.extend(77_u64.to_be_bytes());
        payload.extend([0, 0, 1, 0xff]);
        assert_eq!(delivery_tag(&payload), Some(77));
        assert!(method(&mut payload));
        assert_eq!(payload.last(), Some(&b'?'));
        assert_eq!(delivery_tag(&[0, 60, 0, 80]), None);
    }

    fn value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::LongString(bytes.into())),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
            Just(AMQPValue::Void),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4)
                    .prop_map(|values| AMQPValue::FieldArray(FieldArray::from(values))),
                prop::collection::btree_map("\\PC{0,8}", inner, 0..4).prop_map(|entries| {
                    let mut table = FieldTable::default();
                    for (name, value) in entries {
                        table.insert(name.into(), value);
                    }
                    AMQPValue::FieldTable(table)
                }),
            ]
        })
    }

    proptest! {
        /// What the client library can read is not touched.
        #[test]
        fn what_is_readable_stays_as_it_is(name in "\\PC{0,20}", value in value(), id in "\\PC{0,20}") {
            let mut headers = FieldTable::default();
            headers.insert(name.into(), value);
            let properties = BasicProperties::default()
                .with_headers(headers)
                .with_correlation_id(id.into())
                .with_priority(3)
                .with_timestamp(7)
                .with_app_id("app".into());
            let mut payload = vec![0; 12];
            let buffer = lapin::protocol::basic::gen_properties(&properties)(Vec::new().into());
            payload.extend(buffer.expect("written").into_inner().0);
            let before = payload.clone();
            prop_assert!(!header(&mut payload));
            prop_assert_eq!(payload, before);
        }

        /// Whatever bytes the strings hold, what comes out is readable and as long as it was.
        #[test]
        fn any_strings_become_readable(
            id in prop::collection::vec(any::<u8>(), 0..40),
            name in prop::collection::vec(any::<u8>(), 0..40),
            text in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut payload = with(&id, &entry(&name, b'S', &long(&text)));
            let length = payload.len();
            header(&mut payload);
            prop_assert_eq!(payload.len(), length);
            prop_assert!(read(&payload).is_some());
        }

        /// Nothing panics, whatever comes.
        #[test]
        fn no_bytes_are_too_odd(mut payload in prop::collection::vec(any::<u8>(), 0..200)) {
            header(&mut payload);
            method(&mut payload);
            delivery_tag(&payload);
        }
    }
}
