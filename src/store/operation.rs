//! Bulk retries. One is a row: each step asks for some more retries in one transaction, by whichever replica comes first, so
//! it goes on when a replica ends. The scheduler sends what was asked for.

use std::time::Duration;

use sea_orm::{
    ActiveModelTrait,
    ActiveValue::Set,
    ColumnTrait, Condition, ConnectionTrait, DbBackend, DbErr, EntityTrait, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect, Unchanged,
    sea_query::{Expr, LockBehavior, LockType},
};
use uuid::Uuid;

use super::{
    Error, Filter, Store,
    collect::micros,
    entity::{
        failed_message,
        retry_operation::{ActiveModel, Column, Entity, Model},
    },
    index::along,
    query::basic,
    row, transaction,
    work::Work,
};
use crate::failed_message::Status;

/// A bulk retry and how far it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    pub id: Uuid,
    pub state: OperationState,
    /// Why it stopped before its end.
    pub stop_reason: Option<String>,
    /// Rows that were to be retried when it began.
    pub matched: u64,
    pub started: u64,
    pub succeeded: u64,
    pub failed_again: u64,
    /// Deleted while they waited.
    pub skipped: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum OperationState {
    Running,
    Done,
    Stopped,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// No operation was due for one.
    Nothing,
    Done,
}

/// Steps of one operation are so far apart.
const STEP: Duration = Duration::from_secs(1);
/// It stops when of so many finished ones more than half failed again.
const SAMPLE: i64 = 20;

impl Operation {
    /// Retries that were asked for and have not ended.
    pub fn waiting(&self) -> u64 {
        let ended = self.succeeded + self.failed_again + self.skipped;
        self.started.saturating_sub(ended)
    }
}

impl Model {
    fn read(self) -> Result<Operation, Error> {
        let number = |n: i64| u64::try_from(n).unwrap_or_default();
        Ok(Operation {
            id: row::uuid(&self.id, &self.id, "id")?,
            state: row::parse(&self.state, &self.id, "state")?,
            stop_reason: self.stop_reason,
            matched: number(self.matched),
            started: number(self.started),
            succeeded: number(self.succeeded),
            failed_again: number(self.failed_again),
            skipped: number(self.skipped),
        })
    }

    /// Why it must not go on.
    fn too_many_failed(&self) -> Option<String> {
        let finished = self.succeeded + self.failed_again;
        (finished >= SAMPLE && self.failed_again * 2 > finished).then(|| {
            let failed = self.failed_again;
            format!("{failed} of {finished} finished retries failed again")
        })
    }
}

impl Store {
    /// Begins a bulk retry of what `filter` lets through and is PENDING or FAILED now: `rate` a second, at most `limit`.
    pub async fn begin_operation(
        &self,
        filter: &Filter,
        rate: u32,
        limit: Option<u64>,
    ) -> Result<Operation, Error> {
        let id = Uuid::now_v7();
        transaction!(self, |work| {
            let mut filter = filter.clone();
            // What fails from now on is not meant; nor would it ever end.
            filter.failed_before = filter.failed_before.into_iter().chain([work.now]).min();
            let matched = count_waiting(&filter, &work.tx, work.backend()).await?;
            let row = ActiveModel {
                id: Set(id.to_string()),
                filter: Set(rmp_serde::to_vec_named(&filter).unwrap_or_default()),
                state: Set(OperationState::Running.to_string()),
                stop_reason: Set(None),
                rate: Set(row::signed(rate)),
                row_limit: Set(limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX))),
                matched: Set(i64::try_from(matched).unwrap_or(i64::MAX)),
                started: Set(0),
                succeeded: Set(0),
                failed_again: Set(0),
                skipped: Set(0),
                cursor_failed_at: Set(None),
                cursor_id: Set(None),
                lease_until: Set(None),
                created_at: Set(work.now),
                updated_at: Set(work.now),
                ended_at: Set(None),
            };
            Entity::insert(row).exec_without_returning(&work.tx).await?;
        })?;
        self.operation(id).await
    }

    /// How many rows a bulk retry would ask for.
    pub async fn count_retriable(&self, filter: &Filter) -> Result<u64, Error> {
        self.read(async |pools| Ok(count_waiting(filter, &pools.read, pools.backend).await?))
            .await
    }

    /// A bulk retry as it stands.
    pub async fn operation(&self, id: Uuid) -> Result<Operation, Error> {
        let row = self
            .read(async |pools| Ok(Entity::find_by_id(id.to_string()).one(&pools.read).await?))
            .await?;
        row.ok_or(Error::NotFound)?.read()
    }

    /// Stops one; what has been asked for already is still sent. One that has ended stays as it is.
    pub async fn stop_operation(&self, id: Uuid) -> Result<Operation, Error> {
        transaction!(self, |work| {
            let row = Entity::find_by_id(id.to_string()).one(&work.tx).await?;
            row.ok_or(Error::NotFound)?;
            end(
                work,
                id.to_string(),
                OperationState::Stopped,
                Some("stopped on request"),
            )
            .await?;
        })?;
        self.operation(id).await
    }

    /// Carries one bulk retry a step on, if one is due.
    pub async fn step_operation(&self) -> Result<Step, Error> {
        transaction!(self, |work| {
            let due = Condition::any()
                .add(Column::LeaseUntil.is_null())
                .add(Column::LeaseUntil.lte(work.now));
            let mut running = Entity::find()
                .filter(Column::State.eq(OperationState::Running.to_string()))
                .filter(due)
                .order_by_asc(Column::CreatedAt)
                .limit(1);
            if work.backend() != DbBackend::Sqlite {
                running = running.lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
            }
            match running.one(&work.tx).await? {
                None => Step::Nothing,
                Some(operation) => {
                    step(work, operation).await?;
                    Step::Done
                }
            }
        })
    }
}

