//! Looking at messages and moving them: whatever happens, none is lost.

use std::time::Duration;

use courtier::{
    broker::{
        Checked, Publish, PublishReply,
        topology::{Queue, QueueKind},
    },
    grpc::proto::{
        CreateQueueRequest, MoveMessagesRequest, MoveMessagesResponse, PeekMessagesRequest,
        PeekedMessage, create_queue_request::Profile, message::Payload,
    },
    message::{Message, Value},
};
use prost_types::value::Kind;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    front::{On, bodies, body, fault, from, on_all, refusal, refused, text, timely, to_queue},
    harness::eventually,
    office::{Office, arguments},
};

impl Office {
    async fn peek(&self, queue: &str, limit: i32) -> Result<Vec<PeekedMessage>, Status> {
        let request = PeekMessagesRequest {
            queue: queue.to_owned(),
            limit,
        };
        let answer = timely(self.admin().peek_messages(request)).await?;
        Ok(answer.into_inner().messages)
    }

    async fn move_all(
        &self,
        source: &str,
        destination: &str,
    ) -> Result<MoveMessagesResponse, Status> {
        self.move_some(source, destination, 0).await
    }

    async fn move_some(
        &self,
        source: &str,
        destination: &str,
        limit: u64,
    ) -> Result<MoveMessagesResponse, Status> {
        let request = MoveMessagesRequest {
            source: source.to_owned(),
            destination: destination.to_owned(),
            limit,
        };
        let answer = timely(self.admin().move_messages(request)).await?;
        Ok(answer.into_inner())
    }

    /// Stores a message past the checks of the API, as a native client can.
    async fn store(&self, queue: &str, message: Message) {
        let (reply, fate) = PublishReply::single();
        let publish = Publish {
            publish_id: Uuid::now_v7(),
            exchange: String::new(),
            routing_key: queue.to_owned(),
            mandatory: true,
            message,
            deadline: tokio::time::Instant::now() + Duration::from_secs(10),
            admission: None,
            checked: Checked::default(),
        };
        self.broker.publish(self.broker.lane(), publish, reply);
        let fate = timely(fate).await.expect("answered");
        assert_eq!(fate, courtier::broker::Fate::Confirmed);
    }
}

fn seen(peeked: &[PeekedMessage]) -> Vec<String> {
    let payloads = peeked.iter().map(|one| one.message.as_ref().expect("set"));
    let texts = payloads.map(|message| match &message.payload {
        Some(Payload::Data(data)) => String::from_utf8_lossy(data).into_owned(),
        other => panic!("data is shown, not {other:?}"),
    });
    texts.collect()
}

async fn what_is_looked_at_stays(on: On) {
    let office = Office::open(on).await;
    let queue = office.queue("q").await;
    office.fill(&queue, &["a", "b", "c", "d"]).await;
    let peeked = office.peek(&queue, 2).await.expect("seen");
    assert_eq!(seen(&peeked), ["a", "b"]);
    assert!(!peeked[0].redelivered);
    assert_eq!(peeked[0].routing_key, queue);
    let again = office.peek(&queue, 0).await.expect("seen");
    assert_eq!(seen(&again), ["a", "b", "c", "d"]);
    assert!(again[0].redelivered && !again[3].redelivered);
    assert_eq!(office.drain_bodies(&queue).await, ["a", "b", "c", "d"]);
    assert_eq!(office.peek(&queue, 5).await.expect("empty"), []);
}

async fn bad_looks_are_refused(on: On) {
    let office = Office::open(on).await;
    let queue = office.queue("q").await;
    let bad = refused(Code::InvalidArgument, "INVALID_REQUEST");
    for limit in [-1, 101] {
        assert_eq!(refusal(office.peek(&queue, limit).await), bad);
    }
    let missing = office.peek(&office.name("missing"), 1).await;
    assert_eq!(refusal(missing), refused(Code::NotFound, "QUEUE_NOT_FOUND"));
    let empty = office.peek("", 1).await;
    assert_eq!(fault(&empty.expect_err("no name")).field, "queue");
}

/// Each look is a return, and the queue drops what returned twice.
async fn nothing_dies_of_being_looked_at(on: On) {
    let office = Office::open(on).await;
    let queue = office
        .queue_with("q", |queue: &mut Queue| {
            queue.kind = QueueKind::Quorum;
            queue.delivery_limit = Some(2);
        })
        .await;
    let mut all: Vec<String> = (0..5).map(|n| n.to_string()).collect();
    for body in &all {
        office.fill(&queue, &[body]).await;
    }
    eventually("all is ready", async || office.ready(&queue).await == 5).await;
    for _ in 0..8 {
        let peeked = office.peek(&queue, 3).await.expect("seen");
        assert_eq!(peeked.len(), 3);
        eventually("all is back", async || office.ready(&queue).await == 5).await;
    }
    let mut left = office.drain_bodies(&queue).await;
    left.sort();
    all.sort();
    assert_eq!(left, all);
}

