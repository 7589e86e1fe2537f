//! Dead letters of other people's platforms: collected like the gateway's own, and nothing is lost for what they do not say.

use courtier::{
    broker::{
        Fate, Publish,
        topology::{DeadLetter, DeadLetterSource, Queue, QueueKind, Topology},
    },
    grpc::proto::{DeathReason, FailedMessage, Message, failed_message::Status},
    message::{self, Table, Value},
};
use prost_types::{Struct, value::Kind};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    desk::{Desk, failed_in, slow},
    front::{On, body, from, on_both, text, timely, to_queue},
    harness::{PATIENCE, Setup, eventually},
    office::arguments,
};

fn source(queue: &str, failed_queue: Option<&str>) -> DeadLetterSource {
    DeadLetterSource {
        queue: queue.to_owned(),
        failed_queue: failed_queue.map(str::to_owned),
        retry: true,
    }
}

fn unique(short: &str) -> String {
    format!("it-{}-{short}", Uuid::now_v7())
}

fn texts(headers: &[(&str, &str)]) -> Option<Struct> {
    let kinds = headers
        .iter()
        .map(|(name, text)| (*name, Kind::StringValue((*text).to_owned())));
    arguments(&kinds.collect::<Vec<_>>())
}

/// A gateway that collects from a queue which is made only afterwards, as other people's are.
async fn open(on: On, letters: &str, change: impl FnOnce(&mut Setup)) -> Desk {
    let desk = Desk::open(on, |setup| {
        slow(setup);
        setup.dead_letter_sources = vec![source(letters, None)];
        change(setup);
    })
    .await;
    declare(&desk, Queue::bare(letters, QueueKind::Classic)).await;
    desk
}

async fn declare(desk: &Desk, queue: Queue) {
    let topology = Topology {
        queues: vec![queue],
        ..Topology::default()
    };
    desk.front.declare(topology).await;
}

async fn set_aside(desk: &Desk, letters: &str, body: &str, headers: Option<Struct>) {
    let message = Message {
        headers,
        ..text(body)
    };
    let answer = desk.front.publish(to_queue(letters, message)).await;
    answer.expect("published");
}

async fn all_in(desk: &Desk, queue: &str, count: usize) -> Vec<FailedMessage> {
    let list = async || failed_in(&desk.failed, queue).await;
    eventually("all are collected", async || list().await.len() == count).await;
    list().await
}

async fn a_failure_says_where_and_why_and_is_retried_with_its_headers(on: On) {
    let letters = unique("error");
    let desk = open(on, &letters, |_| {}).await;
    let address = format!("rabbitmq://localhost/shop/{}?durable=true", desk.queue);
    let platforms = [
        texts(&[
            ("NServiceBus.FailedQ", &desk.queue),
            ("NServiceBus.ExceptionInfo.ExceptionType", "Declined"),
            ("NServiceBus.ExceptionInfo.Message", "no stock"),
            ("NServiceBus.ExceptionInfo.StackTrace", "at Sales"),
        ]),
        texts(&[
            ("MT-Fault-InputAddress", &address),
            ("MT-Fault-ExceptionType", "Declined"),
            ("MT-Fault-Message", "no stock"),
            ("MT-Fault-StackTrace", "at Sales"),
        ]),
    ];
    for headers in platforms {
        set_aside(&desk, &letters, "order", headers.clone()).await;
        let failed = desk.only().await.id;
        let failed = desk.get(&failed).await.expect("it is there");
        assert_eq!(failed.status(), Status::Pending);
        assert_eq!(failed.reason(), DeathReason::Rejected);
        let told = (
            &*failed.error_type,
            &*failed.error_message,
            &*failed.error_stack,
        );
        assert_eq!(told, ("Declined", "no stock", "at Sales"));

        desk.retry(&failed.id).await.expect("sent");
        let mut stream = desk.front.subscribe(from(&[&desk.queue])).await;
        let delivery = stream.delivery().await;
        assert_eq!((body(&delivery), delivery.attempt), ("order".to_owned(), 2));
        assert_eq!(delivery.failed_message_id, failed.id);
        let there = delivery.message.and_then(|message| message.headers);
        let there = there.expect("there are headers").fields;
        for (name, value) in headers.expect("set").fields {
            assert_eq!(there.get(&name), Some(&value), "{name}");
        }
        stream.ack(&[&delivery.ack_id]).await;
        desk.becomes(&failed.id, Status::Resolved).await;
        desk.delete(&failed.id).await.expect("deleted");
    }
}

