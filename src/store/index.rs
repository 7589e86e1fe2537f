//! Along which index a list is read.
//!
//! For `ORDER BY … LIMIT`, MariaDB and MySQL may walk the whole table in the list's order, past all that the filter leaves out,
//! although another index has just the rows that are wanted in just this order (MySQL's name for it is `prefer_ordering_index`:
//! <https://dev.mysql.com/doc/refman/8.0/en/switchable-optimizations.html#optflag_prefer-ordering-index>). That takes long
//! exactly where it hurts: a queue whose failed messages are older than a million others. So they are told. The other engines
//! choose well, and know no such word.

use sea_orm::{
    EntityTrait, QueryTrait, Select,
    sea_query::extension::mysql::{IndexHintScope, MySqlSelectStatementExt},
};

/// An index by its name in the migrations.
pub type Index = &'static str;

/// Reads along this index, on engines that must be told.
pub fn along<E: EntityTrait>(mut rows: Select<E>, index: Option<Index>) -> Select<E> {
    if let Some(index) = index {
        let rows = QueryTrait::query(&mut rows);
        rows.force_index(index, IndexHintScope::All);
    }
    rows
}
