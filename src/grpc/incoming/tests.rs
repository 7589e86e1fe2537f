//! What is refused before it is decoded is only what may be: all that prost decodes, in any pieces, passes as it is.

use std::convert::Infallible;

use axum::body::Body as Pieces;
use bytes::Bytes;
use futures::stream;
use http_body::Body as _;
use proptest::{collection::vec, prelude::*};
use prost::Message as _;
use tonic::{Code, body::Body};

use super::{frames::Requests, rules::Rules, sequence::Sequence, shape::Shapes, *};
use crate::{
    budget::{Memory, SMALLEST},
    config::{Config, reader::Reader},
    grpc::proto::{Message, PublishRequest, PublishStreamRequest, message::Payload},
};

const STREAM: &str = "/courtier.v1.Publisher/PublishStream";

fn intake() -> Arc<Intake> {
    Memory::new(SMALLEST, 0).intake
}

fn limits() -> Limits {
    let config = Config::read(Reader::fixed(&[])).expect("the defaults are valid");
    Limits {
        max_payload_bytes: 1_000,
        ..config.limits
    }
}

fn rules(path: &str) -> Rules {
    Incoming::new(&limits(), intake()).rules[path].clone()
}

/// Requests, most of them whole; the others with some bytes that are different, or cut.
fn encoded() -> impl Strategy<Value = Vec<u8>> {
    let request = (
        any::<u64>(),
        ".{0,20}",
        vec(any::<u8>(), 0..40),
        any::<bool>(),
    );
    let request = request.prop_map(|(sequence, text, data, allow_unroutable)| {
        let message = Message {
            payload: Some(Payload::Data(data.into())),
            message_id: text.clone(),
            headers: Some(prost_types::Struct {
                fields: [(text.clone(), prost_types::Value::default())].into(),
            }),
            ..Message::default()
        };
        let publish = Some(PublishRequest {
            exchange: text.clone(),
            routing_key: text,
            message: Some(message),
            allow_unroutable,
        });
        PublishStreamRequest { sequence, publish }.encode_to_vec()
    });
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (
        request,
        changes,
        any::<prop::sample::Index>(),
        any::<bool>(),
    )
        .prop_map(|(mut bytes, changes, cut, is_cut)| {
            if !bytes.is_empty() {
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                if is_cut {
                    bytes.truncate(cut.index(bytes.len()));
                }
            }
            bytes
        })
}

/// The messages that a body of these pieces becomes, and the status that it ends with.
async fn read(rules: Rules, gzip: bool, pieces: Vec<Bytes>) -> (Vec<Bytes>, Code, Refusals) {
    let pieces = stream::iter(pieces.into_iter().map(Ok::<_, Infallible>));
    let refusals = Refusals::default();
    let body = Body::new(Pieces::from_stream(pieces));
    let reader = crate::budget::Memory::new(crate::budget::SMALLEST, 0)
        .intake
        .reader();
    let mut requests = Requests::new(body, rules, gzip, refusals.clone(), reader);
    let (mut messages, mut code) = (Vec::new(), Code::Ok);
    while let Some(frame) =
        std::future::poll_fn(|context| std::pin::Pin::new(&mut requests).poll_frame(context)).await
    {
        match frame {
            Ok(frame) => messages.push(frame.into_data().expect("data").slice(HEADER..)),
            Err(status) => code = status.code(),
        }
    }
    (messages, code, refusals)
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = header(message.len()).to_vec();
    frame[0] = flag;
    frame.extend(message);
    frame
}

fn zipped(message: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(message).expect("in memory");
    framed(1, &gzip.finish().expect("in memory"))
}

