//! Which failed messages are meant.

use sea_orm::{
    ColumnTrait, Condition, DbBackend, ExprTrait,
    sea_query::{Expr, Func, SimpleExpr},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{entity::failed_message::Column, index::Index, row};
use crate::failed_message::{FailedMessage, Reason, Status, Time};

/// Conditions that must all hold; what is empty is no condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    pub queue: Option<String>,
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
    pub statuses: Vec<Status>,
    pub reasons: Vec<Reason>,
    /// Part of the error's type or message; case matters.
    pub error_text: Option<String>,
    /// From this moment on.
    pub failed_after: Option<Time>,
    /// Before this moment.
    pub failed_before: Option<Time>,
    pub fingerprint: Option<String>,
    pub message_id: Option<String>,
    pub operation_id: Option<Uuid>,
}

impl Filter {
    /// Whether it lets this one through.
    pub fn matches(&self, row: &FailedMessage) -> bool {
        let equal = |wanted: &Option<String>, text: &str| {
            wanted
                .as_deref()
                .is_none_or(|wanted| row::storable(wanted) == text)
        };
        let message_id = row.message.message_id.as_deref().unwrap_or_default();
        let texts = [&row.error.kind, &row.error.message];
        let text = self.error_text.as_deref().map(row::storable);
        equal(&self.queue, &row.queue)
            && equal(&self.exchange, &row.exchange)
            && equal(&self.routing_key, &row.routing_key)
            && equal(&self.fingerprint, &row.fingerprint)
            && equal(&self.message_id, message_id)
            && (self.statuses.is_empty() || self.statuses.contains(&row.state.status))
            && (self.reasons.is_empty() || self.reasons.contains(&row.reason))
            && text.is_none_or(|wanted| texts.iter().any(|text| text.contains(&wanted)))
            && self.failed_after.is_none_or(|at| row.failed_at >= at)
            && self.failed_before.is_none_or(|at| row.failed_at < at)
            && self
                .operation_id
                .is_none_or(|id| row.operation_id == Some(id))
    }

    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether conditions are left that no index serves.
    pub(super) fn scans(&self) -> bool {
        let unindexed = [&self.exchange, &self.routing_key, &self.error_text];
        unindexed.iter().any(|text| text.is_some()) || !self.reasons.is_empty()
    }

    /// What indexes serve, but the status.
    pub(super) fn indexed(&self, backend: DbBackend) -> Condition {
        let equal = |column: Column, text: &Option<String>| {
            text.as_ref().map(|text| column.eq(row::storable(text)))
        };
        let moment = |at: Time| row::moment(at, backend);
        let operation = self.operation_id.map(|id| id.to_string());
        Condition::all()
            .add_option(equal(Column::Queue, &self.queue))
            .add_option(equal(Column::Fingerprint, &self.fingerprint))
            .add_option(equal(Column::MessageId, &self.message_id))
            .add_option(operation.map(|id| Column::OperationId.eq(id)))
            .add_option(self.failed_after.map(|at| Column::FailedAt.gte(moment(at))))
            .add_option(self.failed_before.map(|at| Column::FailedAt.lt(moment(at))))
    }

    /// Those of these statuses that it lets through.
    pub(super) fn statuses_of(&self, of: &[Status]) -> impl Iterator<Item = Status> {
        let all = self.statuses.is_empty();
        let wanted = of.iter().copied();
        wanted.filter(move |status| all || self.statuses.contains(status))
    }

    /// The index of a list by time that has nothing else in it, or the least. `of_one_status`: the list is of one status alone.
    pub(super) fn index(&self, of_one_status: bool) -> Option<Index> {
        if self.message_id.is_some() {
            Some("idx_failed_messages_message_id")
        } else if self.operation_id.is_some() {
            // None has its rows in the order of the list.
            None
        } else if self.fingerprint.is_some() {
            Some("idx_failed_messages_fingerprint_failed_at_id")
        } else {
            match (self.queue.is_some(), of_one_status) {
                (true, true) => Some("idx_failed_messages_queue_status_failed_at_id"),
                (true, false) => Some("idx_failed_messages_queue_failed_at_id"),
                (false, true) => Some("idx_failed_messages_status_failed_at_id"),
                (false, false) => None,
            }
        }
    }

    /// The status.
    pub(super) fn status(&self) -> Condition {
        let statuses = self.statuses.iter().map(|status| row::text(*status));
        Condition::all()
            .add_option((!self.statuses.is_empty()).then(|| Column::Status.is_in(statuses)))
    }

    /// The rest.
    pub(super) fn scanned(&self, backend: DbBackend) -> Condition {
        let equal = |column: Column, text: &Option<String>| {
            text.as_ref().map(|text| column.eq(row::storable(text)))
        };
        let reasons = self.reasons.iter().map(ToString::to_string);
        let texts = self.error_text.as_ref().map(|text| {
            Condition::any()
                .add(contains(Column::ErrorType, text, backend))
                .add(contains(Column::ErrorMessage, text, backend))
        });
        Condition::all()
            .add_option(equal(Column::Exchange, &self.exchange))
            .add_option(equal(Column::RoutingKey, &self.routing_key))
            .add_option((!self.reasons.is_empty()).then(|| Column::Reason.is_in(reasons)))
            .add_option(texts)
    }

    /// All of it.
    pub(super) fn condition(&self, backend: DbBackend) -> Condition {
        self.indexed(backend)
            .add(self.status())
            .add(self.scanned(backend))
    }
}

/// Whether a column holds a text, byte for byte; LIKE would read `%` and `_` in it, and ignore case on some engines.
fn contains(column: Column, text: &str, backend: DbBackend) -> SimpleExpr {
    let function = match backend {
        DbBackend::Postgres => "STRPOS",
        _ => "INSTR",
    };
    let found = Func::cust(function)
        .arg(Expr::col(column))
        .arg(row::storable(text));
    Expr::expr(found).gt(0)
}