/// RabbitMQ fetches nothing from a quorum queue with a single active consumer.
async fn a_queue_with_a_single_active_consumer_is_looked_at_while_nobody_consumes(on: On) {
    let office = Office::open(on).await;
    let queue = office.name("q");
    let created = office.create(CreateQueueRequest {
        name: queue.clone(),
        profile: Profile::Standard.into(),
        arguments: arguments(&[("x-single-active-consumer", Kind::BoolValue(true))]),
        ..Default::default()
    });
    created.await.expect("created");
    let all: Vec<String> = (0..25).map(|n| n.to_string()).collect();
    let bodies: Vec<&str> = all.iter().map(String::as_str).collect();
    office.fill(&queue, &bodies).await;
    eventually("all is ready", async || office.ready(&queue).await == 25).await;
    let peeked = office.peek(&queue, 3).await.expect("seen");
    assert_eq!(seen(&peeked), ["0", "1", "2"]);
    eventually("all is back", async || office.ready(&queue).await == 25).await;

    let mut stream = office.subscribe(from(&[&queue])).await;
    assert_eq!(body(&stream.delivery().await), "0");
    let refused = office
        .peek(&queue, 3)
        .await
        .expect_err("it is consumed from");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("single active consumer"),
        "{refused}"
    );
    drop(stream);
    eventually("all is back", async || office.ready(&queue).await == 25).await;

    let parked = office.queue("parked").await;
    let moved = office.move_all(&queue, &parked).await.expect("moved");
    assert_eq!((moved.moved_count, moved.error), (25, None));
    assert_eq!(office.drain_bodies(&parked).await, all);
}

async fn messages_move_byte_for_byte_and_in_order(on: On) {
    let office = Office::open(on).await;
    let (source, destination) = (office.queue("from").await, office.queue("to").await);
    let elsewhere = office.queue("elsewhere").await;
    let mut message = Message {
        message_id: Some("mine".to_owned()),
        content_type: Some("application/x-odd".to_owned()),
        priority: Some(3),
        payload: vec![0, 159, 146, 150].into(),
        ..Message::default()
    };
    let headers = &mut message.headers;
    headers.insert(
        "deep".to_owned(),
        Value::Array(vec![Value::I32(7), Value::Void]),
    );
    // The broker would send the copy there as well.
    let copies = Value::Array(vec![Value::text(elsewhere.clone())]);
    headers.insert("CC".to_owned(), copies);
    office.store(&source, message.clone()).await;
    let copied = office.drain(&elsewhere).await.len();
    assert_eq!(copied, usize::from(on != On::Embedded));
    office.fill(&source, &["b", "c", "d"]).await;

    let some = office
        .move_some(&source, &destination, 2)
        .await
        .expect("moved");
    assert_eq!((some.moved_count, some.error), (2, None));
    let rest = office.move_all(&source, &destination).await.expect("moved");
    assert_eq!((rest.moved_count, rest.error), (2, None));
    assert_eq!(office.ready(&source).await, 0);
    assert_eq!(office.ready(&elsewhere).await, 0);
    let moved = office.drain(&destination).await;
    assert_eq!(&bodies(&moved)[1..], ["b", "c", "d"]);
    let first = moved[0].message.as_ref().expect("set");
    assert_eq!(first.payload, Some(Payload::Data(message.payload)));
    assert_eq!(
        (&*first.message_id, &*first.content_type),
        ("mine", "application/x-odd")
    );
    assert_eq!(first.priority, 3);
    let headers = &first.headers.as_ref().expect("set").fields;
    assert!(headers.contains_key("deep") && !headers.contains_key("CC"));
    let none = office
        .move_all(&source, &destination)
        .await
        .expect("nothing is there");
    assert_eq!(none.moved_count, 0);
}

async fn bad_moves_are_refused_and_move_nothing(on: On) {
    let office = Office::open(on).await;
    let queue = office.queue("q").await;
    office.fill(&queue, &["a"]).await;
    let same = office.move_all(&queue, &queue).await;
    let fault = fault(&same.expect_err("it is the same"));
    assert_eq!(
        (fault.code, &*fault.field),
        (Code::InvalidArgument, "destination")
    );
    let missing = office.name("missing");
    let not_found = refused(Code::NotFound, "QUEUE_NOT_FOUND");
    assert_eq!(refusal(office.move_all(&queue, &missing).await), not_found);
    assert_eq!(refusal(office.move_all(&missing, &queue).await), not_found);
    assert_eq!(office.drain_bodies(&queue).await, ["a"]);
}

