//! The index for it, made beside what goes on.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::tables::index;

#[derive(DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let (table, columns) = ("message_logs", ["correlation_id", "published_at", "id"]);
        if manager.get_database_backend() != DbBackend::Postgres {
            return index(manager, table, &columns).await;
        }
        let name = format!("idx_{table}_{}", columns.join("_"));
        let db = manager.get_connection();
        // One that an attempt before left is not valid.
        db.execute_unprepared(&format!("DROP INDEX CONCURRENTLY IF EXISTS {name}"))
            .await?;
        let columns = columns.join(", ");
        let create = format!("CREATE INDEX CONCURRENTLY {name} ON {table} ({columns})");
        db.execute_unprepared(&create).await.map(drop)
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(false)
    }
}
