//! Column types, engine by engine. The migrations say what a column means; how that is written is said here once.
//!
//! Applied migrations use these too: add to them, but never change what one of them creates.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

/// Makes columns for one engine. All are NOT NULL; [`optional`] takes that back.
#[derive(Clone, Copy)]
pub(crate) struct Columns(DbBackend);

impl Columns {
    pub(crate) fn of(manager: &SchemaManager<'_>) -> Self {
        Self(manager.get_database_backend())
    }

    /// Text of at most `length` characters, compared byte for byte.
    pub(crate) fn name(self, column: &'static str, length: u32) -> ColumnDef {
        let mut def = ColumnDef::new(column);
        def.string_len(length).not_null();
        self.bytewise(def)
    }

    /// Text of exactly `length` ASCII characters: ids and hashes.
    pub(crate) fn fixed(self, column: &'static str, length: u32) -> ColumnDef {
        let mut def = ColumnDef::new(column);
        match self.0 {
            // Parameters arrive as `text` there, and an index over char(n) does not serve `char(n) = text`.
            DbBackend::Postgres => def.string_len(length),
            _ => def.char_len(length),
        };
        def.not_null();
        self.bytewise(def)
    }

    /// Text without a limit that a message could reach.
    pub(crate) fn text(self, column: &'static str) -> ColumnDef {
        let mut def = ColumnDef::new(column);
        match self.0 {
            // Its `text` ends at 65,535 bytes.
            DbBackend::MySql => def.custom("mediumtext"),
            _ => def.text(),
        };
        def.not_null();
        self.bytewise(def)
    }

    pub(crate) fn bytes(self, column: &'static str) -> ColumnDef {
        let mut def = ColumnDef::new(column);
        match self.0 {
            // Its `blob` ends at 65,535 bytes.
            DbBackend::MySql => def.custom("longblob"),
            _ => def.blob(),
        };
        def.not_null().take()
    }

    /// A moment in UTC, with microseconds.
    pub(crate) fn time(self, column: &'static str) -> ColumnDef {
        let mut def = ColumnDef::new(column);
        match self.0 {
            // Its `timestamp` ends in 2038, and both come without a fraction unless asked.
            DbBackend::MySql => def.custom("datetime(6)"),
            DbBackend::Postgres => def.custom("timestamp(6) with time zone"),
            _ => def.timestamp_with_time_zone(),
        };
        def.not_null().take()
    }

    pub(crate) fn integer(self, column: &'static str) -> ColumnDef {
        ColumnDef::new(column).integer().not_null().take()
    }

    pub(crate) fn big_integer(self, column: &'static str) -> ColumnDef {
        ColumnDef::new(column).big_integer().not_null().take()
    }

    pub(crate) fn boolean(self, column: &'static str) -> ColumnDef {
        ColumnDef::new(column).boolean().not_null().take()
    }

    /// A key that the database counts up.
    pub(crate) fn serial(self, column: &'static str) -> ColumnDef {
        self.big_integer(column)
            .auto_increment()
            .primary_key()
            .take()
    }

    /// MySQL takes the collation from the table, SQLite compares bytes unless told otherwise.
    fn bytewise(self, mut def: ColumnDef) -> ColumnDef {
        if self.0 == DbBackend::Postgres {
            def.extra("COLLATE \"C\"");
        }
        def
    }
}

/// The same column, which may be NULL.
pub(crate) fn optional(mut column: ColumnDef) -> ColumnDef {
    column.null().take()
}
