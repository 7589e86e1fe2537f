//! A message's properties and headers as one blob: MessagePack by field name, so that every AMQP type and every byte comes
//! back, and later versions may add fields.

use super::Error;
use crate::message::Message;

/// Everything of a message but its payload.
pub(super) fn encode(message: &Message) -> Vec<u8> {
    // Writing to memory cannot fail, and every field has a form.
    rmp_serde::to_vec_named(message).unwrap_or_default()
}

/// The message with these properties and this payload. `id` is what errors name.
pub(super) fn decode(properties: &[u8], payload: Vec<u8>, id: &str) -> Result<Message, Error> {
    let message: Result<Message, _> = rmp_serde::from_slice(properties);
    let message = message.map_err(|error| {
        tracing::error!(id, %error, "stored properties cannot be read");
        Error::Damaged {
            id: id.to_owned(),
            what: "properties",
        }
    })?;
    Ok(Message {
        payload: payload.into(),
        ..message
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{Table, Value};

    #[test]
    fn every_type_comes_back_as_it_was() {
        let nested = Table::from([("deep".to_owned(), Value::Array(vec![Value::Void]))]);
        let values = [
            Value::Void,
            Value::Bool(true),
            Value::I8(-1),
            Value::U8(255),
            Value::I16(i16::MIN),
            Value::U16(u16::MAX),
            Value::I32(i32::MIN),
            Value::U32(u32::MAX),
            Value::I64(i64::MIN),
            Value::F32(f32::INFINITY),
            Value::F64(-0.0),
            Value::Decimal {
                scale: 255,
                value: i32::MIN,
            },
            Value::Text(Bytes::from_static(b"\xff\0text")),
            Value::Blob(Bytes::from_static(b"\0\x01")),
            Value::Timestamp(u64::MAX),
            Value::Array(vec![Value::I8(1), Value::Table(nested.clone())]),
            Value::Table(nested),
        ];
        let headers = values.into_iter().enumerate();
        let message = Message {
            message_id: Some(String::new()),
            kind: Some("k".into()),
            priority: Some(255),
            timestamp: Some(u64::MAX),
            headers: headers.map(|(n, value)| (n.to_string(), value)).collect(),
            payload: Bytes::from_static(b"\0\xff"),
            ..Message::default()
        };
        let encoded = encode(&message);
        let decoded = decode(&encoded, message.payload.to_vec(), "id").expect("readable");
        assert_eq!(decoded, message);
    }

    #[test]
    fn not_a_number_keeps_its_bits() {
        let bits = 0x7ff8_0000_0000_1234;
        let headers = Table::from([("nan".to_owned(), Value::F64(f64::from_bits(bits)))]);
        let message = Message {
            headers,
            ..Message::default()
        };
        let decoded = decode(&encode(&message), vec![], "id").expect("readable");
        let Some(Value::F64(number)) = decoded.headers.get("nan") else {
            panic!("a number");
        };
        assert_eq!(number.to_bits(), bits);
    }

    #[test]
    fn damage_is_an_error() {
        assert!(matches!(
            decode(b"\xc1", vec![], "x"),
            Err(Error::Damaged { .. })
        ));
    }
}
