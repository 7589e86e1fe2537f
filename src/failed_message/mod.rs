//! Failed messages: what one is ([`FailedMessage`]), and how it goes from state to state ([`machine`]).
//!
//! Nothing here does anything by itself: the store keeps it, the gateway drives it.

pub mod fingerprint;
pub mod machine;
#[cfg(test)]
mod model;
pub mod schedule;

use uuid::Uuid;

pub use self::machine::State;
use crate::message::Message;

/// A moment by the database's clock, UTC, in whole microseconds.
pub type Time = chrono::DateTime<chrono::Utc>;

/// Whether every database can be asked about a moment: those from 1970 to 9999.
pub fn is_known_to_databases(time: &Time) -> bool {
    const YEAR_10_000: i64 = 253_402_300_800;
    (0..YEAR_10_000).contains(&time.timestamp())
}

/// How much of each error text is kept, in bytes.
pub const MAX_ERROR_TEXT: usize = 4 * 1024;

/// Where a failed message stands.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    serde::Serialize,
    serde::Deserialize,
)]
#[strum(serialize_all = "snake_case")]
pub enum Status {
    /// Waits for its next automatic retry.
    Pending,
    /// A retry is on its way, or with a consumer.
    Retrying,
    /// No more automatic retries: a person decides.
    Failed,
    /// Done.
    Resolved,
}

/// Why a message died.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    serde::Serialize,
    serde::Deserialize,
)]
#[strum(serialize_all = "snake_case")]
pub enum Reason {
    /// A consumer refused it.
    Rejected,
    /// Its time to live passed in the queue.
    Expired,
    /// The queue was full and dropped it.
    MaxLength,
    /// It was delivered too often without being settled.
    DeliveryLimit,
    /// A retry found no queue to go to.
    Returned,
}

/// How a failed message was done with.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::IntoStaticStr,
)]
#[strum(serialize_all = "snake_case")]
pub enum Resolution {
    /// A consumer acked the retry through the gateway.
    Acked,
    /// The retry did not die within the quiet period.
    Assumed,
    /// A person said so.
    Manual,
}

/// Why a consumer failed, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorDetail {
    pub kind: String,
    pub message: String,
    pub stack: String,
}

/// A message that died in a queue, and what was done about it.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedMessage {
    pub id: Uuid,
    /// Where it died, and where retries go.
    pub queue: String,
    /// Where it was first published to.
    pub exchange: String,
    pub routing_key: String,
    /// Without the headers that brokers and the gateway add when a message dies. Lists leave the payload out.
    pub message: Message,
    /// Of the first publish; `None`: it was published past the gateway.
    pub publish_id: Option<String>,
    pub error: ErrorDetail,
    pub reason: Reason,
    /// See [`fingerprint`].
    pub fingerprint: String,
    pub state: State,
    /// What a person, or the gateway, noted when it was resolved.
    pub comment: Option<String>,
    /// The first death.
    pub failed_at: Time,
    pub last_failed_at: Time,
    pub updated_at: Time,
    /// The bulk retry that it belonged to last.
    pub operation_id: Option<Uuid>,
}

/// One delivery attempt of a failed message.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// 1 is the first delivery, before any retry.
    pub number: u32,
    pub manual: bool,
    /// When it was published; unknown for the first.
    pub started_at: Option<Time>,
    pub ended_at: Option<Time>,
    /// `None`: under way.
    pub outcome: Option<Outcome>,
    pub error: ErrorDetail,
}

/// How a delivery attempt ended.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString, strum::IntoStaticStr,
)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    Died,
    Acked,
    Assumed,
    /// The consumer acked it by saying that it is to be dropped.
    Discarded,
}

/// A dead letter, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Death {
    /// The id for a new row.
    pub id: Uuid,
    /// The row that it is a retry of.
    pub failed_id: Option<Uuid>,
    /// Which delivery attempt died, from 1.
    pub attempt: u32,
    /// The broker has delivered this dead letter before.
    pub redelivered: bool,
    pub queue: String,
    pub exchange: String,
    pub routing_key: String,
    pub publish_id: Option<String>,
    pub message: Message,
    pub reason: Reason,
    pub error: ErrorDetail,
    pub next: Next,
}

/// What is to happen with a failed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again, after this delay or as the retry schedule says.
    Retry(Option<std::time::Duration>),
    /// No more automatic tries.
    Park,
}
