//! Between the API's failed messages and the gateway's.

use std::sync::Arc;

use tonic::Status;
use uuid::Uuid;

use crate::{
    failed_message::{self, Reason, Resolution},
    gateway::failed_messages::Full,
    grpc::{
        convert,
        fields::{read_time, some, write_time},
        proto::{
            self, FailedMessageFilter, RetryFailedMessagesResponse,
            retry_failed_messages_response::State as ProtoState,
            watch_failed_messages_response::{Change as ProtoChange, change::Kind},
        },
        status::invalid,
    },
    store::{Change, Filter, Operation, OperationState},
};

pub(super) fn read_filter(filter: Option<FailedMessageFilter>) -> Result<Filter, Status> {
    let Some(filter) = filter else {
        return Ok(Filter::default());
    };
    let statuses = filter.statuses().map(|status| {
        use proto::failed_message::Status;
        match status {
            Status::Pending => Some(failed_message::Status::Pending),
            Status::Retrying => Some(failed_message::Status::Retrying),
            Status::Failed => Some(failed_message::Status::Failed),
            Status::Resolved => Some(failed_message::Status::Resolved),
            Status::Unspecified => None,
        }
    });
    let statuses: Option<_> = statuses.collect();
    let reasons = filter.reasons().map(|reason| {
        use proto::DeathReason;
        match reason {
            DeathReason::Rejected => Some(Reason::Rejected),
            DeathReason::Expired => Some(Reason::Expired),
            DeathReason::MaxLength => Some(Reason::MaxLength),
            DeathReason::DeliveryLimit => Some(Reason::DeliveryLimit),
            DeathReason::Returned => Some(Reason::Returned),
            DeathReason::Unspecified => None,
        }
    });
    let reasons: Option<_> = reasons.collect();
    let unknown = "has a value that is not known";
    let operation = some(filter.operation_id)
        .map(|id| Uuid::parse_str(&id))
        .transpose();
    Ok(Filter {
        statuses: statuses.ok_or_else(|| invalid("filter.statuses", unknown))?,
        reasons: reasons.ok_or_else(|| invalid("filter.reasons", unknown))?,
        operation_id: operation
            .map_err(|_| invalid("filter.operation_id", "is not the id of an operation"))?,
        queue: some(filter.queue),
        exchange: some(filter.exchange),
        routing_key: some(filter.routing_key),
        error_text: some(filter.error_text),
        failed_after: read_time("filter.failed_after", filter.failed_after)?,
        failed_before: read_time("filter.failed_before", filter.failed_before)?,
        fingerprint: some(filter.fingerprint),
        message_id: some(filter.message_id),
    })
}

pub(super) fn write_full(full: Full) -> proto::FailedMessage {
    let message = convert::delivered(&full.message.message);
    let stack = full.message.error.stack.clone();
    proto::FailedMessage {
        message: Some(message),
        error_stack: stack,
        attempts: full.attempts.into_iter().map(write_attempt).collect(),
        ..write_basic(full.message)
    }
}

pub(super) fn write_basic(row: failed_message::FailedMessage) -> proto::FailedMessage {
    use proto::failed_message as view;
    let message = proto::Message {
        payload: None,
        ..convert::delivered(&row.message)
    };
    let state = row.state;
    let status = match state.status {
        failed_message::Status::Pending => view::Status::Pending,
        failed_message::Status::Retrying => view::Status::Retrying,
        failed_message::Status::Failed => view::Status::Failed,
        failed_message::Status::Resolved => view::Status::Resolved,
    };
    let resolution = match state.resolution {
        None => view::Resolution::Unspecified,
        Some(Resolution::Acked) => view::Resolution::Acked,
        Some(Resolution::Assumed) => view::Resolution::Assumed,
        Some(Resolution::Manual) => view::Resolution::Manual,
    };
    let pending = state.status == failed_message::Status::Pending;
    proto::FailedMessage {
        id: row.id.to_string(),
        queue: row.queue,
        exchange: row.exchange,
        routing_key: row.routing_key,
        message: Some(message),
        error_type: row.error.kind,
        error_message: row.error.message,
        error_stack: String::new(),
        reason: write_reason(row.reason).into(),
        retry_count: state.retry_count,
        max_retries: state.max_retries,
        status: status.into(),
        failed_at: Some(write_time(row.failed_at)),
        last_retry_at: state.last_retry_at.map(write_time),
        next_retry_at: state.next_retry_at.filter(|_| pending).map(write_time),
        resolved_at: state.resolved_at.map(write_time),
        resolution: resolution.into(),
        attempts: Vec::new(),
        fingerprint: row.fingerprint,
        attempt: state.attempt,
        last_failed_at: Some(write_time(row.last_failed_at)),
        comment: row.comment.unwrap_or_default(),
        operation_id: row
            .operation_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        publish_id: row.publish_id.unwrap_or_default(),
    }
}

fn write_reason(reason: Reason) -> proto::DeathReason {
    match reason {
        Reason::Rejected => proto::DeathReason::Rejected,
        Reason::Expired => proto::DeathReason::Expired,
        Reason::MaxLength => proto::DeathReason::MaxLength,
        Reason::DeliveryLimit => proto::DeathReason::DeliveryLimit,
        Reason::Returned => proto::DeathReason::Returned,
    }
}

fn write_attempt(attempt: failed_message::Attempt) -> proto::Attempt {
    use proto::attempt::Outcome;
    let outcome = match attempt.outcome {
        None => Outcome::Unspecified,
        Some(failed_message::Outcome::Died) => Outcome::Died,
        Some(failed_message::Outcome::Acked) => Outcome::Acked,
        Some(failed_message::Outcome::Assumed) => Outcome::Assumed,
        Some(failed_message::Outcome::Discarded) => Outcome::Discarded,
    };
    proto::Attempt {
        number: attempt.number,
        manual: attempt.manual,
        started_at: attempt.started_at.map(write_time),
        ended_at: attempt.ended_at.map(write_time),
        outcome: outcome.into(),
        error_type: attempt.error.kind,
        error_message: attempt.error.message,
    }
}

pub(super) fn write_change(change: Arc<Change>) -> ProtoChange {
    // Others who watch may be told the same.
    let (kind, failed_message) = match Arc::unwrap_or_clone(change) {
        Change::Changed(row) => (Kind::Changed, write_basic(*row)),
        Change::Deleted(id) => {
            let only_id = proto::FailedMessage {
                id: id.to_string(),
                ..Default::default()
            };
            (Kind::Deleted, only_id)
        }
    };
    ProtoChange {
        kind: kind.into(),
        failed_message: Some(failed_message),
    }
}

pub(super) fn write_operation(operation: &Operation) -> RetryFailedMessagesResponse {
    let state = match operation.state {
        OperationState::Running => ProtoState::Running,
        OperationState::Done => ProtoState::Done,
        OperationState::Stopped => ProtoState::Stopped,
    };
    RetryFailedMessagesResponse {
        operation_id: operation.id.to_string(),
        state: state.into(),
        matched: operation.matched,
        started: operation.started,
        succeeded: operation.succeeded,
        failed_again: operation.failed_again,
        skipped: operation.skipped,
        waiting: operation.waiting(),
        stop_reason: operation.stop_reason.clone().unwrap_or_default(),
    }
}
