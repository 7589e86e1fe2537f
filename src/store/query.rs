//! Questions about failed messages. None takes longer because there are more of them: each page is read along an index from
//! where the one before ended.

use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, ExprTrait, Iterable, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect, Select,
    sea_query::{Alias, Expr, Order},
};
use uuid::Uuid;

use super::{
    Error, Filter, Store,
    connection::Pools,
    entity::{attempt, deletion, failed_message, group},
    index::along,
    row,
};
use crate::failed_message::{Attempt, ErrorDetail, FailedMessage, Status, Time};

use failed_message::Column;

/// A place in a list that is ordered by time, then by name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    pub at: Time,
    pub name: String,
}

/// A part of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub rows: Vec<T>,
    /// Where the next part begins; `None`: this was the last one.
    pub next: Option<Cursor>,
    /// Ids of what is left out, because it cannot be read.
    pub unreadable: Vec<String>,
}

/// Failures of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub fingerprint: String,
    pub queue: String,
    pub error_type: String,
    /// With `#` for numbers and ids.
    pub error_message: String,
    pub counts: Counts,
    pub first_seen: Time,
    pub last_seen: Time,
}

/// How many rows there are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub pending: u64,
    pub retrying: u64,
    pub failed: u64,
    pub resolved: u64,
}

impl Counts {
    /// All of them together.
    pub fn all(&self) -> u64 {
        self.pending + self.retrying + self.failed + self.resolved
    }
}

/// The counts of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    pub queue: String,
    pub counts: Counts,
}

/// The figures of all queues, or of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub queues: Vec<QueueCounts>,
    /// When the oldest one that is not resolved failed.
    pub oldest: Option<Time>,
}

/// What happened to a failed message.
#[derive(Clone, Debug)]
pub enum Change {
    Changed(Box<FailedMessage>),
    Deleted(Uuid),
}

/// Changes, in the order in which they were made.
#[derive(Clone, Debug)]
pub struct Changes {
    pub changes: Vec<(Time, Change)>,
    /// When they were read, by the database's clock.
    pub now: Time,
    /// There are more, from the last one's time on.
    pub more: bool,
}

/// Rows that are looked at for one page where no index serves the filter.
pub(super) const SCAN: u64 = 10_000;

impl Store {
    /// The database's clock.
    pub async fn now(&self) -> Result<Time, Error> {
        self.read(async |pools| Ok(pools.now(&pools.read).await?))
            .await
    }

    /// One failed message, with its payload.
    pub async fn failed_message(&self, id: Uuid) -> Result<FailedMessage, Error> {
        let row = self
            .read(async |pools| {
                let found = failed_message::Entity::find_by_id(id.to_string());
                Ok(found.one(&pools.read).await?)
            })
            .await?;
        row.ok_or(Error::NotFound)?.read()
    }

    /// Its history, first attempt first.
    pub async fn attempts(&self, id: Uuid) -> Result<Vec<Attempt>, Error> {
        let rows = self
            .read(async |pools| {
                Ok(attempt::Entity::find()
                    .filter(attempt::Column::FailedMessageId.eq(id.to_string()))
                    .order_by_asc(attempt::Column::Attempt)
                    .all(&pools.read)
                    .await?)
            })
            .await?;
        let read = |row: attempt::Model| {
            let outcome = row.outcome.as_deref();
            let outcome = outcome.map(|text| row::parse(text, &row.failed_message_id, "outcome"));
            Ok(Attempt {
                number: row::unsigned(row.attempt),
                manual: row.manual,
                started_at: row.started_at,
                ended_at: row.ended_at,
                outcome: outcome.transpose()?,
                error: ErrorDetail {
                    kind: row.error_type.unwrap_or_default(),
                    message: row.error_message.unwrap_or_default(),
                    stack: String::new(),
                },
            })
        };
        rows.into_iter().map(read).collect()
    }

    /// Failed messages, newest first, without payloads and stacks. Where no index serves the filter, a page may be short, even
    /// empty, and not the last one.
    pub async fn failed_messages(
        &self,
        filter: &Filter,
        after: Option<&Cursor>,
        limit: u64,
    ) -> Result<Page<FailedMessage>, Error> {
        let (rows, next) = self
            .read(async |pools| {
                if filter.scans() {
                    scan(pools, filter, after, limit).await
                } else {
                    along_indexes(pools, filter, after, limit).await
                }
            })
            .await?;
        let (rows, unreadable) = readable(rows, failed_message::Model::read)?;
        Ok(Page {
            rows,
            next,
            unreadable,
        })
    }

