//! Writing events down, many in a transaction.

use std::collections::{HashMap, HashSet};

use sea_orm::{
    ActiveValue::{NotSet, Set},
    ColumnTrait, DbBackend, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::{CaseStatement, Expr, Func, OnConflict},
};

use super::{
    Entry, Event, EventKind, LogStatus, What,
    standing::{Milestone, Standing},
};
use crate::{
    failed_message::Time,
    store::{
        Error, Store,
        entity::{message_log, message_log_event},
        properties, row, transaction,
        work::Work,
    },
};

/// Rows of one statement, at most.
const ROWS: usize = 128;
/// Bytes of one statement, unless one row alone is larger.
const BYTES: usize = 1024 * 1024;
/// More than all columns of a row together that are not counted.
const ROW_BYTES: usize = 4096;

impl Store {
    /// Writes events down, all or none.
    pub async fn log(&self, events: &[Event]) -> Result<(), Error> {
        let unsure = self.log_apart(events).await?;
        if unsure.is_empty() {
            return Ok(());
        }
        // Of an entry and an event that two replicas write at the same moment, neither transaction sees the other's. Each looks again
        // when its own is committed; whichever does so last sees both.
        transaction!(self, |work| {
            let seen = seen(work, &unsure).await?;
            update(work, standings(&[], seen)).await?;
        })
    }

    /// Ids of messages of which others may have written at the same moment.
    async fn log_apart(&self, events: &[Event]) -> Result<Vec<String>, Error> {
        transaction!(self, |work| {
            let mut entries = Entries::new(events);
            entries.known = known(work, &entries.published).await?;
            let fresh = entries.fresh();
            let seen = seen(work, &fresh).await?;
            let mut standings = standings(events, seen);
            let rows: Vec<_> = fresh
                .iter()
                .filter_map(|id| {
                    let (entry, at) = entries.first.get(id)?;
                    // What the row says from the start need not be changed.
                    Some(row(work, id, entry, *at, standings.remove(id)))
                })
                .collect();
            insert_entries(work, rows).await?;
            entries.known.extend(fresh.iter().cloned());
            insert_events(work, events, &entries.known).await?;
            let mut unsure = update(work, standings).await?;
            unsure.extend(fresh);
            // SQLite has one writer.
            if work.backend() == DbBackend::Sqlite {
                unsure.clear();
            }
            unsure
        })
    }
}

/// Which messages of a batch have an entry, or get one. Ids are as they are stored.
struct Entries<'a> {
    /// What was published, each once, in the order of their names: of two transactions one waits for the other.
    published: Vec<String>,
    /// The first publish that makes an entry.
    first: HashMap<String, (&'a Entry, Time)>,
    /// Those that have one.
    known: HashSet<String>,
}

impl<'a> Entries<'a> {
    fn new(events: &'a [Event]) -> Self {
        let (mut published, mut first) = (Vec::new(), HashMap::new());
        for event in events {
            if let What::Published { entry, .. } = &event.what {
                let id = row::storable(&event.message_id);
                published.push(id.clone());
                if let Some(entry) = entry {
                    first.entry(id).or_insert((&**entry, event.at));
                }
            }
        }
        published.sort_unstable();
        published.dedup();
        Self {
            published,
            first,
            known: HashSet::new(),
        }
    }

    /// Those that get one now.
    fn fresh(&self) -> Vec<String> {
        let new = |id: &&String| self.first.contains_key(*id) && !self.known.contains(*id);
        self.published.iter().filter(new).cloned().collect()
    }
}

/// Which of these have an entry.
async fn known(work: &Work, ids: &[String]) -> Result<HashSet<String>, Error> {
    use message_log::{Column, Entity};
    let mut known = HashSet::new();
    for ids in by_count(ids.to_vec()) {
        let found = Entity::find()
            .select_only()
            .column(Column::MessageId)
            .filter(Column::MessageId.is_in(ids))
            .into_tuple::<String>();
        known.extend(found.all(&work.tx).await?);
    }
    Ok(known)
}

type Milestones = HashMap<String, Vec<(Time, Milestone)>>;

