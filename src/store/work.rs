//! One transaction on failed messages: rows change, and with them the history of attempts, the counts by kind and the
//! figures of bulk retries, all or nothing.

use std::collections::BTreeMap;

use sea_orm::{
    ActiveModelTrait,
    ActiveValue::Set,
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, EntityTrait, ExprTrait,
    IsolationLevel, QueryFilter, QuerySelect, Select, SqliteTransactionMode, TransactionOptions,
    TransactionTrait,
    sea_query::{Expr, LockBehavior, LockType, OnConflict, Query},
};
use uuid::Uuid;

use super::{
    Error,
    connection::Pools,
    entity::{attempt, deletion, failed_message, group, retry_operation},
    row,
};
use crate::failed_message::{ErrorDetail, Outcome, State, Status, Time, fingerprint::Kind};

/// Rows that go into one statement: SQLite takes 32,766 values, PostgreSQL 65,535.
pub(super) const CHUNK: usize = 500;

/// A transaction under way. Dropped without [`commit`](Self::commit), nothing of it happened.
pub(super) struct Work {
    pub tx: DatabaseTransaction,
    /// When it began, by the database's clock.
    pub now: Time,
    /// See [`Pools`].
    pub statement_bytes: Option<u64>,
    groups: BTreeMap<String, GroupDelta>,
    operations: BTreeMap<String, OperationDelta>,
}

/// How the counts of one kind of failure change.
#[derive(Default)]
struct GroupDelta {
    pending: i64,
    retrying: i64,
    failed: i64,
    resolved: i64,
    /// It failed now: what a new group is called, and that it was seen.
    seen: Option<(String, String, String)>,
}

#[derive(Default)]
struct OperationDelta {
    succeeded: i64,
    failed_again: i64,
    skipped: i64,
}

impl GroupDelta {
    fn count(&mut self, status: Status, by: i64) {
        let field = match status {
            Status::Pending => &mut self.pending,
            Status::Retrying => &mut self.retrying,
            Status::Failed => &mut self.failed,
            Status::Resolved => &mut self.resolved,
        };
        *field += by;
    }
}

