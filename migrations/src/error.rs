//! Why migrations were not applied.

use std::time::Duration;

use sea_orm_migration::DbErr;
use sea_orm_migration::sea_orm::DbBackend;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A later version was here. Its rows may mean what this one cannot know.
    #[error("the database was migrated by a newer version; this one does not know {}", .0.join(", "))]
    Newer(Vec<String>),
    #[error("another process has held the migration lock for {} s", .0.as_secs())]
    Locked(Duration),
    #[error("the connection that held the migration lock is gone")]
    LockLost,
    #[error("no migrations are written for {0:?}")]
    Unsupported(DbBackend),
    #[error("cannot open a connection for the migrations")]
    Connect(#[source] DbErr),
    #[error("cannot ask for the migration lock")]
    Lock(#[source] DbErr),
    #[error("cannot read which migrations were applied")]
    Read(#[source] DbErr),
    #[error("migration {name} failed")]
    Apply {
        name: String,
        #[source]
        source: DbErr,
    },
    #[error("the applied migrations could not be committed")]
    Commit(#[source] DbErr),
}
