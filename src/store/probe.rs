//! Whether the database takes changes: a small write, because a full disk answers every question and refuses every change.
//!
//! What it costs: one row is written in place, and committed, when nothing else was written since the last look (every 5 s), by
//! each replica. That is a page of 4 KiB in SQLite's log and one wait for the disk, or a record of some hundred bytes in a
//! server's. Replicas write the same row: each waits for the others' commit, some milliseconds.

use chrono::Utc;
use sea_orm::{ActiveValue::Set, DbErr, EntityTrait, sea_query::OnConflict};
use tokio::time::timeout;

use super::{
    Error,
    connection::{PATIENCE, Pools},
    entity::write_probe::{ActiveModel, Column, Entity},
    trouble::Trouble,
};

/// The one row.
const ROW: i32 = 1;
/// What a database that had refused a change must have room for before it counts as up again; more each time that this was too
/// little. A file may have room for a row where it has none for a message.
const FIRST_ROOM: usize = 256 * 1024;
const MOST_ROOM: usize = 16 * 1024 * 1024;

/// How a small write ended.
#[derive(Debug)]
pub(super) enum Probed {
    Written,
    /// Others hold what it needs. That says nothing about the disk.
    Busy,
    /// No answer in time.
    Slow,
    Refused(Trouble, DbErr),
}

/// Writes a little. The database answers questions.
pub(super) async fn small(pools: &Pools) -> Probed {
    within_patience(write(pools, Vec::new())).await
}

/// Writes so many bytes, and takes them away again.
pub(super) async fn large(pools: &Pools, room: Room) -> Probed {
    within_patience(async {
        let most = pools.statement_bytes.map_or(u64::MAX, |most| most / 2);
        let bytes = room.0.min(usize::try_from(most).unwrap_or(usize::MAX));
        // Nothing that a database could make smaller.
        let filler = std::iter::repeat_with(|| fastrand::u8(..)).take(bytes);
        write(pools, filler.collect()).await?;
        write(pools, Vec::new()).await
    })
    .await
}

async fn within_patience(writing: impl Future<Output = Result<(), DbErr>>) -> Probed {
    // On the heap, as all statements are.
    let error = match timeout(PATIENCE, Box::pin(writing)).await {
        Ok(Ok(())) => return Probed::Written,
        Ok(Err(error)) => error,
        Err(_) => return Probed::Slow,
    };
    match (Trouble::of(&error), Error::of(&error)) {
        (Some(trouble), _) => Probed::Refused(trouble, error),
        (None, Some(Error::Busy)) => Probed::Busy,
        // No connection is free, or none can be made.
        (None, Some(_)) => Probed::Slow,
        (None, None) => Probed::Refused(Trouble::Failing, error),
    }
}

async fn write(pools: &Pools, filler: Vec<u8>) -> Result<(), DbErr> {
    let row = ActiveModel {
        id: Set(ROW),
        // Another value each time: what stays the same is not written.
        written_at: Set(Utc::now()),
        filler: Set(filler),
    };
    let again = OnConflict::column(Column::Id)
        .update_columns([Column::WrittenAt, Column::Filler])
        .to_owned();
    let written = Entity::insert(row).on_conflict(again);
    written.exec_without_returning(&pools.write).await?;
    Ok(())
}

/// See [`FIRST_ROOM`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Room(usize);

impl Default for Room {
    fn default() -> Self {
        Self(FIRST_ROOM)
    }
}

impl Room {
    /// It was too little.
    pub(super) fn more(self) -> Self {
        Self((self.0 * 2).min(MOST_ROOM))
    }
}
