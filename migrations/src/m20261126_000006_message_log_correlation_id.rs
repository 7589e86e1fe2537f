//! The correlation id of a logged message, as a column that can be asked for. Entries from before stay without.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::columns::{Columns, optional};

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let (name, column) = ("message_logs", "correlation_id");
        if manager.has_column(name, column).await? {
            return Ok(());
        }
        // It takes no time, once it has the table for itself; others queue behind it meanwhile.
        let patience = match manager.get_database_backend() {
            DbBackend::Postgres => Some("SET LOCAL lock_timeout = '10s'"),
            DbBackend::MySql => Some("SET SESSION lock_wait_timeout = 10"),
            _ => None,
        };
        if let Some(patience) = patience {
            manager
                .get_connection()
                .execute_unprepared(patience)
                .await?;
        }
        let mut column = optional(Columns::of(manager).name(column, 255));
        let mut alter = Table::alter();
        alter.table(name).add_column(&mut column);
        manager.alter_table(alter).await
    }
}
