//! One row that each replica writes to see whether the database takes changes.

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
            "write_probe",
            [
                c.integer("id").primary_key().take(),
                c.time("written_at"),
                // Empty, but for a moment after a full disk: whether there is room for more than a row again.
                c.bytes("filler"),
            ],
        )
        .await
    }
}
