//! Questions about the message log. Each page is read along an index, from where the one before ended.

use sea_orm::{
    ColumnTrait, Condition, DbBackend, EntityTrait, Iterable, QueryFilter, QueryOrder, QuerySelect,
    Select, sea_query::Expr,
};
use serde::{Deserialize, Serialize};

use super::{EventKind, LogStatus};
use crate::{
    failed_message::Time,
    message::Message,
    store::{
        Cursor, Error, Page, Store,
        connection::Pools,
        entity::{
            message_log::{Column, Entity, Model},
            message_log_event,
        },
        index::{Index, along},
        properties,
        query::{SCAN, cut, readable},
        row,
    },
};

/// Events of one message that are shown: the newest.
const TIMELINE: u64 = 1_000;

/// Conditions that must all hold; what is empty is no condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogFilter {
    pub exchange: Option<String>,
    pub routing_key: Option<String>,
    /// Entries that a version before wrote have none.
    pub correlation_id: Option<String>,
    pub status: Option<LogStatus>,
    /// From this moment on.
    pub published_after: Option<Time>,
    /// Before this moment.
    pub published_before: Option<Time>,
}

/// An entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    pub message_id: String,
    pub publish_id: Option<String>,
    pub exchange: String,
    pub routing_key: String,
    /// Its payload is empty where it is not kept, and in lists.
    pub message: Message,
    pub keeps_payload: bool,
    pub payload_size: u64,
    pub status: LogStatus,
    pub published_at: Time,
    pub delivered_at: Option<Time>,
    pub failed_at: Option<Time>,
}

/// An event as it was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    pub kind: EventKind,
    pub at: Time,
    /// Empty: in none.
    pub queue: String,
    /// 0: none.
    pub attempt: u32,
    pub detail: String,
}

impl Store {
    /// Messages, the one published last first, without payloads.
    pub async fn logged_messages(
        &self,
        filter: &LogFilter,
        after: Option<&Cursor>,
        limit: u64,
    ) -> Result<Page<Logged>, Error> {
        let after = after.map(Place::of).transpose()?;
        let (mut rows, end) = self
            .read(async |pools| page(pools, filter, after, limit).await)
            .await?;
        let next = cut(&mut rows, limit, |row| {
            (row.published_at, row.id.to_string())
        });
        let (rows, unreadable) = readable(rows, Model::read)?;
        Ok(Page {
            rows,
            next: next.or(end),
            unreadable,
        })
    }

    /// One message, and what happened to it, the oldest first.
    pub async fn logged_message(&self, message_id: &str) -> Result<(Logged, Vec<Happened>), Error> {
        let id = row::storable(message_id);
        let (entry, mut events) = self
            .read(async |pools| {
                use message_log_event::Column as Of;
                let entry = Entity::find().filter(Column::MessageId.eq(id.as_str()));
                let entry = entry.one(&pools.read).await?.ok_or(Error::NotFound)?;
                let events = message_log_event::Entity::find()
                    .filter(Of::MessageId.eq(id.as_str()))
                    .order_by_desc(Of::Id)
                    .limit(TIMELINE);
                Ok((entry, events.all(&pools.read).await?))
            })
            .await?;
        // Events are written in batches, and by several replicas: time is the better order.
        events.sort_by_key(|event| (event.at, event.id));
        let events: Result<Vec<_>, _> = events.into_iter().map(read_event).collect();
        let mut events = events?;
        // A batch whose commit was not answered is written again.
        events.dedup();
        Ok((entry.read()?, events))
    }
}

impl LogFilter {
    /// Whether conditions are left that no index serves.
    fn scans(&self) -> bool {
        let served = [
            self.correlation_id.is_some(),
            self.exchange.is_some(),
            self.status.is_some(),
        ];
        self.routing_key.is_some() || served.into_iter().filter(|is_set| *is_set).count() > 1
    }

    fn equal(column: Column, text: Option<&str>) -> Condition {
        let equal = text.map(|text| column.eq(row::storable(text)));
        Condition::all().add_option(equal)
    }

    fn status(&self) -> Condition {
        let status = self.status.map(|status| status.to_string());
        Self::equal(Column::Status, status.as_deref())
    }

    /// What one index serves.
    fn indexed(&self, backend: DbBackend) -> Condition {
        let moment = |at: Time| row::moment(at, backend);
        let after = self.published_after.map(moment);
        let before = self.published_before.map(moment);
        let first = match (&self.correlation_id, &self.exchange) {
            (Some(id), _) => Self::equal(Column::CorrelationId, Some(id)),
            (None, Some(exchange)) => Self::equal(Column::Exchange, Some(exchange)),
            (None, None) => self.status(),
        };
        first
            .add_option(after.map(|at| Column::PublishedAt.gte(at)))
            .add_option(before.map(|at| Column::PublishedAt.lt(at)))
    }