    /// How many rows a filter lets through.
    pub async fn count(&self, filter: &Filter) -> Result<u64, Error> {
        self.read(async |pools| {
            let rows = failed_message::Entity::find().filter(filter.condition(pools.backend));
            Ok(rows.count(&pools.read).await?)
        })
        .await
    }

    /// Kinds of failures, the one seen last first. `queue`: of that queue only.
    pub async fn groups(
        &self,
        queue: Option<&str>,
        after: Option<&Cursor>,
        limit: u64,
    ) -> Result<Page<Group>, Error> {
        use group::Column;
        let mut rows = self
            .read(async |pools| {
                let mut groups = group::Entity::find()
                    .order_by_desc(Column::LastSeen)
                    .order_by_desc(Column::Fingerprint)
                    .limit(limit + 1);
                if let Some(queue) = queue {
                    groups = groups.filter(Column::Queue.eq(row::storable(queue)));
                }
                if let Some(Cursor { at, name }) = after {
                    let at = row::moment(*at, pools.backend);
                    let earlier = Condition::any()
                        .add(Column::LastSeen.lt(at.clone()))
                        .add(Column::Fingerprint.lt(name.as_str()));
                    groups = groups.filter(Column::LastSeen.lte(at)).filter(earlier);
                }
                Ok(groups.all(&pools.read).await?)
            })
            .await?;
        let next = cut(&mut rows, limit, |row| {
            (row.last_seen, row.fingerprint.clone())
        });
        let read = |row: group::Model| Group {
            counts: Counts {
                pending: count(row.pending),
                retrying: count(row.retrying),
                failed: count(row.failed),
                resolved: count(row.resolved),
            },
            fingerprint: row.fingerprint,
            queue: row.queue,
            error_type: row.error_type,
            error_message: row.error_message,
            first_seen: row.first_seen,
            last_seen: row.last_seen,
        };
        Ok(Page {
            rows: rows.into_iter().map(read).collect(),
            next,
            unreadable: Vec::new(),
        })
    }

    /// How many failed messages there are, by queue and state.
    pub async fn stats(&self, queue: Option<&str>) -> Result<Stats, Error> {
        use group::Column;
        self.read(async |pools| {
            let integer = match pools.backend {
                DbBackend::MySql => "SIGNED",
                _ => "BIGINT",
            };
            let sum = |column: Column| Expr::col(column).sum().cast_as(Alias::new(integer));
            let mut sums = group::Entity::find()
                .select_only()
                .column(Column::Queue)
                .expr_as(sum(Column::Pending), "sum_pending")
                .expr_as(sum(Column::Retrying), "sum_retrying")
                .expr_as(sum(Column::Failed), "sum_failed")
                .expr_as(sum(Column::Resolved), "sum_resolved")
                .group_by(Column::Queue)
                .order_by_asc(Column::Queue);
            if let Some(queue) = queue {
                sums = sums.filter(Column::Queue.eq(row::storable(queue)));
            }
            let sums: Vec<(String, i64, i64, i64, i64)> =
                sums.into_tuple().all(&pools.read).await?;
            let queues = sums
                .into_iter()
                .map(|(queue, pending, retrying, failed, resolved)| {
                    let counts = Counts {
                        pending: count(pending),
                        retrying: count(retrying),
                        failed: count(failed),
                        resolved: count(resolved),
                    };
                    QueueCounts { queue, counts }
                });
            Ok(Stats {
                queues: queues.collect(),
                oldest: oldest(pools, queue).await?,
            })
        })
        .await
    }

