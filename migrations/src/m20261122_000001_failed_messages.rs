//! Failed messages, their attempts, their groups, and the traces of deleted ones.

use sea_orm_migration::prelude::*;

use crate::columns::{Columns, optional};
use crate::tables::{index, table, table_with_key, unique_index};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        failed_messages(manager).await?;
        attempts(manager).await?;
        groups(manager).await?;
        deletions(manager).await
    }
}

async fn failed_messages(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let c = Columns::of(manager);
    let name = "failed_messages";
    table(
        manager,
        name,
        [
            c.fixed("id", 36).primary_key().take(),
            // NULL where the message had no publish-id: rather two rows than a lost message.
            optional(c.name("death_key", 64)),
            c.name("queue", 255),
            c.name("exchange", 255),
            c.name("routing_key", 255),
            optional(c.name("message_id", 255)),
            optional(c.name("publish_id", 64)),
            c.bytes("properties"),
            c.bytes("payload"),
            c.text("error_type"),
            c.text("error_message"),
            c.text("error_stack"),
            c.name("reason", 16),
            c.fixed("fingerprint", 32),
            c.integer("attempt").default(1).take(),
            c.integer("retry_count").default(0).take(),
            c.integer("max_retries").default(3).take(),
            c.name("status", 16),
            c.boolean("manual").default(false).take(),
            optional(c.name("resolution", 16)),
            optional(c.text("comment")),
            c.time("failed_at"),
            c.time("last_failed_at"),
            optional(c.time("last_retry_at")),
            optional(c.time("next_retry_at")),
            optional(c.time("resolved_at")),
            optional(c.fixed("lease_token", 36)),
            optional(c.time("lease_until")),
            optional(c.name("lease_status", 16)),
            optional(c.time("assume_at")),
            optional(c.fixed("operation_id", 36)),
            c.time("created_at"),
            c.time("updated_at"),
        ],
    )
    .await?;
    unique_index(manager, name, &["death_key"]).await?;
    // Listing, newest first, with each filter.
    index(manager, name, &["failed_at", "id"]).await?;
    index(manager, name, &["queue", "failed_at", "id"]).await?;
    index(manager, name, &["status", "failed_at", "id"]).await?;
    index(manager, name, &["queue", "status", "failed_at", "id"]).await?;
    index(manager, name, &["fingerprint", "failed_at", "id"]).await?;
    index(manager, name, &["message_id"]).await?;
    // The claim of what is due, the reaper, the quiet period, the end of a bulk retry, the watchers.
    index(
        manager,
        name,
        &["status", "queue", "manual", "next_retry_at"],
    )
    .await?;
    index(manager, name, &["status", "lease_until"]).await?;
    index(manager, name, &["status", "assume_at"]).await?;
    index(manager, name, &["operation_id", "status"]).await?;
    index(manager, name, &["updated_at", "id"]).await
}

async fn attempts(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let c = Columns::of(manager);
    table_with_key(
        manager,
        "failed_message_attempts",
        [
            c.fixed("failed_message_id", 36),
            c.integer("attempt"),
            c.boolean("manual").default(false).take(),
            optional(c.time("started_at")),
            optional(c.time("ended_at")),
            optional(c.name("outcome", 16)),
            optional(c.text("error_type")),
            optional(c.text("error_message")),
        ],
        &["failed_message_id", "attempt"],
    )
    .await
}

async fn groups(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let c = Columns::of(manager);
    let name = "failed_message_groups";
    table(
        manager,
        name,
        [
            c.fixed("fingerprint", 32).primary_key().take(),
            c.name("queue", 255),
            c.text("error_type"),
            c.text("error_message"),
            c.big_integer("pending").default(0).take(),
            c.big_integer("retrying").default(0).take(),
            c.big_integer("failed").default(0).take(),
            c.big_integer("resolved").default(0).take(),
            c.time("first_seen"),
            c.time("last_seen"),
        ],
    )
    .await?;
    index(manager, name, &["last_seen", "fingerprint"]).await?;
    index(manager, name, &["queue", "last_seen", "fingerprint"]).await
}

/// What was deleted, for as long as watchers of other replicas need to learn of it.
async fn deletions(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let c = Columns::of(manager);
    let name = "failed_message_deletions";
    table(
        manager,
        name,
        [c.fixed("id", 36).primary_key().take(), c.time("deleted_at")],
    )
    .await?;
    index(manager, name, &["deleted_at"]).await
}