    /// That index.
    fn index(&self) -> Option<Index> {
        match (&self.correlation_id, &self.exchange, self.status) {
            (Some(_), ..) => Some("idx_message_logs_correlation_id_published_at_id"),
            (None, Some(_), _) => Some("idx_message_logs_exchange_published_at_id"),
            (None, None, Some(_)) => Some("idx_message_logs_status_published_at_id"),
            (None, None, None) => None,
        }
    }

    /// The rest.
    fn scanned(&self) -> Condition {
        Self::equal(Column::RoutingKey, self.routing_key.as_deref())
            .add(Self::equal(Column::Exchange, self.exchange.as_deref()))
            .add(self.status())
    }
}

/// A place in the list.
#[derive(Clone, Copy)]
struct Place {
    at: Time,
    id: i64,
}

impl Place {
    fn of(cursor: &Cursor) -> Result<Self, Error> {
        let id = cursor.name.parse().map_err(|_| Error::PageToken)?;
        Ok(Self { at: cursor.at, id })
    }

    /// What comes after it. Written so that each engine reads it as a range of an index.
    fn older(self, backend: DbBackend) -> Condition {
        let at = row::moment(self.at, backend);
        Condition::all()
            .add(Column::PublishedAt.lte(at.clone()))
            .add(
                Condition::any()
                    .add(Column::PublishedAt.lt(at))
                    .add(Column::Id.lt(self.id)),
            )
    }

    fn not_older(self) -> Condition {
        Condition::all().add(Column::PublishedAt.gte(self.at)).add(
            Condition::any()
                .add(Column::PublishedAt.gt(self.at))
                .add(Column::Id.gte(self.id)),
        )
    }
}

/// One row more than the page, if there is one; and where only so many rows are looked at, where that ended.
async fn page(
    pools: &Pools,
    filter: &LogFilter,
    after: Option<Place>,
    limit: u64,
) -> Result<(Vec<Model>, Option<Cursor>), Error> {
    let within = Condition::all()
        .add(filter.indexed(pools.backend))
        .add_option(after.map(|place| place.older(pools.backend)));
    let list = |rows| along(newest_first(rows), filter.index());
    let rows = without_payload().filter(within.clone());
    if !filter.scans() {
        let rows = list(rows).limit(limit + 1);
        return Ok((rows.all(&pools.read).await?, None));
    }
    let end: Option<(Time, i64)> = list(Entity::find())
        .select_only()
        .columns([Column::PublishedAt, Column::Id])
        .filter(within)
        .offset(SCAN)
        .limit(1)
        .into_tuple()
        .one(&pools.read)
        .await?;
    let end = end.map(|(at, id)| Place { at, id });
    let rows = rows
        .filter(Condition::all().add_option(end.map(Place::not_older)))
        .filter(filter.scanned());
    let rows = list(rows).limit(limit + 1).all(&pools.read).await?;
    let end = end.map(|Place { at, id }| Cursor {
        at,
        name: id.to_string(),
    });
    Ok((rows, end))
}

fn newest_first(rows: Select<Entity>) -> Select<Entity> {
    rows.order_by_desc(Column::PublishedAt)
        .order_by_desc(Column::Id)
}

fn without_payload() -> Select<Entity> {
    let kept = Column::iter().filter(|column| !matches!(column, Column::Payload));
    Entity::find()
        .select_only()
        .columns(kept)
        .expr_as(Expr::val(Vec::<u8>::new()), "payload")
}

impl Model {
    fn read(self) -> Result<Logged, Error> {
        let keeps_payload = self.payload.is_some();
        let payload = self.payload.unwrap_or_default();
        let message = properties::decode(&self.metadata, payload, &self.message_id)?;
        Ok(Logged {
            status: row::parse(&self.status, &self.message_id, "status")?,
            message_id: self.message_id,
            publish_id: self.publish_id,
            exchange: self.exchange,
            routing_key: self.routing_key,
            message,
            keeps_payload,
            payload_size: u64::try_from(self.payload_size).unwrap_or_default(),
            published_at: self.published_at,
            delivered_at: self.delivered_at,
            failed_at: self.failed_at,
        })
    }
}

fn read_event(event: message_log_event::Model) -> Result<Happened, Error> {
    Ok(Happened {
        kind: row::parse(&event.event, &event.message_id, "event")?,
        at: event.at,
        queue: event.queue.unwrap_or_default(),
        attempt: row::unsigned(event.attempt.unwrap_or_default()),
        detail: event.detail.unwrap_or_default(),
    })
}