    /// What changed from `since` on: about `limit` rows and as many deletions, but all of each moment.
    pub async fn changes(&self, since: Time, limit: u64) -> Result<Changes, Error> {
        let (now, rows, deletions) = self
            .read(async |pools| {
                let now = pools.now(&pools.read).await?;
                let rows = changed(pools, since, limit).await?;
                let deletions = deleted(pools, since, limit).await?;
                Ok((now, rows, deletions))
            })
            .await?;
        let more = is_full(&rows, limit) || is_full(&deletions, limit);
        // Where one list was cut, the other is read up to the same moment only.
        let rows_end = rows
            .last()
            .filter(|_| is_full(&rows, limit))
            .map(|row| row.updated_at);
        let deletions_end = deletions.last().filter(|_| is_full(&deletions, limit));
        let end = rows_end
            .into_iter()
            .chain(deletions_end.map(|row| row.deleted_at))
            .min();
        let mut changes = Vec::with_capacity(rows.len() + deletions.len());
        for row in rows {
            let at = row.updated_at;
            match row.read() {
                // The others are told.
                Err(Error::Damaged { .. }) => {}
                row => changes.push((at, Change::Changed(Box::new(row?)))),
            }
        }
        for row in deletions {
            let id = row::uuid(&row.id, &row.id, "id")?;
            changes.push((row.deleted_at, Change::Deleted(id)));
        }
        changes.retain(|(at, _)| end.is_none_or(|end| *at <= end));
        changes.sort_by_key(|(at, _)| *at);
        Ok(Changes { changes, now, more })
    }
}

/// A transaction dates all its changes alike, so that a page could never pass one that is larger than itself: the rest of the
/// last moment comes along.
async fn changed(
    pools: &Pools,
    since: Time,
    limit: u64,
) -> Result<Vec<failed_message::Model>, Error> {
    let select = || {
        basic(failed_message::Entity::find())
            .order_by_asc(Column::UpdatedAt)
            .order_by_asc(Column::Id)
    };
    let page = select()
        .filter(Column::UpdatedAt.gte(row::moment(since, pools.backend)))
        .limit(limit);
    let mut rows = page.all(&pools.read).await?;
    if let Some(last) = rows.last().filter(|_| is_full(&rows, limit)) {
        let rest = select()
            .filter(Column::UpdatedAt.eq(last.updated_at))
            .filter(Column::Id.gt(last.id.as_str()));
        rows.extend(rest.all(&pools.read).await?);
    }
    Ok(rows)
}

/// The same, of deletions.
async fn deleted(pools: &Pools, since: Time, limit: u64) -> Result<Vec<deletion::Model>, Error> {
    use deletion::Column;
    let select = || {
        deletion::Entity::find()
            .order_by_asc(Column::DeletedAt)
            .order_by_asc(Column::Id)
    };
    let page = select()
        .filter(Column::DeletedAt.gte(row::moment(since, pools.backend)))
        .limit(limit);
    let mut rows = page.all(&pools.read).await?;
    if let Some(last) = rows.last().filter(|_| is_full(&rows, limit)) {
        let rest = select()
            .filter(Column::DeletedAt.eq(last.deleted_at))
            .filter(Column::Id.gt(last.id.as_str()));
        rows.extend(rest.all(&pools.read).await?);
    }
    Ok(rows)
}

/// Rows that can be read, and the ids of those that cannot: one that was damaged hides no others.
pub(super) fn readable<M, T>(
    rows: Vec<M>,
    read: impl Fn(M) -> Result<T, Error>,
) -> Result<(Vec<T>, Vec<String>), Error> {
    let (mut readable, mut unreadable) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match read(row) {
            Err(Error::Damaged { id, what }) => {
                tracing::error!(
                    id,
                    what,
                    "a stored message cannot be read; lists leave it out"
                );
                unreadable.push(id);
            }
            row => readable.push(row?),
        }
    }
    Ok((readable, unreadable))
}

fn is_full<T>(rows: &[T], limit: u64) -> bool {
    u64::try_from(rows.len()).is_ok_and(|len| len >= limit)
}

/// Everything but payload and stack.
pub(super) fn basic(select: Select<failed_message::Entity>) -> Select<failed_message::Entity> {
    let left_out = [Column::Payload, Column::ErrorStack];
    let kept = Column::iter().filter(|column| !left_out.iter().any(|out| same(*out, *column)));
    select
        .select_only()
        .columns(kept)
        .expr_as(Expr::val(Vec::<u8>::new()), "payload")
        .expr_as(Expr::val(""), "error_stack")
}

fn same(one: Column, other: Column) -> bool {
    std::mem::discriminant(&one) == std::mem::discriminant(&other)
}

fn newest_first(select: Select<failed_message::Entity>) -> Select<failed_message::Entity> {
    select
        .order_by(Column::FailedAt, Order::Desc)
        .order_by(Column::Id, Order::Desc)
}