async fn a_full_destination_takes_what_fits_and_the_rest_stays(on: On) {
    let office = Office::open(on).await;
    let source = office.queue("from").await;
    let destination = office
        .queue_with("to", |queue| queue.max_length = Some(3))
        .await;
    office.fill(&source, &["a", "b", "c", "d", "e"]).await;
    let moved = office
        .move_all(&source, &destination)
        .await
        .expect("some were moved");
    assert_eq!(moved.moved_count, 3);
    let error = moved.error.expect("it says why it stopped");
    assert_eq!(error.code, i32::from(Code::ResourceExhausted));
    assert_eq!(office.drain_bodies(&source).await, ["d", "e"]);
    office.fill(&source, &["f"]).await;
    let nothing = office.move_all(&source, &destination).await;
    assert_eq!(
        refusal(nothing),
        refused(Code::ResourceExhausted, "QUEUE_FULL")
    );
    let there = office.peek(&destination, 10).await.expect("seen");
    assert_eq!(seen(&there), ["a", "b", "c"]);
}

/// A publisher that never stops is no reason never to stop.
async fn what_arrives_meanwhile_is_left(on: On) {
    let office = Office::open(on).await;
    let (source, destination) = (office.queue("from").await, office.queue("to").await);
    office.fill(&source, &["0"; 300]).await;
    let publisher = office.publisher.clone();
    let to_source = to_queue(&source, text("later"));
    let busy = tokio::spawn(async move {
        let mut published = 0_u64;
        // Far more than a move that ends takes.
        for _ in 0..20_000 {
            if publisher.clone().publish(to_source.clone()).await.is_err() {
                break;
            }
            published += 1;
        }
        published
    });
    eventually("the publisher is at it", async || {
        office.ready(&source).await > 305
    })
    .await;
    let there = office.ready(&source).await;
    let moved = office
        .move_all(&source, &destination)
        .await
        .expect("it ends");
    assert!(!busy.is_finished(), "the publisher is at it all the while");
    assert!(moved.moved_count >= there, "what was there is moved");
    assert_eq!(moved.error, None);
    eventually("what comes later is left", async || {
        office.ready(&source).await > 0
    })
    .await;
    busy.abort();
    let _ = busy.await;
    assert_eq!(office.ready(&destination).await, moved.moved_count);
}

/// What somebody else holds is neither seen nor moved.
async fn what_consumers_hold_is_theirs(on: On) {
    let office = Office::open(on).await;
    let (source, destination) = (office.queue("from").await, office.queue("to").await);
    office.fill(&source, &["held", "free"]).await;
    let mut one = from(&[&source]);
    one.max_outstanding = 1;
    let mut stream = office.subscribe(one).await;
    let held = stream.delivery().await;
    assert_eq!(
        seen(&office.peek(&source, 5).await.expect("seen")),
        ["free"]
    );
    let moved = office.move_all(&source, &destination).await.expect("moved");
    assert_eq!(moved.moved_count, 1);
    stream.ack(&[&held.ack_id]).await;
    assert_eq!(office.drain_bodies(&destination).await, ["free"]);
}

/// To a fetch from a stream RabbitMQ answers by closing the connection.
async fn a_stream_is_refused_and_nobody_is_harmed(on: On) {
    let office = Office::open(on).await;
    let (stream, other) = (office.name("stream"), office.queue("other").await);
    let none = Kind::NullValue(0);
    let kind = Kind::StringValue("stream".to_owned());
    let created = office.create(CreateQueueRequest {
        name: stream.clone(),
        profile: Profile::DeadLetter.into(),
        arguments: arguments(&[
            ("x-queue-type", kind),
            ("x-message-ttl", none.clone()),
            ("x-delivery-limit", none),
        ]),
        ..Default::default()
    });
    created.await.expect("RabbitMQ has streams");
    office.fill(&stream, &["a"]).await;
    let mut consumer = office.subscribe(from(&[&other])).await;
    let refusal_is = refused(Code::FailedPrecondition, "BROKER_REFUSED");
    assert_eq!(refusal(office.peek(&stream, 1).await), refusal_is);
    assert_eq!(refusal(office.move_all(&stream, &other).await), refusal_is);
    // Its connection is another one.
    office.fill(&other, &["unharmed"]).await;
    assert_eq!(body(&consumer.delivery().await), "unharmed");
}

on_all! {
    what_is_looked_at_stays
    bad_looks_are_refused
    nothing_dies_of_being_looked_at
    messages_move_byte_for_byte_and_in_order
    bad_moves_are_refused_and_move_nothing
    a_full_destination_takes_what_fits_and_the_rest_stays
    what_arrives_meanwhile_is_left
    what_consumers_hold_is_theirs
    // It has no streams, and no single active consumers.
    [not embedded] a_stream_is_refused_and_nobody_is_harmed
    a_queue_with_a_single_active_consumer_is_looked_at_while_nobody_consumes
}
