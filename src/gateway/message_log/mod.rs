//! The message log: what was published, and what became of it. Nothing waits for it: what happens is put into a bounded
//! [`buffer`], and written down by the [`writer`]. What does not fit is dropped and counted.

mod buffer;
mod writer;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::SubsecRound;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::buffer::Buffer;
pub use self::buffer::Room;
use super::{
    failed_messages::dead_letter,
    page::{self, BadToken, Listed},
};
use crate::{
    broker::{Fate, InDoubt, NotSent, Publish, Refusal},
    failed_message::{Death, FailedMessage, Time},
    message::{Message, header},
    store::{self, Collected, Entry, Event, Happened, LogFilter, Logged, Settlement, Store, What},
};

/// How much of an error's text is told in a timeline; the failed message has all of it.
const ERROR_TEXT: usize = 256;

/// How the log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long entries are kept.
    pub retention: Duration,
    /// About how many bytes of the database it may take; the oldest entries go first. `None`: any number.
    pub max_bytes: Option<u64>,
    /// Payloads up to this size are kept.
    pub max_payload_bytes: usize,
    /// How much may wait for the database.
    pub room: Room,
    /// How long the first event of a batch waits for others.
    pub pace: Duration,
    /// About how often old entries are looked for.
    pub sweep: Duration,
}

/// Why a question about the log is not answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no log is kept")]
    Off,
    #[error("there is no such entry")]
    NotFound,
    #[error("the page token is not one of this list")]
    PageToken,
    #[error(transparent)]
    Store(store::Error),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NotFound => Self::NotFound,
            store::Error::PageToken => Self::PageToken,
            error => Self::Store(error),
        }
    }
}

impl From<BadToken> for Error {
    fn from(_: BadToken) -> Self {
        Self::PageToken
    }
}

/// The log, or none.
#[derive(Clone)]
pub struct MessageLog(Option<Arc<Log>>);

struct Log {
    store: Store,
    options: Options,
    buffer: Arc<Buffer>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The clock that events are timed by, as exact as all engines keep it.
pub fn now() -> Time {
    chrono::Utc::now().trunc_subsecs(6)
}

impl MessageLog {
    /// Starts keeping a log; `None`: keeps none.
    pub fn start(store: Store, options: Option<Options>) -> Self {
        let Some(options) = options else {
            return Self(None);
        };
        let buffer = Arc::new(Buffer::new(options.room));
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        writer::start(store.clone(), buffer.clone(), options, stop.clone(), &tasks);
        Self(Some(Arc::new(Log {
            store,
            options,
            buffer,
            stop,
            tasks,
        })))
    }

    /// Writes down what still waits, and ends. What cannot be written within this time is lost.
    pub async fn close(&self, within: Duration) {
        let Some(log) = &self.0 else { return };
        let before = log.buffer.dropped();
        log.stop.cancel();
        log.tasks.close();
        let _ = timeout(within, log.tasks.wait()).await;
        log.buffer.drop_some(log.buffer.len());
        let lost = log.buffer.dropped() - before;
        if lost > 0 {
            tracing::warn!(lost, "the last events of the message log are not stored");
        }
    }

    /// How many events are missing in the database because they did not fit into the buffer, or were refused.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |log| log.buffer.dropped())
    }

    fn note(&self, events: impl IntoIterator<Item = Event>) {
        if let Some(log) = &self.0 {
            log.buffer.add(events);
        }
    }

    /// Messages, the one published last first.
    pub async fn list(
        &self,
        filter: &LogFilter,
        size: u32,
        token: &str,
    ) -> Result<Listed<Logged>, Error> {
        let log = self.0.as_ref().ok_or(Error::Off)?;
        let list = page::list("message_log", filter);
        let cursor = page::cursor(token, &list)?;
        let found = log
            .store
            .logged_messages(filter, cursor.as_ref(), size.into())
            .await?;
        Ok(Listed {
            rows: found.rows,
            next: page::token(found.next, &list),
            unreadable: found.unreadable,
        })
    }

    /// One message, and what happened to it.
    pub async fn get(&self, message_id: &str) -> Result<(Logged, Vec<Happened>), Error> {
        let log = self.0.as_ref().ok_or(Error::Off)?;
        Ok(log.store.logged_message(message_id).await?)
    }

