//! `retry_operations`

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "retry_operations")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub filter: Vec<u8>,
    pub state: String,
    pub stop_reason: Option<String>,
    pub rate: i32,
    pub row_limit: Option<i64>,
    pub matched: i64,
    pub started: i64,
    pub succeeded: i64,
    pub failed_again: i64,
    pub skipped: i64,
    pub cursor_failed_at: Option<DateTimeUtc>,
    pub cursor_id: Option<String>,
    pub lease_until: Option<DateTimeUtc>,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
    pub ended_at: Option<DateTimeUtc>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