/// Rows that a bulk retry may ask for.
const WAITING: [Status; 2] = [Status::Pending, Status::Failed];

/// How many there are.
async fn count_waiting(
    filter: &Filter,
    db: &impl ConnectionTrait,
    backend: DbBackend,
) -> Result<u64, DbErr> {
    use failed_message::Column;
    let rows = failed_message::Entity::find()
        .filter(filter.condition(backend))
        .filter(Column::Status.is_in(WAITING.map(row::text)))
        .filter(Column::Manual.eq(false));
    rows.count(db).await
}

async fn step(work: &mut Work, operation: Model) -> Result<(), Error> {
    if let Some(reason) = operation.too_many_failed() {
        return end(work, operation.id, OperationState::Stopped, Some(&reason)).await;
    }
    let left = operation.row_limit.map(|limit| limit - operation.started);
    let limit = Ord::min(i64::from(operation.rate), left.unwrap_or(i64::MAX));
    let filter: Filter = rmp_serde::from_slice(&operation.filter).map_err(|_| Error::Damaged {
        id: operation.id.clone(),
        what: "filter",
    })?;
    let mut rows = Vec::new();
    // One status after the other, each along its index: others may be a million.
    for status in filter.statuses_of(&WAITING) {
        use failed_message::Column;
        let mut of_status = along(basic(failed_message::Entity::find()), filter.index(true))
            .filter(filter.condition(work.backend()))
            .filter(Column::Status.eq(row::text(status)))
            .filter(Column::Manual.eq(false))
            .order_by_asc(Column::FailedAt)
            .order_by_asc(Column::Id)
            .limit(u64::try_from(limit).unwrap_or_default());
        if let (Some(at), Some(id)) = (operation.cursor_failed_at, &operation.cursor_id) {
            let later = Condition::any()
                .add(Column::FailedAt.gt(at))
                .add(Column::Id.gt(id.as_str()));
            of_status = of_status.filter(Column::FailedAt.gte(at)).filter(later);
        }
        if limit > 0 {
            rows.extend(work.locking(of_status).all(&work.tx).await?);
        }
    }
    rows.sort_by(|one, other| (one.failed_at, &one.id).cmp(&(other.failed_at, &other.id)));
    rows.truncate(usize::try_from(limit).unwrap_or_default());
    let ended = operation.succeeded + operation.failed_again + operation.skipped;
    if rows.is_empty() && ended >= operation.started {
        return end(work, operation.id, OperationState::Done, None).await;
    }
    let mut started = 0;
    for row in &rows {
        let mut state = match row.state() {
            // The others are not to wait for it.
            Err(Error::Damaged { .. }) => continue,
            state => state?,
        };
        started += 1;
        state.ask(work.now)?;
        work.save(row, &state, |columns| {
            columns.operation_id = Set(Some(operation.id.clone()));
        })
        .await?;
    }
    let last = rows.last();
    let progress = ActiveModel {
        id: Unchanged(operation.id),
        started: Set(operation.started + started),
        cursor_failed_at: Set(last.map(|row| row.failed_at).or(operation.cursor_failed_at)),
        cursor_id: Set(last.map(|row| row.id.clone()).or(operation.cursor_id)),
        lease_until: Set(Some(work.now + micros(STEP))),
        updated_at: Set(work.now),
        ..Default::default()
    };
    progress.update_without_returning(&work.tx).await?;
    Ok(())
}

async fn end(
    work: &Work,
    id: String,
    state: OperationState,
    reason: Option<&str>,
) -> Result<(), Error> {
    Entity::update_many()
        .filter(Column::Id.eq(id))
        .filter(Column::State.eq(OperationState::Running.to_string()))
        .col_expr(Column::State, Expr::val(state.to_string()))
        .col_expr(Column::StopReason, Expr::val(reason.map(str::to_owned)))
        .col_expr(Column::EndedAt, Expr::val(work.now))
        .col_expr(Column::UpdatedAt, Expr::val(work.now))
        .exec(&work.tx)
        .await?;
    Ok(())
}
