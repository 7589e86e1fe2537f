//! The message log through the front door: what was published, and what became of it.

use std::{ops::Deref, time::Duration};

use courtier::{
    gateway::message_log::{Options, Room},
    grpc::proto::{
        GetMessageRequest, GetMessageResponse, ListMessagesRequest, ListMessagesResponse,
        LoggedMessage, Message, MessageLogFilter, PublishBatchRequest, PublishRequest, Start,
        get_message_response::{Event, event::Kind},
        logged_message::Status,
        message::Payload,
        message_log_client::MessageLogClient,
        nack::Action,
    },
    store::{self, Error, Place, Store},
};
use tempfile::TempDir;
use tonic::{Code, Status as GrpcStatus, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    desk::{Desk, slow},
    front::{On, Stream, from, on_both, refusal, refused, seconds, text, timely, to_queue},
    harness::{PATIENCE, Setup, eventually},
};

on_both! {
    a_publish_a_delivery_and_an_ack_are_told_in_order
    a_refused_message_has_failed_until_a_retry_is_acked
    each_consumer_of_a_fan_out_is_told_of
    each_way_to_settle_has_its_name
    publishes_under_one_id_share_a_timeline
    what_no_queue_took_has_no_entry
    an_edited_copy_has_an_entry_of_its_own
    payloads_come_back_byte_for_byte_or_not_at_all
    pages_show_each_message_once_the_newest_first
    filters_are_met_and_bound_to_their_tokens
    switched_off_it_says_so
    without_its_database_nothing_is_slowed_and_what_is_dropped_is_counted
    old_entries_are_forgotten
    a_log_takes_no_more_than_it_may
    what_is_in_memory_is_written_when_the_gateway_stops
}

/// The log is written at once; no retry comes by itself.
fn prompt(setup: &mut Setup) {
    slow(setup);
    log_options(setup).pace = Duration::ZERO;
}

fn log_options(setup: &mut Setup) -> &mut Options {
    setup.config.message_log.as_mut().expect("on by default")
}

/// Somebody who asks where messages went.
struct Auditor {
    desk: Desk,
    log: MessageLogClient<Channel>,
}

impl Deref for Auditor {
    type Target = Desk;

    fn deref(&self) -> &Desk {
        &self.desk
    }
}

impl Auditor {
    async fn open(on: On) -> Self {
        Self::open_with(on, prompt).await
    }

    async fn open_with(on: On, change: impl FnOnce(&mut Setup)) -> Self {
        let desk = Desk::open(on, change).await;
        let log = MessageLogClient::new(desk.front.channel().await);
        Self { desk, log }
    }

    async fn publish(&self, message_id: &str) {
        let published = self.front.publish(to_queue(&self.queue, named(message_id)));
        published.await.expect("published");
    }

    async fn message(&self, message_id: &str) -> Result<GetMessageResponse, GrpcStatus> {
        let request = GetMessageRequest {
            message_id: message_id.to_owned(),
        };
        let got = timely(self.log.clone().get_message(request)).await?;
        Ok(got.into_inner())
    }

    async fn entry(&self, message_id: &str) -> LoggedMessage {
        let got = self.message(message_id).await.expect("it is there");
        got.entry.expect("always set")
    }

    async fn timeline(&self, message_id: &str) -> Vec<(Kind, u32, String)> {
        match self.message(message_id).await {
            Ok(got) => got
                .timeline
                .iter()
                .map(|event| (event.kind(), event.attempt, event.detail.clone()))
                .collect(),
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status:?}");
                vec![]
            }
        }
    }

    /// Waits until this is what happened.
    async fn told(&self, message_id: &str, expected: &[(Kind, u32, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(kind, attempt, detail)| (*kind, *attempt, (*detail).to_owned()))
            .collect();
        eventually("as many events as expected", || async {
            self.timeline(message_id).await.len() >= expected.len()
        })
        .await;
        assert_eq!(self.timeline(message_id).await, expected);
    }

    async fn list(
        &self,
        filter: MessageLogFilter,
        page_size: i32,
        page_token: &str,
    ) -> Result<ListMessagesResponse, GrpcStatus> {
        let request = ListMessagesRequest {
            filter: Some(filter),
            page_size,
            page_token: page_token.to_owned(),
        };
        let listed = timely(self.log.clone().list_messages(request)).await?;
        Ok(listed.into_inner())
    }

    /// The ids of what a filter lets through.
    async fn ids(&self, filter: MessageLogFilter) -> Vec<String> {
        let listed = self.list(filter, 0, "").await.expect("listed");
        assert_eq!(listed.next_page_token, "");
        ids(&listed.messages)
    }

    /// What the gateway has stored, once it has stopped.
    async fn store_after_stop(self, place: Place) -> Store {
        let Self { desk, log } = self;
        let Desk { front, failed, .. } = desk;
        drop((log, failed));
        front.stopped().await.expect("stopped in time");
        let options = store::Options {
            place,
            max_connections: 1,
            migrate: false,
        };
        Store::open(options, PATIENCE).await.expect("it opens")
    }

    async fn subscribe(&self) -> Stream {
        let start = Start {
            client_id: "me".to_owned(),
            ..from(&[&self.queue])
        };
        self.front.subscribe(start).await
    }
}

