//! What people do with failed messages besides retrying them.

use sea_orm::{ActiveValue::Set, ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use uuid::Uuid;

use super::{
    Error, Filter, Store,
    entity::failed_message::{self, Column},
    index::along,
    query::basic,
    row, transaction,
    work::CHUNK,
};
use crate::failed_message::{FailedMessage, Status};

/// All but RETRYING.
const DELETABLE: [Status; 3] = [Status::Pending, Status::Failed, Status::Resolved];

impl Store {
    /// Marks one as done.
    pub async fn resolve(&self, id: Uuid, comment: &str) -> Result<FailedMessage, Error> {
        transaction!(self, |work| {
            let row = work.row(id).await?;
            let mut state = row.state()?;
            state.close(work.now)?;
            work.save(&row, &state, |columns| {
                columns.comment = Set(Some(row::storable(comment)));
            })
            .await?;
            work.row(id).await?.read()?
        })
    }

    /// Deletes one.
    pub async fn delete(&self, id: Uuid) -> Result<(), Error> {
        transaction!(self, |work| {
            let row = work.row(id).await?;
            match row.state() {
                // Nothing else can be done with it.
                Err(Error::Damaged { .. }) => {}
                state => state?.check_delete()?,
            }
            work.delete(&[row]).await?;
        })
    }

    /// Deletes some of those that a filter lets through, but for RETRYING ones; how many. 0: none is left.
    pub async fn delete_some(&self, filter: &Filter) -> Result<u64, Error> {
        transaction!(self, |work| {
            let mut rows = Vec::new();
            // One status after the other, each along its index: others may be a million.
            for status in filter.statuses_of(&DELETABLE) {
                let left = CHUNK - rows.len();
                let of_status = along(basic(failed_message::Entity::find()), filter.index(true))
                    .filter(filter.condition(work.backend()))
                    .filter(Column::Status.eq(row::text(status)))
                    .order_by_asc(Column::FailedAt)
                    .limit(u64::try_from(left).unwrap_or(u64::MAX));
                rows.extend(work.locking(of_status).all(&work.tx).await?);
            }
            work.delete(&rows).await?;
            u64::try_from(rows.len()).unwrap_or(u64::MAX)
        })
    }
}
