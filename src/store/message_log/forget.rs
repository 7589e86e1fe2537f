//! Forgetting: the oldest first, so much at a time.

use std::time::Duration;

use chrono::TimeDelta;
use sea_orm::{
    ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    sea_query::SimpleExpr,
};

use super::size;
use crate::{
    failed_message::Time,
    store::{
        Error, Store,
        entity::{message_log, message_log_event},
        row, transaction,
        work::{CHUNK, Work},
    },
};

/// What was forgotten in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Entries and events. 0: there was nothing (left) to forget.
    pub rows: u64,
    /// What they took; see [`Store::log_bytes`].
    pub bytes: u64,
}

impl Store {
    /// Forgets some of what is older than this.
    pub async fn forget_log(&self, kept: Duration) -> Result<Forgotten, Error> {
        transaction!(self, |work| {
            let kept = TimeDelta::from_std(kept).unwrap_or(TimeDelta::MAX);
            // Longer than time is old: for ever.
            let before = work.now.checked_sub_signed(kept).unwrap_or_default();
            forget(work, Some(before)).await?
        })
    }

    /// Forgets some of what is oldest.
    pub async fn forget_oldest(&self) -> Result<Forgotten, Error> {
        transaction!(self, |work| { forget(work, None).await? })
    }
}

/// A row that may be forgotten.
type Old = (i64, Time, i64);

async fn forget(work: &Work, before: Option<Time>) -> Result<Forgotten, Error> {
    let before = before.map(|before| row::moment(before, work.backend()));
    let limit = u64::try_from(CHUNK).unwrap_or(u64::MAX);
    let entries: Vec<Old> = {
        use message_log::{Column, Entity};
        let older = before.clone().map(|before| Column::PublishedAt.lt(before));
        let old = Entity::find()
            .select_only()
            .columns([Column::Id, Column::PublishedAt])
            .expr_as(size::of_entry(work.backend()), "bytes")
            .filter(condition(older))
            .order_by_asc(Column::PublishedAt)
            .limit(limit);
        old.into_tuple().all(&work.tx).await?
    };
    let events: Vec<Old> = {
        use message_log_event::{Column, Entity};
        let older = before.map(|before| Column::At.lt(before));
        let old = Entity::find()
            .select_only()
            .columns([Column::Id, Column::At])
            .expr_as(size::of_event(work.backend()), "bytes")
            .filter(condition(older))
            .order_by_asc(Column::At)
            .limit(limit);
        old.into_tuple().all(&work.tx).await?
    };
    // Where one list was cut, the other one goes up to the same moment only: an entry and its events go together.
    let end = [&entries, &events]
        .into_iter()
        .filter(|rows| rows.len() >= CHUNK)
        .filter_map(|rows| rows.last().map(|(_, at, _)| *at))
        .min();
    let due = |rows: Vec<Old>| {
        let due = rows
            .into_iter()
            .filter(|(_, at, _)| end.is_none_or(|end| *at <= end));
        let (mut ids, mut bytes) = (Vec::new(), 0);
        for (id, _, size) in due {
            ids.push(id);
            bytes += u64::try_from(size).unwrap_or_default();
        }
        (ids, bytes)
    };
    let mut forgotten = Forgotten::default();
    let (ids, bytes) = due(entries);
    if !ids.is_empty() {
        use message_log::{Column, Entity};
        let gone = Entity::delete_many().filter(Column::Id.is_in(ids));
        forgotten.rows += gone.exec(&work.tx).await?.rows_affected;
        forgotten.bytes += bytes;
    }
    let (ids, bytes) = due(events);
    if !ids.is_empty() {
        use message_log_event::{Column, Entity};
        let gone = Entity::delete_many().filter(Column::Id.is_in(ids));
        forgotten.rows += gone.exec(&work.tx).await?.rows_affected;
        forgotten.bytes += bytes;
    }
    Ok(forgotten)
}

fn condition(older: Option<SimpleExpr>) -> Condition {
    Condition::all().add_option(older)
}
