//! Stream queues: read from where one says, and what does not go with them.

use courtier::grpc::proto::{
    Delivery, Start, StreamOffset,
    stream_offset::{From, Position},
};
use prost_types::{Timestamp, value::Kind};
use tonic::Code;

use crate::{
    front::{Front, On, Stream, bodies, body, fault, from, on_both, on_one},
    native,
};

fn at(queue: &str, from_where: From) -> Start {
    Start {
        stream_offset: Some(StreamOffset {
            from: Some(from_where),
        }),
        ..from(&[queue])
    }
}

fn position(position: Position) -> From {
    From::Position(position.into())
}

fn offset_of(delivery: &Delivery) -> Option<f64> {
    let headers = delivery.message.as_ref()?.headers.as_ref()?;
    match headers.fields.get("x-stream-offset")?.kind {
        Some(Kind::NumberValue(offset)) => Some(offset),
        _ => None,
    }
}

/// The field that is at fault.
async fn refused(front: &Front, start: Start) -> String {
    let Err(status) = Stream::open(front, start).await else {
        panic!("it is refused");
    };
    let fault = fault(&status);
    assert_eq!(fault.code, Code::InvalidArgument, "{status:?}");
    fault.field
}

async fn a_stream_is_read_from_where_one_says(on: On) {
    let front = on.gateway().await;
    let queue = front.name("stream");
    native::odd("stream", &queue).await;
    // Each is confirmed before the next one: a chunk each.
    front.fill(&queue, &["a", "b", "c"]).await;
    let long_ago = Timestamp {
        seconds: 1,
        nanos: 0,
    };
    let cases = [
        (position(Position::First), vec!["a", "b", "c"]),
        (From::Offset(1), vec!["b", "c"]),
        (From::Time(long_ago), vec!["a", "b", "c"]),
        (position(Position::Last), vec!["c"]),
    ];
    for (from_where, expected) in cases {
        let mut stream = front.subscribe(at(&queue, from_where)).await;
        let deliveries = stream.deliveries(expected.len()).await;
        assert_eq!(bodies(&deliveries), expected, "{from_where:?}");
    }
    let mut next = front.subscribe(at(&queue, position(Position::Next))).await;
    let mut unset = front.subscribe(from(&[&queue])).await;
    front.fill(&queue, &["d"]).await;
    for stream in [&mut next, &mut unset] {
        let delivery = stream.delivery().await;
        assert_eq!(
            (body(&delivery).as_str(), offset_of(&delivery)),
            ("d", Some(3.0))
        );
    }
    front.delete_queue(&queue).await;
}

async fn a_consumer_of_a_stream_has_no_priority(on: On) {
    let front = on.gateway().await;
    let queue = front.name("stream");
    native::odd("stream", &queue).await;
    let start = Start {
        consumer_priority: 1,
        ..from(&[&queue])
    };
    assert_eq!(refused(&front, start).await, "start.consumer_priority");
    front.neighbours_are_unharmed().await;
    front.delete_queue(&queue).await;
}

async fn a_queue_that_is_no_stream_has_no_offsets(on: On) {
    let front = on.gateway().await;
    let classic = front.queue("classic").await;
    let quorum = front.queue_with("quorum", |queue| {
        queue.kind = courtier::broker::topology::QueueKind::Quorum;
    });
    for queue in [&classic, &quorum.await] {
        let start = at(queue, position(Position::First));
        assert_eq!(refused(&front, start).await, "start.stream_offset");
    }
    front.neighbours_are_unharmed().await;
}

async fn offsets_that_say_nothing_are_refused(on: On) {
    let front = on.gateway().await;
    let queue = front.queue("work").await;
    let before_1970 = Timestamp {
        seconds: -1,
        nanos: 0,
    };
    for from_where in [
        position(Position::Unspecified),
        From::Position(17),
        From::Offset(u64::MAX),
        From::Time(before_1970),
    ] {
        let start = at(&queue, from_where);
        assert_eq!(refused(&front, start).await, "start.stream_offset");
    }
    let empty = Start {
        stream_offset: Some(StreamOffset { from: None }),
        ..from(&[&queue])
    };
    assert_eq!(refused(&front, empty).await, "start.stream_offset");
    let both = Start {
        consumer_priority: 1,
        ..at(&queue, position(Position::First))
    };
    assert_eq!(refused(&front, both).await, "start.consumer_priority");
}

on_both! {
    a_queue_that_is_no_stream_has_no_offsets
    offsets_that_say_nothing_are_refused
}
/// The embedded broker has no streams.
mod streams_of_rabbitmq {
    use super::*;

    on_one! { rabbitmq:
        a_stream_is_read_from_where_one_says
        a_consumer_of_a_stream_has_no_priority
    }
}
