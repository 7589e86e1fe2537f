//! Resolves failed messages whose retry a consumer acked. Behind the consumer's back: settling does not wait for the database.
//! What cannot be written in time is resolved later, when the retry's quiet period has passed.

use std::time::Duration;

use tokio::sync::mpsc;
use uuid::Uuid;

use crate::{
    gateway::failed_messages::dead_letter,
    message::Message,
    store::{Ack, Store},
};

/// Acks that wait for the database.
const WAITING: usize = 10_000;
/// Acks of one transaction.
const BATCH: usize = 100;
const AGAIN: Duration = Duration::from_millis(500);

/// What a consumer of this queue says who acks this message; `dropped`: by discarding it. `None`: it is no retry.
pub fn of(queue: &str, message: &Message, dropped: bool) -> Option<Ack> {
    let id = Uuid::parse_str(dead_letter::failed_id(message)?).ok()?;
    Some(Ack {
        id,
        attempt: dead_letter::attempt(message),
        dropped,
        queue: queue.to_owned(),
    })
}

/// Takes acks of retries.
#[derive(Clone)]
pub struct Acks(mpsc::Sender<Ack>);

impl Acks {
    /// The broker was told of it.
    pub fn note(&self, ack: Ack) {
        let id = ack.id;
        if self.0.try_send(ack).is_err() {
            tracing::warn!(%id, "too many acks of retries wait for the database; this message will be RESOLVED as ASSUMED, not as ACKED");
        }
    }
}

/// Where acks go, and the task that writes them: it ends when all senders are gone, or the store is closed.
pub fn recorder(store: Store) -> (Acks, impl Future<Output = ()> + Send) {
    let (sender, inbox) = mpsc::channel(WAITING);
    (Acks(sender), record(store, inbox))
}

async fn record(store: Store, mut inbox: mpsc::Receiver<Ack>) {
    let mut presence = store.watch();
    let mut batch = Vec::with_capacity(BATCH);
    while inbox.recv_many(&mut batch, BATCH).await > 0 {
        loop {
            match store.acked(&batch).await {
                Err(error) if error.passes() => {
                    tokio::time::sleep(AGAIN).await;
                    if !presence.up().await {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot store acks of retries; these messages will be RESOLVED as ASSUMED, not as ACKED");
                    break;
                }
                Ok(()) => break,
            }
        }
        batch.clear();
    }
}
