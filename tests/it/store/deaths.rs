//! Deaths for tests: one line each, and what a test does not say is ordinary.

use std::time::Duration;

use courtier::{
    failed_message::{Death, ErrorDetail, FailedMessage, Next, Reason, schedule::Schedule},
    message::Message,
    store::{Ack, Claimed, Collected, Error, Store},
};
use uuid::Uuid;

pub const LEASE: Duration = Duration::from_secs(60);
pub const MAX_RETRIES: u32 = 3;

/// Retries are due at once.
pub fn at_once(_: &str) -> Schedule {
    Schedule::new(vec![Duration::ZERO], MAX_RETRIES)
}

/// Retries are due after the test.
pub fn much_later(_: &str) -> Schedule {
    Schedule::new(vec![Duration::from_secs(3600)], MAX_RETRIES)
}

/// The first death of a message in `queue`, rejected by its consumer.
pub fn death(queue: &str) -> Death {
    Death {
        id: Uuid::now_v7(),
        failed_id: None,
        attempt: 1,
        redelivered: false,
        queue: queue.to_owned(),
        exchange: "events".to_owned(),
        routing_key: "order.created".to_owned(),
        publish_id: Some(Uuid::now_v7().to_string()),
        message: Message {
            message_id: Some("m-1".to_owned()),
            payload: "payload".into(),
            ..Message::default()
        },
        reason: Reason::Rejected,
        error: error("Timeout", "no answer"),
        next: Next::Retry(None),
    }
}

pub fn error(kind: &str, message: &str) -> ErrorDetail {
    ErrorDetail {
        kind: kind.to_owned(),
        message: message.to_owned(),
        stack: "at main".to_owned(),
    }
}

/// The death of a retry.
pub fn death_of(retried: &FailedMessage) -> Death {
    Death {
        failed_id: Some(retried.id),
        attempt: retried.state.attempt,
        publish_id: retried.publish_id.clone(),
        message: retried.message.clone(),
        ..death(&retried.queue)
    }
}

/// A consumer acks an attempt of a row.
pub fn ack(row: &FailedMessage, attempt: u32) -> Ack {
    Ack {
        id: row.id,
        attempt,
        dropped: false,
        queue: row.queue.clone(),
    }
}

/// Collects one death, whose retry is due at once.
pub async fn collect(store: &Store, death: &Death) -> Collected {
    let deaths = std::slice::from_ref(death);
    let collected = store.collect(deaths, at_once).await.expect("collect");
    assert_eq!(collected.len(), 1);
    collected[0]
}

/// A new row that is due at once.
pub async fn collected(store: &Store, queue: &str) -> FailedMessage {
    let death = death(queue);
    assert_eq!(collect(store, &death).await, Collected::New);
    store.failed_message(death.id).await.expect("the row")
}

/// The one row of the queue that is due.
pub async fn claim(store: &Store, queue: &str) -> Claimed {
    let mut claimed = claim_up_to(store, queue, 2).await.expect("claim");
    assert_eq!(claimed.len(), 1);
    claimed.remove(0)
}

pub async fn claim_up_to(store: &Store, queue: &str, limit: u64) -> Result<Vec<Claimed>, Error> {
    store.claim(queue, false, limit, LEASE).await
}