proptest! {
    #[test]
    fn what_passes_is_what_prost_decodes(bytes in encoded()) {
        let decoded = PublishStreamRequest::decode(&*bytes);
        if rules(STREAM).check(&bytes).is_ok() {
            prop_assert!(decoded.is_ok(), "{:x?}: {:?}", bytes, decoded);
        }
        if let Ok(decoded) = decoded {
            prop_assert_eq!(Sequence::of(&bytes), Some(decoded.sequence));
            // As it is encoded, and not with a map's entry of a wire type that prost overlooks.
            let encoded = decoded.encode_to_vec();
            prop_assert_eq!(rules(STREAM).check(&encoded), Ok(()), "{:x?}", bytes);
        }
    }

    #[test]
    fn messages_are_the_same_in_pieces_of_any_size(
        messages in vec((encoded(), any::<bool>(), 0..3_usize), 1..6),
        sizes in vec(1..200_usize, 1..8),
    ) {
        let (mut body, mut expected) = (Vec::new(), Vec::new());
        for (mut message, is_zipped, too_large) in messages {
            if too_large == 0 {
                // A text that no field has; the sequence before it stays readable if it was.
                message.extend([0xfa, 0x7f]);
                prost::encoding::encode_varint(100_000, &mut message);
                let noise: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(100_000).collect();
                message.extend(noise);
            }
            body.extend(if is_zipped { zipped(&message) } else { framed(0, &message) });
            let known = Sequence::of(&message);
            let whole = too_large != 0 && rules(STREAM).check(&message).is_ok();
            match known {
                _ if whole => expected.push(message),
                Some(sequence) => {
                    let instead = PublishStreamRequest { sequence, publish: None };
                    expected.push(instead.encode_to_vec());
                }
                None => break,
            }
        }
        let mut body = Bytes::from(body);
        let mut pieces = Vec::new();
        for size in sizes.iter().cycle() {
            if body.is_empty() {
                break;
            }
            pieces.push(body.split_to(body.len().min(*size * 7)));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (messages, _, _) = runtime.block_on(read(rules(STREAM), true, pieces));
        prop_assert_eq!(messages, expected);
    }
}

#[test]
fn what_prost_does_not_decode_is_refused() {
    let deep = |groups: usize| [vec![0x53; groups], vec![0x54; groups]].concat();
    for (bytes, decodes) in [
        // A field whose number has too many bits, and the end of a group like that.
        (vec![0xc0, 0xca, 0x89, 0x90, 0x39, 0x12], false),
        (vec![0xfb, 0x05, 0xf4, 0x80, 0x80, 0x80, 0x41], false),
        // A group that ends as another one, and such that are in each other.
        (vec![0x53, 0x5c], false),
        (vec![0x53, 0x5b, 0x54, 0x5c], false),
        (vec![0x53, 0x5b, 0x5c, 0x54], true),
        (deep(100), true),
        (deep(101), false),
    ] {
        assert_eq!(PublishStreamRequest::decode(&*bytes).is_ok(), decodes);
        assert_eq!(rules(STREAM).check(&bytes).is_ok(), decodes, "{bytes:x?}");
    }
}

#[test]
fn each_rpc_has_its_rules() {
    let limits = limits();
    let incoming = Incoming::new(&limits, intake());
    for service in [
        "Publisher",
        "Subscriber",
        "FailedMessages",
        "MessageLog",
        "QueueAdmin",
    ] {
        let of_it = |path: &&String| path.starts_with(&format!("/courtier.v1.{service}/"));
        assert!(incoming.rules.keys().filter(of_it).count() > 0, "{service}");
    }
    assert_eq!(
        incoming.rules["/grpc.health.v1.Health/Check"].bytes,
        64 * 1024
    );
    assert_eq!(incoming.rules[STREAM].bytes, limits.request_bytes());
    let batch = &incoming.rules["/courtier.v1.Publisher/PublishBatch"];
    assert_eq!(batch.bytes, limits.max_batch_bytes);
    assert!(Shapes::read(&[DESCRIPTORS]).requests.len() > 30);
}

#[tokio::test]
async fn one_request_is_handed_over_when_the_caller_has_said_all() {
    let publish = || rules("/courtier.v1.Publisher/Publish");
    let message = PublishRequest::default().encode_to_vec();
    let one = || framed(0, &message);
    let said = |parts: Vec<Vec<u8>>| parts.into_iter().map(Bytes::from).collect::<Vec<_>>();
    let (messages, code, _) = read(publish(), false, said(vec![one()])).await;
    assert_eq!((messages.len(), code), (1, Code::Ok));
    for wrong in [vec![], vec![one(), one()], vec![one(), vec![0]]] {
        let (messages, code, _) = read(publish(), false, said(wrong)).await;
        assert_eq!((messages.len(), code), (0, Code::InvalidArgument));
    }
}
