//! The audit log: one row a message, and what happened to it.

use sea_orm_migration::prelude::*;

use crate::columns::{Columns, optional};
use crate::tables::{index, table, unique_index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        message_logs(manager).await?;
        events(manager).await
    }
}

async fn message_logs(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let c = Columns::of(manager);
    let name = "message_logs";
    table(
        manager,
        name,
        [
            c.serial("id"),
            c.name("message_id", 255),
            optional(c.name("publish_id", 64)),
            c.name("exchange", 255),
            c.name("routing_key", 255),
            // NULL: larger than what is kept.
            optional(c.bytes("payload")),
            c.big_integer("payload_size"),
            c.bytes("metadata"),
            c.name("status", 16),
            c.time("published_at"),
            optional(c.time("delivered_at")),
            optional(c.time("failed_at")),
            c.time("created_at"),
            c.time("updated_at"),
        ],
    )
    .await?;
    unique_index(manager, name, &["message_id"]).await?;
    index(manager, name, &["published_at", "id"]).await?;
    index(manager, name, &["exchange", "published_at", "id"]).await?;
    index(manager, name, &["status", "published_at", "id"]).await
}

async fn events(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let c = Columns::of(manager);
    let name = "message_log_events";
    table(
        manager,
        name,
        [
            c.serial("id"),
            c.name("message_id", 255),
            c.name("event", 16),
            c.time("at"),
            optional(c.name("queue", 255)),
            optional(c.integer("attempt")),
            optional(c.text("detail")),
        ],
    )
    .await?;
    index(manager, name, &["message_id", "id"]).await?;
    index(manager, name, &["at"]).await
}
