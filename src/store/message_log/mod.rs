//! The message log: an entry for each message that was published, and what happened to it.
//!
//! Events of one message may be written in any order, and by several replicas: a subscriber can have acked before whoever
//! published has heard from the broker. What an entry says of the message follows from its events, in either order.

mod forget;
mod query;
mod size;
mod standing;
mod write;

use std::sync::Arc;

use uuid::Uuid;

pub use self::{
    forget::Forgotten,
    query::{Happened, LogFilter, Logged},
};
use crate::{failed_message::Time, message::Message};

/// Something that happened to a message, to be written down.
#[derive(Clone, Debug)]
pub struct Event {
    pub message_id: String,
    /// By the clock of the replica that saw it.
    pub at: Time,
    /// Where it happened; empty: in none.
    pub queue: Arc<str>,
    /// The delivery attempt that it belongs to, from 1; 0: to none.
    pub attempt: u32,
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum What {
    /// It was published. The first one makes the entry; without one, it is noted where there is an entry already.
    Published {
        outcome: &'static str,
        entry: Option<Box<Entry>>,
    },
    Delivered {
        client: Arc<str>,
        redelivered: bool,
    },
    Settled(Settlement),
    Failed {
        detail: String,
    },
    Retried {
        detail: String,
    },
}

/// What an entry is made of.
#[derive(Clone, Debug)]
pub struct Entry {
    pub publish_id: Uuid,
    pub exchange: String,
    pub routing_key: String,
    /// Its payload is empty where it is not kept.
    pub message: Message,
    pub keeps_payload: bool,
    pub payload_size: usize,
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
pub enum Settlement {
    Ack,
    AutoAck,
    Retry,
    Requeue,
    DeadLetter,
    Discard,
    /// Its ack deadline passed.
    Lapsed,
}

/// Where a logged message stands.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    strum::Display,
    strum::EnumString,
    serde::Serialize,
    serde::Deserialize,
)]
#[strum(serialize_all = "snake_case")]
pub enum LogStatus {
    Published,
    Delivered,
    Failed,
}

/// What an event is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum EventKind {
    Published,
    Delivered,
    Settled,
    Failed,
    Retried,
}

impl What {
    fn kind(&self) -> EventKind {
        match self {
            Self::Published { .. } => EventKind::Published,
            Self::Delivered { .. } => EventKind::Delivered,
            Self::Settled(_) => EventKind::Settled,
            Self::Failed { .. } => EventKind::Failed,
            Self::Retried { .. } => EventKind::Retried,
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Published { outcome, .. } => (*outcome).to_owned(),
            Self::Delivered {
                client,
                redelivered: false,
            } => format!("to {client}"),
            Self::Delivered { client, .. } => format!("to {client}, redelivered"),
            Self::Settled(settlement) => settlement.to_string(),
            Self::Failed { detail } | Self::Retried { detail } => detail.clone(),
        }
    }
}