/// Milestones of these that were written down earlier.
async fn seen(work: &Work, ids: &[String]) -> Result<Milestones, Error> {
    use message_log_event::{Column, Entity};
    let mut seen = Milestones::new();
    let kinds = [EventKind::Settled, EventKind::Failed].map(|kind| kind.to_string());
    for ids in by_count(ids.to_vec()) {
        let found = Entity::find()
            .filter(Column::MessageId.is_in(ids))
            .filter(Column::Event.is_in(kinds.clone()))
            .order_by_asc(Column::Id);
        for event in found.all(&work.tx).await? {
            let attempt = row::unsigned(event.attempt.unwrap_or_default());
            let detail = event.detail.as_deref().unwrap_or_default();
            let kind = row::parse(&event.event, &event.message_id, "event")?;
            let milestone = Milestone::of_stored(kind, attempt, detail);
            let milestones = seen.entry(event.message_id).or_default();
            milestones.extend(milestone.map(|milestone| (event.at, milestone)));
        }
    }
    Ok(seen)
}

/// Where messages stand after a batch; `seen` is what happened before.
fn standings(events: &[Event], seen: Milestones) -> HashMap<String, Standing> {
    let mut milestones = seen;
    for event in events {
        if let Some(milestone) = Milestone::of(event) {
            let id = row::storable(&event.message_id);
            milestones
                .entry(id)
                .or_default()
                .push((event.at, milestone));
        }
    }
    let standing = |(id, mut milestones): (String, Vec<(Time, Milestone)>)| {
        milestones.sort_by_key(|(at, _)| *at);
        Some((id, Standing::after(milestones)?))
    };
    milestones.into_iter().filter_map(standing).collect()
}

fn row(
    work: &Work,
    id: &str,
    entry: &Entry,
    at: Time,
    standing: Option<Standing>,
) -> message_log::ActiveModel {
    let now = work.now;
    let metadata = properties::encode(&entry.message);
    let size = ROW_BYTES + metadata.len() + entry.message.payload.len();
    // A larger statement would end the connection to the server, again and again.
    let fits = u64::try_from(size).is_ok_and(|size| size <= limit(work));
    let keeps_payload = entry.keeps_payload && fits;
    let status = standing.map_or(LogStatus::Published, |standing| standing.status());
    let correlation_id = entry.message.correlation_id.as_deref();
    message_log::ActiveModel {
        id: NotSet,
        message_id: Set(id.to_owned()),
        publish_id: Set(Some(entry.publish_id.to_string())),
        exchange: Set(row::storable(&entry.exchange)),
        routing_key: Set(row::storable(&entry.routing_key)),
        payload: Set(keeps_payload.then(|| entry.message.payload.to_vec())),
        payload_size: Set(i64::try_from(entry.payload_size).unwrap_or(i64::MAX)),
        metadata: Set(metadata),
        status: Set(status.to_string()),
        published_at: Set(at),
        delivered_at: Set(standing.and_then(|standing| standing.delivered_at)),
        failed_at: Set(standing.and_then(|standing| standing.failed_at)),
        created_at: Set(now),
        updated_at: Set(now),
        correlation_id: Set(correlation_id.map(row::storable)),
    }
}

/// How many bytes a statement may have.
fn limit(work: &Work) -> u64 {
    work.statement_bytes.unwrap_or(u64::MAX)
}

async fn insert_entries(work: &Work, rows: Vec<message_log::ActiveModel>) -> Result<(), Error> {
    use message_log::{Column, Entity};
    let size = |row: &message_log::ActiveModel| {
        let payload = row.payload.try_as_ref().and_then(Option::as_ref);
        let metadata = row.metadata.try_as_ref();
        ROW_BYTES + payload.map_or(0, Vec::len) + metadata.map_or(0, Vec::len)
    };
    let most = usize::try_from(limit(work)).unwrap_or(usize::MAX);
    for rows in portions(rows, size, BYTES.min(most)) {
        // Another replica may have written the same message's at this moment: that one stays.
        let stays = OnConflict::column(Column::MessageId)
            .update_column(Column::MessageId)
            .to_owned();
        Entity::insert_many(rows)
            .on_conflict(stays)
            .exec_without_returning(&work.tx)
            .await?;
    }
    Ok(())
}

async fn insert_events(
    work: &Work,
    events: &[Event],
    known: &HashSet<String>,
) -> Result<(), Error> {
    let mut rows = Vec::with_capacity(events.len());
    for event in events {
        let id = row::storable(&event.message_id);
        let makes_none = matches!(event.what, What::Published { entry: None, .. });
        if makes_none && !known.contains(&id) {
            continue;
        }
        let queue = (!event.queue.is_empty()).then(|| row::short(&event.queue, 255));
        rows.push(message_log_event::ActiveModel {
            id: NotSet,
            message_id: Set(id),
            event: Set(event.what.kind().to_string()),
            at: Set(event.at),
            queue: Set(queue),
            attempt: Set((event.attempt > 0).then(|| row::signed(event.attempt))),
            detail: Set(Some(row::storable(&event.what.detail()))),
        });
    }
    for rows in by_count(rows) {
        message_log_event::Entity::insert_many(rows)
            .exec_without_returning(&work.tx)
            .await?;
    }
    Ok(())
}

