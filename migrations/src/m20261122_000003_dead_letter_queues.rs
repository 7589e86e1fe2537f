//! The work queues whose dead letters are collected.

use sea_orm_migration::prelude::*;

use crate::columns::Columns;
use crate::tables::table;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let c = Columns::of(manager);
        table(
            manager,
            "dead_letter_queues",
            [
                c.name("queue", 255).primary_key().take(),
                c.time("created_at"),
            ],
        )
        .await
    }
}
