//! Why the database takes no changes, in words for whoever is woken by it.

use sea_orm::{DbErr, RuntimeErr, SqlxError, SqlxMySqlError, SqlxPostgresError, SqlxSqliteError};

/// Why the database takes no changes. Of those but [`Away`](Self::Away) it still answers questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    #[error("the database is away")]
    Away,
    #[error("the disk of the database is full")]
    Full,
    #[error("the database is read-only")]
    ReadOnly,
    #[error("the database fails to write")]
    Failing,
    #[error("the database does not finish a small write in time")]
    Slow,
    /// SQLite alone. What is written from then on would be gone with the process.
    #[error("the database's file was deleted or replaced while the gateway runs")]
    Lost,
}

impl Trouble {
    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Away => "start the database, or see why it is not reached",
            Self::Full => {
                "make room on its disk (for SQLite: the disk of DATA_DIR), then it goes on by itself; AUDIT_MAX_BYTES bounds the message log"
            }
            Self::ReadOnly => {
                "make it writable (the file system, the rights of the file, the server's read-only mode), then it goes on by itself"
            }
            Self::Failing => "see the cause, and the disk of the database; it goes on by itself",
            Self::Slow => "see the disk and the locks of the database; it goes on by itself",
            Self::Lost => {
                "this process alone still has what was stored: while it runs, list it, or copy the file out of /proc/PID/fd; put the file back in its place, or restart the gateway, which then uses what is there"
            }
        }
    }

    /// What an error says of the database as a whole. `None`: nothing, or that it is away.
    pub(super) fn of(error: &DbErr) -> Option<Self> {
        let (DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error))
        | DbErr::Conn(RuntimeErr::SqlxError(error))) = error
        else {
            return None;
        };
        let SqlxError::Database(error) = &**error else {
            return None;
        };
        if let Some(error) = error.try_downcast_ref::<SqlxMySqlError>() {
            mysql(error.number())
        } else if let Some(error) = error.try_downcast_ref::<SqlxPostgresError>() {
            postgres(error.code())
        } else if error.try_downcast_ref::<SqlxSqliteError>().is_some() {
            sqlite(error.code()?.parse().ok()?)
        } else {
            None
        }
    }
}

/// <https://mariadb.com/kb/en/mariadb-error-code-reference/>
fn mysql(number: u16) -> Option<Trouble> {
    match number {
        // Disk full, error writing a file, the table is full: its tablespace cannot grow.
        1021 | 1026 | 1114 => Some(Trouble::Full),
        // --read-only, a read-only transaction by default, InnoDB in read-only mode.
        1290 | 1792 | 1836 => Some(Trouble::ReadOnly),
        _ => None,
    }
}

/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
fn postgres(code: &str) -> Option<Trouble> {
    match code {
        // Disk full.
        "53100" => Some(Trouble::Full),
        // Read-only transaction: a standby, or default_transaction_read_only.
        "25006" => Some(Trouble::ReadOnly),
        // An input/output error of the server's own.
        "58030" => Some(Trouble::Failing),
        _ => None,
    }
}

/// <https://www.sqlite.org/rescode.html>; the lower byte is the primary code.
fn sqlite(code: u32) -> Option<Trouble> {
    match code & 0xff {
        13 => Some(Trouble::Full),
        8 => Some(Trouble::ReadOnly),
        10 => Some(Trouble::Failing),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_told_apart() {
        assert_eq!(sqlite(13), Some(Trouble::Full));
        // SQLITE_READONLY_DBMOVED, SQLITE_IOERR_WRITE.
        assert_eq!(sqlite(1032), Some(Trouble::ReadOnly));
        assert_eq!(sqlite(778), Some(Trouble::Failing));
        assert_eq!(sqlite(5), None, "busy is nothing of the kind");
        assert_eq!(mysql(1114), Some(Trouble::Full));
        assert_eq!(mysql(1213), None);
        assert_eq!(postgres("53100"), Some(Trouble::Full));
        assert_eq!(postgres("53300"), None, "too many connections");
    }
}