/// A database file that outlives the gateway.
fn file() -> (TempDir, Place) {
    let folder = tempfile::tempdir().expect("a folder");
    let place = Place::File(folder.path().join("kept.db"));
    (folder, place)
}

async fn health(audit: &Auditor) -> ServingStatus {
    let request = HealthCheckRequest {
        service: "courtier.v1.MessageLog".to_owned(),
    };
    let answer = timely(HealthClient::new(audit.front.channel().await).check(request)).await;
    answer.expect("a known service").into_inner().status()
}

fn ids(messages: &[LoggedMessage]) -> Vec<String> {
    messages.iter().map(|m| m.message_id.clone()).collect()
}

fn named(message_id: &str) -> Message {
    Message {
        message_id: message_id.to_owned(),
        ..text("x")
    }
}

fn data(entry: &LoggedMessage) -> Option<&Payload> {
    entry.message.as_ref().expect("always set").payload.as_ref()
}

const CONFIRMED: (Kind, u32, &str) = (Kind::Published, 0, "CONFIRMED");
const GIVEN: (Kind, u32, &str) = (Kind::Delivered, 1, "to me");

async fn a_publish_a_delivery_and_an_ack_are_told_in_order(on: On) {
    let audit = Auditor::open(on).await;
    let message = Message {
        r#type: "order.created".to_owned(),
        ..named("order-1")
    };
    let answer = audit.front.publish(to_queue(&audit.queue, message)).await;
    let answer = answer.expect("published");
    audit.told("order-1", &[CONFIRMED]).await;
    assert_eq!(health(&audit).await, ServingStatus::Serving);
    let entry = audit.entry("order-1").await;
    assert_eq!(entry.status(), Status::Published);
    assert_eq!(entry.publish_id, answer.publish_id);
    assert_eq!((&*entry.exchange, &*entry.routing_key), ("", &*audit.queue));
    assert_eq!((entry.payload_size, entry.delivered_at), (1, None));
    assert_eq!(entry.message.expect("set").r#type, "order.created");

    let mut stream = audit.subscribe().await;
    let delivery = stream.delivery().await;
    audit.told("order-1", &[CONFIRMED, GIVEN]).await;
    assert_eq!(audit.entry("order-1").await.status(), Status::Published);
    stream.ack(&[&delivery.ack_id]).await;
    audit
        .told("order-1", &[CONFIRMED, GIVEN, (Kind::Settled, 1, "ACK")])
        .await;
    let got = audit.message("order-1").await.expect("it is there");
    let entry = got.entry.expect("always set");
    assert_eq!(entry.status(), Status::Delivered);
    assert_eq!(entry.published_at, got.timeline[0].time);
    assert_eq!(entry.delivered_at, got.timeline[2].time);
    assert_eq!(entry.failed_at, None);
    let queues: Vec<_> = got.timeline.iter().map(|event| &*event.queue).collect();
    assert_eq!(queues, ["", &*audit.queue, &*audit.queue]);
}

async fn a_refused_message_has_failed_until_a_retry_is_acked(on: On) {
    let audit = Auditor::open(on).await;
    audit.publish("m").await;
    let mut stream = audit.subscribe().await;
    let delivery = stream.delivery().await;
    stream.nack(&delivery.ack_id, Action::Retry).await;
    let died = [
        CONFIRMED,
        GIVEN,
        (Kind::Settled, 1, "RETRY"),
        (Kind::Failed, 1, "REJECTED"),
    ];
    audit.told("m", &died).await;
    let entry = audit.entry("m").await;
    assert_eq!(entry.status(), Status::Failed);
    assert!(entry.failed_at.is_some() && entry.delivered_at.is_none());

    let id = audit.only().await.id;
    audit.retry(&id).await.expect("retried");
    let delivery = stream.delivery().await;
    stream.ack(&[&delivery.ack_id]).await;
    let mended = [
        &died[..],
        &[
            (Kind::Retried, 2, "by a person"),
            (Kind::Delivered, 2, "to me"),
            (Kind::Settled, 2, "ACK"),
        ],
    ]
    .concat();
    audit.told("m", &mended).await;
    let entry = audit.entry("m").await;
    assert_eq!(entry.status(), Status::Delivered);
    assert!(entry.failed_at.is_some() && entry.delivered_at.is_some());
}

async fn each_consumer_of_a_fan_out_is_told_of(on: On) {
    let audit = Auditor::open(on).await;
    let other = audit.front.queue("other").await;
    let exchange = audit
        .front
        .exchange("fan", "k", &[&audit.queue, &other])
        .await;
    let everybody = PublishRequest {
        exchange,
        routing_key: "k".to_owned(),
        message: Some(named("m")),
        ..Default::default()
    };
    audit.front.publish(everybody).await.expect("published");
    for queue in [&audit.queue, &other] {
        assert_eq!(audit.front.drain_bodies(queue).await, ["x"]);
    }
    eventually("both are settled", || async {
        audit.timeline("m").await.len() == 5
    })
    .await;
    let got = audit.message("m").await.expect("it is there");
    for queue in [&audit.queue, &other] {
        let there = got.timeline.iter().filter(|event| event.queue == *queue);
        let kinds: Vec<_> = there.map(|event| event.kind()).collect();
        assert_eq!(kinds, [Kind::Delivered, Kind::Settled], "{queue}");
    }
    let is_settled = |event: &&Event| event.kind() == Kind::Settled;
    let first = got.timeline.iter().find(is_settled).expect("settled");
    assert_eq!(got.entry.expect("set").delivered_at, first.time);
}

async fn each_way_to_settle_has_its_name(on: On) {
    let audit = Auditor::open(on).await;
    for (action, name) in [
        (Action::DeadLetter, "DEAD_LETTER"),
        (Action::Discard, "DISCARD"),
        (Action::Requeue, "REQUEUE"),
    ] {
        audit.publish(name).await;
        let mut stream = audit.subscribe().await;
        let delivery = stream.delivery().await;
        stream.nack(&delivery.ack_id, action).await;
        let settled = (Kind::Settled, 1, name);
        match action {
            Action::Requeue => {
                let again = stream.delivery().await;
                stream.ack(&[&again.ack_id]).await;
                let given = (Kind::Delivered, 1, "to me, redelivered");
                let acked = (Kind::Settled, 1, "ACK");
                audit
                    .told(name, &[CONFIRMED, GIVEN, settled, given, acked])
                    .await;
            }
            Action::DeadLetter => {
                let failed = (Kind::Failed, 1, "REJECTED");
                audit.told(name, &[CONFIRMED, GIVEN, settled, failed]).await;
            }
            _ => {
                audit.told(name, &[CONFIRMED, GIVEN, settled]).await;
                assert_eq!(audit.entry(name).await.status(), Status::Delivered);
            }
        }
        stream.half_close();
        stream.end().await.expect("it ends well");
    }

    audit.publish("lapsed").await;
    let mut stream = audit
        .front
        .subscribe(Start {
            client_id: "me".to_owned(),
            ack_deadline: seconds(1),
            max_messages: 1,
            ..from(&[&audit.queue])
        })
        .await;
    stream.delivery().await;
    stream.revoked().await;
    audit
        .told("lapsed", &[CONFIRMED, GIVEN, (Kind::Settled, 1, "LAPSED")])
        .await;
    assert_eq!(audit.entry("lapsed").await.status(), Status::Published);
    drop(stream);
    audit.front.drain(&audit.queue).await;

    audit.publish("auto").await;
    let mut stream = audit
        .front
        .subscribe(Start {
            client_id: "me".to_owned(),
            auto_ack: true,
            max_messages: 1,
            ..from(&[&audit.queue])
        })
        .await;
    stream.delivery().await;
    audit
        .told("auto", &[CONFIRMED, GIVEN, (Kind::Settled, 1, "AUTO_ACK")])
        .await;
}

async fn publishes_under_one_id_share_a_timeline(on: On) {
    let audit = Auditor::open(on).await;
    let first = audit
        .front
        .publish(to_queue(&audit.queue, named("m")))
        .await;
    let first = first.expect("published").publish_id;
    audit.told("m", &[CONFIRMED]).await;
    // In one batch, so that they meet in one transaction as well; and one that no queue takes.
    let again = to_queue(
        &audit.queue,
        Message {
            payload: Some(Payload::Text("another".to_owned())),
            ..named("m")
        },
    );
    let batch = PublishBatchRequest {
        messages: vec![again.clone(), again],
    };
    let answers = timely(audit.front.publisher.clone().publish_batch(batch)).await;
    answers.expect("answered");
    let nowhere = audit
        .front
        .publish(to_queue(&audit.front.name("gone"), named("m")));
    refusal(nowhere.await);
    let unroutable = (Kind::Published, 0, "UNROUTABLE");
    audit
        .told("m", &[CONFIRMED, CONFIRMED, CONFIRMED, unroutable])
        .await;
    let entry = audit.entry("m").await;
    assert_eq!(entry.publish_id, first);
    assert_eq!(data(&entry), Some(&Payload::Data("x".into())));
    assert_eq!(audit.ids(MessageLogFilter::default()).await, ["m"]);
}

async fn what_no_queue_took_has_no_entry(on: On) {
    let audit = Auditor::open(on).await;
    let nowhere = audit.front.name("gone");
    refusal(audit.front.publish(to_queue(&nowhere, named("lost"))).await);
    let full = audit.front.full_queue("full").await;
    refusal(
        audit
            .front
            .publish(to_queue(&full, named("rejected")))
            .await,
    );
    // What comes last is written last.
    audit.publish("last").await;
    audit.told("last", &[CONFIRMED]).await;
    audit
        .told("rejected", &[(Kind::Published, 0, "REJECTED")])
        .await;
    let missing = refused(Code::NotFound, "MESSAGE_NOT_FOUND");
    for unknown in ["lost", "never", "", "' OR 1=1"] {
        assert_eq!(refusal(audit.message(unknown).await), missing, "{unknown}");
    }
}

async fn an_edited_copy_has_an_entry_of_its_own(on: On) {
    let audit = Auditor::open(on).await;
    audit.publish("original").await;
    let mut stream = audit.subscribe().await;
    let delivery = stream.delivery().await;
    stream.nack(&delivery.ack_id, Action::DeadLetter).await;
    let died = [
        CONFIRMED,
        GIVEN,
        (Kind::Settled, 1, "DEAD_LETTER"),
        (Kind::Failed, 1, "REJECTED"),
    ];
    audit.told("original", &died).await;
    let id = audit.only().await.id;
    audit.edit(&id, named("copy")).await.expect("edited");
    let copy = stream.delivery().await;
    stream.ack(&[&copy.ack_id]).await;
    audit
        .told("copy", &[CONFIRMED, GIVEN, (Kind::Settled, 1, "ACK")])
        .await;
    let publish_id = audit.entry("copy").await.publish_id;
    let how = format!("edited and published again as copy ({publish_id})");
    audit
        .told(
            "original",
            &[&died[..], &[(Kind::Retried, 0, &how)]].concat(),
        )
        .await;
}

async fn payloads_come_back_byte_for_byte_or_not_at_all(on: On) {
    let audit = Auditor::open_with(on, |setup| {
        prompt(setup);
        let log = log_options(setup);
        log.max_payload_bytes = 512;
    })
    .await;
    let bytes = |count: usize| -> Vec<u8> { (0..=255).cycle().take(count).collect() };
    for (id, size, kept) in [("none", 0, true), ("all", 512, true), ("large", 513, false)] {
        let message = Message {
            payload: Some(Payload::Data(bytes(size).into())),
            ..named(id)
        };
        let published = audit.front.publish(to_queue(&audit.queue, message)).await;
        published.expect("published");
        audit.told(id, &[CONFIRMED]).await;
        let entry = audit.entry(id).await;
        assert_eq!(entry.payload_size, size as u64);
        let expected = kept.then(|| Payload::Data(bytes(size).into()));
        assert_eq!(data(&entry), expected.as_ref(), "{id}");
    }
    let listed = audit.list(MessageLogFilter::default(), 0, "").await;
    for entry in listed.expect("listed").messages {
        assert_eq!(data(&entry), None, "lists carry no payload");
    }
}

async fn pages_show_each_message_once_the_newest_first(on: On) {
    let audit = Auditor::open(on).await;
    let all: Vec<String> = (0..25).map(|n| format!("m-{n:02}")).collect();
    for id in &all {
        audit.publish(id).await;
    }
    audit.told("m-24", &[CONFIRMED]).await;
    let (mut seen, mut token, mut sizes) = (Vec::new(), String::new(), Vec::new());
    loop {
        let page = audit.list(MessageLogFilter::default(), 10, &token).await;
        let page = page.expect("listed");
        seen.extend(ids(&page.messages));
        sizes.push(page.messages.len());
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
        // Comes between two pages, and is newer than all of them.
        audit.publish(&format!("late-{}", sizes.len())).await;
    }
    assert_eq!(seen, all.into_iter().rev().collect::<Vec<_>>());
    assert_eq!(sizes, [10, 10, 5]);
    let negative = audit.list(MessageLogFilter::default(), -1, "").await;
    assert_eq!(
        refusal(negative),
        refused(Code::InvalidArgument, "INVALID_REQUEST")
    );
}

async fn filters_are_met_and_bound_to_their_tokens(on: On) {
    let audit = Auditor::open(on).await;
    let exchange = audit.front.exchange("orders", "k", &[&audit.queue]).await;
    let other = audit.front.exchange("mail", "k", &[&audit.queue]).await;
    for (id, exchange, key) in [
        ("a", exchange.as_str(), "k"),
        ("b", other.as_str(), "k"),
        ("c", "", audit.queue.as_str()),
        ("d", exchange.as_str(), "k"),
    ] {
        let request = PublishRequest {
            exchange: exchange.to_owned(),
            routing_key: key.to_owned(),
            message: Some(Message {
                correlation_id: if id == "c" { "other" } else { "order-1" }.to_owned(),
                ..named(id)
            }),
            ..Default::default()
        };
        audit.front.publish(request).await.expect("published");
    }
    let mut stream = audit.subscribe().await;
    let given = stream.deliveries(4).await;
    stream.ack(&[&given[0].ack_id]).await;
    audit.told("d", &[CONFIRMED, GIVEN]).await;
    audit
        .told("a", &[CONFIRMED, GIVEN, (Kind::Settled, 1, "ACK")])
        .await;
    let at = |entry: LoggedMessage| entry.published_at;
    let (b, c) = (at(audit.entry("b").await), at(audit.entry("c").await));
    let of = |exchange: &str, routing_key: &str, status: Status| MessageLogFilter {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        status: status.into(),
        ..Default::default()
    };
    let any = Status::Unspecified;
    let of_workflow = |correlation_id: &str, exchange: &str| MessageLogFilter {
        correlation_id: correlation_id.to_owned(),
        ..of(exchange, "", any)
    };
    let cases = [
        (of(&exchange, "", any), vec!["d", "a"]),
        (of("", "k", any), vec!["d", "b", "a"]),
        (of("", "", Status::Delivered), vec!["a"]),
        (of("", "", Status::Published), vec!["d", "c", "b"]),
        (of("", "", Status::Failed), vec![]),
        (of(&exchange, "k", Status::Published), vec!["d"]),
        (of(&exchange, "K", any), vec![]),
        (of_workflow("order-1", ""), vec!["d", "b", "a"]),
        (of_workflow("order-1", &exchange), vec!["d", "a"]),
        (of_workflow("other", &exchange), vec![]),
        (
            MessageLogFilter {
                published_after: b,
                ..Default::default()
            },
            vec!["d", "c", "b"],
        ),
        (
            MessageLogFilter {
                published_after: b,
                published_before: c,
                ..Default::default()
            },
            vec!["b"],
        ),
    ];
    for (filter, expected) in cases {
        assert_eq!(audit.ids(filter.clone()).await, expected, "{filter:?}");
    }
    let page = audit
        .list(of(&exchange, "", any), 1, "")
        .await
        .expect("listed");
    let token = page.next_page_token;
    let next = audit.list(of(&exchange, "", any), 1, &token).await;
    assert_eq!(ids(&next.expect("listed").messages), ["a"]);
    let foreign = audit.list(of(&other, "", any), 1, &token).await;
    assert_eq!(
        refusal(foreign),
        refused(Code::InvalidArgument, "INVALID_PAGE_TOKEN")
    );
    let unknown = MessageLogFilter {
        status: 99,
        ..Default::default()
    };
    assert_eq!(
        refusal(audit.list(unknown, 0, "").await),
        refused(Code::InvalidArgument, "INVALID_REQUEST")
    );
}

async fn switched_off_it_says_so(on: On) {
    let (_folder, place) = file();
    let audit = Auditor::open_with(on, |setup| {
        setup.config.database.place = place.clone();
        setup.config.message_log = None;
    })
    .await;
    audit.publish("m").await;
    assert_eq!(audit.front.drain_bodies(&audit.queue).await, ["x"]);
    let off = refused(Code::FailedPrecondition, "AUDIT_LOG_OFF");
    assert_eq!(refusal(audit.message("m").await), off);
    let listed = audit.list(MessageLogFilter::default(), 0, "").await;
    assert_eq!(refusal(listed), off);
    let store = audit.store_after_stop(place).await;
    let stored = store.logged_message("m").await;
    assert!(matches!(stored, Err(Error::NotFound)), "{stored:?}");
    store.close().await;
}

async fn without_its_database_nothing_is_slowed_and_what_is_dropped_is_counted(on: On) {
    let audit = Auditor::open_with(on, |setup| {
        setup.without_database();
        let log = log_options(setup);
        log.pace = Duration::ZERO;
        log.room = Room {
            events: 5,
            bytes: usize::MAX,
        };
    })
    .await;
    let bodies: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let texts: Vec<&str> = bodies.iter().map(String::as_str).collect();
    audit.front.fill(&audit.queue, &texts).await;
    // What the writer has in its hands, and what waits.
    let dropped = audit.front.log.dropped();
    assert!((1..=45).contains(&dropped), "{dropped} dropped");
    assert_eq!(audit.front.drain_bodies(&audit.queue).await, bodies);
    assert!(audit.front.log.dropped() > dropped, "deliveries and acks");
    let down = audit.message("m").await.expect_err("no database");
    let fault = crate::front::fault(&down);
    assert_eq!(
        (fault.code, &*fault.reason),
        (Code::Unavailable, "DATABASE_DOWN")
    );
    assert!(fault.retry);
    assert_eq!(health(&audit).await, ServingStatus::NotServing);
    audit.front.neighbours_are_unharmed().await;
}

async fn old_entries_are_forgotten(on: On) {
    let audit = Auditor::open_with(on, |setup| {
        prompt(setup);
        let log = log_options(setup);
        // Long enough to be seen before.
        log.retention = Duration::from_secs(3);
        log.sweep = Duration::from_millis(50);
    })
    .await;
    audit.publish("m").await;
    audit.told("m", &[CONFIRMED]).await;
    let missing = refused(Code::NotFound, "MESSAGE_NOT_FOUND");
    eventually("it is forgotten", || async {
        audit
            .message("m")
            .await
            .err()
            .map(|s| refusal::<()>(Err(s)))
            == Some(missing.clone())
    })
    .await;
    // With its events: a new message of this id has no past.
    audit.publish("m").await;
    audit.told("m", &[CONFIRMED]).await;
}

async fn a_log_takes_no_more_than_it_may(on: On) {
    let audit = Auditor::open_with(on, |setup| {
        prompt(setup);
        let log = log_options(setup);
        log.max_bytes = Some(64 * 1024);
        log.sweep = Duration::from_millis(50);
    })
    .await;
    audit.publish("first").await;
    audit.told("first", &[CONFIRMED]).await;
    let large = "x".repeat(8 * 1024);
    audit.front.fill(&audit.queue, &[large.as_str(); 16]).await;
    let missing = refused(Code::NotFound, "MESSAGE_NOT_FOUND");
    eventually("the oldest is forgotten", || async {
        let first = audit.message("first").await;
        first.err().map(|status| refusal::<()>(Err(status))) == Some(missing.clone())
    })
    .await;
    audit.publish("last").await;
    audit.told("last", &[CONFIRMED]).await;
}

async fn what_is_in_memory_is_written_when_the_gateway_stops(on: On) {
    let (_folder, place) = file();
    let audit = Auditor::open_with(on, |setup| {
        setup.config.database.place = place.clone();
        let log = log_options(setup);
        log.pace = Duration::from_secs(3_600);
    })
    .await;
    audit.publish("m").await;
    let store = audit.store_after_stop(place).await;
    let (entry, events) = store.logged_message("m").await.expect("written");
    assert_eq!((entry.message_id.as_str(), events.len()), ("m", 1));
    store.close().await;
}