/// Older than a place in the list. Written so that each engine reads it as a range of an index.
fn older(cursor: &Cursor, backend: DbBackend) -> Condition {
    let at = row::moment(cursor.at, backend);
    Condition::all().add(Column::FailedAt.lte(at.clone())).add(
        Condition::any()
            .add(Column::FailedAt.lt(at))
            .add(Column::Id.lt(cursor.name.as_str())),
    )
}

fn not_older(cursor: &Cursor) -> Condition {
    Condition::all().add(Column::FailedAt.gte(cursor.at)).add(
        Condition::any()
            .add(Column::FailedAt.gt(cursor.at))
            .add(Column::Id.gte(cursor.name.as_str())),
    )
}

type Rows = (Vec<failed_message::Model>, Option<Cursor>);

/// A page where indexes serve the whole filter: with several states, one list for each, merged.
async fn along_indexes(
    pools: &Pools,
    filter: &Filter,
    after: Option<&Cursor>,
    limit: u64,
) -> Result<Rows, Error> {
    let select = |of_one_status| {
        let rows = basic(failed_message::Entity::find()).filter(filter.indexed(pools.backend));
        let rows = along(newest_first(rows), filter.index(of_one_status)).limit(limit + 1);
        match after {
            Some(cursor) => rows.filter(older(cursor, pools.backend)),
            None => rows,
        }
    };
    let mut rows = Vec::new();
    if filter.statuses.is_empty() {
        rows = select(false).all(&pools.read).await?;
    }
    let mut statuses = filter.statuses.clone();
    statuses.sort_unstable();
    statuses.dedup();
    for status in statuses {
        let of_status = select(true).filter(Column::Status.eq(row::text(status)));
        rows.extend(of_status.all(&pools.read).await?);
    }
    rows.sort_by(|one, other| (other.failed_at, &other.id).cmp(&(one.failed_at, &one.id)));
    let next = cut(&mut rows, limit, |row| (row.failed_at, row.id.clone()));
    Ok((rows, next))
}

/// A page where rows have to be looked at: only so many of them.
async fn scan(
    pools: &Pools,
    filter: &Filter,
    after: Option<&Cursor>,
    limit: u64,
) -> Result<Rows, Error> {
    let within = Condition::all()
        .add(filter.indexed(pools.backend))
        .add_option(after.map(|cursor| older(cursor, pools.backend)));
    let list = |rows| along(newest_first(rows), filter.index(false));
    let end: Option<(Time, String)> = list(failed_message::Entity::find())
        .select_only()
        .columns([Column::FailedAt, Column::Id])
        .filter(within.clone())
        .offset(SCAN)
        .limit(1)
        .into_tuple()
        .one(&pools.read)
        .await?;
    let end = end.map(|(at, name)| Cursor { at, name });
    let rows = basic(failed_message::Entity::find())
        .filter(within.add_option(end.as_ref().map(not_older)))
        .filter(filter.status())
        .filter(filter.scanned(pools.backend));
    let mut rows = list(rows).limit(limit + 1).all(&pools.read).await?;
    let next = cut(&mut rows, limit, |row| (row.failed_at, row.id.clone()));
    Ok((rows, next.or(end)))
}

/// Cuts what is more than a page, and says where the next one begins.
pub(super) fn cut<T>(
    rows: &mut Vec<T>,
    limit: u64,
    place: impl Fn(&T) -> (Time, String),
) -> Option<Cursor> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let last = rows.last().filter(|_| more)?;
    let (at, name) = place(last);
    Some(Cursor { at, name })
}

async fn oldest(pools: &Pools, queue: Option<&str>) -> Result<Option<Time>, Error> {
    let filter = Filter {
        queue: queue.map(str::to_owned),
        ..Filter::default()
    };
    let mut oldest: Option<Time> = None;
    for status in [Status::Pending, Status::Retrying, Status::Failed] {
        let rows = failed_message::Entity::find()
            .select_only()
            .column(Column::FailedAt)
            .filter(filter.indexed(pools.backend))
            .filter(Column::Status.eq(row::text(status)))
            .order_by_asc(Column::FailedAt)
            .limit(1);
        let rows = along(rows, filter.index(true));
        let first: Option<Time> = rows.into_tuple().one(&pools.read).await?;
        oldest = oldest.into_iter().chain(first).min();
    }
    Ok(oldest)
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}