    /// Whoever is to be told what becomes of a publish, which is about to be handed over; also when its caller is gone by
    /// then. `named`: the client gave it its id, so an earlier publish may have had the same.
    pub(super) fn observer(
        &self,
        publish: &Publish,
        named: bool,
    ) -> Option<impl FnOnce(Fate) + Send + use<>> {
        let log = self.0.clone()?;
        let at = now();
        let message = &publish.message;
        let message_id = message.message_id.clone()?;
        let payload_size = message.payload.len();
        let keeps_payload = payload_size <= log.options.max_payload_bytes;
        let entry = Box::new(Entry {
            publish_id: publish.publish_id,
            exchange: publish.exchange.clone(),
            routing_key: publish.routing_key.clone(),
            message: Message {
                // Copied, because it is a piece of the whole request, which may be large and would stay in memory.
                payload: if keeps_payload {
                    Bytes::copy_from_slice(&message.payload)
                } else {
                    Bytes::new()
                },
                ..message.clone()
            },
            keeps_payload,
            payload_size,
        });
        Some(move |fate| {
            // Others are certainly with no queue.
            let stored = matches!(fate, Fate::Confirmed | Fate::Rejected | Fate::InDoubt(_));
            if stored || named {
                let entry = stored.then_some(entry);
                log.buffer.add([published(message_id, at, fate, entry)]);
            }
        })
    }

    /// A message to which the client gave its id was not handed over.
    pub(super) fn not_sent(&self, message_id: &str, why: NotSent) {
        if self.0.is_some() {
            let fate = Fate::NotSent(why);
            self.note([published(message_id.to_owned(), now(), fate, None)]);
        }
    }

    /// Deliveries that a subscriber is given, each with its queue.
    pub(super) fn delivered<'a>(
        &self,
        deliveries: impl IntoIterator<Item = (&'a Message, &'a Arc<str>, bool)>,
        client: &Arc<str>,
    ) {
        if self.0.is_none() {
            return;
        }
        let at = now();
        self.note(
            deliveries
                .into_iter()
                .filter_map(|(message, queue, redelivered)| {
                    let what = What::Delivered {
                        client: client.clone(),
                        redelivered,
                    };
                    event(message, at, queue, what)
                }),
        );
    }

    /// A subscriber settled a delivery.
    pub(super) fn settled(
        &self,
        message: &Message,
        at: Time,
        queue: &Arc<str>,
        settlement: Settlement,
    ) {
        if self.0.is_some() {
            self.note(event(message, at, queue, What::Settled(settlement)));
        }
    }

    /// Deaths that were read at this time, and have become failed messages.
    pub(super) fn failed(&self, deaths: &[Death], collected: &[Collected], at: Time) {
        if self.0.is_none() {
            return;
        }
        let deaths = deaths.iter().zip(collected);
        self.note(deaths.filter_map(|(death, collected)| {
            if *collected == Collected::Duplicate || death.publish_id.is_none() {
                return None;
            }
            Some(Event {
                message_id: death.message.message_id.clone()?,
                at,
                queue: death.queue.as_str().into(),
                attempt: death.attempt,
                what: What::Failed {
                    detail: why(
                        &death.reason.to_string(),
                        &death.error.kind,
                        &death.error.message,
                    ),
                },
            })
        }));
    }

    /// A failed message was sent again at this time; `how`: for people.
    pub(super) fn retried(&self, row: &FailedMessage, at: Time, how: &str) {
        let detail = how.to_owned();
        self.note_failed(row, at, row.state.attempt, What::Retried { detail });
    }

    /// An edited copy of a failed message was sent at this time, which uses up no attempt.
    pub(super) fn edited(&self, row: &FailedMessage, at: Time, how: &str) {
        let detail = how.to_owned();
        self.note_failed(row, at, 0, What::Retried { detail });
    }

    /// A failed message could not be sent again at this time, because its queue is gone.
    pub(super) fn returned(&self, row: &FailedMessage, at: Time) {
        let detail = "RETURNED: its queue is gone".to_owned();
        self.note_failed(row, at, 0, What::Failed { detail });
    }

    fn note_failed(&self, row: &FailedMessage, at: Time, attempt: u32, what: What) {
        // What was published past the gateway has no entry.
        let (Some(message_id), Some(_)) = (&row.message.message_id, &row.publish_id) else {
            return;
        };
        self.note([Event {
            message_id: message_id.clone(),
            at,
            queue: row.queue.as_str().into(),
            attempt,
            what,
        }]);
    }
}

