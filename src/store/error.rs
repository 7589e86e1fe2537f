//! What can go wrong with the database, told apart by codes, never by text.

use std::sync::Arc;

use sea_orm::{
    DbErr, RuntimeErr, SqlErr, SqlxError, SqlxMySqlError, SqlxPostgresError, SqlxSqliteError,
};

use super::trouble::Trouble;
use crate::failed_message::Status;

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached, or does not answer.
    #[error("the database cannot be reached")]
    Down,
    /// It answers questions, and takes no changes.
    #[error("{0}")]
    NotWritable(Trouble),
    /// Others wanted the same rows at the same moment, again and again.
    #[error("the database is too busy")]
    Busy,
    #[error("there is no such entry")]
    NotFound,
    /// The state of the entry forbids it.
    #[error("it is {0}")]
    Conflict(Status),
    /// A page token that is not of this list.
    #[error("the page token is not one of this list")]
    PageToken,
    /// The database refuses this statement, and would again.
    #[error("the database refuses")]
    Refused(#[source] Arc<DbErr>),
    /// An entry cannot be read: something else wrote it, or it was damaged.
    #[error("entry {id} cannot be read: its {what} is damaged")]
    Damaged { id: String, what: &'static str },
}

impl From<crate::failed_message::machine::Conflict> for Error {
    fn from(conflict: crate::failed_message::machine::Conflict) -> Self {
        Self::Conflict(conflict.0)
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        let known = Self::of(&error);
        known.unwrap_or_else(|| Self::Refused(Arc::new(error)))
    }
}

impl Error {
    /// What an error of the driver says about the database. `None`: only that it refuses the statement.
    pub(super) fn of(error: &DbErr) -> Option<Self> {
        if let Some(trouble) = Trouble::of(error) {
            tracing::debug!(%error, %trouble, "a change is refused");
            return Some(Self::NotWritable(trouble));
        }
        match judge(error) {
            Judgement::Down => {
                tracing::debug!(%error, "the database is away");
                Some(Self::Down)
            }
            Judgement::Again => Some(Self::Busy),
            Judgement::Refused => None,
        }
    }

    /// Whether it ends by itself, or by somebody's work on the database: the same again is done then.
    pub fn passes(&self) -> bool {
        self.is_of_database() || matches!(self, Self::Busy)
    }

    /// Whether the database as a whole is at fault, not this statement.
    pub fn is_of_database(&self) -> bool {
        matches!(self, Self::Down | Self::NotWritable(_))
    }
}

enum Judgement {
    Down,
    /// Another transaction was in the way; the same again may pass.
    Again,
    Refused,
}

fn judge(error: &DbErr) -> Judgement {
    if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) {
        // Two wrote the same at once. Whoever comes second looks first, and finds it.
        return Judgement::Again;
    }
    match error {
        DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => Judgement::Down,
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) => {
            of_driver(error)
        }
        _ => Judgement::Refused,
    }
}

fn of_driver(error: &SqlxError) -> Judgement {
    match error {
        SqlxError::Io(_)
        | SqlxError::Tls(_)
        | SqlxError::Protocol(_)
        | SqlxError::PoolTimedOut
        | SqlxError::PoolClosed
        | SqlxError::WorkerCrashed => Judgement::Down,
        SqlxError::Database(error) => {
            if let Some(error) = error.try_downcast_ref::<SqlxMySqlError>() {
                mysql(error.number())
            } else if let Some(error) = error.try_downcast_ref::<SqlxPostgresError>() {
                postgres(error.code())
            } else if error.try_downcast_ref::<SqlxSqliteError>().is_some() {
                let code = error.code().and_then(|code| code.parse().ok());
                sqlite(code.unwrap_or_default())
            } else {
                Judgement::Refused
            }
        }
        _ => Judgement::Refused,
    }
}

/// <https://mariadb.com/kb/en/mariadb-error-code-reference/>
fn mysql(number: u16) -> Judgement {
    match number {
        // Lock wait timeout, deadlock, record changed since the snapshot.
        1205 | 1213 | 1020 => Judgement::Again,
        // Too many connections, shutdown in progress, connection killed, no free memory.
        1040 | 1053 | 1203 | 1317 | 1927 | 4031 | 1037 | 1041 => Judgement::Down,
        _ => Judgement::Refused,
    }
}

/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn postgres(code: &str) -> Judgement {
    match code {
        // Serialization failure, deadlock, lock not available.
        "40001" | "40P01" | "55P03" => Judgement::Again,
        // Query cancelled by a timeout.
        "57014" => Judgement::Down,
        // Connection exceptions, insufficient resources, operator intervention.
        _ if code.starts_with("08") || code.starts_with("53") || code.starts_with("57P") => {
            Judgement::Down
        }
        _ => Judgement::Refused,
    }
}

/// <https://www.sqlite.org/rescode.html>; the lower byte is the primary code.
fn sqlite(code: u32) -> Judgement {
    match code & 0xff {
        5 | 6 => Judgement::Again, // busy, locked
        14 => Judgement::Down,     // cannot open
        _ => Judgement::Refused,
    }
}
