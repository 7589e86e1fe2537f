//! The flags that say which failed messages are meant.

use clap::{Args, ValueEnum};
use prost_types::Timestamp;

use crate::{
    cli::moment::moment,
    grpc::proto::{self, DeathReason, FailedMessageFilter, failed_message},
};

/// Conditions; a message must meet all of them.
#[derive(Args)]
#[command(next_help_heading = "Which messages")]
pub(super) struct Conditions {
    /// Failed in this queue
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// First published to this exchange
    #[arg(long, value_name = "NAME")]
    exchange: Option<String>,
    /// First published with this routing key
    #[arg(long, value_name = "KEY")]
    routing_key: Option<String>,
    /// Stands there; may be repeated
    #[arg(long = "status", value_name = "STATUS", value_delimiter = ',')]
    statuses: Vec<Status>,
    /// Died last in this way; may be repeated
    #[arg(long = "reason", value_name = "REASON", value_delimiter = ',')]
    reasons: Vec<Reason>,
    /// Part of the error's type or message, upper and lower case apart
    #[arg(long, value_name = "TEXT")]
    error_text: Option<String>,
    /// First failed then or later: 2026-11-22T08:00:00Z, or how long ago, such as 2h
    #[arg(long, value_name = "TIME", value_parser = moment)]
    after: Option<Timestamp>,
    /// First failed before that
    #[arg(long, value_name = "TIME", value_parser = moment)]
    before: Option<Timestamp>,
    /// Belongs to this group (courtier failed groups)
    #[arg(long, value_name = "GROUP")]
    fingerprint: Option<String>,
    /// Has this message id, the publisher's
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
}

/// Conditions, where `--operation` is one of them.
#[derive(Args)]
pub(super) struct Filter {
    #[command(flatten)]
    conditions: Conditions,
    /// Belongs to this bulk retry
    #[arg(long, value_name = "ID", help_heading = "Which messages")]
    operation: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Status {
    /// Waits for its next retry
    Pending,
    /// A retry is under way
    Retrying,
    /// Waits for a person
    Failed,
    /// Done
    Resolved,
}

#[derive(Clone, Copy, ValueEnum)]
enum Reason {
    /// A consumer refused it
    Rejected,
    /// It waited for too long
    Expired,
    /// Its queue was full
    MaxLength,
    /// It was delivered too often
    DeliveryLimit,
    /// A retry found no queue
    Returned,
}

impl Conditions {
    pub(super) fn is_empty(&self) -> bool {
        self.filter() == FailedMessageFilter::default()
    }

    pub(super) fn filter(&self) -> FailedMessageFilter {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let statuses = self.statuses.iter().map(|status| match status {
            Status::Pending => failed_message::Status::Pending,
            Status::Retrying => failed_message::Status::Retrying,
            Status::Failed => failed_message::Status::Failed,
            Status::Resolved => failed_message::Status::Resolved,
        });
        let reasons = self.reasons.iter().map(|reason| match reason {
            Reason::Rejected => DeathReason::Rejected,
            Reason::Expired => DeathReason::Expired,
            Reason::MaxLength => DeathReason::MaxLength,
            Reason::DeliveryLimit => DeathReason::DeliveryLimit,
            Reason::Returned => DeathReason::Returned,
        });
        FailedMessageFilter {
            queue: text(&self.queue),
            exchange: text(&self.exchange),
            routing_key: text(&self.routing_key),
            statuses: statuses.map(i32::from).collect(),
            reasons: reasons.map(i32::from).collect(),
            error_text: text(&self.error_text),
            failed_after: self.after,
            failed_before: self.before,
            fingerprint: text(&self.fingerprint),
            message_id: text(&self.message_id),
            operation_id: String::new(),
        }
    }
}

impl Filter {
    pub(super) fn is_empty(&self) -> bool {
        self.filter() == FailedMessageFilter::default()
    }

    pub(super) fn filter(&self) -> proto::FailedMessageFilter {
        FailedMessageFilter {
            operation_id: self.operation.clone().unwrap_or_default(),
            ..self.conditions.filter()
        }
    }
}
