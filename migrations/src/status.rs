//! Which migrations a database has, read without writing: a user without the right to create tables may ask.

use std::collections::BTreeSet;

use sea_orm_migration::prelude::*;

use crate::{Error, Migrator};

/// A migration that this version knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub name: String,
    pub applied: bool,
}

/// What a database has, compared with what this version knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// In the order in which they are applied.
    pub known: Vec<Known>,
    /// Applied, but by a newer version.
    pub unknown: Vec<String>,
}

impl Status {
    pub(crate) async fn read<C: ConnectionTrait>(db: &C) -> Result<Self, Error>
    where
        for<'a> &'a C: IntoSchemaManagerConnection<'a>,
    {
        let mut applied = applied(db).await.map_err(Error::Read)?;
        let known = Migrator::migrations()
            .iter()
            .map(|migration| {
                let name = migration.name().to_owned();
                let applied = applied.remove(&name);
                Known { name, applied }
            })
            .collect();
        Ok(Self {
            known,
            unknown: applied.into_iter().collect(),
        })
    }

    /// What [`up`](crate::up) would apply.
    #[must_use]
    pub fn pending(&self) -> Vec<&str> {
        self.known
            .iter()
            .filter(|known| !known.applied)
            .map(|known| known.name.as_str())
            .collect()
    }

    /// Refuses a database that a newer version migrated: neither migrating nor serving goes on.
    pub fn refuse_newer(&self) -> Result<(), Error> {
        if self.unknown.is_empty() {
            Ok(())
        } else {
            Err(Error::Newer(self.unknown.clone()))
        }
    }
}

async fn applied<C: ConnectionTrait>(db: &C) -> Result<BTreeSet<String>, DbErr>
where
    for<'a> &'a C: IntoSchemaManagerConnection<'a>,
{
    let table = Migrator::migration_table_name();
    if !SchemaManager::new(db).has_table(table.to_string()).await? {
        return Ok(BTreeSet::new());
    }
    let rows = db
        .query_all(Query::select().column("version").from(table))
        .await?;
    rows.iter().map(|row| row.try_get("", "version")).collect()
}
