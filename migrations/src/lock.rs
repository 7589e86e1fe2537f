//! The lock under which a server's migrations are applied, so that replicas may start together.
//!
//! PostgreSQL and MySQL bind such a lock to a session. The pool of the application hands out any connection, so
//! the lock has a pool of its own, with one connection, on which the migrations run as well. The server frees the
//! lock with the session: also when the caller stops waiting, or the process dies.
//!
//! SQLite needs none of it: the migrations are one `BEGIN IMMEDIATE` transaction.

use std::time::{Duration, Instant};

use sea_orm_migration::DbErr;
use sea_orm_migration::sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, RuntimeErr, SqlxError, Statement,
};

use crate::Error;

/// Asking again rather than waiting in the database: a statement that waits there holds a snapshot, and
/// `CREATE INDEX CONCURRENTLY` waits for those.
const ASK_EVERY: Duration = Duration::from_millis(200);

pub(crate) struct Lock {
    connection: DatabaseConnection,
}

impl Lock {
    /// Waits until this process is the one that migrates.
    pub(crate) async fn take(db: &DatabaseConnection, at_most: Duration) -> Result<Self, Error> {
        let lock = Self {
            connection: connect_alone(db).await?,
        };
        if lock.ask(Question::Take).await? {
            return Ok(lock);
        }
        tracing::info!("another process is migrating the database; waiting for it");
        let started = Instant::now();
        while started.elapsed() < at_most {
            tokio::time::sleep(ASK_EVERY).await;
            if lock.ask(Question::Take).await? {
                return Ok(lock);
            }
        }
        lock.close().await;
        Err(Error::Locked(at_most))
    }

    /// The connection that holds the lock.
    pub(crate) fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    /// A pool replaces a broken connection silently, and the new one would go on without the lock.
    pub(crate) async fn check(&self) -> Result<(), Error> {
        if self.ask(Question::Held).await? {
            Ok(())
        } else {
            Err(Error::LockLost)
        }
    }

    /// Frees the lock before it returns.
    pub(crate) async fn release(self) {
        // Should this fail, the end of the session frees it a moment later.
        if let Err(error) = self.ask(Question::Release).await {
            tracing::debug!(%error, "the migration lock ends with its connection");
        }
        self.close().await;
    }

    async fn close(self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "the connection of the migration lock did not close cleanly");
        }
    }

    async fn ask(&self, question: Question) -> Result<bool, Error> {
        let backend = self.connection.get_database_backend();
        let sql = Statement::from_string(backend, question.sql(backend)?);
        let row = self
            .connection
            .query_one_raw(sql)
            .await
            .map_err(Error::Lock)?;
        let answer: Option<Option<bool>> = row
            .map(|row| row.try_get("", "answer"))
            .transpose()
            .map_err(Error::Lock)?;
        // NULL: MySQL could not tell, or knows no such lock.
        Ok(answer.flatten().unwrap_or_default())
    }
}

#[derive(Clone, Copy)]
enum Question {
    Take,
    Held,
    Release,
}

impl Question {
    /// Advisory locks of PostgreSQL belong to a database, those of MySQL to the server: there the name says which
    /// database, hashed because a name of a lock has at most 64 characters; by SHA2, because MySQL 9 has no SHA1().
    fn sql(self, backend: DbBackend) -> Result<&'static str, Error> {
        Ok(match (backend, self) {
            (DbBackend::Postgres, Self::Take) => {
                "SELECT pg_try_advisory_lock(1668248946, 1953064306) AS answer"
            }
            (DbBackend::Postgres, Self::Held) => {
                "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted \
                 AND pid = pg_backend_pid() AND classid = 1668248946 AND objid = 1953064306 AND objsubid = 2) AS answer"
            }
            (DbBackend::Postgres, Self::Release) => {
                "SELECT pg_advisory_unlock(1668248946, 1953064306) AS answer"
            }
            (DbBackend::MySql, Self::Take) => {
                "SELECT GET_LOCK(CONCAT('courtier_migrations.', LEFT(SHA2(DATABASE(), 256), 40)), 0) AS answer"
            }
            (DbBackend::MySql, Self::Held) => {
                "SELECT IS_USED_LOCK(CONCAT('courtier_migrations.', LEFT(SHA2(DATABASE(), 256), 40))) = CONNECTION_ID() AS answer"
            }
            (DbBackend::MySql, Self::Release) => {
                "SELECT RELEASE_LOCK(CONCAT('courtier_migrations.', LEFT(SHA2(DATABASE(), 256), 40))) AS answer"
            }
            (other, _) => return Err(Error::Unsupported(other)),
        })
    }
}

/// A pool like the application's, but with one connection, which nothing ends for its age.
async fn connect_alone(db: &DatabaseConnection) -> Result<DatabaseConnection, Error> {
    let connected = match db.get_database_backend() {
        DbBackend::Postgres => {
            let pool = db.get_postgres_connection_pool();
            let options = pool.options().clone().min_connections(0).max_connections(1);
            let options = options
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false);
            options
                .connect_with((*pool.connect_options()).clone())
                .await
                .map(DatabaseConnection::from)
        }
        DbBackend::MySql => {
            let pool = db.get_mysql_connection_pool();
            let options = pool.options().clone().min_connections(0).max_connections(1);
            let options = options
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false);
            options
                .connect_with((*pool.connect_options()).clone())
                .await
                .map(DatabaseConnection::from)
        }
        other => return Err(Error::Unsupported(other)),
    };
    connected.map_err(|error| Error::Connect(connect_error(error)))
}

fn connect_error(error: SqlxError) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}

#[cfg(test)]
mod tests;
