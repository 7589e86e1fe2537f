//! What only this broker promises, or can show exactly. What both promise is in `tests/it/contract/`.

use std::time::Duration;

use uuid::Uuid;

use super::*;
use crate::{
    broker::{
        Delivery, Ended,
        topology::{self, DeadLetter, QueueKind},
    },
    message::Message,
};

fn queue(name: &str) -> topology::Queue {
    topology::Queue::bare(name, QueueKind::Classic)
}

/// A queue whose messages, expired after `ttl`, go to the queue `dead`.
fn expiring(name: &str, ttl: Duration, dead: &str) -> topology::Queue {
    topology::Queue {
        message_ttl: Some(ttl),
        dead_letter: Some(DeadLetter {
            exchange: String::new(),
            routing_key: dead.to_owned(),
        }),
        ..queue(name)
    }
}

async fn broker(queues: impl IntoIterator<Item = topology::Queue>) -> Arc<MemoryBroker> {
    let broker = MemoryBroker::new();
    let topology = Topology {
        queues: queues.into_iter().collect(),
        ..Topology::default()
    };
    let differences = broker.declare(&topology).await.expect("open");
    assert_eq!(differences, []);
    broker
}

fn publish(broker: &MemoryBroker, exchange: &str, queue: &str, text: &str) -> Fate {
    let (reply, mut answer) = PublishReply::single();
    let publish = Publish {
        publish_id: Uuid::now_v7(),
        exchange: exchange.to_owned(),
        routing_key: queue.to_owned(),
        mandatory: true,
        message: Message {
            payload: text.to_owned().into(),
            ..Message::default()
        },
        deadline: Instant::now() + Duration::from_secs(1),
        admission: None,
        checked: Checked::default(),
    };
    broker.publish(broker.lane(), publish, reply);
    answer.try_recv().expect("answered within publish")
}

async fn subscribe(broker: &MemoryBroker, queues: &[&str], prefetch: u16) -> Box<dyn Subscription> {
    let subscribe = Subscribe::new(
        queues.iter().map(ToString::to_string).collect(),
        prefetch,
        "",
        Instant::now() + Duration::from_secs(1),
    );
    broker.subscribe(subscribe).await.expect("queues exist")
}

fn ready(subscription: &mut dyn Subscription) -> Vec<Delivery> {
    std::iter::from_fn(|| subscription.try_next())
        .map(|next| next.expect("not ended"))
        .collect()
}

fn texts(deliveries: &[Delivery]) -> Vec<&[u8]> {
    let payloads = deliveries.iter().map(|delivery| &delivery.message.payload);
    payloads.map(|payload| &payload[..]).collect()
}

#[tokio::test(start_paused = true)]
async fn a_message_expires_at_its_time_without_any_traffic() {
    let ttl = Duration::from_secs(60);
    let broker = broker([expiring("work", ttl, "dead"), queue("dead")]).await;
    publish(&broker, "", "work", "a");
    let mut dead = subscribe(&broker, &["dead"], 1).await;
    let published = Instant::now();
    let delivery = tokio::time::timeout(2 * ttl, dead.next()).await;
    let delivery = delivery.expect("in time").expect("not ended");
    assert_eq!(&delivery.message.payload[..], b"a");
    let late = published.elapsed().saturating_sub(ttl);
    assert!(late <= Duration::from_millis(2), "{late:?} late");
}

#[tokio::test(start_paused = true)]
async fn the_timer_moves_forward_for_an_earlier_expiry() {
    let (long, short) = (Duration::from_secs(3600), Duration::from_secs(1));
    let queues = [
        expiring("slow", long, "dead"),
        expiring("fast", short, "dead"),
        queue("dead"),
    ];
    let broker = broker(queues).await;
    publish(&broker, "", "slow", "slow");
    // The timer is asleep for an hour when the second message comes.
    tokio::time::sleep(short).await;
    publish(&broker, "", "fast", "fast");
    let mut dead = subscribe(&broker, &["dead"], 1).await;
    let first = tokio::time::timeout(2 * short, dead.next()).await;
    let first = first.expect("in time").expect("not ended");
    assert_eq!(&first.message.payload[..], b"fast");
}

