//! The schema's version, for `courtier migrate`.

use super::{OpenError, Options, Place, connection};
use courtier_migrations as migrations;
use sea_orm::Database;

use crate::failed_message::Time;

/// Which steps the schema has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaStatus {
    pub applied: Vec<String>,
    pub pending: Vec<String>,
    /// Steps that this version does not know: the schema is newer.
    pub unknown: Vec<String>,
}

/// Looks, and changes nothing.
pub async fn schema_status(options: &Options) -> Result<SchemaStatus, OpenError> {
    let unusable = |error| OpenError::Database(options.place.clone(), error);
    let status = match &options.place {
        // Opening it would make it.
        Place::File(path) if !path.exists() => {
            let nothing = Database::connect("sqlite::memory:").await;
            migrations::status(&nothing.map_err(unusable)?).await
        }
        _ => {
            let (pools, _lock) = connection::open_alone(options).await?;
            migrations::status(&pools.write).await
        }
    };
    let status = status.map_err(OpenError::Migration)?;
    let steps = |applied: bool| {
        let known = status
            .known
            .iter()
            .filter(move |step| step.applied == applied);
        known.map(|step| step.name.clone()).collect()
    };
    Ok(SchemaStatus {
        applied: steps(true),
        pending: steps(false),
        unknown: status.unknown.clone(),
    })
}

/// What the database's clock says; of a file there is none.
pub async fn server_clock(options: &Options) -> Result<Option<Time>, OpenError> {
    if let Place::File(_) = &options.place {
        return Ok(None);
    }
    let (pools, _lock) = connection::open_alone(options).await?;
    let now = pools.now(&pools.read).await;
    now.map(Some)
        .map_err(|error| OpenError::Database(options.place.clone(), error))
}

/// Brings the schema up to date; the steps that were missing.
pub async fn migrate(options: &Options) -> Result<Vec<String>, OpenError> {
    let (pools, _lock) = connection::open_alone(options).await?;
    migrations::up(&pools.write)
        .await
        .map_err(|error| match error {
            migrations::Error::Newer(steps) => OpenError::Newer(steps.join(", ")),
            error => OpenError::Migration(error),
        })
}
