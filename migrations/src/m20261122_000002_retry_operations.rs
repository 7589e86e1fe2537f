//! Bulk retries: what they match, how far they are, and which replica drives them.

use sea_orm_migration::prelude::*;

use crate::columns::{Columns, optional};
use crate::tables::table;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let c = Columns::of(manager);
        table(
            manager,
            "retry_operations",
            [
                c.fixed("id", 36).primary_key().take(),
                c.bytes("filter"),
                c.name("state", 16),
                optional(c.text("stop_reason")),
                c.integer("rate"),
                optional(c.big_integer("row_limit")),
                c.big_integer("matched").default(0).take(),
                c.big_integer("started").default(0).take(),
                c.big_integer("succeeded").default(0).take(),
                c.big_integer("failed_again").default(0).take(),
                c.big_integer("skipped").default(0).take(),
                optional(c.time("cursor_failed_at")),
                optional(c.fixed("cursor_id", 36)),
                optional(c.time("lease_until")),
                c.time("created_at"),
                c.time("updated_at"),
                optional(c.time("ended_at")),
            ],
        )
        .await
    }
}
