//! What can go wrong with the database, told apart by codes, never by text.

use sea_orm::{
    DbErr, RuntimeErr, SqlErr, SqlxError, SqlxMySqlError, SqlxPostgresError, SqlxSqliteError,
};

use crate::failure::Status;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be reached, or does not answer.
    #[error("the database cannot be reached")]
    Down,
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
    Refused(#[source] Box<DbErr>),
    /// An entry cannot be read: something else wrote it, or it was damaged.
    #[error("entry {id} cannot be read: its {what} is damaged")]
    Damaged { id: String, what: &'static str },
}

impl From<crate::failure::machine::Conflict> for Error {
    fn from(conflict: crate::failure::machine::Conflict) -> Self {
        Self::Conflict(conflict.0)
    }
}

impl From<DbErr> for Error {
    fn from(error: DbErr) -> Self {
        match judge(&error) {
            Judgement::Down => {
                tracing::debug!(%error, "the database is away");
                Self::Down
            }
            Judgement::Again => Self::Busy,
            Judgement::Refused => Self::Refused(Box::new(error)),
        }
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
        // Too many connections, shutdown in progress, connection killed, read-only (a failover), no free memory.
        1040 | 1053 | 1203 | 1290 | 1317 | 1836 | 1927 | 4031 | 1037 | 1041 => Judgement::Down,
        _ => Judgement::Refused,
    }
}

/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn postgres(code: &str) -> Judgement {
    match code {
        // Serialization failure, deadlock, lock not available.
        "40001" | "40P01" | "55P03" => Judgement::Again,
        // Read-only (a failover), query cancelled by a timeout.
        "25006" | "57014" => Judgement::Down,
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
        5 | 6 => Judgement::Again,       // busy, locked
        10 | 13 | 14 => Judgement::Down, // input/output error, disk full, cannot open
        _ => Judgement::Refused,
    }
}