/// Says in entries that exist where their messages stand now. Ids among which some have no entry.
async fn update(work: &Work, standings: HashMap<String, Standing>) -> Result<Vec<String>, Error> {
    let mut missing = Vec::new();
    for milestone in [Milestone::Acked, Milestone::Mended, Milestone::Failed] {
        let of_it = standings.iter().filter(|(_, s)| s.milestone == milestone);
        let mut of_it: Vec<_> = of_it
            .map(|(id, standing)| (id.clone(), *standing))
            .collect();
        // As above, so that two transactions wait for each other only one way.
        of_it.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for some in by_count(of_it) {
            let updated = update_some(work, milestone, &some).await?;
            if updated < some.len() as u64 {
                missing.extend(some.into_iter().map(|(id, _)| id));
            }
        }
    }
    Ok(missing)
}

/// One of the times of a standing.
type TimeOf = fn(&Standing) -> Option<Time>;

async fn update_some(
    work: &Work,
    milestone: Milestone,
    standings: &[(String, Standing)],
) -> Result<u64, Error> {
    use message_log::{Column, Entity};
    let [published, delivered, failed] = [
        LogStatus::Published,
        LogStatus::Delivered,
        LogStatus::Failed,
    ]
    .map(|s| s.to_string());
    let status: Expr = match milestone {
        Milestone::Acked => CaseStatement::new()
            .case(Column::Status.eq(published), Expr::val(delivered))
            .finally(Expr::col(Column::Status))
            .into(),
        Milestone::Mended => Expr::val(delivered),
        Milestone::Failed => Expr::val(failed),
    };
    let ids = standings.iter().map(|(id, _)| id.as_str());
    let mut update = Entity::update_many()
        .filter(Column::MessageId.is_in(ids))
        .col_expr(Column::Status, status)
        .col_expr(Column::UpdatedAt, Expr::val(work.now));
    let times: [(_, TimeOf); 2] = [
        (Column::DeliveredAt, |standing| standing.delivered_at),
        (Column::FailedAt, |standing| standing.failed_at),
    ];
    for (column, time) in times {
        let mut known = standings
            .iter()
            .filter_map(|(id, standing)| Some((id, time(standing)?)))
            .peekable();
        if known.peek().is_none() {
            continue;
        }
        let case = known.fold(CaseStatement::new(), |case, (id, at)| {
            case.case(Column::MessageId.eq(id.as_str()), Expr::val(at))
        });
        // The first time stays.
        let first = Func::coalesce([Expr::col(column), case.into()]);
        update = update.col_expr(column, first.into());
    }
    Ok(update.exec(&work.tx).await?.rows_affected)
}

/// Cuts rows into what goes into one statement each. The counts are powers of two: so there are few different statements, and
/// the driver, which keeps each prepared, need not keep hundreds of large ones.
fn portions<T>(mut rows: Vec<T>, size: impl Fn(&T) -> usize, most: usize) -> Vec<Vec<T>> {
    let mut portions = Vec::new();
    while !rows.is_empty() {
        let mut bytes = 0;
        let fitting = rows.iter().take(ROWS).take_while(|row| {
            bytes += size(row);
            bytes <= most
        });
        let count = 1 << fitting.count().max(1).ilog2();
        let rest = rows.split_off(count);
        portions.push(std::mem::replace(&mut rows, rest));
    }
    portions
}

/// The same, of rows that are small.
fn by_count<T>(rows: Vec<T>) -> Vec<Vec<T>> {
    portions(rows, |_| 0, BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_are_few_sizes_keep_the_order_and_stay_small() {
        let lengths = |portions: &[Vec<usize>]| portions.iter().map(Vec::len).collect::<Vec<_>>();
        let rows: Vec<usize> = (0..300).collect();
        let cut = by_count(rows.clone());
        assert_eq!(lengths(&cut), [128, 128, 32, 8, 4]);
        assert_eq!(cut.concat(), rows);
        let large = portions(vec![20, 5, 5, 5], |n| *n, 10);
        assert_eq!(lengths(&large), [1, 2, 1]);
        assert!(by_count(Vec::<u8>::new()).is_empty());
    }
}
