//! `failed_message_attempts`

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "failed_message_attempts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub failed_message_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub attempt: i32,
    pub manual: bool,
    pub started_at: Option<DateTimeUtc>,
    pub ended_at: Option<DateTimeUtc>,
    pub outcome: Option<String>,
    pub error_type: Option<String>,
    pub error_message: Option<String>,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
