//! `dead_letter_queues`

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "dead_letter_queues")]
pub struct Model {
    /// The work queue whose dead-letter queue is collected.
    #[sea_orm(primary_key, auto_increment = false)]
    pub queue: String,
    pub created_at: DateTimeUtc,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