impl Work {
    pub(super) async fn begin(pools: &Pools) -> Result<Self, Error> {
        let sqlite = pools.backend == DbBackend::Sqlite;
        let options = TransactionOptions {
            // Each statement sees what others committed; rows that matter are locked.
            isolation_level: (!sqlite).then_some(IsolationLevel::ReadCommitted),
            sqlite_transaction_mode: sqlite.then_some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let (tx, now) = loop {
            let tx = pools.write.begin_with_options(options).await?;
            let Some(clock) = &pools.clock else {
                let now = pools.now(&tx).await?;
                break (tx, now);
            };
            // In the transaction: nobody else writes meanwhile.
            if let Ok(now) = clock.now() {
                break (tx, now);
            }
            tx.rollback().await?;
            clock.correct(&pools.write).await?;
        };
        Ok(Self {
            tx,
            now,
            statement_bytes: pools.statement_bytes,
            groups: BTreeMap::new(),
            operations: BTreeMap::new(),
        })
    }

    pub(super) fn backend(&self) -> DbBackend {
        self.tx.get_database_backend()
    }

    /// Rows, locked until the transaction ends.
    pub(super) fn locking(
        &self,
        select: Select<failed_message::Entity>,
    ) -> Select<failed_message::Entity> {
        if self.tx.get_database_backend() == DbBackend::Sqlite {
            // One writer at a time: the transaction itself is the lock.
            return select;
        }
        select.lock(LockType::Update)
    }

    /// The same, without those that others hold: they work on them.
    pub(super) fn skipping(
        &self,
        select: Select<failed_message::Entity>,
    ) -> Select<failed_message::Entity> {
        if self.tx.get_database_backend() == DbBackend::Sqlite {
            return select;
        }
        select.lock_with_behavior(LockType::Update, LockBehavior::SkipLocked)
    }

    /// One row, locked.
    pub(super) async fn row(&self, id: Uuid) -> Result<failed_message::Model, Error> {
        let select = failed_message::Entity::find_by_id(id.to_string());
        let row = self.locking(select).one(&self.tx).await?;
        row.ok_or(Error::NotFound)
    }

    /// Writes what became of a row. `extra` sets further columns.
    pub(super) async fn save(
        &mut self,
        before: &failed_message::Model,
        state: &State,
        extra: impl FnOnce(&mut failed_message::ActiveModel),
    ) -> Result<(), Error> {
        let old = before.state()?;
        let mut columns = row::columns(&before.id, state);
        columns.updated_at = Set(self.now);
        extra(&mut columns);
        let fingerprint = match &columns.fingerprint {
            Set(new) => new.clone(),
            _ => before.fingerprint.clone(),
        };
        self.group(&before.fingerprint).count(old.status, -1);
        self.group(&fingerprint).count(state.status, 1);
        self.follow_operation(before, &old, state);
        columns.update_without_returning(&self.tx).await?;
        Ok(())
    }

    /// A retry that a bulk retry asked for has ended.
    fn follow_operation(&mut self, before: &failed_message::Model, old: &State, new: &State) {
        let Some(operation) = before
            .operation_id
            .as_ref()
            .filter(|_| old.manual && !new.manual)
        else {
            return;
        };
        let delta = self.operations.entry(operation.clone()).or_default();
        match new.status {
            Status::Resolved => delta.succeeded += 1,
            Status::Pending | Status::Failed => delta.failed_again += 1,
            Status::Retrying => {}
        }
    }

    /// Notes that a failure of this kind happened now.
    pub(super) fn seen(&mut self, kind: &Kind, queue: &str, error_type: &str) {
        let name = (
            queue.to_owned(),
            error_type.to_owned(),
            kind.message.clone(),
        );
        self.group(&kind.fingerprint).seen = Some(name);
    }

    /// Notes a row that is new.
    pub(super) fn count_new(&mut self, fingerprint: &str, status: Status) {
        self.group(fingerprint).count(status, 1);
    }

    fn group(&mut self, fingerprint: &str) -> &mut GroupDelta {
        self.groups.entry(fingerprint.to_owned()).or_default()
    }

    /// Deletes rows with all that belongs to them. They are locked, and may be deleted.
    pub(super) async fn delete(&mut self, rows: &[failed_message::Model]) -> Result<(), Error> {
        for rows in rows.chunks(CHUNK) {
            let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
            attempt::Entity::delete_many()
                .filter(attempt::Column::FailedMessageId.is_in(ids.iter().copied()))
                .exec(&self.tx)
                .await?;
            failed_message::Entity::delete_many()
                .filter(failed_message::Column::Id.is_in(ids.iter().copied()))
                .exec(&self.tx)
                .await?;
            let deletions = rows.iter().map(|row| deletion::ActiveModel {
                id: Set(row.id.clone()),
                deleted_at: Set(self.now),
            });
            deletion::Entity::insert_many(deletions)
                // The same message may have come back, and been deleted again.
                .on_conflict(
                    OnConflict::column(deletion::Column::Id)
                        .update_column(deletion::Column::DeletedAt)
                        .to_owned(),
                )
                .exec_without_returning(&self.tx)
                .await?;
            for row in rows {
                // Of one that cannot be read nobody knows where it was counted.
                if let Ok(status) = row::parse(&row.status, &row.id, "status") {
                    self.group(&row.fingerprint).count(status, -1);
                }
                if let Some(operation) = row.operation_id.as_ref().filter(|_| row.manual) {
                    self.operations
                        .entry(operation.clone())
                        .or_default()
                        .skipped += 1;
                }
            }
        }
        Ok(())
    }

    /// Begins the history's entry of an attempt.
    pub(super) async fn attempt_begins(&self, id: &str, state: &State) -> Result<(), Error> {
        let entry = attempt::ActiveModel {
            failed_message_id: Set(id.to_owned()),
            attempt: Set(row::signed(state.attempt)),
            manual: Set(state.manual),
            started_at: Set(Some(self.now)),
            ended_at: Set(None),
            outcome: Set(None),
            error_type: Set(None),
            error_message: Set(None),
        };
        self.put_attempt(entry).await
    }

    /// Ends it. An attempt that nobody saw begin gets an entry too.
    pub(super) async fn attempt_ends(
        &self,
        id: &str,
        number: u32,
        outcome: Outcome,
        error: Option<&ErrorDetail>,
    ) -> Result<(), Error> {
        let known = attempt::Entity::find_by_id((id.to_owned(), row::signed(number)))
            .one(&self.tx)
            .await?;
        let entry = attempt::ActiveModel {
            failed_message_id: Set(id.to_owned()),
            attempt: Set(row::signed(number)),
            manual: Set(known.as_ref().is_some_and(|known| known.manual)),
            started_at: Set(known.and_then(|known| known.started_at)),
            ended_at: Set(Some(self.now)),
            outcome: Set(Some(outcome.to_string())),
            error_type: Set(error.map(|error| row::storable(&error.kind))),
            error_message: Set(error.map(|error| row::storable(&error.message))),
        };
        self.put_attempt(entry).await
    }

    async fn put_attempt(&self, entry: attempt::ActiveModel) -> Result<(), Error> {
        use attempt::Column;
        let update = OnConflict::columns([Column::FailedMessageId, Column::Attempt])
            .update_columns([
                Column::Manual,
                Column::StartedAt,
                Column::EndedAt,
                Column::Outcome,
                Column::ErrorType,
                Column::ErrorMessage,
            ])
            .to_owned();
        attempt::Entity::insert(entry)
            .on_conflict(update)
            .exec_without_returning(&self.tx)
            .await?;
        Ok(())
    }

    /// Removes the entry of an attempt whose number is given back.
    pub(super) async fn attempt_undone(&self, id: &str, number: u32) -> Result<(), Error> {
        attempt::Entity::delete_by_id((id.to_owned(), row::signed(number)))
            .exec(&self.tx)
            .await?;
        Ok(())
    }

    /// Whether the death of this attempt is in the history.
    pub(super) async fn has_died(&self, id: &str, number: u32) -> Result<bool, Error> {
        let known = attempt::Entity::find_by_id((id.to_owned(), row::signed(number)))
            .one(&self.tx)
            .await?;
        let died = Outcome::Died.to_string();
        Ok(known.is_some_and(|known| known.outcome == Some(died)))
    }

    /// Makes it all happen.
    pub(super) async fn commit(mut self) -> Result<(), Error> {
        // In the order of their names in every transaction, so that two of them wait for each other only one way.
        for (fingerprint, delta) in std::mem::take(&mut self.groups) {
            self.apply_group(&fingerprint, delta).await?;
        }
        for (id, delta) in std::mem::take(&mut self.operations) {
            self.apply_operation(&id, &delta).await?;
        }
        self.tx.commit().await?;
        Ok(())
    }

    async fn apply_group(&self, fingerprint: &str, delta: GroupDelta) -> Result<(), Error> {
        use group::Column;
        if let Some((queue, error_type, error_message)) = delta.seen {
            let new = group::ActiveModel {
                fingerprint: Set(fingerprint.to_owned()),
                queue: Set(row::storable(&queue)),
                error_type: Set(row::storable(&error_type)),
                error_message: Set(row::storable(&error_message)),
                pending: Set(0),
                retrying: Set(0),
                failed: Set(0),
                resolved: Set(0),
                first_seen: Set(self.now),
                last_seen: Set(self.now),
            };
            let seen = OnConflict::column(Column::Fingerprint)
                .update_column(Column::LastSeen)
                .to_owned();
            group::Entity::insert(new)
                .on_conflict(seen)
                .exec_without_returning(&self.tx)
                .await?;
        }
        let changes = [
            (Column::Pending, delta.pending),
            (Column::Retrying, delta.retrying),
            (Column::Failed, delta.failed),
            (Column::Resolved, delta.resolved),
        ];
        let changes: Vec<_> = changes.into_iter().filter(|(_, by)| *by != 0).collect();
        if changes.is_empty() {
            return Ok(());
        }
        let gone = changes.iter().any(|(_, by)| *by < 0);
        let mut update = group::Entity::update_many().filter(Column::Fingerprint.eq(fingerprint));
        for (column, by) in changes {
            update = update.col_expr(column, Expr::col(column).add(by));
        }
        update.exec(&self.tx).await?;
        if gone {
            let empty = Query::delete()
                .from_table(group::Entity)
                .and_where(Column::Fingerprint.eq(fingerprint))
                .and_where(Column::Pending.eq(0))
                .and_where(Column::Retrying.eq(0))
                .and_where(Column::Failed.eq(0))
                .and_where(Column::Resolved.eq(0))
                .to_owned();
            self.tx.execute(&empty).await?;
        }
        Ok(())
    }

    async fn apply_operation(&self, id: &str, delta: &OperationDelta) -> Result<(), Error> {
        use retry_operation::Column;
        let add = |column, by: i64| Expr::col(column).add(by);
        retry_operation::Entity::update_many()
            .filter(Column::Id.eq(id))
            .col_expr(Column::Succeeded, add(Column::Succeeded, delta.succeeded))
            .col_expr(
                Column::FailedAgain,
                add(Column::FailedAgain, delta.failed_again),
            )
            .col_expr(Column::Skipped, add(Column::Skipped, delta.skipped))
            .col_expr(Column::UpdatedAt, Expr::val(self.now))
            .exec(&self.tx)
            .await?;
        Ok(())
    }
}