async fn what_the_broker_itself_dead_lettered_tells_where_it_was(on: On) {
    let letters = unique("error");
    let desk = open(on, &letters, |_| {}).await;
    let theirs = unique("theirs");
    let mut queue = Queue::bare(&theirs, QueueKind::Classic);
    queue.message_ttl = Some(std::time::Duration::from_millis(1));
    queue.dead_letter = Some(DeadLetter {
        exchange: String::new(),
        routing_key: letters.clone(),
    });
    declare(&desk, queue).await;
    set_aside(&desk, &theirs, "order", None).await;
    let failed = all_in(&desk, &theirs, 1).await.remove(0);
    assert_eq!(failed.reason(), DeathReason::Expired);
    assert_eq!((&*failed.exchange, &*failed.routing_key), ("", &*theirs));
}

async fn what_says_nothing_failed_in_the_queue_that_the_file_names(on: On) {
    let (letters, unnamed) = (unique("error"), unique("unnamed"));
    let work = unique("work");
    let desk = open(on, &letters, |setup| {
        setup.dead_letter_sources = vec![source(&letters, Some(&work)), source(&unnamed, None)];
    })
    .await;
    declare(&desk, Queue::bare(&unnamed, QueueKind::Classic)).await;
    set_aside(&desk, &letters, "named", None).await;
    assert_eq!(all_in(&desk, &work, 1).await[0].status(), Status::Pending);
    // Of what is known of none, people decide.
    set_aside(&desk, &unnamed, "nobody knows", None).await;
    assert_eq!(all_in(&desk, &unnamed, 1).await[0].status(), Status::Failed);
}

async fn malformed_headers_lose_nothing(on: On) {
    let (letters, work) = (unique("error"), unique("work"));
    let desk = open(on, &letters, |setup| {
        setup.dead_letter_sources = vec![source(&letters, Some(&work))];
    })
    .await;
    let bytes = |bytes: &[u8]| Value::Text(bytes.to_vec().into());
    let odd = [
        ("x-death", Value::text("x")),
        ("x-death", Value::Array(vec![Value::Void])),
        ("NServiceBus.FailedQ", Value::I64(7)),
        ("NServiceBus.FailedQ", bytes(&[0xff, 0])),
        (
            "NServiceBus.FailedQ",
            Value::text("amq.rabbitmq.reply-to.AAAA.x"),
        ),
        (
            "NServiceBus.ExceptionInfo.Message",
            Value::text("nul \0 and more"),
        ),
        ("MT-Fault-InputAddress", Value::text("%ff%00")),
        ("MT-Fault-StackTrace", Value::text("long ".repeat(10_000))),
    ];
    let count = odd.len();
    for (name, value) in odd {
        let message = message::Message {
            headers: Table::from([(name.to_owned(), value)]),
            payload: name.to_owned().into(),
            ..message::Message::default()
        };
        // Past the gateway, which would refuse some of them.
        let publish = Publish::to_queue(&letters, message, Instant::now() + PATIENCE);
        let broker = &desk.front.broker;
        let fate = timely(broker.publish_and_wait(broker.lane(), publish, None)).await;
        assert_eq!(fate, Fate::Confirmed);
    }
    all_in(&desk, &work, count).await;
    desk.front.neighbours_are_unharmed().await;
}

/// A dead letter is acked after its row is committed: without a database it stays where it is.
async fn without_the_database_they_stay_where_they_are(on: On) {
    let letters = unique("error");
    let desk = open(on, &letters, Setup::without_database).await;
    set_aside(&desk, &letters, "kept", None).await;
    assert_eq!(desk.front.drain_bodies(&letters).await, ["kept"]);
}

on_both! {
    a_failure_says_where_and_why_and_is_retried_with_its_headers
    what_the_broker_itself_dead_lettered_tells_where_it_was
    what_says_nothing_failed_in_the_queue_that_the_file_names
    malformed_headers_lose_nothing
    without_the_database_they_stay_where_they_are
}
