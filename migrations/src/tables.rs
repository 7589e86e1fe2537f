//! Steps of migrations that may run again: MySQL commits each statement alone, so a process that dies leaves half a migration.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{DbBackend, Statement};

/// Creates a table unless it is there.
pub(crate) async fn table(
    manager: &SchemaManager<'_>,
    name: &'static str,
    columns: impl IntoIterator<Item = ColumnDef>,
) -> Result<(), DbErr> {
    create(manager, name, columns, &[]).await
}

/// Creates a table whose primary key has several columns, unless it is there.
pub(crate) async fn table_with_key(
    manager: &SchemaManager<'_>,
    name: &'static str,
    columns: impl IntoIterator<Item = ColumnDef>,
    key: &[&'static str],
) -> Result<(), DbErr> {
    create(manager, name, columns, key).await
}

async fn create(
    manager: &SchemaManager<'_>,
    name: &'static str,
    columns: impl IntoIterator<Item = ColumnDef>,
    key: &[&'static str],
) -> Result<(), DbErr> {
    let mut table = Table::create();
    table.table(name).if_not_exists();
    for mut column in columns {
        table.col(&mut column);
    }
    if !key.is_empty() {
        let mut index = Index::create();
        for column in key {
            index.col(*column);
        }
        table.primary_key(&mut index);
    }
    if manager.get_database_backend() == DbBackend::MySql {
        table
            .engine("InnoDB")
            .character_set("utf8mb4")
            .collate(bytewise_collation(manager).await?);
    }
    manager.create_table(table).await
}

/// The collation that compares bytes. `utf8mb4_bin` ignores spaces at the end; MariaDB and MySQL 8.0.17 each
/// have one that does not, under a name of its own.
async fn bytewise_collation(manager: &SchemaManager<'_>) -> Result<String, DbErr> {
    let found = manager
        .get_connection()
        .query_one_raw(Statement::from_string(
            DbBackend::MySql,
            "SELECT CAST(COLLATION_NAME AS CHAR) AS name FROM information_schema.COLLATIONS \
             WHERE COLLATION_NAME IN ('utf8mb4_nopad_bin', 'utf8mb4_0900_bin') ORDER BY 1 DESC LIMIT 1",
        ))
        .await?;
    found.map_or_else(
        || Ok("utf8mb4_bin".to_owned()),
        |row| row.try_get("", "name"),
    )
}

/// Creates an index unless it is there.
pub(crate) async fn index(
    manager: &SchemaManager<'_>,
    table: &'static str,
    columns: &[&'static str],
) -> Result<(), DbErr> {
    create_index(manager, "idx", table, columns).await
}

/// Creates a unique index unless it is there. NULLs are all different.
pub(crate) async fn unique_index(
    manager: &SchemaManager<'_>,
    table: &'static str,
    columns: &[&'static str],
) -> Result<(), DbErr> {
    create_index(manager, "uq", table, columns).await
}

async fn create_index(
    manager: &SchemaManager<'_>,
    kind: &str,
    table: &'static str,
    columns: &[&'static str],
) -> Result<(), DbErr> {
    let name = format!("{kind}_{table}_{}", columns.join("_"));
    // MySQL has no CREATE INDEX IF NOT EXISTS.
    if manager.has_index(table, &name).await? {
        return Ok(());
    }
    let mut index = Index::create();
    index.name(name).table(table);
    for column in columns {
        index.col(*column);
    }
    if kind == "uq" {
        index.unique();
    }
    manager.create_index(index).await
}
