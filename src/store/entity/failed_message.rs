//! `failed_messages`

use sea_orm::entity::prelude::*;

#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "failed_messages")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub death_key: Option<String>,
    pub queue: String,
    pub exchange: String,
    pub routing_key: String,
    pub message_id: Option<String>,
    pub publish_id: Option<String>,
    pub properties: Vec<u8>,
    pub payload: Vec<u8>,
    pub error_type: String,
    pub error_message: String,
    pub error_stack: String,
    pub reason: String,
    pub fingerprint: String,
    pub attempt: i32,
    pub retry_count: i32,
    pub max_retries: i32,
    pub status: String,
    pub manual: bool,
    pub resolution: Option<String>,
    pub comment: Option<String>,
    pub failed_at: DateTimeUtc,
    pub last_failed_at: DateTimeUtc,
    pub last_retry_at: Option<DateTimeUtc>,
    pub next_retry_at: Option<DateTimeUtc>,
    pub resolved_at: Option<DateTimeUtc>,
    pub lease_token: Option<String>,
    pub lease_until: Option<DateTimeUtc>,
    pub lease_status: Option<String>,
    pub assume_at: Option<DateTimeUtc>,
    pub operation_id: Option<String>,
    pub created_at: DateTimeUtc,
    pub updated_at: DateTimeUtc,
}

#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