#[tokio::test]
async fn a_message_that_may_not_wait_goes_to_a_waiting_consumer_or_dies() {
    let broker = broker([expiring("work", Duration::ZERO, "dead"), queue("dead")]).await;
    publish(&broker, "", "work", "nobody waits");
    assert_eq!(broker.queue_depth("dead"), Some(1));

    let mut work = subscribe(&broker, &["work"], 1).await;
    publish(&broker, "", "work", "one waits");
    publish(&broker, "", "work", "it has no credit");
    assert_eq!(texts(&ready(&mut *work)), [b"one waits"]);
    assert_eq!(broker.queue_depth("dead"), Some(2));
}

#[tokio::test]
async fn a_message_that_goes_round_by_expiry_alone_is_dropped() {
    let queues = [
        expiring("ping", Duration::ZERO, "pong"),
        expiring("pong", Duration::ZERO, "ping"),
    ];
    let broker = broker(queues).await;
    assert_eq!(publish(&broker, "", "ping", "a"), Fate::Confirmed);
    assert_eq!(broker.queue_depth("ping"), Some(0));
    assert_eq!(broker.queue_depth("pong"), Some(0));
}

#[tokio::test]
async fn consumers_of_one_queue_take_turns() {
    let broker = broker([queue("work")]).await;
    let mut first = subscribe(&broker, &["work"], 3).await;
    let mut second = subscribe(&broker, &["work"], 10).await;
    for text in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        publish(&broker, "", "work", text);
    }
    let first = ready(&mut *first);
    assert_eq!(texts(&first), [b"a", b"c", b"e"]);
    assert_eq!(first.iter().map(|d| d.tag).collect::<Vec<_>>(), [1, 2, 3]);
    let second = ready(&mut *second);
    assert_eq!(texts(&second), [b"b", b"d", b"f", b"g", b"h"]);
}

#[tokio::test]
async fn deleting_a_queue_ends_its_subscriptions_and_leaves_the_others_deliveries() {
    let broker = broker([queue("kept"), queue("gone")]).await;
    publish(&broker, "", "kept", "a");
    publish(&broker, "", "kept", "b");
    publish(&broker, "", "gone", "c");
    let mut subscription = subscribe(&broker, &["kept", "gone"], 10).await;
    let taken = subscription.next().await.expect("not ended");

    assert!(broker.delete_queue("gone"));
    assert!(!broker.delete_queue("gone"));
    let ended = subscription.next().await.map(|delivery| delivery.tag);
    assert_eq!(ended, Err(Ended::QueueDeleted(1)));
    assert_eq!(publish(&broker, "", "gone", "d"), Fate::Unroutable);
    assert_eq!(broker.queue_depth("gone"), None);
    // What was not taken is back; what was taken can still be settled.
    assert_eq!(broker.queue_depth("kept"), Some(1));
    assert_eq!(subscription.ack(&[taken.tag]).await, Ok(()));
    subscription.close().await;
    assert_eq!(broker.queue_depth("kept"), Some(1));
}

#[tokio::test]
async fn a_deleted_queue_wakes_who_waits_for_it() {
    let broker = broker([queue("work")]).await;
    let mut subscription = subscribe(&broker, &["work"], 1).await;
    let waiting = tokio::spawn(async move { subscription.next().await.map(|next| next.tag) });
    tokio::task::yield_now().await;
    broker.delete_queue("work");
    let ended = waiting.await.expect("no panic");
    assert_eq!(ended, Err(Ended::QueueDeleted(0)));
}

#[tokio::test]
async fn a_publish_to_a_missing_exchange_is_unroutable() {
    let broker = broker([queue("work")]).await;
    let fate = publish(&broker, "missing", "work", "a");
    assert_eq!(fate, Fate::Unroutable);
}

#[tokio::test]
async fn a_subscription_ends_when_its_broker_is_dropped() {
    let broker = broker([queue("work")]).await;
    let mut subscription = subscribe(&broker, &["work"], 1).await;
    drop(broker);
    let ended = subscription.next().await.map(|next| next.tag);
    assert_eq!(ended, Err(Ended::BrokerDown));
}

#[tokio::test]
async fn a_consumer_that_always_finds_something_lets_others_run() {
    let broker = broker([queue("work")]).await;
    let mut subscription = subscribe(&broker, &["work"], 1).await;
    publish(&broker, "", "work", "a");
    let busy = tokio::spawn(async move {
        for _ in 0..100_000 {
            let delivery = subscription.next().await?;
            subscription.requeue(&[delivery.tag]).await?;
        }
        Ok(())
    });
    tokio::task::yield_now().await;
    // The one thread came back to this task long before the other one was done.
    broker.close().await;
    let ended = busy.await.expect("no panic");
    assert_eq!(ended, Err(Ended::BrokerDown));
}