fn published(message_id: String, at: Time, fate: Fate, entry: Option<Box<Entry>>) -> Event {
    Event {
        message_id,
        at,
        queue: Arc::default(),
        attempt: 0,
        what: What::Published {
            outcome: outcome(fate),
            entry,
        },
    }
}

/// Something that happened to a delivery. `None`: it was published past the gateway, or has no id.
fn event(message: &Message, at: Time, queue: &Arc<str>, what: What) -> Option<Event> {
    let headers = &message.headers;
    // The gateway's own copies have a publish-id of their own; the first one's is elsewhere.
    let copy = headers.contains_key(header::FAILED_ID) || headers.contains_key(header::ACTION);
    let first = if copy {
        header::ORIGINAL_PUBLISH_ID
    } else {
        header::PUBLISH_ID
    };
    let message_id = message.message_id.as_ref()?;
    headers.contains_key(first).then(|| Event {
        message_id: message_id.clone(),
        at,
        queue: queue.clone(),
        attempt: dead_letter::attempt(message),
        what,
    })
}

fn outcome(fate: Fate) -> &'static str {
    match fate {
        Fate::Confirmed => "CONFIRMED",
        Fate::Unroutable => "UNROUTABLE",
        Fate::Rejected => "REJECTED",
        Fate::NotSent(NotSent::BrokerDown) => "NOT_SENT: BROKER_DOWN",
        Fate::NotSent(NotSent::BrokerBlocked) => "NOT_SENT: BROKER_BLOCKED",
        Fate::NotSent(NotSent::Overloaded) => "NOT_SENT: OVERLOADED",
        Fate::NotSent(NotSent::HeadersTooLarge) => "NOT_SENT: PAYLOAD_TOO_LARGE",
        Fate::InDoubt(InDoubt::ConfirmLost) => "IN_DOUBT: CONFIRM_LOST",
        Fate::InDoubt(InDoubt::ConfirmTimeout) => "IN_DOUBT: CONFIRM_TIMEOUT",
        Fate::Refused(Refusal::NoExchange) => "INVALID: EXCHANGE_NOT_FOUND",
        Fate::Refused(Refusal::Forbidden) => "INVALID: FORBIDDEN",
        Fate::Refused(Refusal::TooLarge) => "INVALID: PAYLOAD_TOO_LARGE",
        Fate::Refused(Refusal::NoReplyAddress) => "INVALID: INVALID_MESSAGE",
    }
}

/// Why a message died, in a line.
fn why(reason: &str, kind: &str, message: &str) -> String {
    let message = &message[..message.floor_char_boundary(ERROR_TEXT)];
    let parts = [reason.to_uppercase(), kind.to_owned(), message.to_owned()];
    let told: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    told.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Table, Value};

    fn is_logged(names: &[&str]) -> bool {
        let header = |name: &&str| ((*name).to_owned(), Value::text("x"));
        let message = Message {
            message_id: Some("m".to_owned()),
            headers: names.iter().map(header).collect::<Table>(),
            ..Message::default()
        };
        let what = What::Settled(Settlement::Ack);
        event(&message, now(), &Arc::from("q"), what).is_some()
    }

    #[test]
    fn what_was_published_past_the_gateway_is_not_logged_even_when_the_gateway_retries_it() {
        use header::{ACTION, FAILED_ID, ORIGINAL_PUBLISH_ID, PUBLISH_ID};
        assert!(!is_logged(&[]));
        assert!(is_logged(&[PUBLISH_ID]));
        assert!(!is_logged(&[PUBLISH_ID, FAILED_ID]));
        assert!(!is_logged(&[PUBLISH_ID, ACTION]));
        assert!(is_logged(&[PUBLISH_ID, FAILED_ID, ORIGINAL_PUBLISH_ID]));
    }

    #[test]
    fn a_death_is_told_in_a_line() {
        assert_eq!(why("rejected", "Declined", "no"), "REJECTED: Declined: no");
        assert_eq!(why("expired", "", ""), "EXPIRED");
        let long = why("rejected", "", &"é".repeat(ERROR_TEXT));
        assert_eq!(long.len(), "REJECTED: ".len() + ERROR_TEXT);
    }
}
