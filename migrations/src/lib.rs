//! Courtier's SQL schema, for PostgreSQL, MySQL, MariaDB and SQLite, and how it is brought up to date.
//!
//! [`up`] may run in any number of replicas at once: the first takes a lock and applies what is missing, the
//! others wait and find nothing to do. A process that dies in between leaves a lock that ends with it and steps
//! that may run again. How to add a migration: README.md of this crate.

mod columns;
mod error;
mod lock;
mod m20261122_000001_failed_messages;
mod m20261122_000002_retry_operations;
mod m20261122_000003_dead_letter_queues;
mod m20261122_000004_message_logs;
mod m20261125_000005_write_probe;
mod m20261126_000006_message_log_correlation_id;
mod m20261126_000007_message_log_by_correlation_id;
mod status;
mod tables;

use std::time::Duration;

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{
    DatabaseConnection, DbBackend, SqliteTransactionMode, TransactionOptions, TransactionTrait,
};

pub use error::Error;
use lock::Lock;
pub use status::{Known, Status};

/// Longer than the migrations of another replica take; an orchestrator restarts this one anyway.
const WAIT_FOR_LOCK: Duration = Duration::from_secs(60);

struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_failed_messages::Migration),
            Box::new(m20261122_000002_retry_operations::Migration),
            Box::new(m20261122_000003_dead_letter_queues::Migration),
            Box::new(m20261122_000004_message_logs::Migration),
            Box::new(m20261125_000005_write_probe::Migration),
            Box::new(m20261126_000006_message_log_correlation_id::Migration),
            Box::new(m20261126_000007_message_log_by_correlation_id::Migration),
        ]
    }

    /// Not the library's default: another service may keep its own migrations in the same database.
    fn migration_table_name() -> DynIden {
        "courtier_migrations".into_iden()
    }
}

/// Which migrations the database has. Writes nothing.
pub async fn status(db: &DatabaseConnection) -> Result<Status, Error> {
    Status::read(db).await
}

/// Applies what is missing and returns the names of what it applied itself.
pub async fn up(db: &DatabaseConnection) -> Result<Vec<String>, Error> {
    let status = status(db).await?;
    status.refuse_newer()?;
    if status.pending().is_empty() {
        // No lock, no right to create tables needed.
        return Ok(Vec::new());
    }
    match db.get_database_backend() {
        DbBackend::Sqlite => up_in_one_transaction(db).await,
        _ => {
            let lock = Lock::take(db, WAIT_FOR_LOCK).await?;
            let applied = up_under(&lock).await;
            lock.release().await;
            applied
        }
    }
}

/// SQLite has transactional DDL and one writer at a time: the transaction is the lock, and rolls back when dropped.
async fn up_in_one_transaction(db: &DatabaseConnection) -> Result<Vec<String>, Error> {
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let transaction = db.begin_with_options(options).await.map_err(Error::Lock)?;
    let status = Status::read(&transaction).await?;
    status.refuse_newer()?;
    let mut applied = Vec::new();
    for name in status.pending() {
        apply_next(&transaction, name).await?;
        applied.push(name.to_owned());
    }
    transaction.commit().await.map_err(Error::Commit)?;
    Ok(applied)
}

async fn up_under(lock: &Lock) -> Result<Vec<String>, Error> {
    let db = lock.connection();
    // Another replica may have been faster.
    let status = Status::read(db).await?;
    status.refuse_newer()?;
    let mut applied = Vec::new();
    for name in status.pending() {
        lock.check().await?;
        apply_next(db, name).await?;
        applied.push(name.to_owned());
    }
    Ok(applied)
}

async fn apply_next<'c>(db: impl IntoSchemaManagerConnection<'c>, name: &str) -> Result<(), Error> {
    Migrator::up(db, Some(1))
        .await
        .map_err(|source| Error::Apply {
            name: name.to_owned(),
            source,
        })
}
