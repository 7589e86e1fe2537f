//! Which queues' dead letters are collected, besides those of the topology: so that they are found again after a restart, and
//! by other replicas.

use sea_orm::{ActiveValue::Set, EntityTrait, sea_query::OnConflict};

use super::{Error, Store, entity::dead_letter_queue as entity, transaction};

impl Store {
    /// The queues whose dead letters are collected.
    pub async fn dead_letter_queues(&self) -> Result<Vec<String>, Error> {
        let rows = self
            .read(async |pools| Ok(entity::Entity::find().all(&pools.read).await?))
            .await?;
        Ok(rows.into_iter().map(|row| row.queue).collect())
    }

    /// Adds one.
    pub async fn add_dead_letter_queue(&self, queue: &str) -> Result<(), Error> {
        transaction!(self, |work| {
            let row = entity::ActiveModel {
                queue: Set(queue.to_owned()),
                created_at: Set(work.now),
            };
            entity::Entity::insert(row)
                .on_conflict(
                    OnConflict::column(entity::Column::Queue)
                        .update_column(entity::Column::Queue)
                        .to_owned(),
                )
                .exec_without_returning(&work.tx)
                .await?;
        })
    }

    /// Removes one: its dead-letter queue does not exist any more.
    pub async fn remove_dead_letter_queue(&self, queue: &str) -> Result<(), Error> {
        transaction!(self, |work| {
            entity::Entity::delete_by_id(queue.to_owned())
                .exec(&work.tx)
                .await?;
        })
    }
}
